"""Mask2Former from the peers' keys and from ours: its shape is read off the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastseg import categories
from fastseg.backbones.resnet import ResNet
from fastseg.backbones.swin import SwinTransformer
from fastseg.checkpoints import (
    detectron2_resnet,
    mmdetection_mask2former,
    original_mask2former,
    swin,
    transformers_mask2former,
)
from fastseg.checkpoints.formats import recognise
from fastseg.checkpoints.keys import Keys, renamed, resnet, with_joined_rows
from fastseg.layers.masked_attention_decoder import MaskedAttentionDecoder
from fastseg.layers.pixel_decoder import MSDeformAttnPixelDecoder
from fastseg.models.mask2former import Mask2Former

# What its data set's number of classes tells of a checkpoint: ADE20K's and Cityscapes' may as well
# be trained for panoptic segmentation.
TASKS = {80: "instance", 133: "panoptic", 150: "semantic", 19: "semantic"}
# Sampling points per head and scale, which the peers' zoos have in common.
NUM_POINTS = 4
NUM_HEADS = 8
# The loss's class weights and counters of batch normalisation, which does not train here.
UNUSED = re.compile(r"criterion\.empty_weight$|.*\.num_batches_tracked$")


@dataclass(frozen=True)
class Names:
    """How a peer names the tensors.

    Attributes:
        rules: for ``fastseg.checkpoints.keys.renamed``, for all but the backbone.
        resnet: such rules for a ResNet under our prefix.
        backbone: the peer's prefix of the backbone.
    """

    rules: Sequence[tuple[str, str]]
    resnet: Sequence[tuple[str, str]] = ()
    backbone: str = "backbone."


ORIGINAL = Names(original_mask2former.RULES, detectron2_resnet.RULES)
MMDETECTION = Names(mmdetection_mask2former.RULES)
TRANSFORMERS = Names(
    transformers_mask2former.RULES,
    transformers_mask2former.RESNET,
    transformers_mask2former.BACKBONE,
)


def with_our_names(tensors: Mapping[str, Tensor], names: Names, source: str) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names and in the layout of ``Mask2Former``.

    Args:
        tensors: the checkpoint's.
        names: the peer's.
        source: what to call the checkpoint in errors.
    """
    used = {key: tensor for key, tensor in tensors.items() if not UNUSED.match(key)}
    body = {key: tensor for key, tensor in used.items() if key.startswith(names.backbone)}
    rest = {key: tensor for key, tensor in used.items() if key not in body}
    ours = {key.removeprefix(names.backbone): tensor for key, tensor in body.items()}
    if recognise(ours, swin.FORMATS):
        ours = swin.with_our_names(ours, source=source)
        ours = {f"backbone.{key}": tensor for key, tensor in ours.items()}
    else:
        ours = renamed({f"backbone.{key}": value for key, value in ours.items()}, names.resnet)
    apart = [f".self_attn.{part}_proj." for part in "qkv"]
    return {**ours, **with_joined_rows(renamed(rest, names.rules), apart, ".self_attn.in_proj_")}


def defaults(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Hyper-parameters that the number of classes suggests.

    Args:
        state_dict: tensors under our names.
    """
    bias = state_dict.get("decoder.class_predictor.bias")
    known = None if bias is None else categories.by_count(len(bias) - 1)
    if known is None or len(known) not in TASKS:
        return {}
    return {
        "task": TASKS[len(known)],
        "class_names": known.names,
        "thing_classes": known.things,
    }


def build(
    state_dict: Mapping[str, Tensor],
    *,
    batch_norm_eps: float,
    stride_in_1x1: bool,
    num_heads: int | None,
    hyper_parameters: Mapping[str, Any],
) -> Mask2Former:
    """Makes the network that the tensors fit; does not load them.

    A tensor that is missing counts as having the size of the paper's network, so that the
    comparison of keys afterwards names everything that is missing.

    Args:
        state_dict: tensors under our names.
        batch_norm_eps: eps of a ResNet's normalisations.
        stride_in_1x1: see ``fastseg.backbones.resnet.Bottleneck``.
        num_heads: heads of all attentions; by default as many as the pixel decoder's attention
            weights are for, with four points.
        hyper_parameters: arguments of ``Mask2Former``.
    """
    keys = Keys(state_dict, batch_norm_eps)
    body = backbone(keys, stride_in_1x1=stride_in_1x1)
    levels = keys.size("pixel_decoder.level_embed", 0, default=3)
    samples = keys.size(
        "pixel_decoder.layers.0.self_attn.attention_weights.weight",
        0,
        default=NUM_HEADS * levels * NUM_POINTS,
    )
    heads = num_heads or max(1, samples // (levels * NUM_POINTS))
    channels = keys.size("pixel_decoder.level_embed", 1, default=256)
    mask_channels = keys.size("pixel_decoder.mask_features.weight", 0, default=256)
    pixel_decoder = MSDeformAttnPixelDecoder(
        in_channels=body.out_channels,
        channels=channels,
        mask_channels=mask_channels,
        num_heads=heads,
        num_points=max(1, samples // (levels * heads)),
        num_layers=keys.count(r"pixel_decoder\.layers\.(\d+)\."),
        ffn_channels=keys.size("pixel_decoder.layers.0.linear1.weight", 0, default=1024),
    )
    decoder = MaskedAttentionDecoder(
        num_classes=keys.size("decoder.class_predictor.weight", 0, default=81) - 1,
        num_queries=keys.size("decoder.query_features.weight", 0, default=100),
        in_channels=channels,
        channels=keys.size("decoder.query_features.weight", 1, default=256),
        mask_channels=mask_channels,
        num_heads=heads,
        num_layers=keys.count(r"decoder\.layers\.(\d+)\."),
        ffn_channels=keys.size("decoder.layers.0.linear1.weight", 0, default=2048),
        num_levels=keys.size("decoder.level_embed.weight", 0, default=3),
    )
    return Mask2Former(
        backbone=body, pixel_decoder=pixel_decoder, decoder=decoder, **hyper_parameters
    )


def backbone(keys: Keys, *, stride_in_1x1: bool) -> ResNet | SwinTransformer:
    """The backbone that the keys name.

    Args:
        keys: of a state dict under our names.
        stride_in_1x1: see ``fastseg.backbones.resnet.Bottleneck``.
    """
    if not keys.any("backbone.patch_embed."):
        return resnet(keys, "backbone", stride_in_1x1=stride_in_1x1)
    beginning = "backbone."
    return swin.build(
        {
            key.removeprefix(beginning): tensor
            for key, tensor in keys.state_dict.items()
            if key.startswith(beginning)
        }
    )
