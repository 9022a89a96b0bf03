"""What COCOEvaluator refuses, and how it says so."""

from __future__ import annotations

import pytest

from fastseg.evaluation import COCOEvaluator


def one_of_each():
    truth = {
        "images": [{"id": 5, "height": 4, "width": 5}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {
                "id": 7,
                "image_id": 5,
                "category_id": 1,
                "area": 4,
                "bbox": [0, 0, 2, 2],
                "segmentation": {"size": [4, 5], "counts": [0, 2, 2, 2, 14]},
            }
        ],
    }
    result = {
        "image_id": 5,
        "category_id": 1,
        "score": 0.5,
        "bbox": [0, 0, 2, 2],
        "segmentation": {"size": [4, 5], "counts": "0220<"},
    }
    return truth, result


def test_the_case_that_errors_start_from():
    truth, result = one_of_each()
    evaluator = COCOEvaluator(truth)
    evaluator.update([result])
    found = evaluator.compute()
    assert [found[metric]["AP"] for metric in found] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("metric", "change", "message"),
    [
        ("segm", {"image_id": 6}, r"results\[1\] \(image 6\) is of an image that the ground truth"),
        ("segm", {"image_id": None}, r"results\[1\]: image_id and category_id must be there"),
        ("segm", {"image_id": 1.5}, r"results\[1\]: image_id must be an integer, got 1.5"),
        ("segm", {"score": None}, r"results\[1\] \(image 5\) has no score"),
        ("segm", {"score": float("nan")}, r"results\[1\] \(image 5\) has no score, or NaN"),
        ("segm", {"segmentation": None}, r"results\[1\] \(image 5\) has no segmentation"),
        ("boundary", {"segmentation": []}, r"results\[1\] \(image 5\) has an empty segmentation"),
        (
            "segm",
            {"segmentation": {"size": [4, 5]}},
            r"results\[1\]: segmentation must have the keys",
        ),
        ("segm", {"segmentation": {"size": [4], "counts": ""}}, r"size must be \[height, width\]"),
        ("segm", {"segmentation": {"size": [4, 5], "counts": [-1]}}, r"counts must be from 0"),
        ("bbox", {"bbox": None}, r"results\[1\] \(image 5\) has no bbox"),
        ("bbox", {"bbox": [1, 2, 3]}, r"results\[1\]: bbox must have 4 numbers, got 3"),
        ("bbox", {"bbox": [1, 2, 3, float("nan")]}, r"has no bbox, or NaN"),
    ],
)
def test_malformed_results(metric, change, message):
    truth, result = one_of_each()
    evaluator = COCOEvaluator(truth, metric)
    with pytest.raises(ValueError, match=message):
        evaluator.update([result, {**result, **change}])
    assert evaluator.compute()[metric]["AP"] == 0, "what was refused must not count"


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 5], "counts": "0220<1"}, "counts sum to 23, but size"),
        ({"size": [4, 5], "counts": "02 <"}, "segmentation: counts hold the byte 32"),
        ({"size": [5, 4], "counts": "0220<"}, r"size \[5, 4\], the ground truth \[4, 5\]"),
        ({"size": [70000, 70000], "counts": ""}, "fewer than 2\\^32 pixels"),
        ([[0, 0, 2, 0, 2]], "a polygon has 5 numbers"),
        ([[0, 0, 2, 0, 2, 1e300]], "a polygon's coordinates must be"),
    ],
)
def test_malformed_masks(segmentation, message):
    truth, result = one_of_each()
    evaluator = COCOEvaluator(truth, "segm")
    evaluator.update([result, {**result, "segmentation": segmentation}])
    with pytest.raises(ValueError, match=r"results\[1\] \(image 5\): .*" + message):
        evaluator.compute()
    truth["annotations"][0]["segmentation"] = segmentation
    if "ground truth" not in message:
        evaluator = COCOEvaluator(truth, "segm")
        evaluator.update([result])
        with pytest.raises(ValueError, match=r"annotation 7 \(image 5\): .*" + message):
            evaluator.compute()


def test_polygons_need_the_size_of_their_image():
    truth, result = one_of_each()
    truth["annotations"][0]["segmentation"] = [[0, 0, 2, 0, 2, 2, 0, 2]]
    del truth["images"][0]["height"]
    evaluator = COCOEvaluator(truth, "segm")
    evaluator.update([result])
    with pytest.raises(ValueError, match=r"annotation 7 .*polygons need the height and width"):
        evaluator.compute()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "image 5: results must have scores"),
        ({"scores": []}, "image 5: results must have labels"),
        ({"scores": [], "labels": []}, "image 5: results must have rles or masks"),
        (
            {"scores": [1], "labels": [], "rles": []},
            "image 5: scores must be 0 as the masks, got 1",
        ),
    ],
)
def test_malformed_results_of_an_image(found, message):
    with pytest.raises(ValueError, match=message):
        COCOEvaluator(one_of_each()[0], "segm").update({5: found})


@pytest.mark.parametrize(
    ("metric", "missing", "message"),
    [
        ("segm", "area", r"annotation 7 \(image 5\) has no area"),
        ("segm", "segmentation", r"annotation 7 \(image 5\) has no segmentation"),
        ("bbox", "bbox", r"annotation 7 \(image 5\) has no bbox"),
        ("bbox", "category_id", r"annotations\[0\]: image_id and category_id must be there"),
    ],
)
def test_malformed_ground_truth(metric, missing, message):
    truth, _ = one_of_each()
    del truth["annotations"][0][missing]
    with pytest.raises(ValueError, match=message):
        COCOEvaluator(truth, metric)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("segm", "keypoints")}, "metrics must be of bbox, segm, boundary"),
        ({"metrics": ()}, "metrics must not be empty"),
        ({"max_dets": ()}, "max_dets must be positive"),
        ({"max_dets": (0, 10)}, "max_dets must be positive"),
        ({"iou_thresholds": (0, 0.5)}, "iou_thresholds must be in"),
        ({"detection_area": "boxes"}, "detection_area must be one of mask, box"),
        ({"dilation_ratio": 0}, "dilation_ratio must be in"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        COCOEvaluator(one_of_each()[0], **options)


def test_bad_types():
    truth, result = one_of_each()
    with pytest.raises(TypeError, match="annotation_file must be a path or a dict, got list"):
        COCOEvaluator([])
    with pytest.raises(TypeError, match="results must be a path"):
        COCOEvaluator(truth).update(5)
    with pytest.raises(TypeError, match=r"results\[0\]: must be a dict, got str"):
        COCOEvaluator(truth).update(["a"])
    with pytest.raises(TypeError, match=r"results\[0\]: score must be a number, got 'high'"):
        COCOEvaluator(truth).update([{**result, "score": "high"}])
    with pytest.raises(FileNotFoundError):
        COCOEvaluator(truth).update("missing.json")


def test_unknown_categories_are_told():
    truth, result = one_of_each()
    evaluator = COCOEvaluator(truth, "segm")
    with pytest.warns(
        UserWarning, match="1 results are left out: the ground truth lacks categories 12"
    ):
        evaluator.update([result, {**result, "category_id": 12}])
    assert evaluator.compute()["segm"]["AP"] == pytest.approx(1)
