"""Panoptic quality: how well every pixel has its segment."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import fsum, nan
from pathlib import Path
from typing import Any

from fastseg import _C
from fastseg.evaluation.evaluator import Evaluator, gathered
from fastseg.evaluation.panoptic_files import on_host, png_name, read_panoptic_png
from fastseg.evaluation.panoptic_matching import VOID, ImageCounts, Segment, count_image


class PanopticEvaluator(Evaluator):
    """PQ, SQ and RQ over all categories, things and stuff; the numbers of COCO's panopticapi.

    Segments match where they have one category and IoU > 0.5, predicted pixels on void (id 0) left
    out. Crowd segments are no false negatives; a predicted segment is no false positive where more
    than half of it lies on void and on its category's crowd (the last one, where an image has
    several). Categories without any match, false positive or false negative are left out of means.

    Source: Kirillov et al., "Panoptic Segmentation" (2019). With `boundary_ratio`, boundary PQ of
    Cheng et al., "Boundary IoU" (2021): a pair's IoU is then the lower one of mask and boundary.

    Example::

        evaluator = PanopticEvaluator("panoptic_val2017.json")
        for image_id, (segmentation, segments_info) in results:
            evaluator.update(image_id, segmentation, segments_info)
        print(evaluator.compute()["All"]["pq"])
    """

    def __init__(
        self,
        ground_truth: str | Path | Mapping[str, Any],
        gt_folder: str | Path | None = None,
        *,
        image_ids: Iterable[int] | None = None,
        boundary_ratio: float | None = None,
    ) -> None:
        """
        Args:
            ground_truth: a COCO panoptic JSON file, or what is in one.
            gt_folder: the place of its PNGs; the default is the file's name without the ending.
            image_ids: the images to evaluate; the default is all of the ground truth.
            boundary_ratio: None, or for boundary PQ the width of the boundary as a fraction of the
                image's diagonal (0.02 on COCO, 0.005 on Cityscapes).

        Raises:
            ValueError: the ground truth lacks something, contradicts itself or has no such image.
        """
        if isinstance(ground_truth, (str, Path)):
            gt_folder = gt_folder or Path(ground_truth).with_suffix("")
            dataset = _read_json(ground_truth)
        else:
            dataset = ground_truth
        if gt_folder is None:
            raise ValueError("gt_folder must be given where ground_truth is no file")
        self._folder = Path(gt_folder)
        self._boundary_ratio = boundary_ratio
        self._categories = _categories(dataset)
        annotations = _by_image(dataset["annotations"], "the ground truth")
        wanted = list(annotations) if image_ids is None else list(dict.fromkeys(image_ids))
        if unknown := [image for image in wanted if image not in annotations]:
            raise ValueError(f"the ground truth has no image {unknown[0]}")
        self._file_names = {image: png_name(annotations[image]["file_name"]) for image in wanted}
        self._segments = {
            image: self._gt_segments(image, annotations[image]["segments_info"]) for image in wanted
        }
        self._counts: dict[int, ImageCounts] = {}

    @property
    def image_ids(self) -> list[int]:
        """The images that `compute` needs results of."""
        return list(self._file_names)

    def update(
        self, image_id: int, segmentation: Any, segments_info: Sequence[Mapping[str, Any]]
    ) -> None:
        """Adds the result of one image.

        Args:
            image_id: the image's id in the ground truth.
            segmentation: [H, W] segment ids of any integer type, 0 where there is no segment, as
                an array or tensor; or [H, W, 3] uint8 colours of ids; or the path of such a PNG.
            segments_info: a dict with "id" and "category_id" per segment.

        Raises:
            TypeError: the ids are floating point.
            ValueError: the image is not in the ground truth or comes twice, its size is another
                one, an id is missing from segmentation or segments_info or comes twice there, or a
                category is unknown; with the image's and the segment's id.
        """
        if image_id not in self._file_names:
            raise ValueError(f"image {image_id} is not in the ground truth")
        if image_id in self._counts:
            raise ValueError(f"image {image_id} already has a result")
        if isinstance(segmentation, (str, Path)):
            segmentation = read_panoptic_png(segmentation)
        prediction = on_host(segmentation)
        gt = read_panoptic_png(self._folder / self._file_names[image_id])
        where = f"image {image_id}"
        segments = self._read_segments(where, segments_info)
        if prediction.shape[:2] != gt.shape[:2]:
            raise ValueError(
                f"{where}: segmentation must have the size of the ground truth, "
                f"{list(gt.shape[:2])}, got shape {list(prediction.shape)}"
            )
        try:
            self._counts[image_id] = count_image(
                gt, self._segments[image_id], prediction, segments, self._boundary_ratio
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def compute(self) -> dict[str, Any]:
        """The metrics of all images.

        Returns:
            "All", "Things" and "Stuff": means over the categories that occur, {"pq", "sq", "rq"} in
            [0, 1], NaN where none occurs, and their number "n". "per_class": by category id, the
            same, 0 where the category does not occur, and the counts "tp", "fp" and "fn".

        Raises:
            ValueError: an image has no result.
        """
        counts: dict[int, ImageCounts] = {}
        for part in gathered(self._counts):
            counts.update(part)  # samplers may give an image to two processes
        if missing := [image for image in self._file_names if image not in counts]:
            shown = ", ".join(str(image) for image in missing[:5])
            raise ValueError(f"{len(missing)} images have no result, such as {shown}")
        ious: dict[int, list[float]] = {category: [] for category in self._categories}
        fp, fn = dict.fromkeys(self._categories, 0), dict.fromkeys(self._categories, 0)
        for image in counts.values():
            for category, iou in image.matches:
                ious[category].append(iou)
            for category in image.false_positives:
                fp[category] += 1
            for category in image.false_negatives:
                fn[category] += 1
        per_class = {one: _quality(ious[one], fp[one], fn[one]) for one in self._categories}
        things = [per_class[one] for one, isthing in self._categories.items() if isthing]
        stuff = [per_class[one] for one, isthing in self._categories.items() if not isthing]
        return {
            "All": _mean(per_class.values()),
            "Things": _mean(things),
            "Stuff": _mean(stuff),
            "per_class": per_class,
        }

    def reset(self) -> None:
        """Forgets all results."""
        self._counts = {}

    def _read_segments(
        self, where: str, segments_info: Sequence[Mapping[str, Any]]
    ) -> dict[int, Segment]:
        segments: dict[int, Segment] = {}
        for info in segments_info:
            label, category = int(info["id"]), int(info["category_id"])
            if label in segments:
                raise ValueError(f"{where}: segment {label} comes twice in segments_info")
            if category not in self._categories:
                raise ValueError(f"{where}: segment {label} has unknown category_id {category}")
            crowd = info.get("iscrowd", 0) == 1
            segments[label] = Segment(category, info.get("area", 0), crowd)
        return segments

    def _gt_segments(
        self, image: int, segments_info: Sequence[Mapping[str, Any]]
    ) -> dict[int, Segment]:
        for info in segments_info:
            if "area" not in info:
                raise ValueError(
                    f"image {image} of the ground truth: segment {info['id']} has no area"
                )
            if info["id"] == VOID:
                raise ValueError(f"image {image} of the ground truth: id {VOID} is void's alone")
        return self._read_segments(f"image {image} of the ground truth", segments_info)


def evaluate_panoptic(
    ground_truth: str | Path,
    gt_folder: str | Path | None,
    results: str | Path,
    results_folder: str | Path | None = None,
    *,
    boundary_ratio: float | None = None,
) -> dict[str, Any]:
    """Evaluates a COCO panoptic results file, images in parallel.

    Args:
        ground_truth: a COCO panoptic JSON file.
        gt_folder: the place of its PNGs; None: the file's name without the ending.
        results: a JSON file {"annotations": [{"image_id", "file_name", "segments_info"}, ...]}.
        results_folder: the place of its PNGs, as gt_folder.
        boundary_ratio: see `PanopticEvaluator`.

    Returns:
        See `PanopticEvaluator.compute`.

    Raises:
        ValueError: see `PanopticEvaluator`; an image without result is one.
    """
    evaluator = PanopticEvaluator(ground_truth, gt_folder, boundary_ratio=boundary_ratio)
    annotations = _by_image(_read_json(results)["annotations"], "the results")
    folder = Path(results_folder or Path(results).with_suffix(""))

    def update(image_id: int) -> None:
        annotation = annotations[image_id]
        evaluator.update(image_id, folder / annotation["file_name"], annotation["segments_info"])

    with ThreadPoolExecutor(_C.build_info()["threads"]) as pool:
        for _ in pool.map(update, [image for image in evaluator.image_ids if image in annotations]):
            pass
    return evaluator.compute()


def _read_json(path: str | Path) -> Any:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def _categories(ground_truth: Mapping[str, Any]) -> dict[int, bool]:
    """Whether each category is of things."""
    for category in ground_truth["categories"]:
        if "isthing" not in category:
            raise ValueError(f"category {category['id']} of the ground truth has no isthing")
    return {one["id"]: one["isthing"] == 1 for one in ground_truth["categories"]}


def _by_image(annotations: Sequence[Mapping[str, Any]], where: str) -> dict[int, Mapping[str, Any]]:
    found: dict[int, Mapping[str, Any]] = {}
    for annotation in annotations:
        if annotation["image_id"] in found:
            raise ValueError(f"image {annotation['image_id']} comes twice in {where}")
        found[annotation["image_id"]] = annotation
    return found


def _quality(ious: list[float], fp: int, fn: int) -> dict[str, float]:
    tp = len(ious)
    total = tp + 0.5 * fp + 0.5 * fn
    iou = fsum(ious)  # rounded once, so that the order of images does not matter
    return {
        "pq": iou / total if total else 0.0,
        "sq": iou / tp if tp else 0.0,
        "rq": tp / total if total else 0.0,
        "tp": tp,
        "fp": fp,
        "fn": fn,
    }


def _mean(qualities: Iterable[dict[str, float]]) -> dict[str, float]:
    occurring = [one for one in qualities if one["tp"] + one["fp"] + one["fn"]]
    n = len(occurring)
    means = {
        key: sum(one[key] for one in occurring) / n if n else nan for key in ("pq", "sq", "rq")
    }
    return {**means, "n": n}
