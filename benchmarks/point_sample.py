"""Samples of masks at points against torch's grid_sample, as PointRend and Mask2Former call it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.agreement import relative_norm
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator


def cases(setting: Setting) -> Iterator[Case]:
    """Mask2Former's loss: 100 masks of 256x256, 3 * 12544 points each to choose from; its matching:
    100 masks that share 12544 points.
    """
    masks, side, points = (4, 16, 50) if setting.quick else (100, 256, 12544)
    yield _case(setting, "loss, choice of points", (masks, 1, side, side), 3 * points, "forward")
    for direction in ("forward", "backward"):
        yield _case(setting, "loss", (masks, 1, side, side), points, direction)
    yield _case(setting, "matching", (1, masks, side, side), points, "forward")


def _case(
    setting: Setting, name: str, size: tuple[int, int, int, int], count: int, direction: str
) -> Case:
    source = generator()
    maps = torch.randn(size, generator=source).to(setting.device, setting.dtype)
    points = torch.rand(size[0], count, 2, generator=source).to(setting.device)
    samples = size[0] * size[1] * count
    moved = (maps.numel() + samples) * maps.element_size() + points.numel() * 4
    return Case(
        name=f"{direction} {name} {'x'.join(str(side) for side in size)} {count} points",
        providers={
            "fastseg": _provider(_fastseg, maps, points, direction),
            "grid_sample": _provider(_grid_sample, maps, points, direction),
        },
        bytes_moved=moved,
        agreement=relative_norm(1e-5 if setting.dtype == torch.float32 else 0.05),
        needs_grad=direction == "backward",
    )


def _provider(
    sample: Callable[[Tensor, Tensor], Tensor], maps: Tensor, points: Tensor, direction: str
) -> Callable[[], Run]:
    def prepare() -> Run:
        if direction == "forward":
            return lambda: sample(maps, points)
        leaf = maps.clone().requires_grad_()
        output = sample(leaf, points)
        grad = torch.randn(output.shape, generator=generator()).to(output)

        def run() -> Any:
            return torch.autograd.grad(output, leaf, grad, retain_graph=True)

        return run

    return prepare


def _fastseg(maps: Tensor, points: Tensor) -> Tensor:
    from fastseg import ops

    return ops.point_sample(maps, points)


def _grid_sample(maps: Tensor, points: Tensor) -> Tensor:
    grid = (2 * points - 1).to(maps.dtype)[:, :, None]
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]
