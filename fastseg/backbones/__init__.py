"""Networks that turn an image into feature maps."""

from fastseg.backbones.resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnext101_32x8d,
    resnext101_64x4d,
)
from fastseg.backbones.swin import SwinTransformer, swin_b, swin_l, swin_s, swin_t

__all__ = [
    "ResNet",
    "SwinTransformer",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "swin_b",
    "swin_l",
    "swin_s",
    "swin_t",
]
