"""The class of each pixel from the classes and masks of queries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg.reference.resize_masks import resize_logits


def semantic_map(
    class_probabilities: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    *,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    resize_scores: bool = True,
) -> Tensor:
    """See `fastseg.ops.semantic_map`."""
    scores = semantic_scores(
        class_probabilities, mask_logits, size, via=via, crop=crop, resize_scores=resize_scores
    )
    return scores.argmax(0).int()


def semantic_scores(
    class_probabilities: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    *,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    resize_scores: bool = True,
) -> Tensor:
    """float32 [K, H, W], whose greatest makes the label."""
    classes = class_probabilities.float()
    if via is None or not resize_scores:
        masks = resize_logits(mask_logits, size, via, crop).sigmoid()
        return torch.einsum("qc,qhw->chw", classes, masks)
    height, width = crop or via
    masks = resize_logits(mask_logits, via, None, None).sigmoid()
    scores = torch.einsum("qc,qhw->chw", classes, masks)[None, :, :height, :width]
    return F.interpolate(scores, size, mode="bilinear", align_corners=False)[0]
