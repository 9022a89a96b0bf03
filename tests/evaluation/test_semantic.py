"""mIoU and its relatives against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fastseg.evaluation import SemanticEvaluator

CLASSES = 4


def defined(prediction, truth, ignore_index):
    """The metrics, class by class from masks."""
    kept = np.ones(truth.shape, bool) if ignore_index is None else truth != ignore_index
    iou, accuracy, share = [], [], []
    for label in range(CLASSES):
        here, there = (prediction == label) & kept, (truth == label) & kept
        both, either = (here & there).sum(), (here | there).sum()
        iou.append(both / either if either else np.nan)
        accuracy.append(both / there.sum() if there.sum() else np.nan)
        share.append(there.sum() / kept.sum() if kept.sum() else np.nan)

    def mean(values):
        known = [value for value in values if not np.isnan(value)]
        return np.mean(known) if known else np.nan

    weighted = [i * s for i, s in zip(iou, share, strict=True) if not np.isnan(i)]
    right = (prediction == truth)[kept]
    return {
        "miou": mean(iou),
        "fwiou": np.sum(weighted) if right.size else np.nan,
        "pixel_accuracy": right.mean() if right.size else np.nan,
        "mean_accuracy": mean(accuracy),
        "per_class": {c: {"iou": iou[c], "accuracy": accuracy[c]} for c in range(CLASSES)},
    }


def assert_same(ours, expected):
    per_class = expected.pop("per_class")
    assert {key: ours[key] for key in expected} == pytest.approx(expected, rel=1e-12, nan_ok=True)
    for label, one in per_class.items():
        assert ours["per_class"][label] == pytest.approx(one, rel=1e-12, nan_ok=True), label


shapes = arrays.array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=9)


@settings(max_examples=150, deadline=None)
@given(shapes, st.sampled_from([255, -1, None]), st.integers(1, CLASSES), st.data())
def test_random_maps(shape, ignore_index, used, data):
    labels = st.integers(0, used - 1)
    prediction = data.draw(arrays.arrays(np.int64, shape, elements=labels))
    if ignore_index is not None:
        labels |= st.just(ignore_index)
    truth = data.draw(arrays.arrays(np.int16, shape, elements=labels))
    expected = defined(prediction, truth, ignore_index)

    evaluator = SemanticEvaluator(CLASSES, ignore_index)
    evaluator.update(prediction, truth)
    assert_same(evaluator.compute(), dict(expected))

    on_device = evaluator._count_on_device(torch.tensor(prediction), torch.tensor(truth))
    assert np.array_equal(on_device, evaluator.compute()["confusion_matrix"])


def test_images_add_up(device):
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, CLASSES, (3, 40, 50), generator=generator)
    truths = torch.where(
        torch.rand(3, 40, 50, generator=generator) < 0.1,
        torch.tensor(255),
        torch.randint(0, CLASSES, (3, 40, 50), generator=generator),
    ).to(torch.uint8)
    evaluator = SemanticEvaluator(CLASSES)
    for prediction, truth in zip(predictions.to(device), truths.to(device), strict=True):
        evaluator.update(prediction, truth)
    assert_same(evaluator.compute(), defined(predictions.numpy(), truths.numpy(), 255))
    whole = SemanticEvaluator(CLASSES)
    whole.update(predictions.to(device), truths)  # the ground truth stays on the CPU
    assert str(whole.compute()) == str(evaluator.compute())
    matrix = whole.compute()["confusion_matrix"]
    assert matrix.shape == (CLASSES, CLASSES)
    assert matrix[1, 2] == ((truths == 1) & (predictions == 2)).sum()
    whole.reset()
    assert whole.compute()["confusion_matrix"].sum() == 0


def test_nothing_counted():
    evaluator = SemanticEvaluator(2)
    evaluator.update(np.full((3, 4), 9), np.full((3, 4), 255))  # what is ignored may be anything
    result = evaluator.compute()
    for key in ("miou", "fwiou", "pixel_accuracy", "mean_accuracy"):
        assert np.isnan(result[key])


@pytest.mark.parametrize("count", ["_count", "_count_on_device"])
@pytest.mark.parametrize(
    ("prediction", "truth", "error", "text"),
    [
        ([[0, 5]], [[0, 1]], ValueError, r"prediction must be in \[0, 4\), got 5"),
        ([[0, -1]], [[0, 1]], ValueError, r"prediction must be in \[0, 4\), got -1"),
        ([[0, 1]], [[0, 4]], ValueError, r"ground_truth must be in \[0, 4\) or 255, got 4"),
        ([[0.5, 1]], [[0, 1]], TypeError, "prediction must be integer, got float32"),
        ([[0, 1]], [[0.5, 1]], TypeError, "ground_truth must be integer, got float32"),
    ],
)
def test_bad_labels(count, prediction, truth, error, text):
    pair = [torch.tensor(prediction), torch.tensor(truth)]
    if count == "_count":
        pair = [labels.numpy() for labels in pair]
    with pytest.raises(error, match=text):
        getattr(SemanticEvaluator(CLASSES), count)(*pair)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((4,), (4,)), ((1, 1, 2, 2), (1, 1, 2, 2))])
def test_bad_shapes(shapes):
    with pytest.raises(ValueError, match=r"one shape, \[H, W\] or \[N, H, W\], got"):
        SemanticEvaluator(CLASSES).update(np.zeros(shapes[0], int), np.zeros(shapes[1], int))


@pytest.mark.parametrize(("arguments", "text"), [((0,), "positive, got 0"), ((5, 3), "got 3")])
def test_bad_classes(arguments, text):
    with pytest.raises(ValueError, match=text):
        SemanticEvaluator(*arguments)
