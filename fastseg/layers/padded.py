"""Lists of unlike length in one tensor: rows of each image first, padding behind, and a count."""

from __future__ import annotations

import torch
from torch import Tensor


def take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Picks rows per image; padding in the index gives zeros.

    Args:
        rows: [B, N] or [B, N, C].
        index: int64 [B, M], -1 = padding.

    Returns:
        [B, M] or [B, M, C].
    """
    padding = index < 0
    index = index.clamp(min=0)
    if rows.dim() == 3:
        padding = padding[..., None]
        index = index[..., None].expand(-1, -1, rows.shape[-1])
    return rows.gather(1, index).masked_fill(padding, 0)


def is_row(counts: Tensor, num_rows: int) -> Tensor:
    """bool [B, num_rows]: which rows are not padding."""
    return torch.arange(num_rows, device=counts.device) < counts[:, None]


def rows_in_use(counts: Tensor, num_rows: int) -> int:
    """How many leading rows have to be computed, at most ``num_rows``.

    On the CPU the counts can be read at no cost, and a head need not run on rows that are padding
    in every image. Elsewhere reading them would stall the host and could not be captured in a CUDA
    graph, so that all rows are computed. What a row holds is the same either way.

    Args:
        counts: int64 [B].
        num_rows: number of rows of the padded tensor.
    """
    if counts.device.type != "cpu" or torch.compiler.is_compiling():
        return num_rows
    return int(counts.max())


def as_rois(boxes: Tensor) -> Tensor:
    """Boxes [B, N, 4] as regions of interest [B * N, 5]: (image index, x1, y1, x2, y2)."""
    num_images, num_boxes = boxes.shape[:2]
    image = torch.arange(num_images, device=boxes.device, dtype=boxes.dtype)
    image = image[:, None, None].expand(-1, num_boxes, 1)
    return torch.cat((image, boxes), dim=2).flatten(0, 1)
