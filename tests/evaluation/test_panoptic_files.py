"""Colours and ids, writing results, and turning segments into instances."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.evaluation import (
    evaluate_panoptic,
    id2rgb,
    panoptic_results,
    panoptic_to_instances,
    rgb2id,
)
from fastseg.evaluation.panoptic_files import read_panoptic_png

DATA = Path(__file__).parents[1] / "data" / "panoptic"


def read(name: str):
    return json.loads((DATA / name).read_text())


def test_colours_and_ids_are_inverse():
    ids = np.random.default_rng(0).integers(0, 1 << 24, (50, 40))
    ids[0, :2] = 0, (1 << 24) - 1
    for dtype in (np.uint32, np.int32, np.int64, np.uint64):
        colours = id2rgb(ids.astype(dtype))
        assert colours.dtype == np.uint8
        assert np.array_equal(rgb2id(colours), ids)
    assert id2rgb(70_000) == [112, 17, 1]
    assert rgb2id([112, 17, 1]) == 70_000
    assert rgb2id(id2rgb(ids[:0])).shape == (0, 40)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: id2rgb(np.array([1 << 24])), ValueError, r"in \[0, 16777215\], got 16777216"),
        (lambda: id2rgb(np.array([-1, 5])), ValueError, "got -1 to 5"),
        (lambda: id2rgb(np.array([1.0])), TypeError, "integer, got float64"),
        (lambda: rgb2id(np.zeros((4, 4), np.uint8)), ValueError, r"\[..., 3\], got \[4, 4\]"),
        (lambda: rgb2id([0, 0, 256]), ValueError, r"in \[0, 255\], got 0 to 256"),
    ],
)
def test_bad_colours(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_written_results_are_read_back(tmp_path):
    ground_truth = read("ground_truth.json")
    with panoptic_results(tmp_path / "found.json") as writer:
        for annotation in ground_truth["annotations"]:
            ids = rgb2id(read_panoptic_png(DATA / "ground_truth" / annotation["file_name"]))
            segments = [
                {"id": np.int64(one["id"]), "category_id": one["category_id"]}
                for one in annotation["segments_info"]
            ]
            writer.add(annotation["image_id"], torch.from_numpy(ids.astype(np.int64)), segments)
        assert not (tmp_path / "found.json").exists()
    result = evaluate_panoptic(DATA / "ground_truth.json", None, tmp_path / "found.json")
    assert result["All"]["pq"] == 1
    names = sorted(path.name for path in (tmp_path / "found").iterdir())
    assert names == sorted(one["file_name"] for one in ground_truth["annotations"])


def test_a_failed_block_leaves_no_json(tmp_path):
    with pytest.raises(RuntimeError), panoptic_results(tmp_path / "found.json"):
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["found"]
    with (
        pytest.raises(ValueError, match=r"ending such as \.json"),
        panoptic_results(tmp_path / "a"),
    ):
        pass


@pytest.mark.parametrize(
    ("labels", "listed", "text"),
    [
        ([[0, 1, 2]], [1], r"image 7: .* only one has \[2\]"),
        ([[0, 1, 1]], [1, 2], r"only one has \[2\]"),
        ([[0, 1 << 24, 0]], [1 << 24], "got 0 to 16777216"),
    ],
)
def test_results_that_cannot_be_written(tmp_path, labels, listed, text):
    segments = [{"id": label, "category_id": 1} for label in listed]
    with panoptic_results(tmp_path / "found.json") as writer:
        with pytest.raises(ValueError, match=text):
            writer.add(7, np.array(labels), segments)
        writer.add(7, np.array([[5]]), [{"id": 5, "category_id": 1}], "seven.png")
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["seven.png"]


@pytest.mark.parametrize("things_only", [False, True])
def test_instances_of_the_official_converter(things_only):
    examples, expected = read("examples.json"), read("examples_instances.json")
    found = panoptic_to_instances(examples, DATA / "examples", things_only=things_only)
    things = {one["id"] for one in examples["categories"] if one["isthing"]}
    kept = [
        one for one in expected["annotations"] if not things_only or one["category_id"] in things
    ]
    assert len(kept) == len(found["annotations"]) > 10
    for index, (mine, theirs) in enumerate(zip(found["annotations"], kept, strict=True), 1):
        assert mine == {**theirs, "id": index}
    assert found["categories"] == [
        one for one in expected["categories"] if not things_only or one["id"] in things
    ]
    assert "isthing" in examples["categories"][0]  # the input is as it was


def test_instances_of_unknown_categories(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "7.png")
    segments = [{"id": 3, "category_id": 8}]
    annotations = [{"image_id": 7, "file_name": "7.jpg", "segments_info": segments}]
    with pytest.raises(ValueError, match="image 7: segment 3 has unknown category_id 8"):
        panoptic_to_instances({"categories": [], "annotations": annotations}, tmp_path)
