"""What COCO's, LVIS' and video AP have in common: ranges, thresholds, and means of curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg import _C
from fastseg.evaluation.columns import Columns

# 0.5 to 0.95 and 0 to 1, as NumPy rounds them: pycocotools takes the same steps.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)

# Least and largest area in pixels, both inside: of all objects, small, medium and large ones.
COCO_RANGES = ((0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2))
# Without objects of no area, which the package lvis leaves out.
LVIS_RANGES = tuple((max(low, float(np.nextafter(0, 1))), high) for low, high in COCO_RANGES)
VIDEO_RANGES = ((0, 1e5**2), (0, 128**2), (128**2, 256**2), (256**2, 1e5**2))
RANGE_LETTERS = ("", "s", "m", "l")


@dataclass(frozen=True)
class Curves:
    """Precision and recall with T thresholds of IoU, R levels of recall, K categories, the 4 ranges
    of area, and M limits of detections per image. -1 where there is nothing to be found.

    Args:
        precision: [T, R, K, 4, M] at each level of recall, 0 where it is not reached.
        recall: [T, K, 4, M] that is reached.
        scores: [T, R, K, 4, M] of the detection that reaches the level.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """Detections, or the ground truth, and their places in the dataset.

    Args:
        columns: N of them.
        images: [N] index of each one's image, -1 to leave it out.
        categories: [N] index of each one's category.
        ties: [N] which come first of equal scores; then the order in the columns decides.
        ignores: [N] detections that may go unmatched, truths that need not be found.
        crowds: [N] truths that any number of detections may lie in.
    """

    columns: Columns
    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    ties: NDArray[np.int64]
    ignores: NDArray[np.uint8]
    crowds: NDArray[np.uint8]

    def arrays(self) -> dict[str, Any]:
        """What `_C.evaluate_detections` takes."""
        return {
            **{one.name: getattr(self.columns, one.name) for one in fields(Columns)},
            "images": self.images,
            "categories": self.categories,
            "ties": self.ties,
            "ignores": self.ignores,
            "crowds": self.crowds,
        }


@dataclass(frozen=True)
class Task:
    """What is to be matched, and how.

    Args:
        detections: the results.
        truths: the annotations.
        image_sizes: [images, 2] height and width.
        num_categories: how many there are.
        areas: by metric, areas of the detections, or None for those of their masks.
        limits: detections kept per image and category.
        thresholds: [T] of IoU.
        ranges: of area.
        dilation_ratio: width of boundaries as a share of the image's diagonal.
        name_of: tells a detection's or a truth's number and image for errors.
    """

    detections: Side
    truths: Side
    image_sizes: NDArray[np.int64]
    num_categories: int
    areas: dict[str, NDArray[np.float64] | None]
    limits: Sequence[int]
    name_of: Callable[[bool, int], str]
    thresholds: NDArray[np.float64] = field(default_factory=lambda: IOU_THRESHOLDS)
    ranges: Sequence[tuple[float, float]] = COCO_RANGES
    dilation_ratio: float = 0.02

    def run(self) -> dict[str, Curves]:
        """Matches, and gives curves by metric."""
        error, results = _C.evaluate_detections(
            self.detections.arrays(),
            self.truths.arrays(),
            self.image_sizes,
            self.num_categories,
            list(self.areas.items()),
            self.thresholds,
            RECALL_LEVELS,
            np.array(self.ranges, np.float64),
            np.array(self.limits, np.int64),
            self.dilation_ratio,
        )
        if error is not None:
            of_truth, index, text = error
            raise ValueError(f"{self.name_of(of_truth, index)}: {text}")
        found = (Curves(**result) for result in results)
        return dict(zip(self.areas, found, strict=True))


def mean(values: NDArray[np.float64]) -> float:
    """Mean of what is there; -1 if nothing is."""
    there = values[values > -1]
    return float(np.mean(there)) if len(there) else -1.0


def precision_means(curves: Curves, thresholds: NDArray[np.float64]) -> dict[str, float]:
    """AP, AP50, AP75, APs, APm and APl at the largest limit of detections."""
    precision = curves.precision[..., -1]
    found = {"AP": mean(precision[..., 0])}
    for percent in (50, 75):
        found[f"AP{percent}"] = mean(precision[thresholds == percent / 100, ..., 0])
    for number, letter in enumerate(RANGE_LETTERS[1:], 1):
        found[f"AP{letter}"] = mean(precision[..., number])
    return found


def detection_summary(
    curves: Curves, thresholds: NDArray[np.float64], max_dets: Sequence[int]
) -> dict[str, Any]:
    """COCO's twelve numbers; as many AR of all areas as there are limits of detections."""
    found = precision_means(curves, thresholds)
    for number, limit in enumerate(max_dets):
        found[f"AR{limit}"] = mean(curves.recall[:, :, 0, number])
    for number, letter in enumerate(RANGE_LETTERS[1:], 1):
        found[f"AR{letter}"] = mean(curves.recall[:, :, number, -1])
    return found


def category_precision(curves: Curves, category_ids: NDArray[np.int64]) -> dict[int, float]:
    """AP by category id; -1 where the category has nothing to be found."""
    precision = curves.precision[:, :, :, 0, -1]
    return {int(one): mean(precision[:, :, k]) for k, one in enumerate(category_ids)}


def with_details(
    summary: dict[str, Any],
    curves: Curves,
    category_ids: NDArray[np.int64],
    per_category: bool,
    keep_curves: bool,
) -> dict[str, Any]:
    """A metric's numbers with what else was asked for."""
    if per_category:
        summary["per_category"] = category_precision(curves, category_ids)
    if keep_curves:
        summary["curves"] = curves
    return summary
