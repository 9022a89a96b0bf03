"""The ops: functions on torch tensors, on the CPU and on CUDA."""

from fastseg.ops.roi_align import multi_scale_roi_align, roi_align

__all__ = ["multi_scale_roi_align", "roi_align"]
