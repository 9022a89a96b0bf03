"""Panoptic quality: the official numbers, its definition, and what is refused."""

from __future__ import annotations

import json
import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastseg.evaluation import PanopticEvaluator, evaluate_panoptic, id2rgb
from fastseg.evaluation.panoptic_files import read_panoptic_png, rgb2id
from fastseg.evaluation.panoptic_matching import Segment, count_image
from fastseg.reference import panoptic_quality as definition

DATA = Path(__file__).parents[1] / "data" / "panoptic"
RATIOS = {"pq": None, "boundary_pq": 0.02}
CATEGORIES = [{"id": 3, "isthing": 1}, {"id": 5, "isthing": 0}, {"id": 9, "isthing": 1}]


def read(name: str):
    return json.loads((DATA / name).read_text())


def assert_same_quality(ours: dict, expected: dict) -> None:
    for part in ("All", "Things", "Stuff"):
        assert ours[part] == pytest.approx(expected[part], rel=1e-12, abs=1e-15, nan_ok=True)
    per_class = {int(label): one for label, one in expected["per_class"].items()}
    assert per_class.keys() <= ours["per_class"].keys()
    for label, mine in ours["per_class"].items():
        theirs = per_class.get(label, {"pq": 0, "sq": 0, "rq": 0})
        mine = {key: mine[key] for key in ("pq", "sq", "rq")}
        assert mine == pytest.approx(theirs, rel=1e-12, abs=1e-15), label


@pytest.mark.parametrize("metric", RATIOS)
def test_official_numbers(metric):
    ratio = RATIOS[metric]
    ours = evaluate_panoptic(
        DATA / "ground_truth.json", None, DATA / "results.json", boundary_ratio=ratio
    )
    assert_same_quality(ours, read("expected.json")[metric])


@pytest.mark.parametrize("metric", RATIOS)
def test_official_numbers_of_the_definition(metric):
    results = {one["image_id"]: one for one in read("results.json")["annotations"]}
    ground_truth = read("ground_truth.json")

    def image(annotation):
        result = results[annotation["image_id"]]
        return (
            rgb2id(read_panoptic_png(DATA / "ground_truth" / annotation["file_name"])),
            annotation["segments_info"],
            rgb2id(read_panoptic_png(DATA / "results" / result["file_name"])),
            result["segments_info"],
        )

    images = map(image, ground_truth["annotations"])
    found = definition.panoptic_quality(images, ground_truth["categories"], RATIOS[metric])
    assert_same_quality(found, read("expected.json")[metric])


@pytest.mark.skipif(
    "FASTSEG_PANOPTIC" not in os.environ, reason="FASTSEG_PANOPTIC names no folder of more data"
)
@pytest.mark.parametrize("metric", RATIOS)
def test_official_numbers_of_100_images(metric):
    folder = Path(os.environ["FASTSEG_PANOPTIC"])
    ours = evaluate_panoptic(
        folder / "panoptic_train2017.json",
        None,
        folder / "pq_reference" / "pred.json",
        boundary_ratio=RATIOS[metric],
    )
    assert_same_quality(
        ours, json.loads((folder / "pq_reference/expected.json").read_text())[metric]
    )


# Label maps of a few segments, with any segment in any category; 0 is void.
label_maps = st.integers(1, 7).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 5), min_size=width, max_size=width), min_size=1, max_size=7
    ).map(np.array)
)


@st.composite
def images(draw):
    gt = draw(label_maps)
    changed = draw(
        st.lists(st.tuples(st.integers(0, gt.size - 1), st.integers(0, 5)), max_size=gt.size // 2)
    )
    prediction = gt.copy()
    for pixel, label in changed:
        prediction.flat[pixel] = label
    categories = st.sampled_from([one["id"] for one in CATEGORIES])
    gt_segments = [
        {
            "id": label,
            "category_id": draw(categories),
            "area": int((gt == label).sum()) or 1,  # a segment without pixels: never found
            "iscrowd": int(draw(st.integers(0, 3)) == 0),
        }
        for label in draw(st.permutations([1, 2, 3, 4]))  # 5 is unlabelled, but not void
    ]
    segments = [
        {"id": label, "category_id": draw(categories)}
        for label in np.unique(prediction).tolist()
        if label != 0 or draw(st.booleans())  # predicted segments may be called 0
    ]
    return gt, gt_segments, prediction, segments


@settings(max_examples=300, deadline=None)
@given(images(), st.sampled_from([None, 0.02, 0.2]))
def test_any_image_against_the_definition(image, ratio):
    gt, gt_segments, prediction, segments = image
    expected = {one["id"]: definition.Counts() for one in CATEGORIES}
    definition.count_image(*image, expected, ratio)

    def listed(segments):
        return {
            one["id"]: Segment(one["category_id"], one.get("area", 0), one.get("iscrowd") == 1)
            for one in segments
        }

    found = count_image(gt, listed(gt_segments), prediction, listed(segments), ratio)
    for category, counts in expected.items():
        ious = [iou for label, iou in found.matches if label == category]
        assert len(ious) == counts.tp
        assert sum(ious) == pytest.approx(counts.iou, rel=1e-14)
        assert found.false_positives.count(category) == counts.fp
        assert found.false_negatives.count(category) == counts.fn


class Scene:
    """A ground truth of small images on disk."""

    def __init__(self, folder: Path, images: dict[int, list[tuple[int, int, list[int]]]]) -> None:
        """`images`: per image (category, iscrowd, pixels) of segments 1, 2, ... in 10 columns."""
        self.folder = folder
        self.dataset = {"categories": deepcopy(CATEGORIES), "annotations": []}
        for image, segments in images.items():
            labels = np.zeros((1, 10), dtype=np.int64)
            infos = []
            for label, (category, crowd, pixels) in enumerate(segments, 1):
                labels[0, pixels] = label
                infos.append(
                    {"id": label, "category_id": category, "iscrowd": crowd, "area": len(pixels)}
                )
            Image.fromarray(id2rgb(labels)).save(folder / f"{image}.png")
            self.dataset["annotations"].append(
                {"image_id": image, "file_name": f"{image}.png", "segments_info": infos}
            )

    def evaluator(self, **options) -> PanopticEvaluator:
        return PanopticEvaluator(self.dataset, self.folder, **options)


def counts_of(result, category):
    return tuple(result["per_class"][category][key] for key in ("tp", "fp", "fn"))


ROW = np.arange(10)


@pytest.mark.parametrize(
    ("segments", "pixels", "expected"),
    [
        ([], range(10), (0, 0, 0)),  # all is void
        ([(3, 0, range(10))], range(10), (1, 0, 0)),
        ([(3, 0, range(10))], range(5), (0, 1, 1)),  # IoU 0.5 is too little
        ([(3, 0, range(5))], range(10), (1, 0, 0)),  # what lies on void does not count
        ([(3, 1, range(10))], range(10), (0, 0, 0)),  # crowd: neither found nor missed
        ([(3, 1, range(5)), (5, 0, range(5, 10))], range(10), (0, 1, 0)),  # half on crowd
        ([(3, 1, range(6)), (5, 0, range(6, 10))], range(10), (0, 0, 0)),
        # The last crowd of a category is the one that counts.
        ([(3, 1, range(6)), (3, 1, [6]), (5, 0, range(7, 10))], range(10), (0, 1, 0)),
        ([(3, 1, [6]), (3, 1, range(6)), (5, 0, range(7, 10))], range(10), (0, 0, 0)),
        ([(9, 1, range(10))], range(10), (0, 1, 0)),  # another category's crowd
    ],
)
def test_void_and_crowd(tmp_path, segments, pixels, expected):
    evaluator = Scene(tmp_path, {7: segments}).evaluator()
    labels = np.isin(ROW, list(pixels))[None].astype(np.uint8)
    evaluator.update(7, labels, [{"id": 1, "category_id": 3}])
    assert counts_of(evaluator.compute(), 3) == expected


def test_forms_of_results(tmp_path):
    scene = Scene(tmp_path, {7: [(3, 0, range(4)), (5, 0, range(4, 10))]})
    labels = np.where(np.arange(10) < 4, 70_000, 2)[None]
    infos = [{"id": 70_000, "category_id": 3}, {"id": np.int64(2), "category_id": np.int64(5)}]
    Image.fromarray(id2rgb(labels)).save(tmp_path / "result.png")
    forms = (
        labels,
        labels.astype(np.uint32),
        torch.from_numpy(labels),
        torch.from_numpy(np.repeat(labels, 2, 1))[:, ::2],
        id2rgb(labels),
        tmp_path / "result.png",
        str(tmp_path / "result.png"),
    )
    for form in forms:
        evaluator = scene.evaluator()
        evaluator.update(7, form, infos)
        assert evaluator.compute()["All"] == {"pq": 1, "sq": 1, "rq": 1, "n": 2}


def test_nothing_found(tmp_path):
    evaluator = Scene(tmp_path, {7: [(3, 0, range(4))], 8: []}).evaluator()
    evaluator.update(7, np.zeros((1, 10), int), [])
    evaluator.update(8, np.zeros((1, 10), int), [])
    result = evaluator.compute()
    assert counts_of(result, 3) == (0, 0, 1)
    assert result["Things"] == {"pq": 0, "sq": 0, "rq": 0, "n": 1}
    assert result["Stuff"]["n"] == 0
    assert np.isnan(result["Stuff"]["pq"])


def test_reset_and_a_choice_of_images(tmp_path):
    scene = Scene(tmp_path, {7: [(3, 0, range(4))], 8: [(3, 0, range(4))]})
    evaluator = scene.evaluator(image_ids=[8])
    assert evaluator.image_ids == [8]
    with pytest.raises(ValueError, match="image 7 is not in the ground truth"):
        evaluator.update(7, np.zeros((1, 10), int), [])
    evaluator.update(8, np.zeros((1, 10), int), [])
    assert counts_of(evaluator.compute(), 3) == (0, 0, 1)
    evaluator.reset()
    with pytest.raises(ValueError, match="1 images have no result, such as 8"):
        evaluator.compute()
    evaluator.update(8, (ROW < 4)[None], [{"id": 1, "category_id": 3}])
    assert counts_of(evaluator.compute(), 3) == (1, 0, 0)


@pytest.mark.parametrize(
    ("labels", "infos", "error", "text"),
    [
        (ROW[None] // 5, [], ValueError, "image 7: segment 1 has pixels but is not in"),
        (ROW[None] // 10, [(4, 3)], ValueError, "image 7: segment 4 is in .* but has no pixel"),
        (ROW[None] // 5, [(1, 4)], ValueError, "image 7: segment 1 has unknown category_id 4"),
        (ROW[None] // 5, [(1, 3), (1, 5)], ValueError, "image 7: segment 1 comes twice"),
        (ROW[:, None], [], ValueError, r"image 7: .* ground truth, \[1, 10\], got .*\[10, 1\]"),
        (ROW, [], ValueError, r"got shape \[10\]"),
        (ROW[None] / 1, [], TypeError, "prediction must be integer, got float64"),
        (ROW[None, None], [], ValueError, r"got shape \[1, 1, 10\]"),
    ],
)
def test_bad_results(tmp_path, labels, infos, error, text):
    evaluator = Scene(tmp_path, {7: [(3, 0, range(4))]}).evaluator()
    infos = [{"id": label, "category_id": category} for label, category in infos]
    with pytest.raises(error, match=text):
        evaluator.update(7, labels, infos)
    evaluator.update(7, np.zeros((1, 10), int), [])  # a result that was refused leaves no trace
    with pytest.raises(ValueError, match="image 7 already has a result"):
        evaluator.update(7, np.zeros((1, 10), int), [])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["categories"][0].pop("isthing"), "category 3 .* has no isthing"),
        (lambda d: d["annotations"].append(d["annotations"][0]), "image 7 comes twice in the g"),
        (lambda d: d["annotations"][0]["segments_info"][0].pop("area"), "image 7 .*segment 1 has"),
        (
            lambda d: d["annotations"][0]["segments_info"][0].update(category_id=4),
            "image 7 of the ground truth: segment 1 has unknown category_id 4",
        ),
        (lambda d: d["annotations"][0]["segments_info"][0].update(id=0), "image 7 .*id 0 is void"),
    ],
)
def test_bad_ground_truth(tmp_path, change, text):
    scene = Scene(tmp_path, {7: [(3, 0, range(4))]})
    change(scene.dataset)
    with pytest.raises(ValueError, match=text):
        scene.evaluator()


def test_wrong_places(tmp_path):
    scene = Scene(tmp_path, {7: [(3, 0, range(4))]})
    with pytest.raises(ValueError, match="the ground truth has no image 8"):
        scene.evaluator(image_ids=[8])
    with pytest.raises(ValueError, match="gt_folder must be given"):
        PanopticEvaluator(scene.dataset)
    scene.dataset["annotations"][0]["segments_info"][0]["area"] = 3
    with pytest.raises(ValueError, match=r"image 7: segment 1 .* area of 3 .* at least 4 pixels"):
        scene.evaluator().update(7, (ROW < 4)[None], [{"id": 1, "category_id": 3}])
    Image.new("L", (10, 1)).save(tmp_path / "7.png")
    with pytest.raises(ValueError, match=r"7\.png must be an RGB image, its mode is L"):
        scene.evaluator().update(7, np.zeros((1, 10), int), [])
    (tmp_path / "7.png").unlink()
    with pytest.raises(FileNotFoundError):
        scene.evaluator().update(7, np.zeros((1, 10), int), [])


@pytest.mark.parametrize(("change", "text"), [("drop", "1 images have no"), ("repeat", "twice")])
def test_results_files_that_do_not_fit(tmp_path, change, text):
    results = read("results.json")
    last = results["annotations"][-1]
    results["annotations"] = results["annotations"][:-1] if change == "drop" else [last, last]
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=text):
        evaluate_panoptic(
            DATA / "ground_truth.json", None, tmp_path / "results.json", DATA / "results"
        )
