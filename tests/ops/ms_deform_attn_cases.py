"""Inputs for the tests of deformable attention, and how near results must be."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SHAPES = [(7, 9), (4, 3), (1, 1)]
# Relative to the largest value: rounding to the stored type; in float32, of sums in another order
# and of positions, which locations' gradients multiply by the map's side.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert actual.shape == expected.shape
    scale = max(float(expected.detach().abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double().cpu(),
        expected.double().cpu(),
        rtol=0,
        atol=TOLERANCE[dtype] * scale,
    )


def random_case(
    channels: int, *, heads: int = 3, queries: int = 11, points: int = 4, batch: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, locations (some outside the maps) and weights, float64."""
    rows = sum(height * width for height, width in SHAPES)
    value = torch.randn(batch, rows, heads, channels, dtype=torch.float64)
    size = (batch, queries, heads, len(SHAPES), points)
    locations = torch.rand(*size, 2, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(size, dtype=torch.float64).flatten(3).softmax(-1).view(size)
    return value, locations, weights


def gradients(function: Callable, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return output.detach(), list(torch.autograd.grad(output, leaves, grad))
