"""Masks at one bit a pixel, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg.ops.pack_masks import PackedMasks


def pack_masks(masks: Tensor, threshold: float | None = None) -> PackedMasks:
    """See `fastseg.ops.pack_masks`."""
    inside = masks != 0 if threshold is None else masks > threshold
    count, height, width = inside.shape
    words = torch.zeros(count, height, (width + 63) // 64, dtype=torch.int64)
    for x in range(width):
        words[:, :, x // 64] |= inside[:, :, x].long() << x % 64
    areas = inside.sum((1, 2))
    boxes = torch.zeros(count, 4, dtype=torch.int64)
    for box, mask in zip(boxes, inside, strict=True):
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows):
            ends = columns.max() + 1, rows.max() + 1
            box[:] = torch.stack([columns.min(), rows.min(), *ends])
    return PackedMasks(words, areas, boxes, width)


def unpack_masks(packed: PackedMasks) -> Tensor:
    """See `fastseg.ops.unpack_masks`."""
    columns = [packed.words[:, :, x // 64] >> x % 64 & 1 for x in range(packed.width)]
    shape = (len(packed), packed.height, packed.width)
    return torch.stack(columns, 2).bool() if columns else torch.zeros(shape, dtype=torch.bool)
