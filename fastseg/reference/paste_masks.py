"""Mask pasting as torchvision and detectron2 define it. Source: He et al., Mask R-CNN, 2017."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg.reference.rle import counts_to_text, runs


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    *,
    mode: str = "torchvision",
    threshold: float = 0.5,
    output: str = "prob",
) -> Tensor | list[dict[str, Any]]:
    """See `fastseg.ops.paste_masks`."""
    if masks.dim() == 4:
        masks = masks[:, 0]
    paste = {"torchvision": stretch_over_pixels, "detectron2": sample_at_pixel_centres}[mode]
    values = torch.zeros(len(masks), *image_size, device=masks.device)
    for n, (mask, box) in enumerate(zip(masks.float(), boxes.float(), strict=True)):
        if box.isfinite().all():
            paste(mask, box, values[n])
    if output == "prob":
        return values
    inside = values > threshold if mode == "torchvision" else values >= threshold
    if output == "bool":
        return inside
    return [{"size": list(image_size), "counts": counts_to_text(runs(mask))} for mask in inside]


def stretch_over_pixels(mask: Tensor, box: Tensor, image: Tensor) -> None:
    """torchvision: a border of one cell, a box of whole pixels, the mask resized to the box."""
    size = mask.shape[-1]
    centre = (box[2:] + box[:2]) * 0.5
    half = (box[2:] - box[:2]) * 0.5 * ((size + 2) / size)
    left, top = (centre - half).long().tolist()
    right, bottom = (centre + half).long().tolist()  # inclusive
    target = (max(bottom - top + 1, 1), max(right - left + 1, 1))
    bordered = F.pad(mask, (1, 1, 1, 1))[None, None]
    stretched = F.interpolate(bordered, target, mode="bilinear", align_corners=False)[0, 0]
    height, width = image.shape
    rows = slice(max(top, 0), max(min(bottom + 1, height), 0))
    columns = slice(max(left, 0), max(min(right + 1, width), 0))
    if rows.start < rows.stop and columns.start < columns.stop:
        image[rows, columns] = stretched[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]


def sample_at_pixel_centres(mask: Tensor, box: Tensor, image: Tensor) -> None:
    """detectron2: the image's pixel centres in the box's coordinates (-1 to 1) sample the mask."""
    x1, y1, x2, y2 = box
    height, width = image.shape
    y = (torch.arange(height, device=box.device) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(width, device=box.device) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=2)
    # Beyond 2 no mask reaches; a box without width or height has infinite and NaN positions.
    grid = grid.where(grid.abs() < 3, 3.0)
    image.copy_(F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0])
