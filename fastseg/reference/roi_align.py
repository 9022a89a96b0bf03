"""RoIAlign written like its definition (He et al., Mask R-CNN, 2017, Sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def bilinear(map: Tensor, ys: Tensor, xs: Tensor) -> Tensor:
    """Samples map [C, H, W] at the grid ys [Y] x xs [X] -> [C, Y, X].

    A position outside [-1, size] counts as 0; one within a cell of the border takes the border's
    value.
    """
    height, width = map.shape[-2:]

    def taps(positions: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inside = (positions >= -1) & (positions <= size)
        positions = positions.clamp(0, size - 1)
        low = positions.floor().long()
        high = (low + 1).clamp(max=size - 1)
        fraction = positions - low
        return low, high, (1 - fraction) * inside, fraction * inside

    y0, y1, wy0, wy1 = taps(ys, height)
    x0, x1, wx0, wx1 = taps(xs, width)
    rows = map[:, y0] * wy0[:, None] + map[:, y1] * wy1[:, None]  # [C, Y, W]
    return rows[:, :, x0] * wx0 + rows[:, :, x1] * wx1


def _pool(
    map: Tensor, box: Tensor, size: tuple[int, int], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """One box (x1, y1, x2, y2) of one map [C, H, W] -> [C, height, width]."""
    if not torch.isfinite(box).all() or map.numel() == 0:
        return map.new_zeros(map.shape[0], *size)
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (box * scale - offset).unbind()

    def positions(low: Tensor, high: Tensor, bins: int) -> tuple[Tensor, int]:
        length = high - low if aligned else (high - low).clamp(min=1)
        bin_size = length / bins
        grid = ratio if ratio > 0 else math.ceil(bin_size)
        bin_index = torch.arange(bins, dtype=box.dtype)[:, None]
        sample = torch.arange(max(grid, 0), dtype=box.dtype)
        return (low + bin_index * bin_size + (sample + 0.5) * bin_size / max(grid, 1)), grid

    ys, grid_y = positions(y1, y2, size[0])
    xs, grid_x = positions(x1, x2, size[1])
    samples = bilinear(map, ys.flatten(), xs.flatten())  # [C, height * grid_y, width * grid_x]
    samples = samples.view(-1, size[0], ys.shape[1], size[1], xs.shape[1])
    return samples.sum(dim=(2, 4)) / max(grid_y * grid_x, 1)


def level_of(
    box: Tensor, levels: int, first: int, rule: str, canonical_scale: float, canonical_level: int
) -> int:
    """Index of the pyramid level that a box (x1, y1, x2, y2) is pooled from."""
    side = ((box[2] - box[0]) * (box[3] - box[1])).sqrt()
    if rule == "torchvision":
        level = canonical_level + (side / canonical_scale).log2() + 1e-6
    elif rule == "detectron2":
        level = canonical_level + (side / canonical_scale + 1e-8).log2()
    else:
        finest = canonical_scale / 2 ** (canonical_level - first)
        level = first + (side / finest + 1e-6).log2()
    return 0 if level.isnan() else int(level.floor().clamp(first, first + levels - 1)) - first


def roi_align(
    input: Tensor,
    boxes: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Definition of `fastseg.ops.roi_align` for boxes [K, 5]."""
    return multi_scale_roi_align(
        [input], boxes, output_size, [spatial_scale], sampling_ratio, aligned
    )


def multi_scale_roi_align(
    features: Sequence[Tensor],
    boxes: Tensor,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
    level_rule: str = "torchvision",
    canonical_scale: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """Definition of `fastseg.ops.multi_scale_roi_align` for boxes [K, 5]."""
    size = (output_size, output_size) if isinstance(output_size, int) else output_size
    first = round(-math.log2(spatial_scales[0]))
    pooled = []
    for row in boxes:
        box = row[1:]
        level = 0
        if len(features) > 1 and torch.isfinite(box).all():
            level = level_of(
                box, len(features), first, level_rule, canonical_scale, canonical_level
            )
        map = features[level][int(row[0])]
        pooled.append(_pool(map, box, size, spatial_scales[level], sampling_ratio, aligned))
    unused = sum(feature.sum() * 0 for feature in features)  # every level gets a gradient
    shape = (len(boxes), features[0].shape[1], *size)
    return (torch.stack(pooled) if pooled else features[0].new_zeros(shape)) + unused
