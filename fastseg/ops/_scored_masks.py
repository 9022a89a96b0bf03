"""What the mask NMS ops take: masks in any form, with a label and a score each, of some images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastseg.ops.pack_masks import RLE, PackedMasks, pack_masks

Masks = Tensor | PackedMasks | Sequence[RLE]


@dataclass(frozen=True)
class ScoredMasks:
    """The masks of B images, N each."""

    masks: PackedMasks  # B * N
    areas: Tensor  # [B, N] int64 or float32
    labels: Tensor  # [B, N] int64
    scores: Tensor  # [B, N] float32 or float64

    def gather(self, index: Tensor) -> ScoredMasks:
        """Those at an index [B, K] of the masks of each image."""
        first = torch.arange(len(index), device=index.device)[:, None] * self.scores.shape[1]
        return ScoredMasks(
            self.masks[(first + index).flatten()],
            *(x.gather(1, index) for x in (self.areas, self.labels, self.scores)),
        )

    def intersections(self) -> Tensor:
        """[B, N, N] int64: the pixels that two masks of an image share."""
        batch, n = self.scores.shape
        rows = []
        for image in range(batch):
            own = self.masks[image * n : (image + 1) * n]
            sides = (own.words, own.words, own.boxes, own.boxes)
            rows.append(torch.ops.fastseg.mask_intersections(*sides))
        if batch == 1:
            return rows[0][None]  # no copy
        return torch.stack(rows) if rows else self.areas.new_empty((0, n, n))


def read_scored_masks(
    masks: Masks,
    labels: Tensor | None,
    scores: Tensor,
    *,
    mask_areas: Tensor | None = None,
    threshold: float | None = None,
    batched: bool,
) -> ScoredMasks:
    """Checks and packs the arguments of an op.

    Args:
        masks: [N, H, W] or [B, N, H, W], PackedMasks or RLEs of N or B * N masks.
        labels: [N] or [B, N] integers; None: one label for all.
        scores: [N] or [B, N] floats.
        mask_areas: [N] or [B, N], used in place of the areas in pixels.
        threshold: of floating masks.
        batched: whether B images are allowed.
    """
    if scores.dim() not in ((1, 2) if batched else (1,)):
        expected = "[N] or [B, N]" if batched else "[N]"
        raise ValueError(f"scores must have shape {expected}, got {tuple(scores.shape)}")
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating point, got {scores.dtype}")
    labels = torch.zeros_like(scores, dtype=torch.int64) if labels is None else labels
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    packed = _pack(masks, scores, threshold)
    areas = packed.areas.reshape(scores.shape) if mask_areas is None else mask_areas
    for name, tensor in (("labels", labels), ("mask_areas", areas)):
        if tensor.shape != scores.shape:
            sizes = tuple(scores.shape)
            raise ValueError(f"{name} must have shape {sizes}, got {tuple(tensor.shape)}")
        if tensor.device != scores.device:
            raise ValueError(f"{name} must be on {scores.device}, got {tensor.device}")
    rows = scores[None] if scores.dim() == 1 else scores
    return ScoredMasks(
        packed,
        (areas if areas.dtype == torch.int64 else areas.to(torch.float32)).reshape(rows.shape),
        labels.to(torch.int64).reshape(rows.shape),
        rows if rows.dtype == torch.float64 else rows.to(torch.float32),
    )


def _pack(masks: Masks, scores: Tensor, threshold: float | None) -> PackedMasks:
    if isinstance(masks, Tensor):
        if masks.shape[:-2] != scores.shape:
            expected = ", ".join(str(size) for size in scores.shape)
            got = tuple(masks.shape)
            raise ValueError(f"masks must have shape [{expected}, H, W], got {got}")
        masks = pack_masks(masks.flatten(0, -3), threshold)
    elif not isinstance(masks, PackedMasks):
        masks = pack_masks(masks, threshold).to(scores.device)
    elif threshold is not None:
        raise TypeError(f"threshold is for floating masks alone, got {threshold} for PackedMasks")
    if len(masks) != scores.numel():
        raise ValueError(f"masks must be {scores.numel()}, one for each score, got {len(masks)}")
    if masks.device != scores.device:
        raise ValueError(f"masks must be on {scores.device}, got {masks.device}")
    return masks


def take(masks: Masks, indices: Tensor) -> Masks:
    """Those of one image's masks at the indices, in the form that they came in."""
    if isinstance(masks, (Tensor, PackedMasks)):
        return masks[indices]
    return [masks[index] for index in indices.tolist()]
