"""Cityscapes' instance AP against cityscapesscripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.evaluation import CityscapesInstanceEvaluator
from fastseg.ops import pack_masks, rle_encode

NAMES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]


def scene(seed: int, size: tuple[int, int] = (120, 200)):
    """Ground truth with objects, groups and void, and predictions near them and elsewhere."""
    random = np.random.default_rng(seed)
    ids = np.full(size, 7)
    boxes = []
    for number in range(random.integers(0, 14)):
        label = int(random.choice([24, 26, 26, 33, 28]))
        kind = random.random()
        value = label if kind < 0.15 else label * 1000 + number
        if kind > 0.85:
            value, label = int(random.choice([0, 3, 29, 29_003, 15])), 26
        y, x = random.integers(0, size[0] - 8), random.integers(0, size[1] - 8)
        side = random.integers(6, 60, 2)
        ids[y : y + side[0], x : x + side[1]] = value
        boxes.append((label, y, x, *side))
    masks, labels, scores = [], [], []
    for label, y, x, height, width in boxes * 2:
        if random.random() < 0.2:
            continue
        shift = random.integers(-4, 5, 4) * (random.random() < 0.7)
        mask = np.zeros(size, dtype=bool)
        rows = slice(max(y + shift[0], 0), y + height + shift[1])
        columns = slice(max(x + shift[2], 0), x + width + shift[3])
        mask[rows, columns] = random.random() > 0.05  # a few are empty
        masks.append(mask)
        labels.append(label if random.random() < 0.9 else int(random.choice([24, 26, 29, 7])))
        scores.append(float(random.choice([0.25, 0.5, 0.75, random.random()])))  # with ties
    return ids, np.array(masks, dtype=bool).reshape(-1, *size), labels, scores


def by_peer(scenes, folder: Path, monkeypatch):
    peer = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # the peer's, gone from NumPy
    args = peer.args
    monkeypatch.setattr(args, "quiet", True)
    monkeypatch.setattr(args, "gtInstancesFile", str(folder / "gtInstances.json"))
    monkeypatch.setattr(args, "predictionPath", str(folder))
    peer.setInstanceLabels(args)
    truths, predictions = [], []
    for number, (ids, masks, labels, scores) in enumerate(scenes):
        truths.append(str(folder / f"{number}_instanceIds.png"))
        Image.fromarray(ids.astype(np.uint16)).save(truths[-1])
        lines = []
        for index, mask in enumerate(masks):
            name = f"{number}_{index}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / name)
            lines.append(f"{name} {labels[index]} {scores[index]!r}\n")
        predictions.append(str(folder / f"{number}.txt"))
        Path(predictions[-1]).write_text("".join(lines))
    matches = peer.matchGtWithPreds(predictions, truths, peer.getGtInstances(truths, args), args)
    return peer.computeAverages(peer.evaluateMatches(matches, args), args)


def ours(scenes, form=lambda masks: masks):
    evaluator = CityscapesInstanceEvaluator()
    for number, (ids, masks, labels, scores) in enumerate(scenes):
        evaluator.update(number, ids, form(masks), labels, scores)
    return evaluator.compute()


@pytest.mark.parametrize("seed", range(6))
def test_peer(seed, tmp_path, monkeypatch):
    scenes = [scene(100 * seed + number) for number in range(8)]
    found, expected = ours(scenes), by_peer(scenes, tmp_path, monkeypatch)
    assert 0 < found["AP"] < 1
    assert found["AP"] == pytest.approx(expected["allAp"], rel=1e-14)
    assert found["AP50"] == pytest.approx(expected["allAp50%"], rel=1e-14)
    assert list(found["per_class"]) == list(expected["classes"]) == NAMES
    for name, mine in found["per_class"].items():
        theirs = expected["classes"][name]
        assert mine["AP"] == pytest.approx(theirs["ap"], rel=1e-14, nan_ok=True), name
        assert mine["AP50"] == pytest.approx(theirs["ap50%"], rel=1e-14, nan_ok=True), name


@pytest.mark.parametrize(
    "form",
    [
        lambda masks: masks.astype(np.uint8) * 255,
        torch.from_numpy,
        lambda masks: torch.from_numpy(masks).permute(1, 2, 0).contiguous().permute(2, 0, 1),
        lambda masks: pack_masks(torch.from_numpy(masks)),
        rle_encode,
    ],
    ids=["uint8", "tensor", "strided", "packed", "rles"],
)
def test_forms_of_masks(form):
    scenes = [scene(number) for number in range(4)]
    assert str(ours(scenes, form)) == str(ours(scenes))


def test_forms_of_ground_truth(tmp_path):
    ids, masks, labels, scores = scene(3)
    expected = ours([(ids, masks, labels, scores)])
    Image.fromarray(ids.astype(np.uint16)).save(tmp_path / "ids.png")
    for form in (tmp_path / "ids.png", ids.astype(np.uint16), torch.from_numpy(ids)):
        evaluator = CityscapesInstanceEvaluator()
        evaluator.update("a", form, masks, torch.tensor(labels), torch.tensor(scores).double())
        assert str(evaluator.compute()) == str(expected)


def square(start: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((60, 120), dtype=bool)
    mask[10 : 10 + side, start : start + side] = True
    return mask


@pytest.mark.parametrize(
    ("ids", "predictions", "expected"),
    [
        ({26_000: square(0)}, [(square(0), 0.5)], 1),
        ({26_000: square(0)}, [], 0),
        ({}, [(square(0), 0.5)], np.nan),
        ({26: square(0)}, [(square(0), 0.5)], np.nan),  # a group is no object
        ({26_000: square(0, 9)}, [(square(0, 9), 0.5)], np.nan),  # 81 pixels
        ({26_000: square(0), 26: square(40)}, [(square(40), 0.9)], 0),  # on a group, and a miss
        ({26_000: square(0)}, [(square(0), 0.5), (square(0), 0.9)], 1),  # a copy that is less sure
        ({26_000: square(0)}, [(square(0), 0.5), (square(60), 0.4)], 1),
        # Precision is 1/2 where recall is 1 and 0 where it is 0; each has half of the step.
        ({26_000: square(0)}, [(square(0), 0.4), (square(60), 0.5)], 0.25),
        ({26_000: square(0), 3: square(60)}, [(square(0), 0.4), (square(60), 0.5)], 1),  # on void
    ],
)
def test_cases(ids, predictions, expected):
    truth = np.full((60, 120), 7)
    for label, mask in ids.items():
        truth[mask] = label
    masks = np.array([mask for mask, _ in predictions], dtype=bool).reshape(-1, 60, 120)
    scores = [score for _, score in predictions]
    result = ours([(truth, masks, [26] * len(masks), scores)])
    assert result["AP50"] == pytest.approx(expected, nan_ok=True)
    assert result["per_class"]["car"]["AP50"] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(result["per_class"]["person"]["AP"])


def test_own_classes_and_reset():
    evaluator = CityscapesInstanceEvaluator({1: "cell"}, void_labels=[9])
    assert np.isnan(evaluator.compute()["AP"])
    truth = np.where(square(0), 1000, 9)
    evaluator.update(0, truth, square(0)[None], [1], [0.5])
    assert evaluator.compute() == {"AP": 1, "AP50": 1, "per_class": {"cell": {"AP": 1, "AP50": 1}}}
    evaluator.reset()
    evaluator.update(0, truth, square(60)[None], [1], [0.5])  # all on void
    assert evaluator.compute()["AP"] == 0


TRUTH = np.full((60, 120), 7)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((TRUTH[0], square(0)[None], [26], [1.0]), ValueError, r"image 7: .* \[H, W\], got \[120"),
        ((TRUTH.T, square(0)[None], [26], [1.0]), ValueError, r"\[120, 60\], got \[60, 120\]"),
        ((TRUTH / 1, square(0)[None], [26], [1.0]), TypeError, "must be integer, got float64"),
        ((TRUTH, square(0)[None] / 1, [26], [1.0]), TypeError, "threshold is required"),
        ((TRUTH, square(0)[None], [26, 26], [1.0]), ValueError, r"labels .* \[1\], .* got \[2\]"),
        ((TRUTH, square(0)[None], [26], 1.0), ValueError, r"scores .* \[1\], .* got \[\]"),
        ((TRUTH, square(0)[None], [26], [np.nan]), ValueError, r"image 7: scores\[0\] is NaN"),
    ],
)
def test_bad_input(arguments, error, text):
    evaluator = CityscapesInstanceEvaluator()
    with pytest.raises(error, match=text):
        evaluator.update(7, *arguments)
    evaluator.update(7, TRUTH, square(0)[None], [26], [0.5])
    with pytest.raises(ValueError, match="image 7 already has a result"):
        evaluator.update(7, TRUTH, square(0)[None], [26], [0.5])


@pytest.mark.parametrize("label", [0, -1, 1000])
def test_bad_classes(label):
    with pytest.raises(ValueError, match=rf"in \(0, 1000\), got {label}"):
        CityscapesInstanceEvaluator({label: "x"})
