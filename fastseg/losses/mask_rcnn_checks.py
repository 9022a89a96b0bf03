"""Whether predictions of Mask R-CNN and the truth are fit for its losses, and how many candidates
there are, for which the host has to wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastseg.losses.instance_targets import InstanceTargets, check_targets
from fastseg.losses.mask_rcnn_targets import Candidates, count_matches
from fastseg.models.mask_rcnn import AnchorPredictions, MaskRCNN


@dataclass(frozen=True)
class Counts:
    """How many candidates of an image have an instance (positive) or are background (negative)."""

    positive_anchors: int
    negative_anchors: int
    positive_regions: int
    negative_regions: int


def check_shapes(
    model: MaskRCNN,
    predictions: AnchorPredictions,
    targets: Sequence[InstanceTargets],
    sizes: Tensor,
) -> None:
    """ValueError where shapes or types of predictions and truth do not fit."""
    logits = predictions.levels[0].logits
    check_targets(targets, len(logits), predictions.size, logits.device)
    for i, target in enumerate(targets):
        if target.boxes.shape != (len(target.labels), 4) or not target.boxes.is_floating_point():
            raise ValueError(
                f"targets[{i}] must have float boxes [N, 4] for N = {len(target.labels)} labels, "
                f"got {target.boxes.dtype} {tuple(target.boxes.shape)}"
            )
        if target.labels.dtype != torch.int64:
            raise ValueError(f"targets[{i}] must have int64 labels, got {target.labels.dtype}")
        for name in ("boxes", "labels"):
            if (found := getattr(target, name).device) != logits.device:
                raise ValueError(f"targets[{i}] must have {name} on {logits.device}, got {found}")
    if sizes.shape != (len(logits), 2):
        raise ValueError(
            f"sizes must have shape {(len(logits), 2)} for {len(logits)} images, "
            f"got {tuple(sizes.shape)}"
        )


@torch.no_grad()
def read_counts(
    anchors: Sequence[Candidates],
    regions: Sequence[Candidates],
    model: MaskRCNN,
    predictions: AnchorPredictions,
    targets: Sequence[InstanceTargets],
    sizes: Tensor,
) -> list[Counts]:
    """Numbers of candidates of each image; the device is waited for, and values are checked.

    Raises:
        ValueError: a box, a label, a mask's size or a logit is wrong; the message names the image.
    """
    first = 1 if model.conventions.background_first else 0
    classes = range(first, first + model.roi_heads.box_predictor.cls_score.out_features - 1)
    # A sum is not finite where a term is not.
    sums = torch.stack(
        [level.logits.sum(1) + level.deltas.sum((1, 2)) for level in predictions.levels], dim=1
    ).sum(1)
    rows = []
    for i, target in enumerate(targets):
        numbers = [count_matches(anchors[i].matches), count_matches(regions[i].matches), sizes[i]]
        labels = target.labels
        checks = [
            has_area(target.boxes).all(),
            ((labels >= classes.start) & (labels < classes.stop)).all(),
            sums[i].isfinite(),
        ]
        rows.append(torch.cat([*numbers, torch.stack(checks).long()]))
    found = []
    for i, row in enumerate(torch.stack(rows).cpu().tolist()):
        size, passed = tuple(row[4:6]), row[6:]
        raise_for_values(i, targets[i], classes, size, *passed)
        found.append(Counts(*row[:4]))
    return found


def raise_for_values(
    image: int,
    target: InstanceTargets,
    classes: range,
    size: tuple[int, ...],
    have_areas: int,
    in_range: int,
    is_finite: int,
) -> None:
    """ValueError where boxes, labels or logits of an image did not pass or masks do not fit."""
    name = f"targets[{image}]"
    if not have_areas:
        box = int(has_area(target.boxes).logical_not().nonzero()[0])
        raise ValueError(
            f"{name}.boxes[{box}] must be finite and have x1 < x2 and y1 < y2, "
            f"got {target.boxes[box].tolist()}"
        )
    if not in_range:
        raise ValueError(
            f"{name}.labels must be within {classes.start} and {classes.stop - 1}"
            f"{' (0 is background)' if classes.start else ''}, got {target.labels.tolist()}"
        )
    if len(target.masks) and target.masks.shape[1:] != size:
        raise ValueError(
            f"{name}.masks must have the size of the resized image, {size}, "
            f"got {tuple(target.masks.shape[1:])}"
        )
    if not is_finite:
        raise ValueError(f"objectness and box offsets of anchors of image {image} must be finite")


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes [N, 4] are finite, wide and high."""
    return boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)


@torch.no_grad()
def check_logits(rois: Tensor, **logits: Tensor) -> None:
    """ValueError that names the image where what a branch says of its regions is not finite.

    Args:
        rois: [R, 5], regions of all branches.
        **logits: by name, of the first K of the regions, [K, ...].
    """
    finite = {
        name: values.flatten(1).sum(1, dtype=torch.float32).isfinite()
        for name, values in logits.items()
    }
    passed = torch.stack([rows.all() for rows in finite.values()]).cpu().tolist()
    for (name, rows), all_finite in zip(finite.items(), passed, strict=True):
        if not all_finite:
            image = int(rois[rows.logical_not().nonzero()[0, 0], 0])
            raise ValueError(f"{name} of image {image} must be finite")
