"""Which cell shall predict which instance (SOLO, Wang et al., 2020, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg.losses.instance_targets import InstanceTargets


@dataclass(frozen=True)
class LevelTargets:
    """What the cells of one level of one image shall predict.

    Attributes:
        labels: int64 [S, S], the class of each cell, or the number of classes where there is none.
        cells: int64 [P], indices of cells that shall predict a mask.
        instances: int64 [P], whose mask.
    """

    labels: Tensor
    cells: Tensor
    instances: Tensor


def grid_targets(
    targets: InstanceTargets,
    *,
    size: tuple[int, int],
    num_classes: int,
    num_grids: Sequence[int],
    scale_ranges: Sequence[tuple[float, float]],
    pos_scale: float,
    one_per_cell: bool,
) -> list[LevelTargets]:
    """Assigns instances to cells: those around the mask's centre of mass, on suitable levels.

    The arithmetic is the peers' in single precision, so that cells fall where theirs do.

    Args:
        targets: of one image.
        size: (height, width) of the padded image, which the grids divide.
        num_classes: label of cells without instance.
        num_grids: per level, the number of cells along each side.
        scale_ranges: per level, least and greatest square root of a box's area.
        pos_scale: centres are this share of the box wide and high.
        one_per_cell: where instances share a cell, the last one alone has it, as in SOLO; else
            (SOLOv2) the cell predicts the masks of all.

    Returns:
        Per level what its cells shall predict, in the order of instances, rows and columns.
    """
    x1, y1, x2, y2 = targets.boxes.float().unbind(1)
    scales = torch.sqrt((x2 - x1) * (y2 - y1))
    extents = (0.5 * (y2 - y1) * pos_scale, 0.5 * (x2 - x1) * pos_scale)
    centers = centers_of_mass(targets.masks)
    not_empty = targets.masks.flatten(1).any(1)

    levels = []
    for num_grid, (low, high) in zip(num_grids, scale_ranges, strict=True):
        chosen = (scales >= low) & (scales <= high) & not_empty
        rows, columns = (
            centre_lines(center, extent, length, num_grid)
            for center, extent, length in zip(centers, extents, size, strict=True)
        )  # [N, 3] each, -1 = none
        inside = (rows >= 0)[:, :, None] & (columns >= 0)[:, None] & chosen[:, None, None]
        instances, i, j = inside.nonzero(as_tuple=True)
        cells = rows[instances, i] * num_grid + columns[instances, j]

        # Later instances overwrite the labels of earlier ones.
        owners = torch.full((num_grid**2,), -1, device=cells.device)
        owners = owners.scatter_reduce(0, cells, instances, "amax")
        owned = owners >= 0
        labels = torch.full_like(owners, num_classes)
        labels[owned] = targets.labels[owners[owned]]
        if one_per_cell:
            cells, instances = owned.nonzero().flatten(), owners[owned]
        levels.append(LevelTargets(labels.unflatten(0, (num_grid, num_grid)), cells, instances))
    return levels


def centers_of_mass(masks: Tensor) -> tuple[Tensor, Tensor]:
    """y [N] and x [N] of masks [N, h, w], in pixels whose first centre is 0."""
    _, height, width = masks.shape
    in_rows, in_columns = masks.sum(2), masks.sum(1)  # exact, [N, h] and [N, w]
    area = in_rows.sum(1).float().clamp(min=1)
    ys = torch.arange(height, device=masks.device)
    xs = torch.arange(width, device=masks.device)
    return (in_rows * ys).sum(1) / area, (in_columns * xs).sum(1) / area


def centre_lines(center: Tensor, extent: Tensor, length: int, num_grid: int) -> Tensor:
    """Rows or columns of cells in an instance's centre, at most one to each side of the middle.

    Args:
        center: [N], in pixels.
        extent: [N], how far the centre region reaches to each side.
        length: side of the padded image.
        num_grid: cells along it.

    Returns:
        int64 [N, 3]: the line before the centre's, the centre's and the next; -1 where that is
        outside the centre region.
    """

    def line(position: Tensor) -> Tensor:
        return torch.div(position / length, 1 / num_grid, rounding_mode="trunc").long()

    lines = line(center)[:, None] + torch.arange(-1, 2, device=center.device)
    first = line(center - extent).clamp(min=0)
    last = line(center + extent).clamp(max=num_grid - 1)
    inside = (lines >= first[:, None]) & (lines <= last[:, None])
    return lines.masked_fill(~inside, -1)


def shrink_masks(masks: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """Masks [N, h, w] padded with zeros to ``size`` and reduced: bool [N, H / stride, W / stride].

    A new pixel is inside if two or more of the four pixels around its centre are. So is the
    bilinear resize of bytes 0 and 1, whose result is rounded, in which the peers make targets.

    Args:
        masks: of one image.
        stride: even divisor of both sides of ``size``.
        size: (height, width) of the padded image.
    """
    padded = F.pad(masks.byte(), (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))
    before, after = slice(stride // 2 - 1, None, stride), slice(stride // 2, None, stride)
    upper, lower = padded[:, before], padded[:, after]
    inside = upper[:, :, before] + upper[:, :, after] + lower[:, :, before] + lower[:, :, after]
    return inside >= 2
