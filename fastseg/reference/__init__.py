"""The ops in plain torch, slow and written like their formulas: the definition of each op."""

from fastseg.reference.nms import batched_nms, nms

__all__ = ["batched_nms", "nms"]
