"""Mask2Former and MaskFormer from the peers' keys and ours: shapes are read off the tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from fastseg.checkpoints.formats import (
    FASTSEG_MASK2FORMER,
    FASTSEG_MASKFORMER,
    MMDETECTION_MASK2FORMER,
    MMDETECTION_MASKFORMER,
    MMSEGMENTATION_MASK2FORMER,
    MMSEGMENTATION_MASKFORMER,
    ORIGINAL_MASK2FORMER,
    ORIGINAL_MASKFORMER,
    TRANSFORMERS_MASK2FORMER,
    TRANSFORMERS_MASKFORMER,
    recognise,
)
from fastseg.checkpoints.keys import Keys, renamed, resnet, with_joined_rows
from fastseg.layers.base_pixel_decoder import BasePixelDecoder
from fastseg.layers.encoder_pixel_decoder import TransformerEncoderPixelDecoder
from fastseg.layers.masked_attention_decoder import MaskedAttentionDecoder
from fastseg.layers.pixel_decoder import MSDeformAttnPixelDecoder
from fastseg.layers.transformer_decoder import TransformerDecoder
from fastseg.models.mask2former import Mask2Former
from fastseg.models.maskformer import MaskFormer

# What its data set's number of classes tells of a checkpoint: ADE20K's and Cityscapes' may as well
# be trained for panoptic segmentation.
TASKS = {80: "instance", 133: "panoptic", 150: "semantic", 19: "semantic"}
# Lengths of the shorter and the longer side that the zoos test with, where they are not COCO's.
IMAGE_SIZES = {19: (1024, 2048), 150: (640, 2560)}
ADE20K_SMALL_SEMANTIC = (512, 2048)
SMALL_SWIN = 96  # channels of its first stage
# Sampling points per head and scale, which the peers' zoos have in common.
NUM_POINTS = 4
NUM_HEADS = 8
# Stochastic depth of Swin where training goes on, as in the builders and the originals.
DROP_PATH = 0.3
# The loss's class weights and counters of batch normalisation, which does not train here.
UNUSED = re.compile(r"criterion\.empty_weight$|.*\.num_batches_tracked$")


@dataclass(frozen=True)
class Names:
    """How a peer names the tensors.

    Attributes:
        rules: for ``fastseg.checkpoints.keys.renamed``, for all but the backbone.
        resnet: such rules for a ResNet under our prefix.
        backbone: the peer's prefix of the backbone.
        defaults: hyper-parameters that the peer's models have in common and that are not ours.
    """

    rules: Sequence[tuple[str, str]]
    resnet: Sequence[tuple[str, str]] = ()
    backbone: str = "backbone."
    defaults: Mapping[str, Any] = field(default_factory=dict)


# Per format; None for our own names.
NAMES: dict[str, Names | None] = {
    FASTSEG_MASK2FORMER: None,
    ORIGINAL_MASK2FORMER: Names(original_mask2former.RULES, detectron2_resnet.RULES),
    MMDETECTION_MASK2FORMER: Names(mmdetection_mask2former.RULES),
    TRANSFORMERS_MASK2FORMER: Names(
        transformers_mask2former.RULES,
        transformers_mask2former.RESNET,
        transformers_mask2former.BACKBONE,
    ),
    FASTSEG_MASKFORMER: None,
    ORIGINAL_MASKFORMER: Names(original_mask2former.MASKFORMER_RULES, detectron2_resnet.RULES),
    MMDETECTION_MASKFORMER: Names(
        mmdetection_mask2former.MASKFORMER_RULES, defaults={"object_mask_threshold": 0.8}
    ),
    MMSEGMENTATION_MASK2FORMER: Names(
        mmdetection_mask2former.MMSEGMENTATION_RULES, defaults={"task": "semantic"}
    ),
    MMSEGMENTATION_MASKFORMER: Names(
        mmdetection_mask2former.MMSEGMENTATION_MASKFORMER_RULES, defaults={"task": "semantic"}
    ),
    TRANSFORMERS_MASKFORMER: Names(
        transformers_mask2former.MASKFORMER_RULES,
        transformers_mask2former.RESNET,
        transformers_mask2former.BACKBONE,
    ),
}


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
    rest = renamed(rest, names.rules)
    for attention in (".self_attn.", ".cross_attn."):
        apart = [f"{attention}{part}_proj." for part in "qkv"]
        rest = with_joined_rows(rest, apart, f"{attention}in_proj_")
    return {**ours, **rest}


def defaults(
    state_dict: Mapping[str, Tensor], options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Hyper-parameters that the number of classes suggests.

    Args:
        state_dict: tensors under our names.
        options: hyper-parameters that are known. If less than half of the "class_names" are those
            of the data set with as many classes, it is another data set, of which all classes are
            taken for things.
    """
    options = options or {}
    class_names = options.get("class_names")
    bias = state_dict.get("decoder.class_predictor.bias")
    known = None if bias is None else categories.by_count(len(bias) - 1)
    if known is None or len(known) not in TASKS:
        return {}
    if class_names is not None and 2 * len(set(class_names) & set(known.names)) < len(known):
        return {"thing_classes": range(len(known))}
    task = options.get("task", TASKS[len(known)])
    found = {"task": task, "class_names": known.names, "thing_classes": known.things}
    if len(known) in IMAGE_SIZES:
        found["min_size"], found["max_size"] = image_sizes(state_dict, len(known), task)
    return found


def image_sizes(state_dict: Mapping[str, Tensor], num_classes: int, task: str) -> tuple[int, int]:
    """Lengths of the shorter and the longer side that images of ADE20K or Cityscapes are given.

    Args:
        state_dict: tensors under our names.
        num_classes: a key of ``IMAGE_SIZES``.
        task: ADE20K's semantic models have smaller images, but for those on large backbones.
    """
    embedding = state_dict.get("backbone.patch_embed.proj.weight")
    large = embedding is not None and len(embedding) > SMALL_SWIN
    if num_classes == len(categories.ADE20K) and task == "semantic" and not large:
        return ADE20K_SMALL_SEMANTIC
    return IMAGE_SIZES[num_classes]


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
        num_heads: heads of all attentions; by default, of Mask2Former as many as the pixel
            decoder's attention weights are for with four points, of MaskFormer eight.
        hyper_parameters: arguments of ``Mask2Former`` and ``MaskFormer``.
    """
    keys = Keys(state_dict, batch_norm_eps)
    body = backbone(keys, stride_in_1x1=stride_in_1x1)
    if keys.any("pixel_decoder.lateral.0.0."):
        return MaskFormer(
            backbone=body,
            **maskformer_decoders(keys, body.out_channels, num_heads or NUM_HEADS),
            **hyper_parameters,
        )
    return Mask2Former(
        backbone=body,
        **mask2former_decoders(keys, body.out_channels, num_heads),
        **hyper_parameters,
    )


def mask2former_decoders(
    keys: Keys, in_channels: Sequence[int], num_heads: int | None
) -> dict[str, Any]:
    """Pixel decoder and decoder of Mask2Former, as arguments of the model."""
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
        in_channels=in_channels,
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
    return {"pixel_decoder": pixel_decoder, "decoder": decoder}


def maskformer_decoders(keys: Keys, in_channels: Sequence[int], num_heads: int) -> dict[str, Any]:
    """Pixel decoder and decoder of MaskFormer, as arguments of the model."""
    mask_channels = keys.size("pixel_decoder.mask_features.weight", 0, default=256)
    sizes: dict[str, Any] = {
        "in_channels": in_channels,
        "channels": keys.size("pixel_decoder.mask_features.weight", 1, default=256),
        "mask_channels": mask_channels,
    }
    level_channels = in_channels[-1]
    pixel_decoder = BasePixelDecoder(**sizes)
    if keys.any("pixel_decoder.layers."):
        # The decoder looks at the encoder's result unless it projects what only the backbone has.
        level_channels = keys.size("decoder.input_projection.weight", 1, default=sizes["channels"])
        pixel_decoder = TransformerEncoderPixelDecoder(
            **sizes,
            num_heads=num_heads,
            num_layers=keys.count(r"pixel_decoder\.layers\.(\d+)\."),
            ffn_channels=keys.size("pixel_decoder.layers.0.linear1.weight", 0, default=2048),
            returns_encoded=level_channels == sizes["channels"],
        )
    decoder = TransformerDecoder(
        num_classes=keys.size("decoder.class_predictor.weight", 0, default=81) - 1,
        in_channels=level_channels,
        num_queries=keys.size("decoder.query_embed.weight", 0, default=100),
        channels=keys.size("decoder.query_embed.weight", 1, default=256),
        mask_channels=mask_channels,
        num_heads=num_heads,
        num_layers=keys.count(r"decoder\.layers\.(\d+)\."),
        ffn_channels=keys.size("decoder.layers.0.linear1.weight", 0, default=2048),
    )
    return {"pixel_decoder": pixel_decoder, "decoder": decoder}


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
        },
        drop_path=DROP_PATH,
    )
