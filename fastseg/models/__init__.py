"""Complete models, one file each."""

from fastseg.layers.mask_classification import MaskPredictions
from fastseg.layers.mask_selection import MaskDetections
from fastseg.layers.roi_heads import Detections
from fastseg.models.build_mask2former import (
    mask2former_resnet50,
    mask2former_resnet101,
    mask2former_swin_b,
    mask2former_swin_l,
    mask2former_swin_s,
    mask2former_swin_t,
)
from fastseg.models.build_mask_rcnn import (
    mask_rcnn_resnet18_fpn,
    mask_rcnn_resnet50_fpn,
    mask_rcnn_resnet50_fpn_v2,
    mask_rcnn_resnet101_fpn,
    mask_rcnn_resnext101_32x8d_fpn,
)
from fastseg.models.build_maskformer import (
    maskformer_resnet50,
    maskformer_resnet101,
    maskformer_swin_b,
    maskformer_swin_l,
    maskformer_swin_s,
    maskformer_swin_t,
)
from fastseg.models.build_solo import (
    decoupled_solo_light_resnet50_fpn,
    decoupled_solo_resnet50_fpn,
    decoupled_solo_resnet101_fpn,
    solo_resnet50_fpn,
    solo_resnet101_fpn,
    solov2_light_resnet18_fpn,
    solov2_light_resnet34_fpn,
    solov2_light_resnet50_dcn_fpn,
    solov2_light_resnet50_fpn,
    solov2_resnet18_fpn,
    solov2_resnet34_fpn,
    solov2_resnet50_fpn,
    solov2_resnet101_dcn_fpn,
    solov2_resnet101_fpn,
    solov2_resnext101_dcn_fpn,
)
from fastseg.models.image_batch import ImageBatch, ImageTransform
from fastseg.models.mask2former import Mask2Former
from fastseg.models.mask_rcnn import MaskRCNN
from fastseg.models.maskformer import MaskFormer
from fastseg.models.solo import SOLO

__all__ = [
    "SOLO",
    "Detections",
    "ImageBatch",
    "ImageTransform",
    "Mask2Former",
    "MaskDetections",
    "MaskFormer",
    "MaskPredictions",
    "MaskRCNN",
    "decoupled_solo_light_resnet50_fpn",
    "decoupled_solo_resnet50_fpn",
    "decoupled_solo_resnet101_fpn",
    "mask2former_resnet50",
    "mask2former_resnet101",
    "mask2former_swin_b",
    "mask2former_swin_l",
    "mask2former_swin_s",
    "mask2former_swin_t",
    "mask_rcnn_resnet18_fpn",
    "mask_rcnn_resnet50_fpn",
    "mask_rcnn_resnet50_fpn_v2",
    "mask_rcnn_resnet101_fpn",
    "mask_rcnn_resnext101_32x8d_fpn",
    "maskformer_resnet50",
    "maskformer_resnet101",
    "maskformer_swin_b",
    "maskformer_swin_l",
    "maskformer_swin_s",
    "maskformer_swin_t",
    "solo_resnet50_fpn",
    "solo_resnet101_fpn",
    "solov2_light_resnet18_fpn",
    "solov2_light_resnet34_fpn",
    "solov2_light_resnet50_dcn_fpn",
    "solov2_light_resnet50_fpn",
    "solov2_resnet18_fpn",
    "solov2_resnet34_fpn",
    "solov2_resnet50_fpn",
    "solov2_resnet101_dcn_fpn",
    "solov2_resnet101_fpn",
    "solov2_resnext101_dcn_fpn",
]
