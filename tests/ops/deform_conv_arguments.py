"""What the tests of deformable convolution share: random arguments, layouts, tolerances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMES = ("input", "offset", "weight", "bias", "mask")
# Relative to the largest value: rounding to the stored type, and of sums in another order.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 4e-6,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: x.repeat_interleave(2, 1).repeat(1, 1, 1, 2)[:, ::2, :, : x.shape[3]],
}
Arguments = dict[str, Tensor | None]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = max(float(expected.detach().abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.detach().double().cpu(),
        expected.detach().double().cpu(),
        rtol=0,
        atol=TOLERANCE[dtype] * scale,
    )


def random_arguments(
    batch: int = 2,
    channels: int = 8,
    size: tuple[int, int] = (9, 7),
    out_channels: int = 6,
    kernel: tuple[int, int] = (3, 3),
    groups: int = 1,
    offset_groups: int = 1,
    geometry: tuple = ((1, 1), (1, 1), (1, 1)),
    dtype: torch.dtype = torch.float32,
    spread: float = 2.0,
) -> Arguments:
    stride, padding, dilation = geometry
    out = [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(2)
    ]
    taps = kernel[0] * kernel[1] * offset_groups
    tensors = {
        "input": torch.randn(batch, channels, *size),
        "offset": torch.randn(batch, 2 * taps, *out) * spread,
        "weight": torch.randn(out_channels, channels // groups, *kernel) / 4,
        "bias": torch.randn(out_channels),
        "mask": torch.rand(batch, taps, *out),
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def copies(arguments: Arguments, **to: Any) -> Arguments:
    return {
        name: None if tensor is None else tensor.detach().to(**to).clone().requires_grad_()
        for name, tensor in arguments.items()
    }


def convolve(function: Callable[..., Tensor], arguments: Arguments, geometry: tuple) -> Tensor:
    *tensors, mask = (arguments[name] for name in NAMES)
    return function(*tensors, *geometry, mask)
