"""IoU of all pairs of masks, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseg.ops.pack_masks import PackedMasks
from fastseg.reference.pack_masks import unpack_masks
from fastseg.reference.rle import rle_decode


def mask_iou(a: Any, b: Any = None, iscrowd: Any = None, mode: str = "iou") -> Tensor:
    """See `fastseg.ops.mask_iou`."""
    first = _pixels(a)
    second = first if b is None else _pixels(b)
    common = first @ second.T
    areas_a, areas_b = first.sum(1)[:, None], second.sum(1)[None]
    union = areas_a + areas_b - common
    if mode == "iof":
        union = areas_a.expand_as(union)
    if iscrowd is not None:
        union = torch.where(torch.as_tensor(iscrowd).bool(), areas_a, union)
    return torch.where(common > 0, common / union, 0.0)


def _pixels(masks: Any) -> Tensor:
    """[N, H * W] float64 zeros and ones, which count exactly."""
    if isinstance(masks, PackedMasks):
        masks = unpack_masks(masks)
    elif not isinstance(masks, Tensor):
        masks = rle_decode(masks)
    return (masks != 0).flatten(1).double()
