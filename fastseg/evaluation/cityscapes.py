"""Cityscapes' average precision of instances."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastseg import _C
from fastseg.evaluation.evaluator import Evaluator, gathered
from fastseg.evaluation.panoptic_files import on_host

if TYPE_CHECKING:
    from fastseg.ops import PackedMasks

CITYSCAPES_CLASSES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
# Labels that Cityscapes ignores: unlabeled to ground, parking, rail track, guard rail, bridge,
# tunnel, polegroup, caravan, trailer, license plate.
CITYSCAPES_VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, -1)

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
MIN_PIXELS = 100  # smaller objects of the ground truth are neither found nor missed
IDS_PER_LABEL = 1000  # id = 1000 label + number; below 1000, a label alone: a group or no object


class CityscapesInstanceEvaluator(Evaluator):
    """AP over IoU > 0.5, 0.55, ... 0.95 and at 0.5; the numbers of Cityscapes' own script.

    An object is found by the prediction of its class that overlaps it most surely (IoU above the
    threshold, best score); further such predictions are false positives. A prediction that overlaps
    nothing so is a false positive, unless the share of its pixels on void, on groups of its class
    (labels without a number) and on its class's objects of fewer than 100 pixels is above the
    threshold. AP is the area under the curve of precision by recall, step by step; the mean takes
    the classes that have objects in the ground truth.

    The script's AP at 50 and 100 m need distances from the disparity maps and are not computed.

    Source: Cordts et al., "The Cityscapes Dataset" (2016), and cityscapesscripts'
    evalInstanceLevelSemanticLabeling.

    Example::

        evaluator = CityscapesInstanceEvaluator()
        for name, masks, labels, scores in results:
            evaluator.update(name, f"{name}_gtFine_instanceIds.png", masks, labels, scores)
        print(evaluator.compute()["AP"])
    """

    def __init__(
        self,
        classes: Mapping[int, str] = CITYSCAPES_CLASSES,
        void_labels: Collection[int] = CITYSCAPES_VOID,
    ) -> None:
        """
        Args:
            classes: names of the evaluated classes by label id (not by train id).
            void_labels: ids of the ground truth that count as void.

        Raises:
            ValueError: a class's label is 1000 or more, or not positive.
        """
        for label in classes:
            if not 0 < label < IDS_PER_LABEL:
                raise ValueError(f"classes must have labels in (0, {IDS_PER_LABEL}), got {label}")
        self.classes = dict(classes)
        self._void = np.array(sorted(void_labels), dtype=np.int64)
        self.reset()

    def reset(self) -> None:
        """Forgets all results."""
        self._images: dict[int | str, dict[int, _Found]] = {}

    def update(
        self,
        image_id: int | str,
        instance_ids: Any,
        masks: PackedMasks | Sequence[Mapping[str, Any]] | Any,
        labels: Any,
        scores: Any,
    ) -> None:
        """Adds ground truth and result of one image.

        Args:
            image_id: any number or name that no other image has.
            instance_ids: [H, W] of any integer type, an array, tensor or the path of a PNG (named
                *_instanceIds.png): 1000 label + number for an object, else a label.
            masks: N masks [N, H, W] bool or integer, `PackedMasks`, or a list of N COCO RLEs. They
                may overlap; empty ones do not count.
            labels: [N] label ids; predictions of labels that are not evaluated do not count.
            scores: [N] confidences.

        Raises:
            TypeError: masks or instance_ids are floating point.
            ValueError: the image came before, sizes differ, or a score is NaN; with the image's id.
        """
        if image_id in self._images:
            raise ValueError(f"image {image_id} already has a result")
        if isinstance(instance_ids, (str, Path)):
            with Image.open(instance_ids) as image:
                instance_ids = np.asarray(image)
        ids = on_host(instance_ids)
        where = f"image {image_id}"
        if ids.ndim != 2:
            raise ValueError(f"{where}: instance_ids must be [H, W], got {list(ids.shape)}")
        predicted = _Masks(masks)
        label_of, score_of = on_host(labels), on_host(scores).astype(np.float64)
        for name, values in (("labels", label_of), ("scores", score_of)):
            if values.shape != (len(predicted),):
                raise ValueError(
                    f"{where}: {name} must have shape [{len(predicted)}], one per mask, "
                    f"got {list(values.shape)}"
                )
        if np.isnan(score_of).any():
            raise ValueError(f"{where}: scores[{int(np.isnan(score_of).argmax())}] is NaN")
        if len(predicted) and predicted.size != ids.shape:
            raise ValueError(
                f"{where}: masks must have the size of instance_ids, {list(ids.shape)}, "
                f"got {list(predicted.size)}"
            )
        found_ids, _, pixels = _C.label_pairs(ids, ids)
        self._images[image_id] = {
            label: self._match(label, ids, (found_ids, pixels), predicted, label_of, score_of)
            for label in self.classes
        }

    def compute(self) -> dict[str, Any]:
        """The metrics of all images.

        Returns:
            "AP" and "AP50" in [0, 1], the means over the classes; "per_class": {"AP", "AP50"} by
            class name. NaN for a class without objects of at least 100 pixels, and for a mean over
            no class.
        """
        images: dict[int | str, dict[int, _Found]] = {}
        for part in gathered(self._images):
            images.update(part)  # samplers may give an image to two processes
        ap = np.stack(
            [_average_precisions([one[c] for one in images.values()]) for c in self.classes]
        )
        known = ap[~np.isnan(ap[:, 0])]
        return {
            "AP": float(known.mean()) if len(known) else float("nan"),
            "AP50": float(known[:, 0].mean()) if len(known) else float("nan"),
            "per_class": {
                name: {"AP": float(of_class.mean()), "AP50": float(of_class[0])}
                for name, of_class in zip(self.classes.values(), ap, strict=True)
            },
        }

    def _match(
        self,
        label: int,
        ids: NDArray[Any],
        of_image: tuple[NDArray[np.int64], NDArray[np.int64]],
        masks: _Masks,
        labels: NDArray[Any],
        scores: NDArray[np.float64],
    ) -> _Found:
        own = (of_image[0] == label) | (of_image[0] // IDS_PER_LABEL == label)
        gt_ids, gt_pixels = of_image[0][own], of_image[1][own]
        group, small = gt_ids < IDS_PER_LABEL, gt_pixels < MIN_PIXELS
        chosen: list[int] = np.flatnonzero((labels == label) & (masks.areas > 0)).tolist()
        overlaps = np.zeros((len(chosen), len(gt_ids)), dtype=np.int64)
        ignored = np.zeros(len(chosen), dtype=np.int64)
        for row, n in enumerate(chosen):
            under, pixels = masks.labels_under(n, ids)
            _, there, here = np.intersect1d(gt_ids, under, return_indices=True)
            overlaps[row, there] = pixels[here]
            ignored[row] = pixels[np.isin(under, self._void)].sum()
        # What is small and a group counts twice, as it does there.
        ignored += overlaps @ (group.astype(np.int64) + small)
        areas = masks.areas[chosen]
        iou = overlaps / (gt_pixels + areas[:, None] - overlaps)
        objects = ~group & ~small
        rows, columns = np.nonzero(iou[:, objects] > THRESHOLDS[0])
        return _Found(
            objects=int(objects.sum()),
            scores=scores[chosen],
            best_iou=iou.max(axis=1, initial=0),
            ignored=ignored / areas,
            pair_object=columns,
            pair_score=scores[chosen][rows],
            pair_iou=iou[:, objects][rows, columns],
        )


@dataclass(frozen=True)
class _Found:
    """One class in one image. Pairs are of an object and a prediction with IoU > 0.5."""

    objects: int  # those that can be found or missed
    scores: NDArray[np.float64]  # [P] predictions
    best_iou: NDArray[np.float64]  # [P] with any instance or group
    ignored: NDArray[np.float64]  # [P] share of pixels
    pair_object: NDArray[np.int64]
    pair_score: NDArray[np.float64]
    pair_iou: NDArray[np.float64]


class _Masks:
    """Masks of any form, read one at a time within their boxes."""

    def __init__(self, masks: Any) -> None:
        from fastseg.ops import PackedMasks, pack_masks  # with torch

        packed = masks if isinstance(masks, PackedMasks) else pack_masks(masks)
        self._words = on_host(packed.words)
        self._boxes = on_host(packed.boxes)
        self.areas: NDArray[np.int64] = on_host(packed.areas)
        self.size = (packed.height, packed.width)

    def __len__(self) -> int:
        return len(self._words)

    def labels_under(
        self, index: int, ids: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The ids that lie under a mask, and on how many of its pixels."""
        x0, y0, x1, y1 = self._boxes[index].tolist()
        words = np.ascontiguousarray(self._words[index, y0:y1, x0 // 64 : (x1 + 63) // 64])
        bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
        mask = bits[:, x0 % 64 : x0 % 64 + x1 - x0]
        under, inside, pixels = _C.label_pairs(ids[y0:y1, x0:x1], mask)
        return under[inside == 1], pixels[inside == 1]


def _average_precisions(images: list[_Found]) -> NDArray[np.float64]:
    """AP of a class at each threshold."""
    objects = sum(one.objects for one in images)
    if objects == 0:
        return np.full(len(THRESHOLDS), np.nan)
    starts = np.cumsum([0, *(one.objects for one in images)])
    pair_object = np.concatenate(
        [one.pair_object + start for one, start in zip(images, starts[:-1], strict=True)]
    )
    pair_score = np.concatenate([one.pair_score for one in images])
    pair_iou = np.concatenate([one.pair_iou for one in images])
    order = np.lexsort((pair_score, pair_object))  # an object's best prediction comes last
    pair_object, pair_score, pair_iou = pair_object[order], pair_score[order], pair_iou[order]
    scores = np.concatenate([one.scores for one in images])
    best_iou = np.concatenate([one.best_iou for one in images])
    ignored = np.concatenate([one.ignored for one in images])

    found = np.zeros(len(THRESHOLDS))
    for index, threshold in enumerate(THRESHOLDS):
        matched = pair_iou > threshold
        of_pair = pair_object[matched]
        is_best = np.append(of_pair[1:] != of_pair[:-1], True)[: len(of_pair)]
        wrong = scores[(best_iou <= threshold) & (ignored <= threshold)]
        right = np.concatenate([is_best, np.zeros(len(wrong), dtype=bool)])
        found[index] = _area_under_curve(
            np.concatenate([pair_score[matched], wrong]), right, objects
        )
    return found


def _area_under_curve(scores: NDArray[np.float64], right: NDArray[np.bool_], objects: int) -> float:
    """Sum of precision times the steps of recall, each half from either side."""
    order = np.argsort(scores)
    _, first = np.unique(scores[order], return_index=True)  # where each score's examples begin
    total = int(right.sum())
    hits = total - np.append(0, np.cumsum(right[order]))[first]  # at this score and above
    precision = np.append(hits / (len(scores) - first), 1.0)
    recall = np.append(hits / objects, 0.0)
    ends = np.concatenate([recall[:1], recall, [0.0]])
    return float(np.dot(precision, 0.5 * (ends[:-2] - ends[2:])))
