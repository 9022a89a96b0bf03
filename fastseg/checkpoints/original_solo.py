"""Checkpoints of the SOLO family's own repository, which builds on mmdetection 1.0."""

from __future__ import annotations

from fastseg.checkpoints.mmdetection_solo import BACKBONE, CONV_MODULE

RULES = (
    *BACKBONE,
    (
        r"^mask_feat_head\.convs_all_levels\.(\d+)\.conv(\d+)\.",
        r"head.mask_features.levels.\1.\2.",
    ),
    (r"^mask_feat_head\.conv_pred\.0\.", "head.mask_features.predictor."),
    (r"^bbox_head\.cate_convs\.", "head.class_convs."),
    (r"^bbox_head\.kernel_convs\.", "head.kernel_convs."),
    (r"^bbox_head\.ins_convs\.", "head.mask_convs."),
    (r"^bbox_head\.ins_convs_x\.", "head.column_convs."),
    (r"^bbox_head\.ins_convs_y\.", "head.row_convs."),
    (r"^bbox_head\.solo_ins_list\.", "head.mask_predictors."),
    (r"^bbox_head\.dsolo_ins_list_x\.", "head.column_predictors."),
    (r"^bbox_head\.dsolo_ins_list_y\.", "head.row_predictors."),
    (r"^bbox_head\.d?solo_cate\.", "head.class_predictor."),
    (r"^bbox_head\.solo_kernel\.", "head.kernel_predictor."),
    *CONV_MODULE,
)
