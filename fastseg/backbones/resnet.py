"""ResNet (He et al., 2016) and ResNeXt (Xie et al., 2017), stages C2 to C5 without a classifier.

Parameters are named as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import (
    ConvLayer,
    ConvNorm,
    FrozenBatchNorm2d,
    NormLayer,
    conv_norm,
)
from fastseg.layers.initial_weights import he_normal, initialise_convolutions


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (figure 5, left).

    Args:
        in_channels: channels of the input.
        planes: channels of the convolutions and of the output.
        stride: of the first convolution.
        norm_layer: makes a normalisation from a channel count.
    """

    expansion = 1

    def __init__(
        self, *, in_channels: int, planes: int, stride: int, norm_layer: NormLayer
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = norm_layer(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = norm_layer(planes)
        self.downsample = projection(in_channels, planes, stride, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H / stride, W / stride]."""
        y = F.relu_(conv_norm(x, self.conv1, self.bn1))
        y = conv_norm(y, self.conv2, self.bn2)
        return F.relu_(y.add_(x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution around a shortcut (figure 5, right).

    Args:
        in_channels: channels of the input.
        planes: a quarter of the channels of the output.
        stride: of the 3x3 convolution.
        groups: groups of the 3x3 convolution, the cardinality of ResNeXt.
        width_per_group: channels of a group where ``planes`` is 64.
        stride_in_1x1: the first 1x1 convolution has the stride instead, as in the original paper.
        norm_layer: makes a normalisation from a channel count.
        conv_layer: makes the 3x3 convolution.
    """

    expansion = 4

    def __init__(
        self,
        *,
        in_channels: int,
        planes: int,
        stride: int,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
        norm_layer: NormLayer,
        conv_layer: ConvLayer = nn.Conv2d,
    ) -> None:
        super().__init__()
        width = planes * width_per_group // 64 * groups
        out_channels = planes * self.expansion
        stride_1x1, stride_3x3 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride_1x1, bias=False)
        self.bn1 = norm_layer(width)
        self.conv2 = conv_layer(
            width, width, 3, stride=stride_3x3, padding=1, groups=groups, bias=False
        )
        self.bn2 = norm_layer(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm_layer(out_channels)
        self.downsample = projection(in_channels, out_channels, stride, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] -> [B, C_out, H / stride, W / stride]."""
        y = F.relu_(conv_norm(x, self.conv1, self.bn1))
        y = F.relu_(conv_norm(y, self.conv2, self.bn2))
        y = conv_norm(y, self.conv3, self.bn3)
        return F.relu_(y.add_(x if self.downsample is None else self.downsample(x)))


def projection(
    in_channels: int, out_channels: int, stride: int, norm_layer: NormLayer
) -> ConvNorm | None:
    """The 1x1 convolution of a shortcut that changes shape; None where x can be added as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return ConvNorm(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=1,
        stride=stride,
        norm_layer=norm_layer,
    )


class ResNet(nn.Module):
    """Stem and four stages of residual blocks.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        depths: number of blocks per stage.
        width: channels after the stem.
        planes: of the blocks of the first stage, twice as many in each further stage; as many as
            the stem has by default.
        groups: cardinality of ResNeXt; this and the following for bottlenecks only.
        width_per_group: see ``Bottleneck``.
        stride_in_1x1: see ``Bottleneck``.
        conv_layers: per stage, what makes its 3x3 convolutions.
        norm_layer: makes a normalisation from a channel count.
    """

    def __init__(
        self,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        width: int = 64,
        planes: int | None = None,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
        conv_layers: Sequence[ConvLayer] = (nn.Conv2d,) * 4,
        norm_layer: NormLayer = FrozenBatchNorm2d,
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"norm_layer": norm_layer}
        if block is Bottleneck:
            options |= {
                "groups": groups,
                "width_per_group": width_per_group,
                "stride_in_1x1": stride_in_1x1,
            }
        elif (groups, width_per_group) != (1, 64):
            raise ValueError(
                "BasicBlock has one group of width 64, "
                f"got groups={groups}, width_per_group={width_per_group}"
            )
        elif stride_in_1x1 or any(layer is not nn.Conv2d for layer in conv_layers):
            raise ValueError("stride_in_1x1 and conv_layers are for Bottleneck, not BasicBlock")
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(width)
        self.out_channels: list[int] = []
        in_channels = width
        for stage, depth in enumerate(depths):
            stage_planes = (planes or width) * 2**stage
            blocks = nn.Sequential()
            if block is Bottleneck:
                options["conv_layer"] = conv_layers[stage]
            for i in range(depth):
                stride = 2 if i == 0 and stage > 0 else 1
                blocks.append(
                    block(in_channels=in_channels, planes=stage_planes, stride=stride, **options)
                )
                in_channels = stage_planes * block.expansion
            self.add_module(f"layer{stage + 1}", blocks)
            self.out_channels.append(in_channels)
        initialise_convolutions(self, he_normal)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> C2, C3, C4, C5 at strides 4, 8, 16, 32."""
        x = F.relu_(conv_norm(pixels, self.conv1, self.bn1))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        stages = []
        for stage in range(1, len(self.out_channels) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
            stages.append(x)
        return stages


def resnet18(*, norm_layer: NormLayer = FrozenBatchNorm2d) -> ResNet:
    """ResNet-18."""
    return ResNet(block=BasicBlock, depths=(2, 2, 2, 2), norm_layer=norm_layer)


def resnet34(*, norm_layer: NormLayer = FrozenBatchNorm2d) -> ResNet:
    """ResNet-34."""
    return ResNet(block=BasicBlock, depths=(3, 4, 6, 3), norm_layer=norm_layer)


def resnet50(*, norm_layer: NormLayer = FrozenBatchNorm2d, **options: Any) -> ResNet:
    """ResNet-50; further arguments as of ``ResNet``."""
    return ResNet(block=Bottleneck, depths=(3, 4, 6, 3), norm_layer=norm_layer, **options)


def resnet101(*, norm_layer: NormLayer = FrozenBatchNorm2d, **options: Any) -> ResNet:
    """ResNet-101; further arguments as of ``ResNet``."""
    return ResNet(block=Bottleneck, depths=(3, 4, 23, 3), norm_layer=norm_layer, **options)


def resnext101_32x8d(*, norm_layer: NormLayer = FrozenBatchNorm2d, **options: Any) -> ResNet:
    """ResNeXt-101 with 32 groups of width 8; further arguments as of ``ResNet``."""
    return resnet101(groups=32, width_per_group=8, norm_layer=norm_layer, **options)


def resnext101_64x4d(*, norm_layer: NormLayer = FrozenBatchNorm2d, **options: Any) -> ResNet:
    """ResNeXt-101 with 64 groups of width 4; further arguments as of ``ResNet``."""
    return resnet101(groups=64, width_per_group=4, norm_layer=norm_layer, **options)
