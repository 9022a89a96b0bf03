"""The competition of masks for pixels, as panoptic segmentation decides it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg.reference.resize_masks import resize_logits


def panoptic_map(
    mask_logits: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    *,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    inside_only: bool = True,
) -> tuple[Tensor, Tensor]:
    """See `fastseg.ops.panoptic_map`."""
    taking_part = (scores > 0).nonzero().flatten()
    winners = torch.full(size, -1, dtype=torch.int32, device=mask_logits.device)
    areas = torch.zeros(3, len(mask_logits), dtype=torch.int64, device=mask_logits.device)
    if len(taking_part) == 0:
        return winners, areas
    probabilities = resize_logits(mask_logits[taking_part], size, via, crop).sigmoid()
    best = (scores[taking_part, None, None].float() * probabilities).argmax(0)
    for row, query in enumerate(taking_part.tolist()):
        won, inside = best == row, probabilities[row] >= 0.5
        winners[won & inside if inside_only else won] = query
        areas[:, query] = torch.stack([won.sum(), inside.sum(), (won & inside).sum()])
    return winners, areas
