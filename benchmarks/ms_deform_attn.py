"""Multi-scale deformable attention against the grid_sample way of transformers and mmcv's CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.agreement import relative_norm
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator

HEADS, CHANNELS, POINTS = 8, 32, 4


def cases(setting: Setting) -> Iterator[Case]:
    """Mask2Former's pixel decoder at 1024x1024: every cell of three levels is a query."""
    shapes = [(4, 5), (2, 3)] if setting.quick else [(32, 32), (64, 64), (128, 128)]
    for batch in (1,) if setting.device.type == "cpu" else (1, 2):
        for direction in ("forward", "backward"):
            yield _case(setting, batch, shapes, direction)


def _case(setting: Setting, batch: int, shapes: list[tuple[int, int]], direction: str) -> Case:
    inputs = _inputs(setting, batch, shapes)
    read = sum(x.numel() * x.element_size() for x in inputs)
    written = inputs[0].numel() * inputs[0].element_size()
    levels = "+".join(f"{height}x{width}" for height, width in shapes)
    return Case(
        name=f"{direction} B{batch} {levels} {HEADS}x{CHANNELS} {POINTS} points",
        providers={
            "fastseg": _provider(_fastseg, inputs, shapes, direction),
            "transformers' way": _provider(_grid_sample, inputs, shapes, direction),
        },
        bytes_moved=read + written if direction == "forward" else 2 * (read + written),
        agreement=relative_norm(_tolerance(setting, direction)),
        needs_grad=direction == "backward",
    )


def _tolerance(setting: Setting, direction: str) -> float:
    """The gradient of a location jumps where samples pass a cell's centre, and the peer rounds
    locations once more: some of two million fall on the other side."""
    if setting.dtype != torch.float32:
        return 0.05
    return 1e-4 if direction == "forward" else 1e-3


def _inputs(setting: Setting, batch: int, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Value, locations about two cells from the query's own place, and weights."""
    source = generator()
    rows = sum(height * width for height, width in shapes)
    centres = [
        torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(1)
        for h, w in shapes
    ]
    size = (batch, rows, HEADS, len(shapes), POINTS)
    sides = torch.tensor([[width, height] for height, width in shapes])
    offsets = 2 * torch.randn(*size, 2, generator=source) / sides[:, None]
    locations = torch.cat(centres)[:, None, None, None] + offsets
    weights = torch.rand(size, generator=source).flatten(3).softmax(-1).view(size)
    value = torch.randn(batch, rows, HEADS, CHANNELS, generator=source)
    return [
        value.to(setting.device, setting.dtype),
        locations.to(setting.device),
        weights.to(setting.device),
    ]


def _provider(
    attend: Callable[..., Tensor],
    inputs: list[Tensor],
    shapes: list[tuple[int, int]],
    direction: str,
) -> Callable[[], Run]:
    def prepare() -> Run:
        if direction == "forward":
            return lambda: attend(inputs[0], shapes, *inputs[1:])
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = attend(leaves[0], shapes, *leaves[1:])
        grad = torch.randn(output.shape, generator=generator()).to(output)

        def run() -> Any:
            return torch.autograd.grad(output, leaves, grad, retain_graph=True)

        return run

    return prepare


def _fastseg(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    from fastseg import ops

    return ops.ms_deform_attn(value, shapes, None, locations, weights)


def _grid_sample(
    value: Tensor, shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """One grid_sample a level, all samples stacked: what those packages do without a kernel."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    maps = value.split([height * width for height, width in shapes], dim=1)
    grids = (2 * locations - 1).to(value.dtype)
    samples = []
    for level, (height, width) in enumerate(shapes):
        planes = maps[level].flatten(2).transpose(1, 2)
        planes = planes.reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        samples.append(F.grid_sample(planes, grid, align_corners=False))
    shares = weights.to(value.dtype).transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.stack(samples, dim=-2).flatten(-2) * shares).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2).contiguous()
