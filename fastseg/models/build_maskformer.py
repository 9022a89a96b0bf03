"""MaskFormer in the sizes of its model zoo: every number that differs is here."""

from __future__ import annotations

from typing import Any

from fastseg.backbones.resnet import ResNet, resnet50, resnet101
from fastseg.backbones.swin import SwinTransformer, swin_b, swin_l, swin_s, swin_t
from fastseg.layers.base_pixel_decoder import BasePixelDecoder
from fastseg.layers.batch_norm import FrozenBatchNorm2d, NormLayer
from fastseg.layers.transformer_decoder import TransformerDecoder
from fastseg.models.maskformer import MaskFormer


def maskformer_resnet50(
    *,
    num_classes: int = 80,
    num_queries: int = 100,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    **hyper_parameters: Any,
) -> MaskFormer:
    """MaskFormer, ResNet-50, random weights.

    Args:
        num_classes: number of classes, without "no object".
        num_queries: number of queries.
        norm_layer: makes the normalisation of the backbone from a channel count.
        **hyper_parameters: of ``MaskFormer``, such as ``task`` or ``min_size``.
    """
    body = resnet50(norm_layer=norm_layer)
    return maskformer(body, num_classes, num_queries, **hyper_parameters)


def maskformer_resnet101(
    *,
    num_classes: int = 80,
    num_queries: int = 100,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    **hyper_parameters: Any,
) -> MaskFormer:
    """MaskFormer, ResNet-101, random weights; arguments as of ``maskformer_resnet50``."""
    body = resnet101(norm_layer=norm_layer)
    return maskformer(body, num_classes, num_queries, **hyper_parameters)


def maskformer_swin_t(
    *, num_classes: int = 80, num_queries: int = 100, **hyper_parameters: Any
) -> MaskFormer:
    """MaskFormer, Swin-T, random weights; arguments as of ``maskformer_resnet50``."""
    return maskformer(swin_t(), num_classes, num_queries, **hyper_parameters)


def maskformer_swin_s(
    *, num_classes: int = 80, num_queries: int = 100, **hyper_parameters: Any
) -> MaskFormer:
    """MaskFormer, Swin-S, random weights; arguments as of ``maskformer_resnet50``."""
    return maskformer(swin_s(), num_classes, num_queries, **hyper_parameters)


def maskformer_swin_b(
    *, num_classes: int = 80, num_queries: int = 100, **hyper_parameters: Any
) -> MaskFormer:
    """MaskFormer, Swin-B, random weights; arguments as of ``maskformer_resnet50``."""
    return maskformer(swin_b(), num_classes, num_queries, **hyper_parameters)


def maskformer_swin_l(
    *, num_classes: int = 80, num_queries: int = 100, **hyper_parameters: Any
) -> MaskFormer:
    """MaskFormer, Swin-L, random weights; arguments as of ``maskformer_resnet50``."""
    return maskformer(swin_l(), num_classes, num_queries, **hyper_parameters)


def maskformer(
    backbone: ResNet | SwinTransformer,
    num_classes: int,
    num_queries: int,
    **hyper_parameters: Any,
) -> MaskFormer:
    """The decoders of the paper on a backbone."""
    return MaskFormer(
        backbone=backbone,
        pixel_decoder=BasePixelDecoder(in_channels=backbone.out_channels),
        decoder=TransformerDecoder(
            num_classes=num_classes,
            in_channels=backbone.out_channels[-1],
            num_queries=num_queries,
        ),
        **hyper_parameters,
    )
