"""Networks that turn an image into feature maps."""

from fastseg.backbones.resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnext101_32x8d,
)

__all__ = ["ResNet", "resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d"]
