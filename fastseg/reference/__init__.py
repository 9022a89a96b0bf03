"""The ops in plain torch, slow and written like their formulas: the definition of each op."""

from fastseg.reference.nms import batched_nms, nms
from fastseg.reference.paste_masks import paste_masks
from fastseg.reference.rle import rle_decode, rle_encode

__all__ = ["batched_nms", "nms", "paste_masks", "rle_decode", "rle_encode"]
