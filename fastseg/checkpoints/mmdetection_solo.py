"""Checkpoints of SOLO, Decoupled SOLO and SOLOv2 from mmdetection (2.12 to 3.3)."""

from __future__ import annotations

# Rules for `fastseg.checkpoints.keys.renamed`; ConvModule calls its children "conv" and "gn".
BACKBONE = (
    (r"^backbone\.", "backbone.body."),
    (r"^neck\.lateral_convs\.(\d+)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d+)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
)
CONV_MODULE = ((r"^(head\..*)\.conv\.", r"\1.0."), (r"^(head\..*)\.gn\.", r"\1.1."))
RULES = (
    *BACKBONE,
    (
        r"^mask_head\.mask_feature_head\.convs_all_levels\.(\d+)\.conv(\d+)\.",
        r"head.mask_features.levels.\1.\2.",
    ),
    (r"^mask_head\.mask_feature_head\.conv_pred\.", "head.mask_features.predictor."),
    (r"^mask_head\.cls_convs\.", "head.class_convs."),
    (r"^mask_head\.kernel_convs\.", "head.kernel_convs."),
    (r"^mask_head\.mask_convs\.", "head.mask_convs."),
    (r"^mask_head\.mask_convs_x\.", "head.column_convs."),
    (r"^mask_head\.mask_convs_y\.", "head.row_convs."),
    (r"^mask_head\.conv_mask_list\.", "head.mask_predictors."),
    (r"^mask_head\.conv_mask_list_x\.", "head.column_predictors."),
    (r"^mask_head\.conv_mask_list_y\.", "head.row_predictors."),
    (r"^mask_head\.conv_cls\.", "head.class_predictor."),
    (r"^mask_head\.conv_kernel\.", "head.kernel_predictor."),
    *CONV_MODULE,
)
