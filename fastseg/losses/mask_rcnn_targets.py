"""Which anchors and proposals shall find which instance (Ren et al., Faster R-CNN, section 3.1.2).

All of it is torchvision's, in the same order of arithmetic: overlaps are bit-equal, and with the
same permutations the same candidates are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg import ops

# Matches of candidates without instance: those that shall be background, and those that shall
# neither be background nor find an instance.
BACKGROUND = -1
IGNORED = -2
# Instances are compared with all candidates in blocks of about so many pairs.
PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Candidates:
    """Boxes of one image among which those for a loss are drawn.

    Attributes:
        boxes: float32 [A, 4].
        matches: int64 [A] of `match_boxes`.
    """

    boxes: Tensor
    matches: Tensor


@dataclass(frozen=True)
class Samples:
    """Candidates of one image that were drawn for the losses, in ascending order.

    Attributes:
        positives: int64 [P], which candidates shall find an instance.
        instances: int64 [P], which instance of the image that is.
        negatives: int64 [N], which candidates shall be background.
    """

    positives: Tensor
    instances: Tensor
    negatives: Tensor


def match_boxes(
    boxes: Tensor,
    candidates: Tensor,
    *,
    fg_iou_thresh: float,
    bg_iou_thresh: float,
    allow_low_quality_matches: bool,
) -> Tensor:
    """The instance that each candidate overlaps most, if it overlaps it enough.

    Args:
        boxes: float32 [N, 4], of the true instances of an image.
        candidates: float32 [A, 4], anchors or proposals.
        fg_iou_thresh: least IoU of a candidate that shall find its instance.
        bg_iou_thresh: candidates of a smaller IoU are background.
        allow_low_quality_matches: the candidates that overlap an instance more than all others do
            are matched whatever their IoU; each with the instance that it overlaps most itself.

    Returns:
        int64 [A], an instance, ``BACKGROUND`` or ``IGNORED``. Without instances all candidates are
        background.
    """
    if len(candidates) == 0:
        return torch.zeros(0, dtype=torch.int64, device=candidates.device)
    overlap = candidates.new_full((len(candidates),), -1.0)
    instance = torch.full_like(overlap, BACKGROUND, dtype=torch.int64)
    is_best = torch.zeros_like(overlap, dtype=torch.bool)
    rows = max(1, PAIRS_AT_ONCE // len(candidates))
    for first in range(0, len(boxes), rows):
        iou = box_iou(boxes[first : first + rows], candidates)
        block_overlap, block_instance = iou.max(dim=0)
        better = block_overlap > overlap
        overlap = torch.where(better, block_overlap, overlap)
        instance = torch.where(better, first + block_instance, instance)
        if allow_low_quality_matches:
            is_best |= (iou == iou.amax(dim=1, keepdim=True)).any(0)
    matches = instance.masked_fill(overlap < fg_iou_thresh, IGNORED)
    matches = matches.masked_fill(overlap < bg_iou_thresh, BACKGROUND)
    return torch.where(is_best, instance, matches)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of all pairs of boxes [N, 4] and [M, 4], float32: [N, M]."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)  # [N, 1] each
    other_x1, other_y1, other_x2, other_y2 = others.t().contiguous()  # [M] each
    width = (torch.minimum(x2, other_x2) - torch.maximum(x1, other_x1)).clamp_(min=0)
    height = (torch.minimum(y2, other_y2) - torch.maximum(y1, other_y1)).clamp_(min=0)
    both = width.mul_(height)
    areas = (x2 - x1) * (y2 - y1)
    other_areas = (other_x2 - other_x1) * (other_y2 - other_y1)
    return both / (areas + other_areas - both)


def count_matches(matches: Tensor) -> Tensor:
    """int64 [2]: how many candidates [A] have an instance, and how many are background."""
    return torch.stack([(matches >= 0).sum(), (matches == BACKGROUND).sum()])


def draw_samples(
    matches: Tensor,
    num_positives: int,
    num_negatives: int,
    *,
    batch_size_per_image: int,
    positive_fraction: float,
    randperm: Callable[[int], Tensor],
) -> Samples:
    """Draws candidates of one image without replacement; nothing waits for the device.

    Args:
        matches: int64 [A] of `match_boxes`.
        num_positives: how many of them are instances,
        num_negatives: and background, as `count_matches` says.
        batch_size_per_image: number of candidates, if there are enough.
        positive_fraction: most of them that have an instance, as a share.
        randperm: a permutation of so many numbers; called for the instances, then for background.
    """
    positives = min(int(batch_size_per_image * positive_fraction), num_positives)
    negatives = min(batch_size_per_image - positives, num_negatives)
    drawn = randperm(num_positives)[:positives], randperm(num_negatives)[:negatives]
    chosen = nth_true(matches >= 0, drawn[0].to(matches.device))
    return Samples(
        positives=chosen,
        instances=matches[chosen],
        negatives=nth_true(matches == BACKGROUND, drawn[1].to(matches.device)),
    )


def nth_true(mask: Tensor, ranks: Tensor) -> Tensor:
    """Where in ``mask`` [A] the true elements of given ranks [K], from 0, are: ascending [K]."""
    return torch.searchsorted(mask.cumsum(0), ranks.sort().values + 1)


def regions_of(boxes: list[Tensor]) -> Tensor:
    """Boxes [N_i, 4] of each image as regions of interest [sum N_i, 5]: (image, x1, y1, x2, y2)."""
    return torch.cat([F.pad(one, (1, 0), value=i) for i, one in enumerate(boxes)])


def project_masks(masks: Tensor, boxes: Tensor, instances: Tensor, resolution: int) -> Tensor:
    """What the mask branch shall draw in boxes: the true masks there, pooled by RoIAlign.

    Args:
        masks: bool [N, h, w], of an image.
        boxes: float32 [P, 4].
        instances: int64 [P], whose mask.
        resolution: R, side of the drawn masks.

    Returns:
        float32 [P, R, R], 0 to 1.
    """
    if len(boxes) < len(masks):  # as numbers masks are four times as large: only those needed
        masks = masks[instances]
        instances = torch.arange(len(boxes), device=boxes.device)
    regions = torch.cat([instances[:, None].to(boxes.dtype), boxes], dim=1)
    return ops.roi_align(masks[:, None].float(), regions, resolution)[:, 0]
