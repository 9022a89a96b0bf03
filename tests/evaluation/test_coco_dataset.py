"""COCO's files: what is read from them, in one part or several, and pycocotools' methods."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import fields

import numpy as np
import pytest
from peers import random_dataset, stored, without_boxes

from fastseg import _C, mask
from fastseg.evaluation import COCO
from fastseg.evaluation.columns import Columns, positions


@pytest.fixture(scope="module")
def truth():
    return stored("fake100")


@pytest.fixture(scope="module")
def peer(truth):
    coco = pytest.importorskip("pycocotools.coco")
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = coco.COCO()
        dataset.dataset = truth
        dataset.createIndex()
    return dataset


@pytest.fixture(params=["dict", "file"])
def dataset(request, truth, tmp_path):
    if request.param == "dict":
        return COCO(truth)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    return COCO(tmp_path / "truth.json")


def test_ids_as_pycocotools(dataset, peer):
    images, categories = sorted(peer.imgs), sorted(peer.cats)
    for arguments in (
        {},
        {"imgIds": images[3]},
        {"imgIds": images[::-7]},
        {"catIds": categories[0]},
        {"imgIds": images[:50], "catIds": categories[:3], "iscrowd": False},
        {"catIds": categories[::2], "areaRng": [100, 2000]},
        {"iscrowd": True},
        {"imgIds": [images[5], -1]},
        {"imgIds": [-1]},
    ):
        assert dataset.getAnnIds(**arguments) == peer.getAnnIds(**arguments), arguments
    for arguments in ({}, {"imgIds": images[:9]}, {"catIds": categories[:2]}, {"catIds": 1}):
        assert sorted(dataset.getImgIds(**arguments)) == sorted(peer.getImgIds(**arguments))
    for arguments in ({}, {"catNms": "dog"}, {"catNms": ["cat", "dog"]}, {"catIds": [1, 2, 999]}):
        assert dataset.getCatIds(**arguments) == peer.getCatIds(**arguments)
    assert dataset.getCatIds(supNms=["animal"]) == peer.getCatIds(supNms=["animal"])


def test_entries_as_pycocotools(dataset, peer):
    ids = peer.getAnnIds()[:4]
    assert dataset.loadAnns(ids) == peer.loadAnns(ids)
    assert dataset.loadAnns(ids[0]) == peer.loadAnns(ids[0])
    assert dataset.loadImgs(sorted(peer.imgs)[:2]) == peer.loadImgs(sorted(peer.imgs)[:2])
    assert dataset.loadCats([1, 2]) == peer.loadCats([1, 2])
    assert (dataset.anns, dataset.imgs, dataset.cats) == (peer.anns, peer.imgs, peer.cats)
    assert (dataset.imgToAnns, dataset.catToImgs) == (peer.imgToAnns, peer.catToImgs)
    assert dataset.dataset == peer.dataset


def test_masks_as_pycocotools(dataset, peer):
    crowd = peer.getAnnIds(iscrowd=True)[:2]
    for one in peer.loadAnns(peer.getAnnIds()[:30] + crowd):
        assert dataset.annToRLE(one) == peer.annToRLE(one)
        np.testing.assert_array_equal(dataset.annToMask(one), peer.annToMask(one))


@pytest.mark.parametrize("kind", ["fake100_segm", "fake100_bbox"])
def test_results_as_pycocotools(dataset, peer, kind, tmp_path):
    results = stored(kind)
    (tmp_path / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        expected = peer.loadRes(str(tmp_path / "results.json"))
    for given in (results, tmp_path / "results.json"):
        loaded = dataset.loadRes(given)
        assert loaded.getAnnIds() == expected.getAnnIds()
        for ours, theirs in zip(
            loaded.loadAnns(range(1, 9)), expected.loadAnns(range(1, 9)), strict=True
        ):
            assert ours.keys() == theirs.keys()
            assert ours["area"] == theirs["area"]
            np.testing.assert_array_equal(ours["bbox"], theirs["bbox"])
            assert ours["segmentation"] == theirs["segmentation"]
    assert "area" not in results[0], "the caller's results are not changed"
    with pytest.raises(ValueError, match="of images that the dataset lacks: \\[5\\]"):
        dataset.loadRes([{**results[0], "image_id": 5}])


def test_empty_dataset():
    assert COCO().getAnnIds() == [] and COCO().getImgIds() == [] and COCO().imgs == {}


# ---- reading -------------------------------------------------------------------------------------


def assert_same_columns(ours: Columns, expected: Columns) -> None:
    for one in fields(Columns):
        np.testing.assert_array_equal(
            getattr(ours, one.name), getattr(expected, one.name), err_msg=one.name
        )


@pytest.mark.parametrize("indent", [None, 1])
def test_files_are_read_as_dicts_are(tmp_path, indent):
    for entries in (
        stored("fake100")["annotations"],
        stored("fake100_segm"),
        [],
        random_dataset(4)[1],
    ):
        path = tmp_path / "entries.json"
        path.write_text(json.dumps(entries, indent=indent))
        expected = Columns.from_dicts(entries, "entries")
        assert_same_columns(Columns.from_file(path, "entries"), expected)
        text = path.read_bytes()
        assert_same_columns(Columns.from_json(text, (0, len(text)), "entries"), expected)


def long_list() -> list:
    """More than two threads' worth, with what looks like the beginning of an entry inside."""
    rle = {"size": [4, 5], "counts": mask.encode(np.eye(4, 5, dtype=np.uint8))["counts"].decode()}
    return [
        {
            "image_id": n,
            "category_id": n % 7,
            "score": n / 1e5,
            "bbox": [n + 0.25, 2, 3e-5, 1e5],
            "segmentation": rle,
            "note": 'a string of {}, {"image_id": 1}, {"image_id": 2}' * (n % 3),
            "extra": [{"image_id": 1, "category_id": 2}, {"image_id": 3, "category_id": 4}]
            * (n % 2),
        }
        for n in range(15000)
    ]


def test_long_files_are_read_in_parts(tmp_path):
    entries = long_list()
    path = tmp_path / "entries.json"
    path.write_text(json.dumps(entries))
    assert path.stat().st_size > 2 << 20
    assert_same_columns(Columns.from_file(path, "entries"), Columns.from_dicts(entries, "entries"))
    plain = [{key: one[key] for key in one if key not in ("note", "extra")} for one in entries]
    path.write_text(json.dumps(plain * 2))
    expected = Columns.from_dicts(plain * 2, "entries")
    assert_same_columns(Columns.from_file(path, "entries"), expected)
    without_masks = Columns.from_file(path, "entries", with_masks=False)
    assert len(without_masks.text) == 0
    np.testing.assert_array_equal(without_masks.boxes, expected.boxes)
    plain[-1].pop("image_id")
    path.write_text(json.dumps(plain * 2))
    with pytest.raises(
        ValueError, match=r"entries\[14999\]: image_id and category_id must be there"
    ):
        Columns.from_file(path, "entries")


def test_parts_one_after_the_other():
    truth, results = random_dataset(1, polygons=True)
    annotations = truth["annotations"]
    parts = [annotations[:3], [], results, annotations[3:]]
    joined = Columns.concatenate([Columns.from_dicts(part, "entries") for part in parts])
    expected = Columns.from_dicts([one for part in parts for one in part], "entries")
    assert_same_columns(joined, expected)


def test_oddities_of_json():
    text = b""" [ { "image_id" : 3.0, "category_id":-2, "sc\\u006fre": 1, "score": 1e-400,
        "caption": "\\"}, {\\\\", "nested": {"a": [1, [true, false, null, {}], []]}, "area": NaN,
        "bbox": [-Infinity, Infinity, -0, 1.5e3], "iscrowd": true, "ignore": 0,
        "segmentation": {"counts": "a\\\\b\\u0041\\/", "size": [1, 2], "more": "x"} } ] """
    found = Columns.from_json(text, (0, len(text)), "entries")
    assert (found.image_ids[0], found.category_ids[0], found.scores[0]) == (3, -2, 0)
    assert np.isnan(found.areas[0]) and found.crowds[0] == 1 and found.ignores[0] == 0
    assert found.boxes[0].tolist() == [-np.inf, np.inf, 0, 1500]
    assert bytes(found.text) == b"a\\bA/"
    assert found.sizes.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected an array at byte 0, got the end"),
        (b"{}", "expected an array at byte 0, got '{'"),
        (b"[1]", r"entries\[0\]: JSON: expected an object at byte 1, got '1'"),
        (b'[{"image_id": 1 "category_id": 2}]', "expected ',' or '}' at byte 16"),
        (b'[{"image_id": "x"}]', "expected a number at byte 14, got '\"'"),
        (b'[{"image_id": 1.5}]', "expected an integer at byte 14"),
        (b'[{"image_id": 1', "expected ',' or '}' at byte 15, got the end"),
        (b'[{"image_id', "expected the end of a string"),
        (b'[{"a": "\\', "expected the end of a string"),
        (b'[{"a": tru}]', "expected a value at byte 7"),
        (b'[{"a": -}]', "expected a number"),
        (b'[{"a": 1}] x', r"entries\[0\]: image_id and category_id must be there"),
        (b"[] x", "expected the end at byte 3, got 'x'"),
        (b'[{"a": ' + b"[" * 10000, "expected fewer nested values"),
        (b'[{"segmentation": {"size": [1, 2], "counts": "\\q"}}]', "an escape of an ASCII"),
        (b'[{"segmentation": {"size": [1, 2], "counts": "\\u00e9"}}]', "an escape of an ASCII"),
        (b'[{"segmentation": {"size": [1], "counts": ""}}]', r"a size \[height, width\]"),
        (b'[{"segmentation": {"size": [1, 2], "counts": [-1]}}]', "counts must be from 0"),
        (b'[{"segmentation": {"size": [1, 2]}}]', "segmentation must have counts"),
        (b'[{"bbox": [1, 2]}]', "bbox must have 4 numbers, got 2"),
    ],
)
def test_malformed_json(text, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Columns.from_json(text, (0, len(text)), "entries")
    (tmp_path / "entries.json").write_bytes(text)
    with pytest.raises(ValueError, match=rf"(?s)entries.json: .*{message}"):
        Columns.from_file(tmp_path / "entries.json", "entries")


def test_every_cut_of_a_file_is_refused():
    text = json.dumps(stored("fake100_segm")[:2]).encode()
    for end in range(len(text)):
        with pytest.raises(ValueError, match="expected"):
            Columns.from_json(text[:end], (0, end), "entries")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ("[]", "expected an object at byte 0"),
        ("", "expected an object at byte 0"),
        ('{"images": [{"height": 3}]}', r"images\[0\] has no id"),
        ('{"categories": [3]}', r"categories\[0\] has no id"),
        ('{"annotations": [{"image_id": 3}]}', r"annotations\[0\]: image_id and category_id"),
    ],
)
def test_malformed_datasets(contents, message, tmp_path):
    path = tmp_path / "truth.json"
    path.write_text(contents)
    with pytest.raises(ValueError, match=rf"truth.json: .*{message}"):
        COCO(path)


def test_bad_places_are_refused():
    with pytest.raises(ValueError, match=r"begin and end must be in \[0, 2\], got 0 and 3"):
        _C.annotations_from_json(b"[]", 0, 3, "entries")


def test_what_is_not_a_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        COCO(tmp_path / "missing.json")
    with pytest.raises(IsADirectoryError):
        Columns.from_file(tmp_path, "entries")
    if os.name == "posix":
        with pytest.raises(ValueError, match="expected an array"):
            Columns.from_file(os.devnull, "entries")


def test_results_without_boxes_get_those_of_their_masks(truth):
    result = without_boxes(stored("fake100_segm"))[0]
    loaded = COCO(truth).loadRes([result]).loadAnns(1)[0]
    np.testing.assert_array_equal(loaded["bbox"], mask.toBbox(result["segmentation"]))


@pytest.mark.parametrize("known", [[], [3], [1, 5, 9], [-(2**62), 0, 7, 2**62]])
def test_positions(known):
    ids = np.array([3, 1, 9, 10, -(2**62), 2**62, 0, 5])
    expected = [known.index(one) if one in known else -1 for one in ids.tolist()]
    assert positions(ids, np.array(known, np.int64)).tolist() == expected
