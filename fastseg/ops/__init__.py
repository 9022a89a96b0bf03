"""The ops: functions on torch tensors, on the CPU and on CUDA."""

from fastseg.ops.nms import batched_nms, nms
from fastseg.ops.paste_masks import paste_masks
from fastseg.ops.rle import rle_decode, rle_encode
from fastseg.ops.roi_align import multi_scale_roi_align, roi_align

__all__ = [
    "batched_nms",
    "multi_scale_roi_align",
    "nms",
    "paste_masks",
    "rle_decode",
    "rle_encode",
    "roi_align",
]
