"""Matrix NMS by its definition: every pair of masks, as in the paper's listing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    filter_threshold: float = -1,
    pre_top_k: int = -1,
    max_output: int = -1,
    mask_areas: Tensor | None = None,
    **kernel: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fastseg.ops.matrix_nms`; masks [N, H, W]."""
    best = scores.sort(descending=True, stable=True).indices
    if pre_top_k > 0:
        best = best[:pre_top_k]
    areas = None if mask_areas is None else mask_areas[best]
    inputs = (masks[best], labels[best], scores[best])
    decayed = matrix_nms_scores(*inputs, mask_areas=areas, **kernel)
    order = decayed.sort(descending=True, stable=True).indices
    if filter_threshold > 0:
        order = order[decayed[order].double() >= filter_threshold]
    if max_output > 0:
        order = order[:max_output]
    indices = best[order]
    return decayed[order], labels[indices].long(), masks[indices], indices


def matrix_nms_padded(
    masks: Tensor, labels: Tensor, scores: Tensor, max_output: int, **options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `fastseg.ops.matrix_nms_padded`; one image, masks [N, H, W]."""
    pre_top_k = options.pop("pre_top_k", -1)
    best = scores.sort(descending=True, stable=True).indices
    if pre_top_k > 0:
        best = best[:pre_top_k]
    best = best[scores[best] != -torch.inf]
    if options.get("mask_areas") is not None:
        options["mask_areas"] = options["mask_areas"][best]
    kept = matrix_nms(masks[best], labels[best], scores[best], **options)
    decayed, kept_labels, _, indices = (x[:max_output] for x in kept)
    padding = (0, max_output - len(indices))
    return (
        torch.nn.functional.pad(decayed, padding),
        torch.nn.functional.pad(kept_labels, padding),
        torch.nn.functional.pad(best[indices], padding, value=-1),
        torch.tensor(len(indices), device=scores.device),
    )


def matrix_nms_scores(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    mask_areas: Tensor | None = None,
    threshold: float | None = None,
) -> Tensor:
    """See `fastseg.ops.matrix_nms_scores`; one image, masks [N, H, W]."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if len(scores) == 0:
        return scores
    order = scores.sort(descending=True, stable=True).indices
    inside = masks[order] != 0 if threshold is None else masks[order] > threshold
    flat = inside.flatten(1).double()
    inter = (flat @ flat.T).float()
    areas = (flat.sum(1) if mask_areas is None else mask_areas[order]).float()
    union = areas[:, None] + areas - inter
    iou = torch.where(union > inter, inter / union, 1.0)
    iou = torch.where(inter > 0, iou, 0.0)
    iou = (iou * (labels[order][:, None] == labels[order])).triu(diagonal=1)
    largest = iou.amax(0)[:, None]  # of the mask that suppresses
    if kernel == "gaussian":
        decay = torch.exp(-sigma * iou**2) / torch.exp(-sigma * largest**2)
    else:
        decay = (1 - iou) / (1 - largest)
    decayed = torch.empty_like(scores)
    decayed[order] = scores[order] * decay.nan_to_num(1, posinf=torch.inf).amin(0)
    return decayed
