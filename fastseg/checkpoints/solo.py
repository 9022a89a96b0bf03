"""The SOLO family from our keys: the shape of the network is read off the tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastseg.checkpoints.keys import Keys, resnet
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.grid_heads import NUM_GRIDS
from fastseg.layers.solo_head import DecoupledSOLOHead, SOLOHead
from fastseg.layers.solov2_head import MaskFeatureHead, SOLOv2Head
from fastseg.models.solo import SOLO


def build(
    state_dict: Mapping[str, Tensor],
    *,
    batch_norm_eps: float,
    stride_in_1x1: bool,
    num_grids: Sequence[int] | None = None,
    hyper_parameters: Mapping[str, Any],
) -> SOLO:
    """Makes the network that the tensors fit; does not load them.

    A tensor that is missing counts as having the size of the paper's network, so that the
    comparison of keys afterwards names everything that is missing.

    Args:
        state_dict: tensors under our names.
        batch_norm_eps: eps of the backbone's normalisations.
        stride_in_1x1: see ``Bottleneck``.
        num_grids: of SOLOv2's grids, the paper's by default; the others' are read off the tensors.
        hyper_parameters: arguments of ``SOLO``.
    """
    keys = Keys(state_dict, batch_norm_eps)
    body = resnet(keys, "backbone.body", stride_in_1x1=stride_in_1x1)
    channels = keys.size("backbone.fpn.inner_blocks.0.0.weight", 0, default=256)
    fpn = FeaturePyramidNetwork(in_channels=body.out_channels, out_channels=channels)
    return SOLO(
        backbone=BackboneWithFPN(body=body, fpn=fpn),
        head=grid_head(keys, channels, num_grids or NUM_GRIDS),
        **hyper_parameters,
    )


def defaults(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Hyper-parameters of the peers' zoos for a network of this shape.

    SOLOv2-light is made for images of 448 pixels, or 512 if it has deformable convolutions;
    Decoupled SOLO light for 512.
    """
    keys = Keys(state_dict, batch_norm_eps=0.0)
    decoupled, one_branch = keys.any("head.column_predictors."), keys.any("head.mask_convs.")
    if keys.any("head.kernel_convs."):
        light = keys.size("head.class_predictor.weight", 1, default=512) <= 256
        large = keys.conv_layer("backbone.body.layer2.0.conv2") is not nn.Conv2d
    else:
        light = large = decoupled and one_branch
    if not light:
        return {}
    return {"min_size": 512, "max_size": 852} if large else {"min_size": 448, "max_size": 768}


def grid_head(
    keys: Keys, in_channels: int, num_grids: Sequence[int]
) -> SOLOv2Head | SOLOHead | DecoupledSOLOHead:
    """The head that the keys name, with its widths, depths and kinds of convolutions.

    How many cells SOLOv2's grids have no tensor shows.
    """
    num_classes = keys.size("head.class_predictor.weight", 0, default=80)
    if keys.any("head.mask_features."):
        return solov2_head(keys, in_channels, num_classes, num_grids)
    channels = keys.size("head.class_predictor.weight", 1, default=256)
    depth = keys.count(r"head\.class_convs\.(\d+)\.")
    conv_layers = [keys.conv_layer(f"head.class_convs.{i}.0") for i in range(depth)]
    if keys.any("head.mask_predictors."):
        cells = keys.sizes(r"head\.mask_predictors\.(\d+)\.weight", default=())
        return SOLOHead(
            in_channels=in_channels,
            num_classes=num_classes,
            channels=channels,
            conv_layers=conv_layers,
            num_grids=[math.isqrt(number) for number in cells],
        )
    return DecoupledSOLOHead(
        in_channels=in_channels,
        num_classes=num_classes,
        channels=channels,
        conv_layers=conv_layers,
        light=keys.any("head.mask_convs."),
        num_grids=keys.sizes(r"head\.column_predictors\.(\d+)\.weight", default=NUM_GRIDS),
    )


def solov2_head(
    keys: Keys, in_channels: int, num_classes: int, num_grids: Sequence[int]
) -> SOLOv2Head:
    """SOLOv2's head."""
    depth = keys.count(r"head\.kernel_convs\.(\d+)\.")
    features = "head.mask_features.predictor.0"
    return SOLOv2Head(
        in_channels=in_channels,
        num_classes=num_classes,
        channels=keys.size("head.class_predictor.weight", 1, default=512),
        conv_layers=[keys.conv_layer(f"head.kernel_convs.{i}.0") for i in range(depth)],
        mask_features=MaskFeatureHead(
            in_channels=in_channels,
            channels=keys.size(f"{features}.weight", 1, default=128),
            out_channels=keys.size(f"{features}.weight", 0, default=256),
            conv_layer=keys.conv_layer(features),
        ),
        num_grids=num_grids,
    )
