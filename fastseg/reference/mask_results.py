"""MaskFormer's and Mask2Former's rules from queries to results, on masks of the image's size."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor


def instance_results(
    class_logits: Tensor,
    resized: Tensor,
    *,
    top_k: int = 100,
    labels_kept: Collection[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of query and class, in no order.

    Args:
        class_logits: [Q, K + 1].
        resized: [Q, H, W], mask logits.
        top_k: number of pairs.
        labels_kept: classes that become instances; None for all.

    Returns:
        scores [N], labels [N] and masks [N, H, W] bool.
    """
    probabilities = class_logits.softmax(1)[:, :-1]
    num_classes = probabilities.shape[1]
    scores, pairs = probabilities.flatten().topk(min(top_k, probabilities.numel()))
    labels, masks = pairs % num_classes, resized[pairs // num_classes]
    if labels_kept is not None:
        kept = torch.tensor([int(label) in labels_kept for label in labels], dtype=torch.bool)
        scores, labels, masks = scores[kept], labels[kept], masks[kept]
    inside = masks > 0
    certainty = (masks.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
    return scores * certainty, labels, inside


def panoptic_results(
    class_logits: Tensor,
    resized: Tensor,
    *,
    thing_classes: Collection[int],
    object_mask_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    inside_only: bool = True,
) -> tuple[Tensor, list[dict[str, int | bool]]]:
    """A segment for each pixel.

    Args:
        class_logits: [Q, K + 1].
        resized: [Q, H, W], mask logits.
        thing_classes: labels of countable classes.
        object_mask_threshold: of the class probability.
        overlap_threshold: least share of a mask that must be its own.
        inside_only: True for Mask2Former's rule, False for MaskFormer's.

    Returns:
        ids [H, W] int32, 0 = void, and for each id a dictionary id, isthing, category_id.
    """
    scores, labels = class_logits.softmax(1).max(1)
    rows = ((labels < class_logits.shape[1] - 1) & (scores > object_mask_threshold)).nonzero()
    ids = torch.zeros(resized.shape[1:], dtype=torch.int32, device=resized.device)
    segments: list[dict[str, int | bool]] = []
    if len(rows) == 0:
        return ids, segments
    rows = rows.flatten()
    probabilities = resized[rows].sigmoid()
    winner = (scores[rows, None, None] * probabilities).argmax(0)
    stuff: dict[int, int] = {}
    for i, label in enumerate(labels[rows].tolist()):
        won, inside = winner == i, probabilities[i] >= 0.5
        own = won & inside if inside_only else won
        if not own.any() or not inside.any():
            continue
        if won.sum().item() / inside.sum().item() < overlap_threshold:
            continue
        if label not in stuff:
            is_thing = label in thing_classes
            segments.append({"id": len(segments) + 1, "isthing": is_thing, "category_id": label})
            if not is_thing:
                stuff[label] = len(segments)
        ids[own] = stuff.get(label, len(segments))
    return ids, segments
