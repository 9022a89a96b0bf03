"""Non-maximum suppression by its definition: one box after the other, slow."""

from __future__ import annotations

import torch
from torch import Tensor


def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_output: int | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """See `fastseg.ops.nms`."""
    one_class = torch.zeros(scores.shape, dtype=torch.int64, device=scores.device)
    return batched_nms(boxes, scores, one_class, iou_threshold, max_output=max_output)


def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    max_output: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """See `fastseg.ops.batched_nms`."""
    if max_output is None:
        return _kept(boxes, scores, idxs, iou_threshold)
    if boxes.dim() == 3:
        images = [
            batched_nms(*image, iou_threshold, max_output=max_output)
            for image in zip(boxes, scores, idxs, strict=True)
        ]
        indices = boxes.new_empty((len(images), max_output), dtype=torch.int64)
        count = boxes.new_empty(len(images), dtype=torch.int64)
        for i, image in enumerate(images):
            indices[i], count[i] = image
        return indices, count
    present = torch.where(scores != -torch.inf)[0]
    kept = present[_kept(boxes[present], scores[present], idxs[present], iou_threshold)]
    kept = kept[:max_output]
    indices = torch.nn.functional.pad(kept, (0, max_output - len(kept)), value=-1)
    return indices, torch.tensor(len(kept), device=boxes.device)


def _kept(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    kept: list[int] = []
    for i in scores.sort(descending=True, stable=True).indices.tolist():
        rivals = [k for k in kept if idxs[k] == idxs[i]]
        # Compared in float64: the threshold is not rounded to the boxes' type.
        if not (_iou(boxes[rivals], boxes[i]).double() > iou_threshold).any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def _iou(boxes: Tensor, box: Tensor) -> Tensor:
    top_left = torch.maximum(boxes[:, :2], box[:2])
    bottom_right = torch.minimum(boxes[:, 2:], box[2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(1)
    inter = width * height
    return inter / (_area(boxes) + _area(box) - inter)


def _area(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)
