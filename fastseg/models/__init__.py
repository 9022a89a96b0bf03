"""Complete models, one file each."""

from fastseg.layers.roi_heads import Detections
from fastseg.models.build_mask_rcnn import (
    mask_rcnn_resnet18_fpn,
    mask_rcnn_resnet50_fpn,
    mask_rcnn_resnet50_fpn_v2,
    mask_rcnn_resnet101_fpn,
    mask_rcnn_resnext101_32x8d_fpn,
)
from fastseg.models.image_batch import ImageBatch, ImageTransform
from fastseg.models.mask_rcnn import MaskRCNN

__all__ = [
    "Detections",
    "ImageBatch",
    "ImageTransform",
    "MaskRCNN",
    "mask_rcnn_resnet18_fpn",
    "mask_rcnn_resnet50_fpn",
    "mask_rcnn_resnet50_fpn_v2",
    "mask_rcnn_resnet101_fpn",
    "mask_rcnn_resnext101_32x8d_fpn",
]
