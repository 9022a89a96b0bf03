"""Mask2Former in the sizes of its model zoo: every number that differs is here."""

from __future__ import annotations

from typing import Any

from fastseg.backbones.resnet import ResNet, resnet50, resnet101
from fastseg.backbones.swin import SwinTransformer, swin_b, swin_l, swin_s, swin_t
from fastseg.layers.batch_norm import FrozenBatchNorm2d, NormLayer
from fastseg.layers.masked_attention_decoder import MaskedAttentionDecoder
from fastseg.layers.pixel_decoder import MSDeformAttnPixelDecoder
from fastseg.models.mask2former import Mask2Former


def mask2former_resnet50(
    *,
    num_classes: int = 80,
    num_queries: int = 100,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    **hyper_parameters: Any,
) -> Mask2Former:
    """Mask2Former, ResNet-50, random weights.

    Args:
        num_classes: number of classes, without "no object".
        num_queries: number of queries; the original has 200 with Swin-L on COCO.
        norm_layer: makes the normalisation of the backbone from a channel count.
        **hyper_parameters: of ``Mask2Former``, such as ``task`` or ``min_size``.
    """
    body = resnet50(norm_layer=norm_layer)
    return mask2former(body, num_classes, num_queries, **hyper_parameters)


def mask2former_resnet101(
    *,
    num_classes: int = 80,
    num_queries: int = 100,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    **hyper_parameters: Any,
) -> Mask2Former:
    """Mask2Former, ResNet-101, random weights; arguments as of ``mask2former_resnet50``."""
    body = resnet101(norm_layer=norm_layer)
    return mask2former(body, num_classes, num_queries, **hyper_parameters)


def mask2former_swin_t(
    *, num_classes: int = 80, num_queries: int = 100, **hyper_parameters: Any
) -> Mask2Former:
    """Mask2Former, Swin-T, random weights; arguments as of ``mask2former_resnet50``."""
    return mask2former(swin_t(), num_classes, num_queries, **hyper_parameters)


def mask2former_swin_s(
    *, num_classes: int = 80, num_queries: int = 100, **hyper_parameters: Any
) -> Mask2Former:
    """Mask2Former, Swin-S, random weights; arguments as of ``mask2former_resnet50``."""
    return mask2former(swin_s(), num_classes, num_queries, **hyper_parameters)


def mask2former_swin_b(
    *, num_classes: int = 80, num_queries: int = 100, **hyper_parameters: Any
) -> Mask2Former:
    """Mask2Former, Swin-B, random weights; arguments as of ``mask2former_resnet50``."""
    return mask2former(swin_b(), num_classes, num_queries, **hyper_parameters)


def mask2former_swin_l(
    *, num_classes: int = 80, num_queries: int = 200, **hyper_parameters: Any
) -> Mask2Former:
    """Mask2Former, Swin-L, random weights; arguments as of ``mask2former_resnet50``."""
    return mask2former(swin_l(), num_classes, num_queries, **hyper_parameters)


def mask2former(
    backbone: ResNet | SwinTransformer,
    num_classes: int,
    num_queries: int,
    **hyper_parameters: Any,
) -> Mask2Former:
    """The decoders of the paper on a backbone."""
    return Mask2Former(
        backbone=backbone,
        pixel_decoder=MSDeformAttnPixelDecoder(in_channels=backbone.out_channels),
        decoder=MaskedAttentionDecoder(num_classes=num_classes, num_queries=num_queries),
        **hyper_parameters,
    )
