"""RoIAlign of one level and of a pyramid against torchvision's, forward and backward."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.agreement import close, relative_norm
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, proposals

STRIDES = {"P2": 4, "P3": 8, "P4": 16, "P5": 32}


def cases(setting: Setting) -> Iterator[Case]:
    """P2 and P3 alone, then all four levels, of an 800x1344 image with 256 channels."""
    sizes = (("P2", 1000, 7), ("P3", 1000, 7), ("P2 P3 P4 P5", 1000, 7), ("P2 P3 P4 P5", 100, 14))
    for direction, sampling, layout in itertools.product(
        ("forward", "backward"), (2, 0), ("nhwc", "nchw")
    ):
        for levels, count, bins in sizes:
            yield _case(Workload(setting, direction, sampling, layout, levels.split(), count, bins))


@dataclass(frozen=True)
class Workload:
    """One combination of the settings that matter to speed."""

    setting: Setting
    direction: str
    sampling: int
    layout: str
    levels: list[str]
    count: int
    bins: int

    @property
    def image(self) -> tuple[int, int]:
        return (96, 160) if self.setting.quick else (800, 1344)

    @property
    def channels(self) -> int:
        return 8 if self.setting.quick else 256

    @property
    def scales(self) -> list[float]:
        return [1 / STRIDES[level] for level in self.levels]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        height, width = self.image
        return [(height // STRIDES[level], width // STRIDES[level]) for level in self.levels]

    def boxes(self) -> Tensor:
        return proposals(20 if self.setting.quick else self.count, *self.image, generator(0))

    def features(self, layout: str) -> list[Tensor]:
        maps = _random_maps(self.channels, tuple(self.sizes))
        order = torch.channels_last if layout == "nhwc" else torch.contiguous_format
        return [
            map.to(self.setting.device, self.setting.dtype)
            .clone(memory_format=order)
            .requires_grad_(self.direction == "backward")
            for map in maps
        ]


@functools.cache
def _random_maps(channels: int, sizes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    random = generator(1)
    return [torch.randn(1, channels, *size, generator=random) for size in sizes]


def _case(work: Workload) -> Case:
    boxes = work.boxes()
    single = len(work.levels) == 1
    outputs = boxes.shape[0] * work.bins**2
    cells = _cells_read(boxes, work) if work.direction == "forward" else _cells(work)
    half = work.setting.dtype.itemsize == 2
    return Case(
        name=f"{work.levels[0] if single else 'P2-P5'} {work.direction} {len(boxes)}x{work.bins}x"
        f"{work.bins} sampling {work.sampling} {work.layout}",
        providers={
            "fastseg": lambda: _fastseg(work, boxes),
            "torchvision": lambda: _torchvision(work, boxes),
        },
        bytes_moved=work.channels * work.setting.dtype.itemsize * (outputs + cells),
        # A gradient is a sum of up to thousands of products, in another order than the peer's.
        agreement=relative_norm(1e-2) if half else close(rtol=1e-4, atol=1e-3),
        needs_grad=work.direction == "backward",
    )


def _fastseg(work: Workload, boxes: Tensor) -> Run:
    from fastseg import ops

    rows = torch.nn.functional.pad(boxes, (1, 0)).to(work.setting.device)
    maps = work.features(work.layout)

    def pool() -> Tensor:
        if len(maps) == 1:
            return ops.roi_align(maps[0], rows, work.bins, work.scales[0], work.sampling)
        return ops.multi_scale_roi_align(maps, rows, work.bins, work.scales, work.sampling)

    return _direction(work, maps, pool)


def _torchvision(work: Workload, boxes: Tensor) -> Run:
    from torchvision.ops import MultiScaleRoIAlign, roi_align

    # Its kernels read NCHW and copy every other layout, so NCHW is its best mode in all cases.
    # In half precision it would compute coordinates in half too; autocast, its usual use, does not.
    maps = work.features("nchw")
    device = work.setting.device
    boxes = boxes.to(device)
    names = dict(zip(work.levels, maps, strict=True))
    pooler = MultiScaleRoIAlign(work.levels, work.bins, work.sampling)

    def pool() -> Tensor:
        with torch.autocast(device.type, work.setting.dtype, work.setting.dtype.itemsize == 2):
            if len(maps) == 1:
                return roi_align(maps[0], [boxes], work.bins, work.scales[0], work.sampling)
            return pooler(names, [boxes], [work.image])

    return _direction(work, maps, pool)


def _direction(work: Workload, maps: list[Tensor], pool: Callable[[], Tensor]) -> Run:
    """The forward pass, or the backward pass alone."""
    if work.direction == "forward":
        return pool
    output = pool()
    grad = torch.randn(output.shape, generator=generator(2)).to(output)
    return lambda: torch.autograd.grad(output, maps, grad, retain_graph=True)


def _cells(work: Workload) -> int:
    return sum(height * width for height, width in work.sizes)


def _cells_read(boxes: Tensor, work: Workload) -> int:
    """Distinct cells of the feature maps that the forward pass must read, each counted once."""
    levels = torch.zeros(len(boxes), dtype=torch.long)
    if len(work.levels) > 1:
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        levels = torch.floor(4 + torch.log2(side / 224)).clamp(2, 5).long() - 2
    covered = 0
    for level, (height, width) in enumerate(work.sizes):
        read = torch.zeros(height, width, dtype=torch.bool)
        for x1, y1, x2, y2 in (boxes[levels == level] * work.scales[level]).int().tolist():
            read[y1 : y2 + 2, x1 : x2 + 2] = True  # the last sample's lower neighbour too
        covered += int(read.sum())
    return covered
