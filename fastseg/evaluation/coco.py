"""COCO's average precision of boxes, masks and boundaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg.evaluation.average_precision import (
    IOU_THRESHOLDS,
    Side,
    Task,
    detection_summary,
    with_details,
)
from fastseg.evaluation.coco_dataset import COCO
from fastseg.evaluation.columns import Columns
from fastseg.evaluation.detections import DetectionEvaluator

METRICS = ("bbox", "segm", "boundary")


class COCOEvaluator(DetectionEvaluator):
    """Average precision and recall as pycocotools' `COCOeval` computes them, and Boundary AP.

    All numbers are pycocotools' to the last bits: order of equal scores, crowd regions, ranges of
    area, precision at 101 levels of recall. Boundary AP (Cheng et al., CVPR 2021) is segm AP with
    min(mask IoU, boundary IoU); crowd regions compare by mask IoU.

    Where this differs: an annotation's `id` is not used, so that id 0, which pycocotools takes for
    "unmatched", counts like any other; `iscrowd` may be missing and is then 0; AP is taken at the
    largest of `max_dets` even if that is not 100; no result at all gives AP 0.

    Args:
        ground_truth: annotation file, its contents, or a `COCO`.
        metrics: of "bbox", "segm" and "boundary".
        max_dets: limits of detections per image and category, the best scores first.
        use_categories: False: match whatever the categories, as for proposals.
        iou_thresholds: instead of 0.5, 0.55 ... 0.95.
        detection_area: what decides whether a detection is small, medium or large for segm and
            boundary. "mask": the area of its mask. "box": the area of its box where results have
            a `bbox`, as pycocotools' `loadRes` does; with it APs, APm, APl, ARs, ARm and ARl of
            results that have both differ from those of detectron2, which removes the boxes first.
        dilation_ratio: width of boundaries as a share of the image's diagonal; 0.02 for COCO.
        category_ids: category id of each label of `Instances`; None: labels are ids.
        image_ids: evaluate these images alone.

    Raises:
        ValueError: an argument or annotation is malformed; the message names it.
    """

    def __init__(
        self,
        ground_truth: COCO | str | Path | Mapping[str, Any],
        metrics: Sequence[str] = METRICS,
        max_dets: Sequence[int] = (1, 10, 100),
        *,
        use_categories: bool = True,
        iou_thresholds: Sequence[float] | None = None,
        detection_area: str = "mask",
        dilation_ratio: float = 0.02,
        category_ids: Sequence[int] | None = None,
        image_ids: Sequence[Any] | None = None,
    ) -> None:
        self.max_dets = sorted(int(limit) for limit in max_dets)
        if not self.max_dets or self.max_dets[0] < 1:
            raise ValueError(f"max_dets must be positive integers, got {max_dets!r}")
        self.thresholds = IOU_THRESHOLDS
        if iou_thresholds is not None:
            self.thresholds = np.array(iou_thresholds, np.float64)
            if (
                self.thresholds.size == 0
                or not ((self.thresholds > 0) & (self.thresholds <= 1)).all()
            ):
                raise ValueError(f"iou_thresholds must be in (0, 1], got {iou_thresholds!r}")
        if not 0 < dilation_ratio <= 1:
            raise ValueError(f"dilation_ratio must be in (0, 1], got {dilation_ratio}")
        self.use_categories = use_categories
        self.dilation_ratio = dilation_ratio
        super().__init__(ground_truth, metrics, METRICS, category_ids, detection_area)
        self._chosen = self._chosen_images(image_ids)

    def _chosen_images(self, image_ids: Sequence[Any] | None) -> NDArray[np.bool_] | None:
        dataset = self.ground_truth
        if image_ids is None:
            return None
        chosen = np.zeros(len(dataset.image_ids), bool)
        for one in image_ids:
            if one not in dataset.image_places:
                raise ValueError(f"image_ids: the ground truth has no image {one!r}")
            chosen[dataset.image_places[one]] = True
        return chosen

    def compute(self, per_category: bool = False, curves: bool = False) -> dict[str, Any]:
        """The metrics of all results so far.

        Args:
            per_category: add `per_category`, {category id: AP}.
            curves: add `curves`, a `Curves` of precision, recall and scores.

        Returns:
            For each metric a dict of AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100 (named by
            `max_dets`), ARs, ARm, ARl from 0 to 1; -1 where there is nothing to be found.
        """
        detections = self._merged()
        found = self._task(detections).run()
        ids = self.ground_truth.category_ids if self.use_categories else np.array([-1])
        return {
            metric: with_details(
                detection_summary(one, self.thresholds, self.max_dets),
                one,
                ids,
                per_category,
                curves,
            )
            for metric, one in found.items()
        }

    def _task(self, detections: Columns) -> Task:
        truths = self.ground_truth.columns
        return Task(
            self._chosen_side(detections, np.zeros(len(detections), np.uint8)),
            self._chosen_side(truths, truths.crowds),
            self.ground_truth.image_sizes,
            len(self.ground_truth.category_ids) if self.use_categories else 1,
            self._areas(detections),
            self.max_dets,
            lambda of_truth, n: self._name_of(truths if of_truth else detections, of_truth, n),
            self.thresholds,
            dilation_ratio=self.dilation_ratio,
        )

    def _chosen_side(self, columns: Columns, ignores: NDArray[np.uint8]) -> Side:
        side = self._side(columns, ignores, columns.crowds)
        if self._chosen is not None:
            side = replace(side, images=np.where(self._chosen[side.images], side.images, -1))
        if not self.use_categories:
            side = replace(side, categories=np.zeros_like(side.categories))
        return side
