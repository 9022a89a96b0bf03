"""LVIS' average precision: many categories, of which each image was searched for some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg.evaluation.average_precision import (
    IOU_THRESHOLDS,
    LVIS_RANGES,
    RANGE_LETTERS,
    Curves,
    Side,
    Task,
    mean,
    precision_means,
    with_details,
)
from fastseg.evaluation.coco_dataset import COCO
from fastseg.evaluation.columns import Columns
from fastseg.evaluation.detections import DetectionEvaluator

METRICS = ("bbox", "segm", "boundary")
FREQUENCIES = (
    "r",
    "c",
    "f",
)  # in fewer than 10, fewer than 100, or more images of the training set


class LVISEvaluator(DetectionEvaluator):
    """Average precision as the package `lvis` computes it (Gupta et al., CVPR 2019).

    What differs from COCO: the best `max_dets` detections of an image count, whatever their
    categories; a detection whose category is neither annotated in the image nor in its
    `neg_category_ids` is left out; one that matches nothing and is of the image's
    `not_exhaustive_category_ids` is ignored; there are no crowd regions; objects without area are
    left out; categories are averaged by frequency too.

    Args:
        ground_truth: annotation file, its contents, or a `COCO`, whose images have
            `neg_category_ids` and `not_exhaustive_category_ids`, and categories a `frequency`.
        metrics: of "bbox", "segm" and "boundary" (which `lvis` lacks).
        max_dets: detections that count per image, the best scores first.
        detection_area: what decides whether a detection is small, medium or large for segm and
            boundary. "mask": the area of its mask. "box": the area of its box where results have
            a `bbox`, as `LVISResults` does.
        dilation_ratio: width of boundaries as a share of the image's diagonal.
        category_ids: category id of each label of `Instances`; None: labels are ids.

    Raises:
        ValueError: an argument, image, category or annotation is malformed; the message names it.
    """

    def __init__(
        self,
        ground_truth: COCO | str | Path | Mapping[str, Any],
        metrics: Sequence[str] = ("bbox", "segm"),
        max_dets: int = 300,
        *,
        detection_area: str = "mask",
        dilation_ratio: float = 0.02,
        category_ids: Sequence[int] | None = None,
    ) -> None:
        if max_dets < 1:
            raise ValueError(f"max_dets must be at least 1, got {max_dets}")
        if not 0 < dilation_ratio <= 1:
            raise ValueError(f"dilation_ratio must be in (0, 1], got {dilation_ratio}")
        super().__init__(ground_truth, metrics, METRICS, category_ids, detection_area)
        self.max_dets = max_dets
        self.dilation_ratio = dilation_ratio
        truths = self.ground_truth.columns
        side = self._side(truths, truths.ignores, np.zeros_like(truths.crowds))
        self._truths = replace(side, images=np.where(truths.areas > 0, side.images, -1))
        searched = self._pairs("neg_category_ids")
        present = self._keys(self._truths)[self._truths.images >= 0]
        self._judged = np.union1d(searched, present)
        self._incomplete = self._pairs("not_exhaustive_category_ids")
        self._groups = self._frequency_groups()

    def _keys(self, side: Side) -> NDArray[np.int64]:
        """One number for an image and a category."""
        return side.images * len(self.ground_truth.category_ids) + side.categories

    def _pairs(self, key: str) -> NDArray[np.int64]:
        """Keys of the images and the categories that they list under `key`."""
        dataset = self.ground_truth
        place = {int(one): n for n, one in enumerate(dataset.category_ids)}
        found = []
        for image in dataset.images:
            if not isinstance(image.get(key), Sequence):
                raise ValueError(f"image {image['id']!r} has no list of {key}")
            first = dataset.image_places[image["id"]] * len(place)
            found += [first + place[one] for one in image[key] if one in place]
        return np.array(found, np.int64)

    def _frequency_groups(self) -> list[NDArray[np.int64]]:
        frequency = {}
        for one in self.ground_truth.categories:
            if one.get("frequency") not in FREQUENCIES:
                raise ValueError(
                    f"category {one['id']} must have a frequency of r, c or f, got "
                    f"{one.get('frequency')!r}"
                )
            frequency[one["id"]] = one["frequency"]
        of_each = np.array([frequency[int(one)] for one in self.ground_truth.category_ids])
        return [np.flatnonzero(of_each == letter) for letter in FREQUENCIES]

    def compute(self, per_category: bool = False, curves: bool = False) -> dict[str, Any]:
        """The metrics of all results so far.

        Args:
            per_category: add `per_category`, {category id: AP}.
            curves: add `curves`, a `Curves` of precision, recall and scores.

        Returns:
            For each metric a dict of AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@300 (named by
            `max_dets`), ARs@300, ARm@300, ARl@300 from 0 to 1; -1 where there is nothing to be
            found.
        """
        detections, truths = self._merged(), self.ground_truth.columns
        counted = self._within_limit(detections)
        found = {}
        for metric, areas in self._areas(detections).items():
            task = Task(
                self._detections(detections, counted if areas is None else counted & (areas > 0)),
                self._truths,
                self.ground_truth.image_sizes,
                len(self.ground_truth.category_ids),
                {metric: areas},
                [self.max_dets],
                lambda of_truth, n: self._name_of(truths if of_truth else detections, of_truth, n),
                ranges=LVIS_RANGES,
                dilation_ratio=self.dilation_ratio,
            )
            found.update(task.run())
        ids = self.ground_truth.category_ids
        return {
            metric: with_details(self._summary(one), one, ids, per_category, curves)
            for metric, one in found.items()
        }

    def _detections(self, columns: Columns, counted: NDArray[np.bool_]) -> Side:
        nothing = np.zeros(len(columns), np.uint8)
        side = self._side(columns, nothing, nothing)
        keys = self._keys(side)
        judged = counted & np.isin(keys, self._judged) & (side.images >= 0)
        ignores = np.isin(keys, self._incomplete).astype(np.uint8)
        return replace(side, images=np.where(judged, side.images, -1), ignores=ignores)

    def _within_limit(self, columns: Columns) -> NDArray[np.bool_]:
        """Whether each detection is among the best of its image, of whatever category."""
        order = np.lexsort((-columns.scores, columns.image_ids))
        images = columns.image_ids[order]
        begins = np.searchsorted(images, images, "left")
        within = np.empty(len(columns), bool)
        within[order] = np.arange(len(columns)) - begins < self.max_dets
        return within

    def _summary(self, curves: Curves) -> dict[str, Any]:
        found = precision_means(curves, IOU_THRESHOLDS)
        for letter, group in zip(FREQUENCIES, self._groups, strict=True):
            found[f"AP{letter}"] = mean(curves.precision[:, :, group, 0, 0])
        for number, letter in enumerate(RANGE_LETTERS):
            found[f"AR{letter}@{self.max_dets}"] = mean(curves.recall[:, :, number, 0])
        return found
