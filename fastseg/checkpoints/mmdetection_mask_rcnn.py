"""Checkpoints of Mask R-CNN from mmdetection (2.0 to 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastseg.checkpoints.keys import box_head_rules, numbers, renamed
from fastseg.checkpoints.mmdetection_solo import BACKBONE
from fastseg.layers.deform_conv import with_inner_offsets

BOX_HEAD = r"roi_head\.bbox_head\."
# Rules for `fastseg.checkpoints.keys.renamed`, for all but the box head.
RULES = (
    (r"^(neck\.(?:lateral|fpn)_convs\.\d+)\.bn\.", r"\1.conv.norm."),
    *BACKBONE,
    (r"^(backbone\.fpn\.\w+\.\d+)\.0\.norm\.", r"\1.1."),
    (r"^rpn_head\.rpn_conv\.(\d+)\.conv\.", r"rpn.head.conv.\1.0."),
    (r"^rpn_head\.rpn_conv\.", "rpn.head.conv.0.0."),
    (r"^rpn_head\.rpn_cls\.", "rpn.head.cls_logits."),
    (r"^rpn_head\.rpn_reg\.", "rpn.head.bbox_pred."),
    (rf"^{BOX_HEAD}fc_cls\.", "roi_heads.box_predictor.cls_score."),
    (rf"^{BOX_HEAD}fc_reg\.", "roi_heads.box_predictor.bbox_pred."),
    (r"^roi_head\.mask_head\.convs\.(\d+)\.conv\.", r"roi_heads.mask_head.\1.0."),
    (r"^roi_head\.mask_head\.convs\.(\d+)\.bn\.", r"roi_heads.mask_head.\1.1."),
    (r"^roi_head\.mask_head\.upsample\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^roi_head\.mask_head\.conv_logits\.", "roi_heads.mask_predictor.mask_fcn_logits."),
)


def with_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of ``MaskRCNN``."""
    tensors = with_inner_offsets(tensors)
    convolutions, fully_connected = (
        [rf"^{BOX_HEAD}{kind}\.{i}\." for i in numbers(tensors, rf"{BOX_HEAD}{kind}\.(\d+)\.")]
        for kind in ("shared_convs", "shared_fcs")
    )
    box_head = box_head_rules(
        convolutions,
        fully_connected,
        conv=r"conv\.",
        norm=r"bn\.",
    )
    return renamed(tensors, (*RULES, *box_head))


def defaults(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of all models of the zoo that are not torchvision's.

    Args:
        tensors: the checkpoint's, which show none.
        options: hyper-parameters that are known, which change none.
    """
    return {"conventions": "mmdetection"}
