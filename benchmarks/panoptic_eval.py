"""Panoptic quality and confusion matrices of real label maps, against the peers' algorithms.

panopticapi and boundary-iou-api are not packages to install; `fastseg.reference.panoptic_quality`
is their algorithm: NumPy's `unique` over pairs of ids, and an erosion per segment.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.agreement import close, equal
from benchmarks.harness.case import Case, Run, Setting

DATA = Path(__file__).parents[1] / "tests" / "data" / "panoptic"
Maps = Callable[[dict[str, Any]], tuple[Any, Any]]  # of an image: ground truth, prediction

CLASSES = 201  # of COCO panoptic: its ids are below


def cases(setting: Setting) -> Iterator[Case]:
    """From colours of PNGs that are read, from the files, with boundaries; then classes alone."""
    images = _images(2 if setting.quick else 19)
    yield _quality(setting, "label maps", images)
    yield _quality(setting, "PNG files", images, from_files=True)
    yield _quality(setting, "label maps, boundary", images[:4], ratio=0.02)
    yield _confusion(setting, images)


def _images(count: int) -> list[dict[str, Any]]:
    """Ground truth and prediction of images of COCO, of some 640 x 480 pixels."""
    from fastseg.evaluation.panoptic_files import read_panoptic_png

    images = []
    ground_truth, results = (
        json.loads((DATA / f"{name}.json").read_text())["annotations"][:count]
        for name in ("ground_truth", "results")
    )
    for truth, result in zip(ground_truth, results, strict=True):
        paths = DATA / "ground_truth" / truth["file_name"], DATA / "results" / result["file_name"]
        images.append(
            {
                "paths": paths,
                "maps": [read_panoptic_png(path) for path in paths],
                "segments": (truth["segments_info"], result["segments_info"]),
            }
        )
    return images


def _quality(
    setting: Setting,
    what: str,
    images: list[dict[str, Any]],
    *,
    from_files: bool = False,
    ratio: float | None = None,
) -> Case:
    """Predicted maps lie on the device, as a model leaves them."""

    def maps(image: dict[str, Any]) -> tuple[Any, Any]:
        from fastseg.evaluation.panoptic_files import on_host, read_panoptic_png

        if from_files:
            gt, prediction = (read_panoptic_png(path) for path in image["paths"])
            return gt, prediction
        return image["maps"][0], on_host(image["on_device"])

    for image in images:
        image["on_device"] = torch.from_numpy(image["maps"][1].copy()).to(setting.device)

    def fastseg() -> Run:
        return lambda: _counted(images, maps, ratio)

    def algorithm() -> Run:
        return lambda: _counted_by_definition(images, maps, ratio)

    return Case(
        name=f"{len(images)} images, {what}",
        providers={"fastseg": fastseg, "panopticapi's algorithm": algorithm},
        bytes_moved=sum(one.nbytes for image in images for one in image["maps"]),
        agreement=close(1e-12, 1e-12),
        has_dtype=False,
    )


def _counted(images: list[dict[str, Any]], maps: Maps, ratio: float | None) -> Tensor:
    """[categories, 4] matches, their IoU, false positives, false negatives."""
    from fastseg.evaluation.panoptic_matching import Segment, count_image

    def listed(segments: list[dict[str, Any]]) -> dict[int, Segment]:
        return {
            one["id"]: Segment(one["category_id"], one.get("area", 0), one.get("iscrowd", 0) == 1)
            for one in segments
        }

    totals = np.zeros((CLASSES, 4))
    for image in images:
        gt_segments, segments = (listed(one) for one in image["segments"])
        gt, prediction = maps(image)
        found = count_image(gt, gt_segments, prediction, segments, ratio)
        for category, iou in found.matches:
            totals[category, :2] += 1, iou
        for category in found.false_positives:
            totals[category, 2] += 1
        for category in found.false_negatives:
            totals[category, 3] += 1
    return torch.from_numpy(totals)


def _counted_by_definition(images: list[dict[str, Any]], maps: Maps, ratio: float | None) -> Tensor:
    from fastseg.evaluation import rgb2id
    from fastseg.reference import panoptic_quality as definition

    counts: dict[int, definition.Counts] = defaultdict(definition.Counts)
    for image in images:
        (gt_segments, segments), (gt, prediction) = image["segments"], maps(image)
        ids, predicted_ids = rgb2id(gt), rgb2id(prediction)
        definition.count_image(ids, gt_segments, predicted_ids, segments, counts, ratio)
    totals = np.zeros((CLASSES, 4))
    for category, one in counts.items():
        totals[category] = one.tp, one.iou, one.fp, one.fn
    return torch.from_numpy(totals)


def _confusion(setting: Setting, images: list[dict[str, Any]]) -> Case:
    """Classes of int64, as argmax gives them, and bytes of the ground truth."""
    pairs = []
    for image in images:
        truth, predicted = (
            torch.from_numpy(_classes(*one).astype(np.int64)).to(setting.device)
            for one in zip(image["maps"], image["segments"], strict=True)
        )
        pairs.append((predicted, truth.to(torch.uint8)))

    def fastseg() -> Run:
        from fastseg.evaluation import SemanticEvaluator

        def run() -> Tensor:
            evaluator = SemanticEvaluator(CLASSES)
            for predicted, truth in pairs:
                evaluator.update(predicted, truth)
            return torch.from_numpy(evaluator.compute()["confusion_matrix"])

        return run

    def bincount() -> Run:
        def run() -> Tensor:
            total = torch.zeros(CLASSES * CLASSES, dtype=torch.int64, device=setting.device)
            for predicted, truth in pairs:
                kept = truth != 255
                keys = truth[kept].long() * CLASSES + predicted[kept]
                total += torch.bincount(keys, minlength=CLASSES * CLASSES)
            return total.reshape(CLASSES, CLASSES).cpu()

        return run

    return Case(
        name=f"{len(images)} images, confusion matrix of {CLASSES} classes",
        providers={"fastseg": fastseg, "torch.bincount": bincount},
        bytes_moved=sum(one.nbytes for pair in pairs for one in pair),
        agreement=equal,
        has_dtype=False,
    )


def _classes(colours: Any, segments: list[dict[str, Any]]) -> Any:
    """Categories of a map of segments; 0 where there is none."""
    from fastseg.evaluation import rgb2id

    ids = rgb2id(colours)
    labels = np.array([0, *(one["id"] for one in segments)])
    categories = np.array([0, *(one["category_id"] for one in segments)])
    order = np.argsort(labels)
    at = np.searchsorted(labels[order], ids).clip(max=len(labels) - 1)
    return np.where(labels[order][at] == ids, categories[order][at], 0)
