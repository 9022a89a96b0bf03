"""Mask R-CNN from torchvision's keys: the shape of the network is read off the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastseg.checkpoints.keys import Keys, resnet
from fastseg.layers.box_head import ConvFCHead, FastRCNNPredictor, TwoMLPHead
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.mask_head import MaskHead, MaskPredictor
from fastseg.layers.region_proposal_network import RPNHead
from fastseg.models.mask_rcnn import MaskRCNN

# Names of parameters up to torchvision 0.12, which its first published weights have.
OLD_NAMES = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
)
OLD_MASK_HEAD = re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)$")


def with_current_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that torchvision has used since 0.13."""

    def current(key: str) -> str:
        for old, new in OLD_NAMES:
            key = re.sub(old, new, key)
        return OLD_MASK_HEAD.sub(
            lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}", key
        )

    return {current(key): tensor for key, tensor in state_dict.items()}


def build(
    state_dict: Mapping[str, Tensor], *, batch_norm_eps: float, hyper_parameters: Mapping[str, Any]
) -> MaskRCNN:
    """Makes the network that the tensors fit; does not load them.

    A tensor that is missing counts as having the size of the paper's network, so that the
    comparison of keys afterwards names everything that is missing.

    Args:
        state_dict: tensors under torchvision's current names.
        batch_norm_eps: eps of all normalisations.
        hyper_parameters: arguments of ``MaskRCNN``.
    """
    keys = Keys(state_dict, batch_norm_eps)
    channels = keys.size("backbone.fpn.inner_blocks.0.0.weight", 0, default=256)
    num_classes = keys.size("roi_heads.box_predictor.cls_score.weight", 0, default=91)
    body = resnet(keys, "backbone.body")
    fpn = FeaturePyramidNetwork(
        in_channels=body.out_channels,
        out_channels=channels,
        norm_layer=keys.norm_layer("backbone.fpn.inner_blocks.0.1"),
    )
    box_features = box_head(keys, channels)
    mask_features = MaskHead(
        in_channels=channels,
        conv_channels=keys.sizes(r"roi_heads\.mask_head\.(\d+)\.0\.weight", default=(256,) * 4),
        norm_layer=keys.norm_layer("roi_heads.mask_head.0.1"),
    )
    return MaskRCNN(
        backbone=BackboneWithFPN(body=body, fpn=fpn),
        rpn_head=RPNHead(
            in_channels=channels,
            num_anchors=keys.size("rpn.head.cls_logits.weight", 0, default=3),
            conv_depth=keys.count(r"rpn\.head\.conv\.(\d+)\."),
        ),
        box_head=box_features,
        box_predictor=FastRCNNPredictor(
            in_features=box_features.out_features, num_classes=num_classes
        ),
        mask_head=mask_features,
        mask_predictor=MaskPredictor(
            in_channels=mask_features.out_channels,
            dim_reduced=keys.size("roi_heads.mask_predictor.conv5_mask.weight", 1, default=256),
            num_classes=num_classes,
        ),
        **hyper_parameters,
    )


def box_head(keys: Keys, in_channels: int) -> TwoMLPHead | ConvFCHead:
    """The box head of v1 (two fully connected layers) or v2 (convolutions first)."""
    head = "roi_heads.box_head."
    convolutions = keys.sizes(r"roi_heads\.box_head\.(\d+)\.0\.weight", default=())
    if not convolutions:
        return TwoMLPHead(
            in_channels=in_channels,
            representation_size=keys.size(f"{head}fc6.weight", 0, default=1024),
        )
    return ConvFCHead(
        in_channels=in_channels,
        conv_channels=convolutions,
        fc_features=keys.sizes(r"roi_heads\.box_head\.(\d+)\.weight", default=(1024,)),
        norm_layer=keys.norm_layer(f"{head}0.1"),
    )
