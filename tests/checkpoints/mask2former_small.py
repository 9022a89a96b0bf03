"""Small networks of Mask2Former and MaskFormer with random weights."""

from __future__ import annotations

import torch
from torch import nn

from fastseg.backbones.resnet import Bottleneck, ResNet
from fastseg.backbones.swin import SwinTransformer
from fastseg.layers.base_pixel_decoder import BasePixelDecoder
from fastseg.layers.encoder_pixel_decoder import TransformerEncoderPixelDecoder
from fastseg.layers.masked_attention_decoder import MaskedAttentionDecoder
from fastseg.layers.pixel_decoder import MSDeformAttnPixelDecoder
from fastseg.layers.transformer_decoder import TransformerDecoder
from fastseg.models import Mask2Former, MaskFormer


def small_backbone(kind: str, **options) -> ResNet | SwinTransformer:
    if kind == "swin":
        return SwinTransformer(
            embed_channels=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 4), window_size=3
        )
    return ResNet(block=Bottleneck, depths=(1, 2, 1, 1), width=8, **options)


def small_model(backbone: nn.Module, *, num_classes: int = 3, channels: int = 32) -> Mask2Former:
    """A network in which every size differs from the usual."""
    torch.manual_seed(0)
    model = Mask2Former(
        backbone=backbone,
        pixel_decoder=MSDeformAttnPixelDecoder(
            in_channels=backbone.out_channels,
            channels=32,
            mask_channels=96,
            num_heads=2,
            num_layers=2,
            ffn_channels=24,
        ),
        decoder=MaskedAttentionDecoder(
            num_classes=num_classes,
            num_queries=5,
            in_channels=32,
            channels=channels,
            mask_channels=96,
            num_heads=2,
            num_layers=4,
            ffn_channels=40,
        ),
    )
    return randomised(model)


def small_maskformer(
    backbone: nn.Module, *, channels: int = 48, encoded: bool | None = None
) -> MaskFormer:
    """With an encoder in the pixel decoder or, for None, without."""
    torch.manual_seed(0)
    widths = {"in_channels": backbone.out_channels, "channels": 32, "mask_channels": 96}
    model = MaskFormer(
        backbone=backbone,
        pixel_decoder=BasePixelDecoder(**widths)
        if encoded is None
        else TransformerEncoderPixelDecoder(
            **widths, num_layers=2, ffn_channels=24, returns_encoded=encoded
        ),
        decoder=TransformerDecoder(
            num_classes=3,
            in_channels=32 if encoded else backbone.out_channels[-1],
            num_queries=5,
            channels=channels,
            mask_channels=96,
            num_layers=2,
            ffn_channels=40,
        ),
    )
    return randomised(model)


@torch.no_grad()
def randomised(model: Mask2Former) -> Mask2Former:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.2)
            tensor.add_(1.0 if "norm" in name or "running_var" in name else 0.0)
    return model


def assert_same(loaded: Mask2Former, expected: Mask2Former) -> None:
    assert str(loaded) == str(expected)
    for key, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert not loaded.training
    heads = [module.num_heads for module in expected.modules() if hasattr(module, "num_heads")]
    assert [m.num_heads for m in loaded.modules() if hasattr(m, "num_heads")] == heads
