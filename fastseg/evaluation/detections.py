"""What the evaluators of detections share: taking results, checking them, merging processes."""

from __future__ import annotations

import json
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg.evaluation.average_precision import Side
from fastseg.evaluation.coco_dataset import COCO
from fastseg.evaluation.columns import Columns, positions
from fastseg.evaluation.evaluator import Evaluator, gathered

DETECTION_AREAS = ("mask", "box")
_LEFT_OUT = np.iinfo(np.int64).min  # an image id that no dataset has


class DetectionEvaluator(Evaluator):
    """Takes results and checks them against a dataset: what COCO, LVIS and videos share."""

    def __init__(
        self,
        ground_truth: COCO | str | Path | Mapping[str, Any],
        metrics: Sequence[str],
        allowed: Sequence[str],
        category_ids: Sequence[int] | None = None,
        detection_area: str = "mask",
    ) -> None:
        if detection_area not in DETECTION_AREAS:
            raise ValueError(
                f"detection_area must be one of {', '.join(DETECTION_AREAS)}, got "
                f"{detection_area!r}"
            )
        self.detection_area = detection_area
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

    @abstractmethod
    def compute(self, per_category: bool = False, curves: bool = False) -> dict[str, Any]:
        """The numbers of each metric; each evaluator says which."""

    def update(self, results: Any) -> None:
        """Adds results of some images, each image in one call.

        Args:
            results: path of a results file, a list of COCO's result dicts, what `COCO.loadRes`
                gives, or `{image_id: Instances}`. Instead of `Instances` also a dict of `scores`,
                `labels`, `masks` (`PackedMasks` or [N, H, W], bool or integer) or `rles` and, where
                there are, `boxes` (x1, y1, x2, y2). Masks of result dicts are run lengths or
                polygons, of any form that pycocotools takes.

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
        return dataset.columns_of(results, "results")

    def _read_file(self, path: str | Path) -> Columns:
        with_masks = self.metrics != ("bbox",)
        columns = Columns.from_file(path, "results", with_masks)
        if with_masks or self._has_boxes(columns):
            return columns
        return Columns.from_file(path, "results")  # boxes are those of the masks

    def _read_instances(self, image_id: Any, found: Any) -> Columns:
        parts = found if isinstance(found, Mapping) else getattr(found, "__dict__", {})
        for keys in (("scores",), ("labels",), ("rles", "masks")):
            if not any(key in parts for key in keys):
                raise ValueError(f"image {image_id!r}: results must have {' or '.join(keys)}")
        labels = _as_numpy(parts["labels"])
        if self._category_ids is not None:
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self._category_ids):
                raise ValueError(
                    f"image {image_id!r}: labels must be from 0 to {len(self._category_ids) - 1}, "
                    f"got {labels.min()} to {labels.max()}"
                )
            labels = self._category_ids[labels]
        rles = parts["rles"] if "rles" in parts else _encoded(parts["masks"])
        scores = _as_numpy(parts["scores"]).astype(np.float64)
        boxes = np.full((len(rles), 4), np.nan)
        if parts.get("boxes") is not None:
            boxes = _as_numpy(parts["boxes"]).astype(np.float64)
        for name, one in {"labels": labels, "scores": scores, "boxes": boxes}.items():
            if len(one) != len(rles):
                raise ValueError(
                    f"image {image_id!r}: {name} must be {len(rles)} as the masks, got {len(one)}"
                )
        if not self.ground_truth.has_integer_ids:
            image_id = self.ground_truth.image_places.get(image_id, -1)
        return Columns.from_instances(int(image_id), boxes, scores, labels, rles)

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

    def _side(
        self, columns: Columns, ignores: NDArray[np.uint8], crowds: NDArray[np.uint8]
    ) -> Side:
        """The columns' places in the dataset; entries of unknown categories are left out."""
        images = self.ground_truth.positions(columns.image_ids)
        categories = self._categories_of(columns)
        images[categories < 0] = -1
        categories = categories.clip(0)
        return Side(columns, images, categories, categories, ignores, crowds)

    def _areas(self, detections: Columns) -> dict[str, NDArray[np.float64] | None]:
        """By metric, areas of the detections' boxes, or None where those of the masks count."""
        has_boxes = self._has_boxes(detections)
        boxes = detections.boxes[:, 2] * detections.boxes[:, 3] if has_boxes else None
        by_box = self.detection_area == "box"
        return {metric: boxes if metric == "bbox" or by_box else None for metric in self.metrics}


def _as_numpy(values: Any) -> NDArray[Any]:
    """A tensor on any device, an array or a list."""
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _encoded(masks: Any) -> list[dict[str, Any]]:
    """Run lengths of pixels or of packed bits."""
    from fastseg import ops

    if isinstance(masks, ops.PackedMasks):
        masks = ops.unpack_masks(masks)
    return ops.rle_encode(masks)
