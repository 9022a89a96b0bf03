"""Anchors of the region proposal network (Ren et al., Faster R-CNN, 2015, section 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


class AnchorGenerator(nn.Module):
    """Anchors at every position of every level of a feature pyramid.

    The anchors of one position, its cell anchors, are centred on zero. They are kept as the bits of
    float32 numbers so that ``model.half()`` and ``model.bfloat16()`` leave them exact.

    Args:
        sizes: per level, the side lengths in pixels of the square anchors.
        aspect_ratios: height / width; either one list for all levels or one list per level.
        rounded: cell anchors have integer coordinates, as in torchvision.
        ratio_major: cell anchors of one aspect ratio follow each other; else those of one size.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[Sequence[float]],
        aspect_ratios: Sequence[float] | Sequence[Sequence[float]],
        rounded: bool = True,
        ratio_major: bool = True,
    ) -> None:
        super().__init__()
        ratios_per_level = cast(
            Sequence[Sequence[float]],
            aspect_ratios
            if isinstance(aspect_ratios[0], Sequence)
            else [aspect_ratios] * len(sizes),
        )
        if len(ratios_per_level) != len(sizes):
            raise ValueError(
                f"aspect_ratios has {len(ratios_per_level)} levels but anchor_sizes has "
                f"{len(sizes)}"
            )
        self.num_levels = len(sizes)
        self.sizes = tuple(tuple(level_sizes) for level_sizes in sizes)
        self.aspect_ratios = tuple(tuple(ratios) for ratios in ratios_per_level)
        for level, (level_sizes, ratios) in enumerate(zip(sizes, ratios_per_level, strict=True)):
            cells = cell_anchors(level_sizes, ratios, rounded=rounded, ratio_major=ratio_major)
            bits = cells.view(torch.int32)
            self.register_buffer(f"cell_anchors{level}", bits, persistent=False)

    def num_anchors(self, level: int) -> int:
        """Anchors per position of a level."""
        return self.get_buffer(f"cell_anchors{level}").shape[0]

    def forward(
        self, level: int, index: Tensor, grid_width: int, stride: tuple[int, int]
    ) -> Tensor:
        """The anchors with the given indices; anchors that nobody asks for are never made.

        Args:
            level: level of the pyramid, 0 = the finest.
            index: int64, any shape: position in the level's row-major list of (y, x, anchor).
            grid_width: width of the level's feature map.
            stride: (vertical, horizontal) distance in pixels between positions.

        Returns:
            float32 [..., 4], (x1, y1, x2, y2) in pixels.
        """
        cells = self.get_buffer(f"cell_anchors{level}").view(torch.float32)
        position = torch.div(index, len(cells), rounding_mode="floor")
        y = torch.div(position, grid_width, rounding_mode="floor") * stride[0]
        x = (position % grid_width) * stride[1]
        return cells[index % len(cells)] + torch.stack((x, y, x, y), dim=-1)


def cell_anchors(
    sizes: Sequence[float],
    aspect_ratios: Sequence[float],
    *,
    rounded: bool = True,
    ratio_major: bool = True,
) -> Tensor:
    """Zero-centred anchors, float32 [len(aspect_ratios) * len(sizes), 4]; see ``AnchorGenerator``.

    They are made on the CPU even under ``torch.device("meta")``, where ``load_model`` builds
    networks: no checkpoint holds them.
    """
    scales = torch.tensor(sizes, dtype=torch.float32, device="cpu")
    ratios = torch.tensor(aspect_ratios, dtype=torch.float32, device="cpu")
    height_ratios = torch.sqrt(ratios)
    heights = height_ratios[:, None] * scales
    widths = (1 / height_ratios)[:, None] * scales
    cells = torch.stack((-widths, -heights, widths, heights), dim=2) / 2  # [ratios, sizes, 4]
    cells = (cells if ratio_major else cells.transpose(0, 1)).flatten(0, 1)
    return cells.round() if rounded else cells
