"""Matrix NMS by its definition: every pair of masks, as in the paper's listing."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix_nms(
    masks: Tensor,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: str = "gaussian",
    sigma: float = 2.0,
    mask_areas: Tensor | None = None,
    threshold: float | None = None,
    filter_threshold: float = 0.0,
    pre_top_k: int | None = None,
    max_output: int | None = None,
) -> tuple[Tensor, ...]:
    """See `fastseg.ops.matrix_nms`; one image, masks [N, H, W]."""
    indices = scores.sort(descending=True, stable=True).indices[:pre_top_k]
    if max_output is not None:
        indices = indices[scores[indices] != -torch.inf]
    decayed = matrix_nms_scores(
        masks[indices],
        labels[indices],
        scores[indices],
        kernel=kernel,
        sigma=sigma,
        mask_areas=None if mask_areas is None else mask_areas[indices],
        threshold=threshold,
    )
    order = decayed.sort(descending=True, stable=True).indices
    if filter_threshold > 0:
        order = order[decayed[order].double() >= filter_threshold]
    decayed, indices = decayed[order], indices[order]
    if max_output is None:
        return decayed, labels[indices].long(), indices
    decayed, indices = decayed[:max_output], indices[:max_output]
    padding = (0, max_output - len(indices))
    return (
        torch.nn.functional.pad(decayed, padding),
        torch.nn.functional.pad(labels[indices].long(), padding),
        torch.nn.functional.pad(indices, padding, value=-1),
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
