"""MaskFormer in the sizes of its model zoo: every number that differs is here."""

from __future__ import annotations

from typing import Any

from fastseg.backbones.resnet import ResNet, resnet50, resnet101
from fastseg.backbones.swin import SwinTransformer, swin_b, swin_l, swin_s, swin_t
from fastseg.layers.base_pixel_decoder import BasePixelDecoder
from fastseg.layers.batch_norm import FrozenBatchNorm2d, NormLayer
from fastseg.layers.encoder_pixel_decoder import TransformerEncoderPixelDecoder
from fastseg.layers.transformer_decoder import TransformerDecoder
from fastseg.models.maskformer import MaskFormer

CHANNELS = 256


def maskformer_resnet50(
    *,
    num_classes: int = 80,
    num_queries: int = 100,
    encoder_layers: int = 6,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    **hyper_parameters: Any,
) -> MaskFormer:
    """MaskFormer, ResNet-50, random weights.

    Args:
        num_classes: number of classes, without "no object".
        num_queries: number of queries.
        encoder_layers: of a transformer encoder in the pixel decoder: 6 for COCO, 0 for ADE20K's
            and Cityscapes' semantic segmentation.
        norm_layer: makes the normalisation of the backbone from a channel count.
        **hyper_parameters: of ``MaskFormer``, such as ``task`` or ``min_size``.
    """
    body = resnet50(norm_layer=norm_layer)
    return maskformer(body, num_classes, num_queries, encoder_layers, **hyper_parameters)


def maskformer_resnet101(
    *,
    num_classes: int = 80,
    num_queries: int = 100,
    encoder_layers: int = 6,
    norm_layer: NormLayer = FrozenBatchNorm2d,
    **hyper_parameters: Any,
) -> MaskFormer:
    """MaskFormer, ResNet-101, random weights; arguments as of ``maskformer_resnet50``."""
    body = resnet101(norm_layer=norm_layer)
    return maskformer(body, num_classes, num_queries, encoder_layers, **hyper_parameters)


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
    encoder_layers: int = 0,
    **hyper_parameters: Any,
) -> MaskFormer:
    """The decoders of the paper on a backbone; the pixel decoder encodes first if it has layers."""
    in_channels = backbone.out_channels
    if encoder_layers:
        pixel_decoder: BasePixelDecoder = TransformerEncoderPixelDecoder(
            in_channels=in_channels, channels=CHANNELS, num_layers=encoder_layers
        )
    else:
        pixel_decoder = BasePixelDecoder(in_channels=in_channels, channels=CHANNELS)
    return MaskFormer(
        backbone=backbone,
        pixel_decoder=pixel_decoder,
        decoder=TransformerDecoder(
            num_classes=num_classes,
            in_channels=CHANNELS if encoder_layers else in_channels[-1],
            num_queries=num_queries,
            channels=CHANNELS,
        ),
        **hyper_parameters,
    )
