"""One image of panoptic quality: which predicted segments are which of the ground truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import hypot
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg import _C
from fastseg.evaluation.panoptic_files import rgb2id

VOID = 0

Pairs = dict[tuple[int, int], int]  # pixels per (ground truth's id, prediction's id)


@dataclass(frozen=True)
class Segment:
    """A segment of the ground truth or, with area and crowd unset, of a prediction."""

    category: int
    area: int = 0
    crowd: bool = False


@dataclass
class ImageCounts:
    """What one image adds to panoptic quality, by category."""

    matches: list[tuple[int, float]] = field(default_factory=list)  # category, IoU
    false_positives: list[int] = field(default_factory=list)
    false_negatives: list[int] = field(default_factory=list)


def count_image(
    gt: NDArray[Any],
    gt_segments: Mapping[int, Segment],
    prediction: NDArray[Any],
    segments: Mapping[int, Segment],
    boundary_ratio: float | None = None,
) -> ImageCounts:
    """Counts matches, false positives and false negatives.

    Args:
        gt: [H, W] ids of any integer type or [H, W, 3] uint8 colours.
        gt_segments: the ground truth's segments by id.
        prediction: as gt.
        segments: the predicted segments by id.
        boundary_ratio: None, or the width of the boundary as a fraction of the image's diagonal;
            then a match's IoU is the lower one of mask and boundary.

    Raises:
        ValueError: the segments are not those of the prediction, or an area is wrong.
    """
    pairs = pixels_per_pair(gt, prediction)
    areas = sums(pairs, 1)
    if unlisted := sorted(areas.keys() - segments.keys() - {VOID}):
        raise ValueError(f"segment {unlisted[0]} has pixels but is not in segments_info")
    if absent := sorted(segments.keys() - areas.keys()):
        raise ValueError(f"segment {absent[0]} is in segments_info but has no pixel")
    boundary_iou = None
    if boundary_ratio is not None:
        width = max(round(boundary_ratio * hypot(*gt.shape[:2])), 1)
        boundary_iou = _BoundaryIou(gt, gt_segments, prediction, segments, width)

    counts = ImageCounts()
    matched_gt, matched = set(), set()
    for pair, intersection in pairs.items():
        truth, segment = gt_segments.get(pair[0]), segments.get(pair[1])
        if truth is None or segment is None or truth.crowd or truth.category != segment.category:
            continue
        union = truth.area + areas[pair[1]] - intersection - pairs.get((VOID, pair[1]), 0)
        if union < intersection:
            raise ValueError(
                f"segment {pair[0]} of the ground truth has an area of {truth.area} in the JSON "
                f"but at least {intersection} pixels"
            )
        iou = intersection / union
        if boundary_iou is not None:
            iou = min(iou, boundary_iou(pair))
        if iou > 0.5:
            counts.matches.append((truth.category, iou))
            matched_gt.add(pair[0])
            matched.add(pair[1])

    crowds = {truth.category: label for label, truth in gt_segments.items() if truth.crowd}
    counts.false_negatives = [
        truth.category
        for label, truth in gt_segments.items()
        if not truth.crowd and label not in matched_gt
    ]
    for label in segments.keys() - matched:
        category = segments[label].category
        ignored = pairs.get((VOID, label), 0)
        if category in crowds:
            ignored += pairs.get((crowds[category], label), 0)
        if ignored / areas[label] <= 0.5:
            counts.false_positives.append(category)
    return counts


class _BoundaryIou:
    """IoU of the pixels near the ends of two segments, void left out."""

    def __init__(
        self,
        gt: NDArray[Any],
        gt_segments: Mapping[int, Segment],
        prediction: NDArray[Any],
        segments: Mapping[int, Segment],
        width: int,
    ) -> None:
        self._pairs = pixels_per_pair(
            near_boundaries(gt, gt_segments, width), near_boundaries(prediction, segments, width)
        )
        self._gt_areas, self._areas = sums(self._pairs, 0), sums(self._pairs, 1)

    def __call__(self, pair: tuple[int, int]) -> float:
        intersection = self._pairs.get(pair, 0)
        both = self._gt_areas.get(pair[0], 0) + self._areas.get(pair[1], 0)
        return intersection / (both - intersection - self._pairs.get((VOID, pair[1]), 0))


def pixels_per_pair(gt: NDArray[Any], prediction: NDArray[Any]) -> Pairs:
    """How many pixels have each pair of labels, in ascending order."""
    first, second, pixels = (found.tolist() for found in _C.label_pairs(gt, prediction))
    return dict(zip(zip(first, second, strict=True), pixels, strict=True))


def sums(pairs: Pairs, side: int) -> dict[int, int]:
    """Pixels per label of the ground truth (side 0) or the prediction (side 1)."""
    found: dict[int, int] = {}
    for pair, pixels in pairs.items():
        found[pair[side]] = found.get(pair[side], 0) + pixels
    return found


def near_boundaries(
    labels: NDArray[Any], segments: Mapping[int, Segment], width: int
) -> NDArray[np.int64]:
    """[H, W] labels with the inner pixels of segments set to -1.

    A pixel is inner when the square of 2 width + 1 pixels a side around it lies in the image and
    has one label: eroding every segment at once.
    """
    ids = (rgb2id(labels) if labels.ndim == 3 else labels).astype(np.int64)
    rows, columns = _one_label(ids, width, 0), _one_label(ids, width, 1)
    inner = rows & (_window_sums(~columns, width) == 0)
    if VOID not in segments:
        inner &= ids != VOID
    ids[inner] = -1
    return ids


def _one_label(ids: NDArray[np.int64], width: int, axis: int) -> NDArray[np.bool_]:
    """Whether pixels up to `width` before and after lie in the image and have the same label."""
    lines = np.moveaxis(ids, axis, 0)
    changes = np.ones((lines.shape[0] + 1, lines.shape[1]), dtype=bool)  # changes[i]: i - 1 to i
    changes[1:-1] = lines[1:] != lines[:-1]
    counts = np.pad(np.cumsum(changes, axis=0, dtype=np.int32), ((1, 0), (0, 0)))
    at = np.arange(lines.shape[0])
    first, last = np.maximum(at - width + 1, 0), np.minimum(at + width + 1, len(changes))
    return np.moveaxis(counts[last] == counts[first], 0, axis)


def _window_sums(flags: NDArray[np.bool_], width: int) -> NDArray[np.int32]:
    """Sums over `width` rows above and below, as far as there are rows."""
    counts = np.pad(np.cumsum(flags, axis=0, dtype=np.int32), ((1, 0), (0, 0)))
    at = np.arange(len(flags))
    return counts[np.minimum(at + width + 1, len(flags))] - counts[np.maximum(at - width, 0)]
