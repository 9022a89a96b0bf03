"""Deformable convolution written like its definition.

Dai et al., Deformable Convolutional Networks, 2017, Eq. 2; with a mask Zhu et al., Deformable
ConvNets v2, 2019, Eq. 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample(maps: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Bilinear samples of maps [..., C, H, W] at ys and xs [..., N] -> [..., C, N].

    Cells beyond the border count as 0, so a position more than a cell outside samples 0. A position
    that is NaN samples NaN.
    """
    height, width = maps.shape[-2:]
    outside = (ys < -1) | (ys >= height) | (xs < -1) | (xs >= width)
    ys, xs = ys.masked_fill(outside, 0), xs.masked_fill(outside, 0)
    south, east = ys - ys.floor(), xs - xs.floor()
    flat = maps.flatten(-2)

    def cells(y: Tensor, x: Tensor) -> Tensor:
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        index = torch.where(inside, y * width + x, 0).long().unsqueeze(-2)
        values = flat.gather(-1, index.expand(*flat.shape[:-1], index.shape[-1]))
        return torch.where(inside.unsqueeze(-2), values, 0)

    y, x = ys.detach().floor(), xs.detach().floor()
    blend = (
        ((1 - south) * (1 - east)).unsqueeze(-2) * cells(y, x)
        + ((1 - south) * east).unsqueeze(-2) * cells(y, x + 1)
        + (south * (1 - east)).unsqueeze(-2) * cells(y + 1, x)
        + (south * east).unsqueeze(-2) * cells(y + 1, x + 1)
    )
    return torch.where(outside.unsqueeze(-2), 0, blend)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Definition of `fastseg.ops.deform_conv2d`; pairs are (along y, along x)."""
    batch, channels = input.shape[:2]
    out_channels, group_channels, *kernel = weight.shape
    taps = kernel[0] * kernel[1]
    height, width = offset.shape[2:]
    offset_groups = offset.shape[1] // (2 * taps)

    def grid(axis: int, pixels: int) -> Tensor:
        """Where the taps would read without offsets, [taps of the axis, pixels]."""
        tap = torch.arange(kernel[axis], dtype=offset.dtype, device=offset.device)
        pixel = torch.arange(pixels, dtype=offset.dtype, device=offset.device)
        return tap[:, None] * dilation[axis] + pixel * stride[axis] - padding[axis]

    # [B, offset groups, taps along y, taps along x, (y, x), height, width]
    moves = offset.view(batch, offset_groups, *kernel, 2, height, width)
    ys = moves[..., 0, :, :] + grid(0, height)[:, None, :, None]
    xs = moves[..., 1, :, :] + grid(1, width)[None, :, None, :]
    maps = input.view(batch, offset_groups, channels // offset_groups, *input.shape[2:])
    columns = sample(maps, ys.flatten(2), xs.flatten(2))
    columns = columns.view(batch, offset_groups, -1, taps, height, width)
    if mask is not None:
        columns = columns * mask.view(batch, offset_groups, 1, taps, height, width)
    groups = channels // group_channels
    columns = columns.view(batch, groups, group_channels, taps, height, width)
    kernels = weight.view(groups, out_channels // groups, group_channels, taps)
    output = torch.einsum("bgcthw,goct->bgohw", columns, kernels).flatten(1, 2)
    return output if bias is None else output + bias[:, None, None]
