"""Evaluation of folders: which files belong together, and the numbers of the evaluators."""

import json

import numpy as np
import pytest
from PIL import Image

from fastseg import mask
from fastseg.categories import CITYSCAPES
from fastseg.evaluation import (
    CityscapesInstanceEvaluator,
    SemanticEvaluator,
    evaluate_cityscapes,
    evaluate_semantic,
)

RANDOM = np.random.default_rng(0)


def write(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return values


def maps(count, classes=5, dtype=np.uint8):
    return [RANDOM.integers(0, classes, (12, 17)).astype(dtype) for _ in range(count)]


def expected(truths, predictions, classes=5):
    evaluator = SemanticEvaluator(classes)
    for truth, prediction in zip(truths, predictions, strict=True):
        evaluator.update(prediction, truth)
    return evaluator.compute()


def same(found, numbers):
    assert np.array_equal(found["confusion_matrix"], numbers["confusion_matrix"])
    assert found["miou"] == numbers["miou"]


def test_files_of_one_name_belong_together(tmp_path):
    truths, predictions = maps(3), maps(3)
    truths[0][2:5] = 255
    for n, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        write(tmp_path / f"truth/part{n % 2}/{n}.png", truth)
        write(tmp_path / f"found/{n}.png", prediction)
    same(
        evaluate_semantic(tmp_path / "truth", tmp_path / "found", 5), expected(truths, predictions)
    )


def test_label_images_are_taken_before_overlays(tmp_path):
    (truth,), (prediction,) = maps(1), maps(1)
    write(tmp_path / "truth/a.png", truth)
    write(tmp_path / "found/a.masks.png", prediction)
    write(tmp_path / "found/a.png", np.zeros((12, 17, 3), np.uint8))
    same(
        evaluate_semantic(tmp_path / "truth", tmp_path / "found", 5),
        expected([truth], [prediction]),
    )


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds", "both"])
def test_cityscapes_names_and_ids(kind, tmp_path):
    truths, predictions = maps(2, 19), maps(2, 19)
    ids = np.array(CITYSCAPES.ids, np.uint8)
    for n, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        truth[0] = 255
        place = tmp_path / f"truth/ulm/ulm_{n}_gtFine"
        if kind != "labelIds":
            write(place.with_name(f"{place.name}_labelTrainIds.png"), truth)
        if kind != "labelTrainIds":
            full = np.where(truth == 255, 3, ids[np.minimum(truth, 18)])  # 3: out of roi
            write(place.with_name(f"{place.name}_labelIds.png"), full.astype(np.uint8))
        write(place.with_name(f"{place.name}_color.png"), np.zeros((12, 17, 3), np.uint8))
        write(tmp_path / f"found/ulm_{n}_leftImg8bit.masks.png", prediction)
    found = evaluate_semantic(tmp_path / "truth", tmp_path / "found", 19)
    same(found, expected(truths, predictions, 19))


def test_classes_from_1(tmp_path):
    (truth,), (prediction,) = maps(1), maps(1)
    truth[3] = 255
    write(tmp_path / "truth/a.png", np.where(truth == 255, 0, truth + 1).astype(np.uint8))
    write(tmp_path / "found/a.png", prediction)
    folders = tmp_path / "truth", tmp_path / "found"
    same(evaluate_semantic(*folders, 5, zero_is_void=True), expected([truth], [prediction]))
    with pytest.raises(ValueError, match="zero_is_void needs an ignore_index"):
        evaluate_semantic(*folders, 5, ignore_index=None, zero_is_void=True)
    with pytest.raises(ValueError, match=r"a\.png: ground_truth must be in"):
        evaluate_semantic(*folders, 3, ignore_index=None)


def test_palettes_and_16_bits(tmp_path):
    truths, predictions = maps(2, 300, np.uint16), maps(2, 300, np.uint16)
    for n in (0, 1):
        write(tmp_path / f"truth/{n}.png", truths[n])
        write(tmp_path / f"found/{n}.png", predictions[n])
    found = evaluate_semantic(tmp_path / "truth", tmp_path / "found", 300, ignore_index=None)
    assert found["confusion_matrix"].sum() == 2 * 12 * 17
    image = Image.fromarray((truths[0] % 5).astype(np.uint8))
    image.putpalette(list(range(255, 0, -1)))
    image.save(tmp_path / "truth/0.png")
    write(tmp_path / "found/0.png", (truths[0] % 5).astype(np.uint8))
    found = evaluate_semantic(tmp_path / "truth", tmp_path / "found", 300, ignore_index=None)
    assert np.trace(found["confusion_matrix"]) >= 12 * 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: (place / "found/a.png").unlink(), r"a\.png has no result"),
        (lambda place: write(place / "found/x/a.png", maps(1)[0]), r"both .* belong to .*a\.png"),
        (
            lambda place: write(place / "found/a.png", np.zeros((12, 17, 3), np.uint8)),
            r"a\.png must be grey or have a palette, its mode is RGB",
        ),
        (lambda place: write(place / "found/a.png", maps(1)[0][1:]), r"found/a\.png: .*one shape"),
        (lambda place: (place / "truth/a.png").unlink(), r"truth has no files \*\.png"),
    ],
)
def test_what_does_not_fit_is_named(change, message, tmp_path):
    for folder, name in (("truth", "a"), ("found", "a"), ("found", "b")):
        write(tmp_path / f"{folder}/{name}.png", maps(1)[0])
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        evaluate_semantic(tmp_path / "truth", tmp_path / "found", 5)


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"missing is no folder"):
        evaluate_semantic(tmp_path / "missing", tmp_path, 5)


@pytest.fixture
def city(tmp_path):
    """Two images with cars and people, and results for both."""
    entries, arguments = [], []
    for image in (1, 2):
        ids = np.full((60, 80), 7, np.uint16)
        ids[5:30, 5:40], ids[35:58, 50:75] = 26000 + image, 24001
        write(tmp_path / f"truth/ulm/ulm_{image}_gtFine_instanceIds.png", ids)
        masks = np.stack([ids == 26000 + image, np.roll(ids == 24001, 4, axis=1)])
        rles = mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
        labels, scores = [26, 24], [0.9, 0.8 - 0.1 * image]
        arguments.append((image, ids, rles, np.array(labels), np.array(scores)))
        for rle, label, score in zip(rles, labels, scores, strict=True):
            text = {**rle, "counts": rle["counts"].decode()}
            entries.append({"image_id": image, "category_id": label, "score": score})
            entries[-1]["segmentation"] = text
    names = [{"id": n, "file_name": f"val/ulm/ulm_{n}_leftImg8bit.png"} for n in (1, 2)]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    (tmp_path / "images.json").write_text(json.dumps({"images": names}))
    return tmp_path, arguments


def test_cityscapes_instances(city):
    place, arguments = city
    evaluator = CityscapesInstanceEvaluator()
    for one in arguments:
        evaluator.update(*one)
    numbers = evaluator.compute()
    found = evaluate_cityscapes(place / "truth", place / "results.json")
    assert found["AP"] == numbers["AP"] and 0 < found["AP"] < 1
    assert found["per_class"]["car"] == numbers["per_class"]["car"] == {"AP": 1, "AP50": 1}


def test_cityscapes_results_of_no_image(city):
    place, _ = city
    listing = {"images": [{"id": 1, "file_name": "ulm_1_leftImg8bit.png"}]}
    (place / "images.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=r"images\.json has no image 2"):
        evaluate_cityscapes(place / "truth", place / "results.json")
    (place / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"ulm_2_gtFine_instanceIds\.png has no result"):
        evaluate_cityscapes(place / "truth", place / "results.json")
