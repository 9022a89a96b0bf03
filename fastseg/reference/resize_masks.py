"""Resizing of mask logits to masks, as models do after their last layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from fastseg.ops.pack_masks import PackedMasks
from fastseg.reference.pack_masks import pack_masks
from fastseg.reference.rle import rle_encode


def resize_masks(
    masks: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    output: str = "rle",
) -> Tensor | list[dict[str, Any]] | PackedMasks:
    """See `fastseg.ops.resize_masks`."""
    inside = resize_logits(masks, size, via, crop) > threshold
    if output == "packed":
        return pack_masks(inside)
    return inside if output == "bool" else rle_encode(inside)


def mask_scores(
    logits: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
) -> Tensor:
    """See `fastseg.ops.mask_scores`."""
    values = resize_logits(logits, size, via, crop).double().flatten(1)
    inside = values > threshold
    return ((values.sigmoid() * inside).nansum(1) / (inside.sum(1) + 1e-6)).float()


def resize_logits(
    masks: Tensor, size: tuple[int, int], via: tuple[int, int] | None, crop: tuple[int, int] | None
) -> Tensor:
    """float32 [N, H, W], the values that are compared with the threshold."""
    values = masks.float()[:, None]
    if via is not None:
        height, width = crop or via
        values = F.interpolate(values, via, mode="bilinear", align_corners=False)
        values = values[..., :height, :width]
    return F.interpolate(values, size, mode="bilinear", align_corners=False)[:, 0]
