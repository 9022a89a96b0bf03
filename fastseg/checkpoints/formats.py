"""Recognises whose checkpoint a state dict is, by the beginnings of its keys."""

from __future__ import annotations

from collections.abc import Iterable

TORCHVISION_MASK_RCNN = "torchvision Mask R-CNN on a ResNet"

# The first format of which every beginning occurs is the one.
FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("torchvision Keypoint R-CNN", ("rpn.head.", "roi_heads.keypoint_")),
    (TORCHVISION_MASK_RCNN, ("backbone.body.layer1.", "rpn.head.", "roi_heads.mask_")),
    ("torchvision Mask R-CNN on another backbone than ResNet", ("rpn.head.", "roi_heads.mask_")),
    ("torchvision Faster R-CNN (no masks)", ("rpn.head.", "roi_heads.box_")),
    ("torchvision RetinaNet or FCOS (no masks)", ("backbone.body.", "head.classification_head.")),
    ("detectron2 Mask R-CNN", ("proposal_generator.rpn_head.", "roi_heads.mask_head.")),
    ("detectron2 R-CNN (no masks)", ("proposal_generator.rpn_head.",)),
    ("Mask2Former", ("sem_seg_head.pixel_decoder.",)),
    ("transformers Mask2Former", ("model.pixel_level_module.",)),
    ("mmdetection Mask R-CNN", ("rpn_head.", "roi_head.mask_head.")),
    ("mmdetection two-stage detector", ("rpn_head.", "roi_head.")),
    ("mmdetection SOLOv2", ("mask_head.mask_feature_head.",)),
    ("mmdetection Mask2Former", ("panoptic_head.",)),
    ("SOLO", ("bbox_head.solo_",)),
    ("Segment Anything", ("image_encoder.", "mask_decoder.")),
    ("Ultralytics YOLO", ("model.0.conv.",)),
    ("ResNet image classifier", ("conv1.", "layer1.0.", "fc.")),
)


def recognise(keys: Iterable[str]) -> str | None:
    """The name of the format, or None for an unknown one."""
    keys = tuple(keys)
    for name, beginnings in FORMATS:
        if all(any(key.startswith(beginning) for key in keys) for beginning in beginnings):
            return name
    return None
