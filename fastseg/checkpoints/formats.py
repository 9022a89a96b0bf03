"""Recognises whose checkpoint a state dict is, by the beginnings of its keys."""

from __future__ import annotations

from collections.abc import Iterable

TORCHVISION_MASK_RCNN = "torchvision Mask R-CNN on a ResNet"
DETECTRON2_MASK_RCNN = "detectron2 Mask R-CNN on a ResNet"
MMDETECTION_MASK_RCNN = "mmdetection Mask R-CNN on a ResNet"
FASTSEG_SOLO = "fastseg SOLO"
MMDETECTION_SOLO = "mmdetection SOLO"
ORIGINAL_SOLO = "the original SOLO"
ADELAIDET_SOLOV2 = "AdelaiDet SOLOv2"
FASTSEG_MASK2FORMER = "fastseg Mask2Former"
ORIGINAL_MASK2FORMER = "the original Mask2Former"
TRANSFORMERS_MASK2FORMER = "transformers Mask2Former"
MMDETECTION_MASK2FORMER = "mmdetection Mask2Former"
FASTSEG_MASKFORMER = "fastseg MaskFormer"
ORIGINAL_MASKFORMER = "the original MaskFormer"
TRANSFORMERS_MASKFORMER = "transformers MaskFormer"
MMDETECTION_MASKFORMER = "mmdetection MaskFormer"
MMSEGMENTATION_MASK2FORMER = "mmsegmentation Mask2Former"
MMSEGMENTATION_MASKFORMER = "mmsegmentation MaskFormer"
READABLE = (
    "Mask R-CNN (on a ResNet with feature pyramid) of torchvision, of detectron2 and of "
    "mmdetection; SOLO of fastseg, of the original and of mmdetection; "
    "SOLOv2 of AdelaiDet; Mask2Former and MaskFormer of fastseg, of the original, of mmdetection, "
    "of mmsegmentation and of transformers"
)

# The first format of which every beginning occurs is the one.
FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("torchvision Keypoint R-CNN", ("rpn.head.", "roi_heads.keypoint_")),
    (TORCHVISION_MASK_RCNN, ("backbone.body.layer1.", "rpn.head.", "roi_heads.mask_")),
    ("torchvision Mask R-CNN on another backbone than ResNet", ("rpn.head.", "roi_heads.mask_")),
    ("torchvision Faster R-CNN (no masks)", ("rpn.head.", "roi_heads.box_")),
    ("torchvision RetinaNet or FCOS (no masks)", ("backbone.body.", "head.classification_head.")),
    (
        "detectron2 Cascade Mask R-CNN",
        ("proposal_generator.rpn_head.", "roi_heads.box_head.0.", "roi_heads.mask_head."),
    ),
    ("detectron2 Keypoint R-CNN", ("proposal_generator.rpn_head.", "roi_heads.keypoint_head.")),
    ("detectron2 Panoptic FPN", ("proposal_generator.rpn_head.", "sem_seg_head.")),
    (
        "detectron2 PointRend",
        ("proposal_generator.rpn_head.", "roi_heads.mask_head.point_head."),
    ),
    (
        DETECTRON2_MASK_RCNN,
        (
            "backbone.bottom_up.res2.",
            "backbone.fpn_output2.",
            "proposal_generator.rpn_head.",
            "roi_heads.mask_head.",
        ),
    ),
    (
        "detectron2 Mask R-CNN without feature pyramid or on another backbone than ResNet",
        ("proposal_generator.rpn_head.", "roi_heads.mask_head."),
    ),
    ("detectron2 R-CNN (no masks)", ("proposal_generator.rpn_head.",)),
    (FASTSEG_MASK2FORMER, ("pixel_decoder.layers.", "decoder.query_features.")),
    (FASTSEG_MASKFORMER, ("pixel_decoder.lateral.0.0.", "decoder.query_embed.")),
    (
        ORIGINAL_MASK2FORMER,
        ("sem_seg_head.", "sem_seg_head.predictor.transformer_cross_attention_layers."),
    ),
    (ORIGINAL_MASKFORMER, ("sem_seg_head.predictor.transformer.decoder.",)),
    ("Mask DINO", ("sem_seg_head.predictor.decoder.",)),
    ("another model of detectron2 with a sem_seg_head", ("sem_seg_head.",)),
    ("transformers OneFormer", ("model.pixel_level_module.", "model.task_encoder.")),
    (
        TRANSFORMERS_MASK2FORMER,
        ("model.pixel_level_module.", "model.transformer_module.queries_features."),
    ),
    (TRANSFORMERS_MASKFORMER, ("model.pixel_level_module.", "mask_embedder.")),
    ("a base model of transformers without class predictor", ("pixel_level_module.",)),
    (
        "mmdetection Cascade Mask R-CNN, HTC or another cascade",
        ("rpn_head.", "roi_head.bbox_head.0."),
    ),
    ("mmdetection Mask Scoring R-CNN", ("rpn_head.", "roi_head.mask_iou_head.")),
    ("mmdetection PointRend", ("rpn_head.", "roi_head.point_head.")),
    ("mmdetection Panoptic FPN", ("rpn_head.", "semantic_head.")),
    (
        MMDETECTION_MASK_RCNN,
        ("backbone.layer1.", "neck.fpn_convs.", "rpn_head.", "roi_head.mask_head."),
    ),
    (
        "mmdetection Mask R-CNN without feature pyramid or on another backbone than ResNet",
        ("rpn_head.", "roi_head.mask_head."),
    ),
    ("mmdetection two-stage detector", ("rpn_head.", "roi_head.")),
    # Each line of SOLO stands for one of SOLOv2, SOLO and Decoupled SOLO.
    (FASTSEG_SOLO, ("head.class_predictor.", "head.mask_features.")),
    (FASTSEG_SOLO, ("head.class_predictor.", "head.mask_predictors.")),
    (FASTSEG_SOLO, ("head.class_predictor.", "head.column_predictors.")),
    (MMDETECTION_SOLO, ("mask_head.conv_cls.", "mask_head.mask_feature_head.")),
    (MMDETECTION_SOLO, ("mask_head.conv_cls.", "mask_head.conv_mask_list.")),
    (MMDETECTION_SOLO, ("mask_head.conv_cls.", "mask_head.conv_mask_list_x.")),
    (ORIGINAL_SOLO, ("bbox_head.solo_cate.", "mask_feat_head.")),
    (ORIGINAL_SOLO, ("bbox_head.solo_cate.", "bbox_head.solo_ins_list.")),
    (ORIGINAL_SOLO, ("bbox_head.dsolo_cate.", "bbox_head.dsolo_ins_list_x.")),
    (ADELAIDET_SOLOV2, ("ins_head.kernel_tower.", "mask_head.convs_all_levels.")),
    (MMDETECTION_MASK2FORMER, ("panoptic_head.pixel_decoder.", "panoptic_head.query_feat.")),
    (MMDETECTION_MASKFORMER, ("panoptic_head.pixel_decoder.",)),
    (MMSEGMENTATION_MASK2FORMER, ("decode_head.pixel_decoder.", "decode_head.query_feat.")),
    (MMSEGMENTATION_MASKFORMER, ("decode_head.pixel_decoder.", "decode_head.query_embed.")),
    ("DETR with masks", ("bbox_attention.", "mask_head.")),
    ("transformers DETR (no masks)", ("class_labels_classifier.", "bbox_predictor.")),
    ("transformers RT-DETR (no masks)", ("model.encoder_input_proj.", "model.enc_score_head.")),
    ("DETR or Deformable DETR (no masks)", ("class_embed.", "bbox_embed.")),
    ("transformers EoMT", ("query.", "class_predictor.", "mask_head.")),
    ("transformers SegFormer", ("segformer.", "decode_head.")),
    ("another model of mmsegmentation", ("backbone.", "decode_head.")),
    ("torchvision DeepLab or FCN", ("backbone.", "classifier.4.")),
    ("Segment Anything", ("image_encoder.", "mask_decoder.")),
    ("Ultralytics YOLO", ("model.0.conv.",)),
    ("ResNet image classifier", ("conv1.", "layer1.0.", "fc.")),
)


def recognise(
    keys: Iterable[str], formats: Iterable[tuple[str, tuple[str, ...]]] = FORMATS
) -> str | None:
    """The name of the format, or None for an unknown one.

    Args:
        keys: names of tensors.
        formats: names of formats and beginnings of keys, the first that matches counts.
    """
    keys = tuple(keys)
    for name, beginnings in formats:
        if all(any(key.startswith(beginning) for key in keys) for beginning in beginnings):
            return name
    return None
