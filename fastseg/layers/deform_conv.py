"""Deformable convolutions that predict their own offsets (Dai et al., 2017; Zhu et al., 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from fastseg.ops import deform_conv2d

Pair = int | tuple[int, int]


def with_inner_offsets(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with every offset convolution inside its deformable one.

    In detectron2's and older mmcv's the two are neighbours, `conv2` and `conv2_offset`; here the
    second is `conv2.conv_offset`. Other keys stay.

    Args:
        state_dict: tensors by key; it is left as it is.
    """
    renamed = {}
    for key, tensor in state_dict.items():
        name, _, kind = key.rpartition("_offset.")
        is_neighbour = f"{name}.weight" in state_dict and kind in ("weight", "bias")
        renamed[f"{name}.conv_offset.{kind}" if is_neighbour else key] = tensor
    return renamed


class DeformConv2d(nn.Module):
    """A convolution whose taps are moved by what an ordinary convolution of its input predicts.

    That convolution starts at zero, so at first this one is an ordinary convolution too. Keys of
    its state dict are those of mmcv's `DeformConv2dPack`: weight, bias, conv_offset.weight,
    conv_offset.bias; `with_inner_offsets` gives those of detectron2 and of older mmcv these names.

    Source: Dai et al., Deformable Convolutional Networks, 2017.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps, one int or (along y, along x); so the other pairs.
        stride: input pixels per output pixel.
        padding: cells of zeros around the input.
        dilation: input pixels between taps.
        groups: groups of channels that are convolved apart.
        offset_groups: groups of input channels with offsets of their own.
        bias: whether a bias is added.
    """

    channels_per_tap = 2  # of conv_offset: y, x

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        *,
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        offset_groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups or in_channels % offset_groups:
            raise ValueError(
                f"groups must divide in_channels and out_channels and offset_groups in_channels, "
                f"got {in_channels=}, {out_channels=}, {groups=}, {offset_groups=}"
            )
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.offset_groups = offset_groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.conv_offset = nn.Conv2d(
            in_channels,
            offset_groups * self.channels_per_tap * kernel[0] * kernel[1],
            kernel,
            stride,
            padding,
            dilation,
        )
        bound = 1 / math.sqrt(self.weight[0].numel())
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(cast(Tensor, self.conv_offset.bias))

    def forward(self, x: Tensor) -> Tensor:
        """Convolves ``x`` [B, C, H, W]."""
        return self._convolve(x, self.conv_offset(x), None)

    def _convolve(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        geometry = (self.stride, self.padding, self.dilation)
        return deform_conv2d(x, offset, self.weight, self.bias, *geometry, mask)

    def extra_repr(self) -> str:
        return (
            f"stride={self.stride}, padding={self.padding}, dilation={self.dilation}, "
            f"offset_groups={self.offset_groups}"
        )


class ModulatedDeformConv2d(DeformConv2d):
    """Deformable convolution v2: what taps read is also weighed, by 0 to 1, as predicted.

    Of the predicted channels the first two thirds are offsets and the last third, through a
    sigmoid, masks; keys and channels are those of mmcv's `ModulatedDeformConv2dPack` and of
    detectron2's `ModulatedDeformConv` with its offset convolution. At first masks are 1 / 2.

    Source: Zhu et al., Deformable ConvNets v2, 2019.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: taps, one int or (along y, along x); so the other pairs.
        stride: input pixels per output pixel.
        padding: cells of zeros around the input.
        dilation: input pixels between taps.
        groups: groups of channels that are convolved apart.
        offset_groups: groups of input channels with offsets and masks of their own.
        bias: whether a bias is added.
    """

    channels_per_tap = 3  # of conv_offset: y, x, mask

    def forward(self, x: Tensor) -> Tensor:
        """Convolves ``x`` [B, C, H, W]."""
        predicted = self.conv_offset(x)
        offsets = predicted.shape[1] // 3 * 2
        return self._convolve(x, predicted[:, :offsets], predicted[:, offsets:].sigmoid())
