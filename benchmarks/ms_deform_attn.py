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
    """Mask2Former's pixel decoder at 1024x1024: every cell of three levels is a query.

    "points": from what its linear layers return, reference points, offsets and logits, on.
    """
    shapes = [(4, 5), (2, 3)] if setting.quick else [(32, 32), (64, 64), (128, 128)]
    for batch in (1,) if setting.device.type == "cpu" else (1, 2):
        for direction in ("forward", "backward"):
            yield _case(setting, batch, shapes, direction, fused=False)
            yield _case(setting, batch, shapes, direction, fused=True)


def _case(
    setting: Setting, batch: int, shapes: list[tuple[int, int]], direction: str, *, fused: bool
) -> Case:
    inputs = (_fused_inputs if fused else _inputs)(setting, batch, shapes)
    read = sum(x.untyped_storage().nbytes() for x in inputs)
    written = inputs[0].numel() * inputs[0].element_size()
    levels = "+".join(f"{height}x{width}" for height, width in shapes)
    ways = {"fastseg": _fastseg, "transformers' way": _grid_sample}
    if fused:
        ways = {
            "fastseg": _fastseg_fused,
            "fastseg from locations on": _from_locations(_fastseg),
            "transformers' way": _from_locations(_grid_sample),
        }
    form = "from points " if fused else ""
    return Case(
        name=f"{direction} {form}B{batch} {levels} {HEADS}x{CHANNELS} {POINTS} points",
        providers={name: _provider(way, inputs, shapes, direction) for name, way in ways.items()},
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


def _fused_inputs(setting: Setting, batch: int, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Value, each query's own place, offsets of about two cells, and logits."""
    source = generator()
    rows = sum(height * width for height, width in shapes)
    centres = torch.cat(
        [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(1)
            for h, w in shapes
        ]
    )
    size = (batch, rows, HEADS, len(shapes), POINTS)
    value = torch.randn(batch, rows, HEADS, CHANNELS, generator=source)
    offsets = 2 * torch.randn(*size, 2, generator=source)
    logits = torch.randn(size, generator=source)
    return [
        value.to(setting.device, setting.dtype),
        centres.to(setting.device)[None, :, None].expand(batch, -1, len(shapes), -1),
        offsets.to(setting.device),
        logits.to(setting.device),
    ]


def _inputs(setting: Setting, batch: int, shapes: list[tuple[int, int]]) -> list[Tensor]:
    """Value, locations and weights of the same points."""
    value, *points = _fused_inputs(setting, batch, shapes)
    return [value, *_locations_and_weights(shapes, *points)]


def _locations_and_weights(
    shapes: list[tuple[int, int]], references: Tensor, offsets: Tensor, logits: Tensor
) -> tuple[Tensor, Tensor]:
    sides = torch.tensor([[width, height] for height, width in shapes], device=offsets.device)
    locations = references[:, :, None, :, None] + offsets / sides[:, None]
    return locations, logits.flatten(3).softmax(-1).view(logits.shape)


def _from_locations(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The softmax and the locations' arithmetic in torch, then `attend`."""

    def run(value: Tensor, shapes: list[tuple[int, int]], *points: Tensor) -> Tensor:
        return attend(value, shapes, *_locations_and_weights(shapes, *points))

    return run


def _provider(
    attend: Callable[..., Tensor],
    inputs: list[Tensor],
    shapes: list[tuple[int, int]],
    direction: str,
) -> Callable[[], Run]:
    def prepare() -> Run:
        if direction == "forward":
            return lambda: attend(inputs[0], shapes, *inputs[1:])
        # Reference points are constants of the pixel decoder.
        leaves = [x.clone().requires_grad_() for x in (inputs[0], *inputs[-2:])]
        inner = inputs[1:-2]
        output = attend(leaves[0], shapes, *inner, *leaves[1:])
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


def _fastseg_fused(value: Tensor, shapes: list[tuple[int, int]], *points: Tensor) -> Tensor:
    from fastseg import ops

    return ops.ms_deform_attn_fused(value, shapes, None, *points)


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
