"""`fastseg segment --task`: the files of each task, which the evaluators read again."""

import json
import shutil

import numpy as np
import pytest
import torch
from encoded_truth import LABELS, PANOPTIC, EncodedTruth
from PIL import Image
from pycocotools.coco import COCO

from fastseg.categories import COCO_PANOPTIC
from fastseg.cli import main
from fastseg.evaluation import SemanticEvaluator, rgb2id

TRUTH = json.loads((PANOPTIC / "ground_truth.json").read_text())
PHOTOS = [annotation["file_name"] for annotation in TRUTH["annotations"]][:4]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with images in `photos`, and a model under every name of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("fastseg.load_model", lambda path: EncodedTruth(path), raising=False)
    (tmp_path / "photos").mkdir()
    for name in PHOTOS:
        shutil.copy(PANOPTIC / "ground_truth" / name, tmp_path / "photos" / name)
    return tmp_path


def segment(*words, weights="panoptic"):
    return main(["segment", "photos", "--weights", weights, "--device", "cpu", *words])


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def ids_in(path):
    with Image.open(path) as image:
        return rgb2id(np.asarray(image))


def test_panoptic_results_are_what_the_evaluation_reads(folder, capsys):
    assert segment("--output", "out", "--format", "png,coco,masks") == 0
    out = folder / "out"
    files = [f"{name[:-4]}{ending}" for name in PHOTOS for ending in (".masks.png", ".png")]
    assert names_in(out) == sorted([*files, "images.json", "panoptic", "panoptic.json"])
    assert names_in(out / "panoptic") == sorted(PHOTOS), "named by the id, as in COCO"
    for name in PHOTOS:
        assert np.array_equal(ids_in(out / "panoptic" / name), ids_in(folder / "photos" / name))
    with Image.open(out / PHOTOS[0].replace(".png", ".masks.png")) as image:
        numbers, ids = np.asarray(image), ids_in(folder / "photos" / PHOTOS[0])
    assert numbers.dtype == np.uint16 and np.array_equal(numbers == 0, ids == 0)
    assert len(np.unique(numbers)) == len(np.unique(ids)) == len(np.unique(numbers * 2.0**24 + ids))
    found = json.loads((out / "panoptic.json").read_text())["annotations"]
    truth = {one["image_id"]: one for one in TRUTH["annotations"]}
    for annotation in found:
        expected = {one["id"]: one for one in truth[annotation["image_id"]]["segments_info"]}
        for one in annotation["segments_info"]:
            keys = ("category_id", "area", "bbox")
            assert [one[key] for key in keys] == [expected[one["id"]][key] for key in keys]
    printed = capsys.readouterr().out
    assert "Things" in printed and "Void" in printed and "000000000009.png" in printed
    subset = {**TRUTH, "annotations": [truth[one["image_id"]] for one in found]}
    (folder / "truth.json").write_text(json.dumps(subset))
    words = ["--gt", "truth.json", "--gt-folder", str(PANOPTIC / "ground_truth")]
    words += ["--results", "out/panoptic.json", "--metric", "panoptic", "--json", "pq.json"]
    assert main(["evaluate", *words]) == 0
    quality = json.loads((folder / "pq.json").read_text())
    assert quality["All"]["pq"] == quality["Stuff"]["pq"] == 1


def test_images_json_has_all_categories_of_the_data_set(folder):
    assert segment("--output", "out", "--format", "coco") == 0
    listing = json.loads((folder / "out/images.json").read_text())
    assert [one["file_name"] for one in listing["images"]] == [f"photos/{one}" for one in PHOTOS]
    categories = {one["id"]: (one["name"], one["isthing"]) for one in listing["categories"]}
    assert len(categories) == 133
    assert (categories[1], categories[200]) == (("person", 1), ("rug-merged", 0))
    assert names_in(folder / "out") == ["images.json", "panoptic", "panoptic.json"]


def test_instances_of_a_known_data_set_have_its_category_ids(folder):
    assert segment("--task", "instance", "--output", "out") == 0
    assert {"images.json", "results.json"} <= set(names_in(folder / "out"))
    dataset = COCO(folder / "out/images.json")
    results = dataset.loadRes(str(folder / "out/results.json"))
    found = {one["category_id"] for one in results.anns.values()}
    expected = {
        COCO_PANOPTIC.ids[LABELS[number]]
        for name in PHOTOS
        for number in np.unique(ids_in(folder / "photos" / name)).tolist()
        if LABELS.get(number, 133) < 80
    }
    assert found == expected
    assert (
        dataset.cats[max(found)]["name"] == COCO_PANOPTIC.names[COCO_PANOPTIC.ids.index(max(found))]
    )


def test_semantic_results_are_label_images_with_names(folder, capsys):
    assert segment("--task", "semantic", "--output", "out") == 0
    files = [f"{name[:-4]}{ending}" for name in PHOTOS for ending in (".masks.png", ".png")]
    assert names_in(folder / "out") == sorted([*files, "classes.json"])
    classes = json.loads((folder / "out/classes.json").read_text())
    assert classes["0"] == "person" and classes["132"] == "rug-merged"
    evaluator = SemanticEvaluator(133)
    for name in PHOTOS:
        ids = ids_in(folder / "photos" / name)
        truth = np.vectorize(lambda number: LABELS.get(number, 255))(ids)
        with Image.open(folder / f"out/{name[:-4]}.masks.png") as image:
            assert image.mode == "L"
            evaluator.update(np.asarray(image), truth)
    assert evaluator.compute()["miou"] == 1
    printed = capsys.readouterr().out
    assert "Shares of the image" in printed and "%" in printed


@pytest.mark.parametrize("task", ["instance", "panoptic", "semantic"])
def test_overlays_are_coloured_and_named_after_their_images(task, folder):
    assert segment("--task", task, "--output", "out", "--format", "png") == 0
    assert names_in(folder / "out") == sorted(PHOTOS)
    with Image.open(folder / "out" / PHOTOS[0]) as overlay:
        with Image.open(folder / "photos" / PHOTOS[0]) as photo:
            scale = overlay.width // photo.width
            assert overlay.size == (photo.width * scale, photo.height * scale)
            enlarged = photo.convert("RGB").resize(overlay.size)
        changed = np.abs(np.asarray(overlay).astype(int) - np.asarray(enlarged)).max(axis=2) > 20
    assert changed.mean() > 0.2


def test_score_makes_segments_void(folder):
    assert segment("--output", "out", "--format", "coco", "--score", "0.95") == 0
    found = json.loads((folder / "out/panoptic.json").read_text())["annotations"]
    assert len(found) == len(PHOTOS)
    assert all(one["segments_info"] == [] for one in found)
    assert not ids_in(folder / "out/panoptic" / PHOTOS[0]).any()


@pytest.mark.parametrize(("score", "threshold"), [("0.3", 0.3), ("0.9", 0.8), (None, 0.8)])
def test_a_low_score_lowers_the_threshold_of_the_model(folder, monkeypatch, score, threshold):
    model = EncodedTruth("panoptic")
    model.object_mask_threshold = 0.8
    monkeypatch.setattr("fastseg.load_model", lambda path: model)
    assert segment("--output", "out", *([] if score is None else ["--score", score])) == 0
    assert model.object_mask_threshold == threshold


def test_images_that_fail_are_told_and_the_others_are_written(folder, capsys):
    (folder / "photos/broken.png").write_bytes(b"nothing")
    assert segment("--output", "out", "--format", "coco") == 1
    assert "broken.png" in capsys.readouterr().err
    assert len(json.loads((folder / "out/panoptic.json").read_text())["annotations"]) == len(PHOTOS)
    assert len(names_in(folder / "out/panoptic")) == len(PHOTOS)


def test_nothing_but_broken_images_leaves_valid_empty_files(folder):
    words = ["segment", "missing.png", "--weights", "panoptic", "--device", "cpu"]
    assert main([*words, "--output", "out"]) == 1
    assert json.loads((folder / "out/panoptic.json").read_text()) == {"annotations": []}
    assert json.loads((folder / "out/images.json").read_text())["categories"] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "keypoints"], "invalid choice: 'keypoints'"),
        (["--task", "semantic", "--score", "0.5"], "--score is not for semantic results"),
        (["--task", "semantic", "--format", "coco"], "--format coco is not for semantic results"),
        (["--weights", "semantic", "--format", "coco"], "--format coco is not for semantic"),
        (["--weights", "semantic", "--score", "0.5"], "--score is not for semantic results"),
    ],
)
def test_what_does_not_go_together(words, message, folder, capsys):
    try:
        status = segment("--output", "out", *words)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_model_that_cannot_do_the_task_is_named(folder, capsys, monkeypatch):
    monkeypatch.undo()
    words = ["segment", "--demo", "--task", "panoptic", "--device", "cpu"]
    assert main([*words, "--output", str(folder / "out")]) == 2
    error = capsys.readouterr().err
    assert "MaskRCNN cannot do task 'panoptic'; its tasks: instance" in error
    assert not (folder / "out").exists()


def test_tasks_reach_the_model_in_batches(folder):
    from fastseg.predictor import Predictor

    model = EncodedTruth("semantic")
    predictor = Predictor(model, "cpu", task="panoptic", batch_size=3)
    results = predictor(folder / "photos")
    assert model.asked == ["panoptic", "panoptic"]
    for name, result in zip(PHOTOS, results, strict=True):
        assert torch.equal(result.ids, torch.from_numpy(ids_in(folder / "photos" / name)).int())
