"""Panoptic quality as its definition reads.

Source: Kirillov et al., "Panoptic Segmentation" (2019), with the rules for void and crowd of COCO's
evaluation (panopticapi); Cheng et al., "Boundary IoU" (2021), for the boundary's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import hypot
from typing import Any

import numpy as np
from numpy.typing import NDArray

VOID = 0

Labels = NDArray[Any]  # [H, W] segment ids
Segments = list[dict[str, Any]]  # "segments_info"
Image = tuple[Labels, Segments, Labels, Segments]  # ground truth, then prediction


@dataclass
class Counts:
    """What one category's quality is made of."""

    iou: float = 0.0
    tp: int = 0
    fp: int = 0
    fn: int = 0


def panoptic_quality(
    images: Iterable[Image], categories: list[dict[str, Any]], boundary_ratio: float | None = None
) -> dict[str, Any]:
    """See `fastseg.evaluation.PanopticEvaluator`.

    Args:
        images: label maps and segments of the ground truth and the prediction of each image.
        categories: COCO panoptic's: "id" and "isthing".
        boundary_ratio: None for panoptic quality; for boundary PQ the width of the boundary as a
            fraction of the image's diagonal.
    """
    counts: Mapping[int, Counts] = defaultdict(Counts)
    for image in images:
        count_image(*image, counts, boundary_ratio)
    result = {
        "All": average(counts, categories),
        "Things": average(counts, [one for one in categories if one["isthing"] == 1]),
        "Stuff": average(counts, [one for one in categories if one["isthing"] != 1]),
    }
    per_class = {one["id"]: quality(counts[one["id"]]) for one in categories}
    return {**result, "per_class": per_class}


def count_image(
    gt: Labels,
    gt_segments: Segments,
    prediction: Labels,
    predicted_segments: Segments,
    counts: Mapping[int, Counts],
    boundary_ratio: float | None = None,
) -> None:
    """Adds one image's matches, false positives and false negatives."""
    pairs = pixels_per_pair(gt, prediction)
    boundary_pairs = None
    if boundary_ratio is not None:
        width = max(round(boundary_ratio * hypot(*gt.shape)), 1)
        boundary_pairs = pixels_per_pair(
            boundaries(gt, gt_segments, width), boundaries(prediction, predicted_segments, width)
        )
    areas = {segment["id"]: sum_of(pairs, 1, segment["id"]) for segment in predicted_segments}
    matched_gt, matched_predictions = set(), set()
    for truth in gt_segments:
        for segment in predicted_segments:
            pair = (truth["id"], segment["id"])
            if truth["iscrowd"] or truth["category_id"] != segment["category_id"]:
                continue
            iou = iou_outside_void(pairs, pair, truth["area"], areas[segment["id"]])
            if boundary_pairs is not None and iou > 0:
                ends = (sum_of(boundary_pairs, 0, pair[0]), sum_of(boundary_pairs, 1, pair[1]))
                iou = min(iou, iou_outside_void(boundary_pairs, pair, *ends))
            if iou > 0.5:
                counts[truth["category_id"]].tp += 1
                counts[truth["category_id"]].iou += iou
                matched_gt.add(truth["id"])
                matched_predictions.add(segment["id"])

    crowd_of_category = {}  # the last one where there are several
    for truth in gt_segments:
        if truth["iscrowd"]:
            crowd_of_category[truth["category_id"]] = truth["id"]
        elif truth["id"] not in matched_gt:
            counts[truth["category_id"]].fn += 1

    for segment in predicted_segments:
        if segment["id"] in matched_predictions:
            continue
        ignored = pairs.get((VOID, segment["id"]), 0)
        if segment["category_id"] in crowd_of_category:
            ignored += pairs.get((crowd_of_category[segment["category_id"]], segment["id"]), 0)
        if ignored / areas[segment["id"]] <= 0.5:
            counts[segment["category_id"]].fp += 1


def iou_outside_void(
    pairs: dict[tuple[int, int], int], pair: tuple[int, int], gt_area: int, predicted_area: int
) -> float:
    """Intersection over union, where predicted pixels on void belong to neither."""
    intersection = pairs.get(pair, 0)
    on_void = pairs.get((VOID, pair[1]), 0)
    return intersection / (gt_area + predicted_area - intersection - on_void)


def pixels_per_pair(gt: Labels, prediction: Labels) -> dict[tuple[int, int], int]:
    """How many pixels have each pair of labels, which are -1 or up to 24 bits."""
    keys = ((gt.astype(np.int64) + 1) << 32) + (prediction.astype(np.int64) + 1)
    found, pixels = np.unique(keys, return_counts=True)
    pairs = zip((found >> 32) - 1, (found & 0xFFFFFFFF) - 1, pixels, strict=True)
    return {(int(label), int(predicted)): int(count) for label, predicted, count in pairs}


def sum_of(pairs: dict[tuple[int, int], int], side: int, label: int) -> int:
    return sum(pixels for pair, pixels in pairs.items() if pair[side] == label)


def boundaries(labels: Labels, segments: Segments, width: int) -> Labels:
    """Labels of the pixels at most `width` from the end of their segment; -1 further inside."""
    result = labels.astype(np.int64)
    for segment in segments:
        inside = labels == segment["id"]
        result[erode(inside, width)] = -1
    return result


def erode(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Pixels whose whole square neighbourhood is inside; outside the image nothing is."""
    for _ in range(2):
        padded = np.pad(mask, ((distance, distance), (0, 0)))
        shifted = [padded[shift : shift + len(mask)] for shift in range(2 * distance + 1)]
        mask = np.logical_and.reduce(shifted).T  # first along columns, then along rows
    return mask


def quality(counts: Counts) -> dict[str, float]:
    """PQ = SQ * RQ: how well matched segments agree, and how many segments match."""
    total = counts.tp + 0.5 * counts.fp + 0.5 * counts.fn
    if total == 0:
        return {"pq": 0.0, "sq": 0.0, "rq": 0.0}
    sq = counts.iou / counts.tp if counts.tp else 0.0
    return {"pq": counts.iou / total, "sq": sq, "rq": counts.tp / total}


def average(counts: Mapping[int, Counts], categories: list[dict[str, Any]]) -> dict[str, float]:
    """The mean over the categories that occur, in ground truth or prediction."""
    occurring = [counts[category["id"]] for category in categories]
    found = [quality(one) for one in occurring if one.tp + one.fp + one.fn > 0]
    n = len(found)
    means = {key: sum(q[key] for q in found) / n if n else np.nan for key in ("pq", "sq", "rq")}
    return {**means, "n": n}
