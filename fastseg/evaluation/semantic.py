"""Semantic segmentation: mIoU and its relatives, from a confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg import _C
from fastseg.evaluation.evaluator import Evaluator, gathered
from fastseg.evaluation.panoptic_files import on_host

Matrix = NDArray[np.int64]


class SemanticEvaluator(Evaluator):
    """Counts pixels by class, and turns the counts into IoU and accuracy.

    Implementations differ in which classes a mean takes. Here mIoU is over the classes that occur
    in the ground truth or the prediction (as in mmsegmentation), mean accuracy over those of the
    ground truth. Pixels whose ground truth is `ignore_index` do not count, whatever is predicted.

    Sums are over pixels, so an image that a sampler gives to two processes counts twice.

    Example::

        evaluator = SemanticEvaluator(num_classes=19)
        for prediction, ground_truth in results:
            evaluator.update(prediction, ground_truth)
        print(evaluator.compute()["miou"])
    """

    def __init__(self, num_classes: int, ignore_index: int | None = 255) -> None:
        """
        Args:
            num_classes: classes are 0 to num_classes - 1.
            ignore_index: the label of unlabelled pixels; None where there are none.

        Raises:
            ValueError: num_classes is not positive, or ignore_index is a class.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {num_classes}")
        if ignore_index is not None and 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ignore_index must not be one of the {num_classes} classes, got {ignore_index}"
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.reset()

    def reset(self) -> None:
        """Forgets all results."""
        self._matrix = np.zeros((self.num_classes, self.num_classes), dtype=np.int64)

    def update(self, prediction: Any, ground_truth: Any) -> None:
        """Adds the result of one image or of a batch.

        Args:
            prediction: [H, W] or [N, H, W] classes, of any integer type, as an array or tensor.
            ground_truth: classes or ignore_index, of the same shape. Where both are tensors on one
                GPU, they are counted there.

        Raises:
            TypeError: the labels are floating point (of scores take the argmax first).
            ValueError: the shapes differ, or a label is no class.
        """
        shapes = [tuple(labels.shape) for labels in (prediction, ground_truth)]
        if shapes[0] != shapes[1] or len(shapes[0]) not in (2, 3):
            raise ValueError(
                "prediction and ground_truth must have one shape, [H, W] or [N, H, W], got "
                f"{list(shapes[0])} and {list(shapes[1])}"
            )
        devices = [getattr(labels, "device", "cpu") for labels in (prediction, ground_truth)]
        if devices[0] == devices[1] and getattr(devices[0], "type", "cpu") != "cpu":
            self._matrix += self._count_on_device(prediction, ground_truth)
        else:
            self._matrix += self._count(on_host(prediction), on_host(ground_truth))

    def compute(self) -> dict[str, Any]:
        """The metrics of all results.

        Returns:
            In [0, 1]: "miou", the mean IoU; "fwiou", the IoU weighted by how often a class occurs
            in the ground truth; "pixel_accuracy", the pixels that are right; "mean_accuracy", the
            mean share of a class that is right. "per_class": by class {"iou", "accuracy"}. NaN for
            means over no class, and for classes that do not occur. "confusion_matrix": [C, C] int64
            pixels by class of the ground truth (rows) and of the prediction.
        """
        matrix = np.sum(gathered(self._matrix), axis=0)
        right = np.diagonal(matrix).astype(np.float64)
        true, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        iou = _ratio(right, true + predicted - right)
        accuracy = _ratio(right, true)
        total = true.sum()
        return {
            "miou": _mean(iou),
            "fwiou": float(_ratio((true * np.nan_to_num(iou)).sum(), total)),
            "pixel_accuracy": float(_ratio(right.sum(), total)),
            "mean_accuracy": _mean(accuracy),
            "per_class": {
                label: {"iou": float(iou[label]), "accuracy": float(accuracy[label])}
                for label in range(self.num_classes)
            },
            "confusion_matrix": matrix,
        }

    def _count(self, prediction: NDArray[Any], ground_truth: NDArray[Any]) -> Matrix:
        width = ground_truth.shape[-1]
        rows = ground_truth.size // max(width, 1)  # those of all images in one map
        true, predicted, pixels = _C.label_pairs(
            ground_truth.reshape(rows, width), prediction.reshape(rows, width)
        )
        if self.ignore_index is not None:
            kept = true != self.ignore_index
            true, predicted, pixels = true[kept], predicted[kept], pixels[kept]
        if len(pixels):
            self._check("ground_truth", true.min(), true.max())
            self._check("prediction", predicted.min(), predicted.max())
        matrix = np.zeros_like(self._matrix)
        matrix[true, predicted] = pixels
        return matrix

    def _count_on_device(self, prediction: Any, ground_truth: Any) -> Matrix:
        """As `_count`, of tensors of torch that stay where they are."""
        for name, labels in (("ground_truth", ground_truth), ("prediction", prediction)):
            if labels.is_floating_point():
                raise TypeError(f"{name} must be integer, got {str(labels.dtype)[6:]}")
        true, predicted = ground_truth.flatten().long(), prediction.flatten().long()
        if self.ignore_index is not None:
            kept = true != self.ignore_index
            true, predicted = true[kept], predicted[kept]
        if len(true):
            self._check("ground_truth", *(int(end) for end in true.aminmax()))
            self._check("prediction", *(int(end) for end in predicted.aminmax()))
        pairs = (true * self.num_classes + predicted).bincount(minlength=self._matrix.size)
        counts: Matrix = pairs.cpu().numpy().reshape(self._matrix.shape)
        return counts

    def _check(self, name: str, low: int, high: int) -> None:
        if low < 0 or high >= self.num_classes:
            ignored = "" if self.ignore_index is None else f" or {self.ignore_index}"
            allowed = f"in [0, {self.num_classes}){ignored if name == 'ground_truth' else ''}"
            raise ValueError(f"{name} must be {allowed}, got {low if low < 0 else high}")


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """part / whole, NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: NDArray[np.float64] = np.where(whole == 0, np.nan, np.true_divide(part, whole))
    return ratio


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
