"""Checkpoints of Mask R-CNN from detectron2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastseg.checkpoints import detectron2_resnet
from fastseg.checkpoints.keys import box_head_rules, numbers, renamed
from fastseg.layers.deform_conv import with_inner_offsets

# Rules for `fastseg.checkpoints.keys.renamed`, for all but the box head.
RULES = (
    (r"^backbone\.bottom_up\.", "backbone.body."),
    *detectron2_resnet.RULES,
    *(
        rule
        for level in range(4)
        for theirs, ours in (("lateral", "inner"), ("output", "layer"))
        for rule in (
            (
                rf"^backbone\.fpn_{theirs}{level + 2}\.norm\.",
                f"backbone.fpn.{ours}_blocks.{level}.1.",
            ),
            (rf"^backbone\.fpn_{theirs}{level + 2}\.", f"backbone.fpn.{ours}_blocks.{level}.0."),
        )
    ),
    (r"^proposal_generator\.rpn_head\.conv\.conv(\d+)\.", r"rpn.head.conv.\1.0."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
    *(
        rule
        for i in range(8)
        for rule in (
            (rf"^roi_heads\.mask_head\.mask_fcn{i + 1}\.norm\.", f"roi_heads.mask_head.{i}.1."),
            (rf"^roi_heads\.mask_head\.mask_fcn{i + 1}\.", f"roi_heads.mask_head.{i}.0."),
        )
    ),
    (r"^roi_heads\.mask_head\.deconv\.", "roi_heads.mask_predictor.conv5_mask."),
    (r"^roi_heads\.mask_head\.predictor\.", "roi_heads.mask_predictor.mask_fcn_logits."),
)
# Kept in files of its first versions. Anchors are not the network's, and pixels see ``defaults``.
NOT_THE_NETWORKS = re.compile(
    r"proposal_generator\.anchor_generator\.cell_anchors\.|pixel_(?:mean|std)$"
)
# Blue first, pixels from 0 to 255. In the weights of the ResNets the deviation is included.
PIXEL_MEAN = (103.53, 116.28, 123.675)
RESNET_PIXEL_STD = (1.0, 1.0, 1.0)
RESNEXT_PIXEL_STD = (57.375, 57.12, 58.395)


def with_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of ``MaskRCNN``."""
    network = {
        key: tensor
        for key, tensor in with_inner_offsets(tensors).items()
        if not NOT_THE_NETWORKS.match(key)
    }
    convolutions = numbers(network, r"roi_heads\.box_head\.conv(\d+)\.")
    fully_connected = numbers(network, r"roi_heads\.box_head\.fc(\d+)\.")
    box_head = box_head_rules(
        [rf"^roi_heads\.box_head\.conv{i}\." for i in convolutions],
        [rf"^roi_heads\.box_head\.fc{i}\." for i in fully_connected],
        norm=r"norm\.",
    )
    return renamed(network, (*RULES, *box_head))


def defaults(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of the zoo's models, or in the file, that are not torchvision's.

    The ResNets begin with weights that are older than PyTorch: their bottlenecks have the stride
    in the first convolution, and pixels are not divided by a deviation. The ResNeXts are younger.

    Args:
        tensors: the checkpoint's.
        options: hyper-parameters that are known.
    """
    grouped = tensors.get("backbone.bottom_up.res2.0.conv2.weight")
    resnext = grouped is not None and grouped.shape[1] < grouped.shape[0]
    bgr = options.get("bgr", True)

    def red_first(name: str, usual: tuple[float, ...]) -> tuple[float, ...]:
        numbers_up_to_255 = tensors[name].flatten().tolist() if name in tensors else usual
        return tuple(value / 255 for value in numbers_up_to_255[:: -1 if bgr else 1])

    return {
        "conventions": "detectron2",
        "bgr": bgr,
        "stride_in_1x1": not resnext,
        "image_mean": red_first("pixel_mean", PIXEL_MEAN),
        "image_std": red_first("pixel_std", RESNEXT_PIXEL_STD if resnext else RESNET_PIXEL_STD),
    }
