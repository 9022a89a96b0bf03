"""COCO's average precision of boxes, masks and boundaries."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg.evaluation.average_precision import (
    IOU_THRESHOLDS,
    RANGE_LETTERS,
    Curves,
    Side,
    Task,
    mean,
    precision_means,
    with_details,
)
from fastseg.evaluation.coco_dataset import COCO
from fastseg.evaluation.columns import Columns, positions
from fastseg.evaluation.evaluator import Evaluator, gathered

METRICS = ("bbox", "segm", "boundary")
DETECTION_AREAS = ("mask", "pycocotools")


class DetectionEvaluator(Evaluator):
    """Takes results and checks them against a dataset: what COCO, LVIS and videos share."""

    metrics: tuple[str, ...]

    def __init__(
        self,
        ground_truth: COCO | str | Path | Mapping[str, Any],
        metrics: Sequence[str],
        category_ids: Sequence[int] | None,
        allowed: Sequence[str] = METRICS,
    ) -> None:
        self.metrics = (metrics,) if isinstance(metrics, str) else tuple(metrics)
        for metric in self.metrics:
            if metric not in allowed:
                raise ValueError(f"metrics must be of {', '.join(allowed)}, got {metric!r}")
        if not self.metrics:
            raise ValueError("metrics must not be empty")
        self.ground_truth = ground_truth if isinstance(ground_truth, COCO) else COCO(ground_truth)
        self._category_ids = None if category_ids is None else np.array(category_ids, np.int64)
        self._check(self.ground_truth.columns, of_truth=True)
        self.reset()

    def reset(self) -> None:
        """Forgets all results."""
        self._parts: list[Columns] = []

    def update(self, results: Any) -> None:
        """Adds results of some images, each image in one call.

        Args:
            results: path of a results file, a list of COCO's result dicts, what `COCO.loadRes`
                gives, or `{image_id: Instances}`. Masks are run lengths, in dicts of any form that
                pycocotools takes.

        Raises:
            ValueError: a result is malformed, lacks what a metric needs, or is of an image that
                the ground truth lacks; the message names the result, its image and the field.
        """
        part = self._read(results)
        self._check(part, of_truth=False)
        self._warn_of_unknown_categories(part)
        self._parts.append(part)

    def _read(self, results: Any) -> Columns:
        dataset = self.ground_truth
        if isinstance(results, COCO):
            return results.columns
        if isinstance(results, (str, Path)):
            if dataset.has_integer_ids:
                return self._read_file(results)
            import json

            results = json.loads(Path(results).read_bytes())
        if isinstance(results, Mapping):
            return Columns.concatenate(
                [self._read_instances(image, found) for image, found in results.items()]
            )
        if not isinstance(results, Sequence):
            raise TypeError(
                "results must be a path, a list of dicts or {image_id: Instances}, got "
                f"{type(results).__name__}"
            )
        return dataset._columns_of(results, "results")

    def _read_file(self, path: str | Path) -> Columns:
        with_masks = self.metrics != ("bbox",)
        columns = Columns.from_file(path, "results", with_masks)
        if with_masks or self._has_boxes(columns):
            return columns
        return Columns.from_file(path, "results")  # boxes are those of the masks

    def _read_instances(self, image_id: Any, found: Any) -> Columns:
        labels = found.labels.cpu().numpy()
        if self._category_ids is not None:
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self._category_ids):
                raise ValueError(
                    f"image {image_id!r}: labels must be from 0 to {len(self._category_ids) - 1}, "
                    f"got {labels.min()} to {labels.max()}"
                )
            labels = self._category_ids[labels]
        if not self.ground_truth.has_integer_ids:
            image_id = self.ground_truth._image_positions.get(image_id, -1)
        return Columns.from_instances(
            int(image_id),
            found.boxes.detach().double().cpu().numpy(),
            found.scores.detach().double().cpu().numpy(),
            labels,
            found.rles,
        )

    def _check(self, columns: Columns, of_truth: bool) -> None:
        """ValueError for the first entry that lacks what the metrics need."""
        images = self.ground_truth.positions(columns.image_ids)
        lacks: dict[str, Any] = {}
        if of_truth:
            lacks["has no area"] = np.isnan(columns.areas)
        else:
            lacks["is of an image that the ground truth lacks"] = images < 0
            lacks["has no score, or NaN for one"] = np.isnan(columns.scores)
        if self._needs_boxes(of_truth, columns):
            lacks["has no bbox, or NaN in it"] = np.isnan(columns.boxes).any(axis=1)
        if self._needs_masks(of_truth, columns):
            empty = (columns.sizes[:, 0] < 0) & (np.diff(columns.polygon_ends, prepend=0) == 0)
            lacks["has no segmentation"] = columns.mask_counts() == 0
            if empty.any():
                holds = np.concatenate([[0], np.cumsum(empty)])
                ends = columns.mask_ends
                begins = ends - columns.mask_counts()
                lacks["has an empty segmentation"] = holds[ends] > holds[begins]
        for what, where in lacks.items():
            where &= (images >= 0) | (not of_truth)
            if where.any():
                raise ValueError(f"{self._name_of(columns, of_truth, int(where.argmax()))} {what}")

    def _warn_of_unknown_categories(self, columns: Columns) -> None:
        unknown = self._categories_of(columns) < 0
        if unknown.any():
            ids = np.unique(columns.category_ids[unknown])
            shown = ", ".join(str(one) for one in ids[:10]) + (" ..." if len(ids) > 10 else "")
            warnings.warn(
                f"{unknown.sum()} results are left out: the ground truth lacks categories {shown}",
                stacklevel=3,
            )

    def _needs_boxes(self, of_truth: bool, columns: Columns) -> bool:
        """Results may have boxes for all or for none, whose masks then tell."""
        return "bbox" in self.metrics and (of_truth or self._has_boxes(columns))

    def _needs_masks(self, of_truth: bool, columns: Columns) -> bool:
        if self.metrics != ("bbox",):
            return True
        return not of_truth and not self._has_boxes(columns)

    @staticmethod
    def _has_boxes(columns: Columns) -> bool:
        return bool((~np.isnan(columns.boxes[:, :1])).any())

    def _name_of(self, columns: Columns, of_truth: bool, index: int) -> str:
        image = self.ground_truth.image_name(columns.image_ids[index])
        number = f"annotation {columns.ids[index]}" if of_truth else f"results[{index}]"
        return f"{number} (image {image!r})"

    def _merged(self) -> Columns:
        """The results of all processes; of an image that several have, those of the first one.

        Samplers of data repeat images to give every process equally many.
        """
        parts = gathered(Columns.concatenate(self._parts))
        if len(parts) == 1:
            return parts[0]
        owner = np.full(len(self.ground_truth.image_ids), len(parts))
        places = [self.ground_truth.positions(part.image_ids) for part in parts]
        for rank in reversed(range(len(parts))):
            owner[places[rank]] = rank
        for rank, part in enumerate(parts):
            part.image_ids = np.where(owner[places[rank]] == rank, part.image_ids, _LEFT_OUT)
        return Columns.concatenate(parts)

    def _categories_of(self, columns: Columns) -> NDArray[np.int64]:
        """Index of each entry's category, -1 for those that the ground truth lacks."""
        return positions(columns.category_ids, self.ground_truth.category_ids)


_LEFT_OUT = np.iinfo(np.int64).min  # an image id that no dataset has


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
            boundary. "mask": the area of its mask. "pycocotools": the area of its box where
            results have a `bbox`, as `loadRes` does; with it APs, APm, APl, ARs, ARm and ARl of
            results that have both differ from those that detectron2, which removes the boxes
            first, prints.
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
        if detection_area not in DETECTION_AREAS:
            raise ValueError(
                f"detection_area must be one of {', '.join(DETECTION_AREAS)}, got "
                f"{detection_area!r}"
            )
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
        self.detection_area = detection_area
        self.dilation_ratio = dilation_ratio
        super().__init__(ground_truth, metrics, category_ids)
        self._chosen = self._chosen_images(image_ids)

    def _chosen_images(self, image_ids: Sequence[Any] | None) -> NDArray[np.bool_] | None:
        dataset = self.ground_truth
        if image_ids is None:
            return None
        chosen = np.zeros(len(dataset.image_ids), bool)
        for one in image_ids:
            if one not in dataset._image_positions:
                raise ValueError(f"image_ids: the ground truth has no image {one!r}")
            chosen[dataset._image_positions[one]] = True
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
            metric: with_details(self._summary(one), one, ids, per_category, curves)
            for metric, one in found.items()
        }

    def _task(self, detections: Columns) -> Task:
        truths = self.ground_truth.columns
        return Task(
            self._side(detections, np.zeros(len(detections), np.uint8)),
            self._side(truths, truths.crowds),
            self.ground_truth.image_sizes,
            len(self.ground_truth.category_ids) if self.use_categories else 1,
            {metric: self._areas(metric, detections) for metric in self.metrics},
            self.max_dets,
            lambda of_truth, n: self._name_of(truths if of_truth else detections, of_truth, n),
            self.thresholds,
            dilation_ratio=self.dilation_ratio,
        )

    def _side(self, columns: Columns, ignores: NDArray[np.uint8]) -> Side:
        images = self.ground_truth.positions(columns.image_ids)
        if self._chosen is not None:
            images = np.where(self._chosen[images], images, -1)
        categories = self._categories_of(columns)
        images[categories < 0] = -1
        categories = categories.clip(0)
        groups = categories if self.use_categories else np.zeros_like(categories)
        return Side(columns, images, groups, categories, ignores, columns.crowds)

    def _areas(self, metric: str, detections: Columns) -> NDArray[np.float64] | None:
        by_box = metric == "bbox" or self.detection_area == "pycocotools"
        if not by_box or not self._has_boxes(detections):
            return None
        return detections.boxes[:, 2] * detections.boxes[:, 3]

    def _summary(self, curves: Curves) -> dict[str, Any]:
        found = precision_means(curves, self.thresholds)
        for number, limit in enumerate(self.max_dets):
            found[f"AR{limit}"] = mean(curves.recall[:, :, 0, number])
        for number, letter in enumerate(RANGE_LETTERS[1:], 1):
            found[f"AR{letter}"] = mean(curves.recall[:, :, number, -1])
        return found
