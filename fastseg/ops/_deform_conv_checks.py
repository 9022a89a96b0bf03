"""What deformable convolution demands of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def pair_of(name: str, value: int | Sequence[int], least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if not all(hasattr(number, "__index__") for number in pair):
        raise TypeError(f"{name} must be one or two ints, got {value!r}")
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"{name} must be one or two ints of at least {least}, got {value}")
    return pair[0], pair[1]


def check(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> None:
    """TypeError or ValueError unless all shapes and devices fit together."""
    device = input.device if isinstance(input, Tensor) else None
    named = (("input", input), ("offset", offset), ("weight", weight), ("mask", mask))
    for name, tensor in named if mask is not None else named[:3]:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dim() != 4 or tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{name} must be floating point with 4 dimensions, got {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device} as input, got {tensor.device}")
    channels, (out_channels, group_channels, *kernel) = input.shape[1], weight.shape
    if group_channels < 1 or channels < 1 or channels % group_channels:
        raise ValueError(
            f"weight's channels per group must divide the {channels} of input, got weight "
            f"{tuple(weight.shape)}"
        )
    groups = channels // group_channels
    if out_channels < 1 or out_channels % groups or min(kernel) < 1:
        raise ValueError(
            f"weight must be [D, {group_channels}, kh, kw] with a D that {groups} groups divide, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None:
        if bias.shape != (out_channels,):
            raise ValueError(f"bias must have shape [{out_channels}], got {tuple(bias.shape)}")
        if bias.device != device:
            raise ValueError(f"bias must be on {device} as input, got {bias.device}")
    size = [
        (input.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    if min(size) < 1:
        raise ValueError(
            f"the output would have {size[0]} x {size[1]} pixels: input {tuple(input.shape)}, "
            f"kernel {tuple(kernel)}, {stride=}, {padding=}, {dilation=}"
        )
    _check_offsets(input, offset, mask, kernel[0] * kernel[1], size)


def check_types(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """ValueError unless the types fit together, as autocast makes them do."""
    dtype = input.dtype
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != dtype:
            raise ValueError(f"{name} must be {dtype} as input, got {tensor.dtype}")


def _check_offsets(
    input: Tensor, offset: Tensor, mask: Tensor | None, taps: int, size: list[int]
) -> None:
    batch, channels = input.shape[:2]
    offset_groups = offset.shape[1] // (2 * taps)
    if offset_groups < 1 or offset.shape[1] % (2 * taps) or channels % offset_groups:
        raise ValueError(
            f"offset must have 2 * {taps} channels for each of some groups that divide the "
            f"{channels} channels of input, got {tuple(offset.shape)}"
        )
    if offset.shape != (batch, offset.shape[1], *size):
        raise ValueError(
            f"offset must have shape [{batch}, {offset.shape[1]}, {size[0]}, {size[1]}], got "
            f"{tuple(offset.shape)}"
        )
    if mask is not None and mask.shape != (batch, offset_groups * taps, *size):
        raise ValueError(
            f"mask must have shape [{batch}, {offset_groups * taps}, {size[0]}, {size[1]}], got "
            f"{tuple(mask.shape)}"
        )
