"""Checkpoints of SOLOv2 from AdelaiDet, which builds on detectron2.

Deformable convolutions are in the backbone alone: AdelaiDet makes the head's towers without them,
whatever its configuration says.
"""

from __future__ import annotations

from typing import Any

from fastseg.checkpoints import detectron2_resnet

RULES = (
    (r"^backbone\.bottom_up\.", "backbone.body."),
    *detectron2_resnet.RULES,
    *((rf"^backbone\.fpn_lateral{i + 2}\.", f"backbone.fpn.inner_blocks.{i}.0.") for i in range(4)),
    *((rf"^backbone\.fpn_output{i + 2}\.", f"backbone.fpn.layer_blocks.{i}.0.") for i in range(4)),
    (
        r"^mask_head\.convs_all_levels\.(\d+)\.conv(\d+)\.",
        r"head.mask_features.levels.\1.\2.",
    ),
    (r"^mask_head\.conv_pred\.", "head.mask_features.predictor."),
    # A tower is convolution, normalisation, ReLU, convolution ...
    *(
        (rf"^ins_head\.{theirs}_tower\.{3 * i + child}\.", f"head.{ours}_convs.{i}.{child}.")
        for theirs, ours in (("cate", "class"), ("kernel", "kernel"))
        for i in range(8)
        for child in (0, 1)
    ),
    (r"^ins_head\.cate_pred\.", "head.class_predictor."),
    (r"^ins_head\.kernel_pred\.", "head.kernel_predictor."),
)
# Its zoo is trained on detectron2's ImageNet weights: pixels from 0 to 255 minus a mean.
HYPER_PARAMETERS: dict[str, Any] = {
    "image_mean": (123.675 / 255, 116.28 / 255, 103.53 / 255),
    "image_std": (1 / 255, 1 / 255, 1 / 255),
}
