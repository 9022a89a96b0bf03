"""NMS of masks by its definitions: one mask after the other, slow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastseg.reference.mask_iou import mask_iou


def mask_nms(
    masks: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    iou_threshold: float = 0.5,
    *,
    method: str = "greedy",
    max_output: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `fastseg.ops.mask_nms`; one image, masks [N, H, W] bool."""
    iou = _iou_within_labels(masks, labels)
    order = scores.sort(descending=True, stable=True).indices.tolist()
    kept: list[int] = []
    for place, i in enumerate(order):
        rivals = kept if method == "greedy" else order[:place]
        if not (iou[i, rivals] > iou_threshold).any():
            kept.append(i)
    if max_output is not None:
        kept = [i for i in kept if scores[i] != -torch.inf][:max_output]
    indices = torch.tensor(kept, dtype=torch.int64, device=scores.device)
    if max_output is None:
        return indices
    return _pad(indices, max_output, -1), torch.tensor(len(kept), device=scores.device)


def soft_mask_nms(
    masks: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    iou_threshold: float = 0.3,
    *,
    method: str = "linear",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    max_output: int | None = None,
) -> tuple[Tensor, ...]:
    """See `fastseg.ops.soft_mask_nms`; one image, masks [N, H, W] bool."""
    iou = _iou_within_labels(masks, labels)
    current = scores.to(torch.promote_types(scores.dtype, torch.float32), copy=True)
    left = [i for i in range(len(scores)) if max_output is None or scores[i] != -torch.inf]
    indices: list[int] = []
    taken: list[Tensor] = []
    while left := [i for i in left if not current[i] < min_score]:
        best = left[int(current[left].sort(descending=True, stable=True).indices[0])]
        indices.append(best)
        taken.append(current[best].clone())
        left.remove(best)
        for i in left:
            overlap = iou[best, i].item()
            if method == "gaussian":
                current[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= iou_threshold and overlap > 0:
                current[i] *= 1 - overlap
    kept = torch.tensor(indices, dtype=torch.int64, device=scores.device)
    kept_scores = torch.stack(taken) if taken else current[:0]
    if max_output is None:
        return kept_scores, kept
    count = torch.tensor(min(len(kept), max_output), device=scores.device)
    return _pad(kept_scores, max_output, 0), _pad(kept, max_output, -1), count


def _iou_within_labels(masks: Tensor, labels: Tensor | None) -> Tensor:
    iou = mask_iou(masks, masks)
    return iou if labels is None else iou * (labels[:, None] == labels)


def _pad(values: Tensor, size: int, value: int) -> Tensor:
    values = values[:size]
    return torch.nn.functional.pad(values, (0, size - len(values)), value=value)
