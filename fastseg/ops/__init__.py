"""The ops: functions on torch tensors, on the CPU and on CUDA."""

from fastseg.ops.nms import batched_nms, nms
from fastseg.ops.roi_align import multi_scale_roi_align, roi_align

__all__ = ["batched_nms", "multi_scale_roi_align", "nms", "roi_align"]
