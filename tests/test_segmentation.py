"""Panoptic and semantic results: fields, forms of output, and the way through the evaluators."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import fastseg
from fastseg.categories import CITYSCAPES, COCO_PANOPTIC
from fastseg.evaluation import (
    PanopticEvaluator,
    SemanticEvaluator,
    evaluate_panoptic,
    panoptic_results,
    rgb2id,
)
from fastseg.evaluation.panoptic_files import read_panoptic_png
from fastseg.segmentation import PanopticSegmentation, Segment, SemanticSegmentation, places

PANOPTIC = Path(__file__).parent / "data/panoptic"
GROUND_TRUTH = json.loads((PANOPTIC / "ground_truth.json").read_text())

IDS = torch.tensor([[1, 1, 0, 2], [1, 0, 0, 2], [7, 7, 7, 7]], dtype=torch.int32)
SEGMENTS = [
    Segment(1, 0, True, 0.9, 3),
    Segment(2, 0, True, 0.7, 2),
    Segment(7, 2, False, 0.8, 4),
]


def panoptic(ids=IDS, segments=SEGMENTS, names=("cat", "dog", "grass")):
    return PanopticSegmentation(ids, segments, names)


def from_files(annotation):
    """A true annotation of COCO as if a model had found it; labels are places in COCO's list."""
    ids = rgb2id(read_panoptic_png(PANOPTIC / "ground_truth" / annotation["file_name"]))
    segments = [
        Segment(
            one["id"],
            label := COCO_PANOPTIC.ids.index(one["category_id"]),
            label in COCO_PANOPTIC.things,
            0.9,
            one["area"],
        )
        for one in annotation["segments_info"]
    ]
    return panoptic(torch.from_numpy(ids.astype(np.int32)), segments, COCO_PANOPTIC.names)


def test_fields_of_panoptic_results():
    result = panoptic()
    assert len(result) == 3 and result.image_size == (3, 4)
    assert result.names == ["cat", "cat", "grass"]
    assert repr(result) == "PanopticSegmentation(3 segments in 3x4: 2 cat, 1 grass)"
    assert panoptic(names=None).names == ["class 0", "class 0", "class 2"]
    assert panoptic(names=("cat",)).names[2] == "class 2"
    masks = result.masks()
    assert masks.dtype == torch.bool and masks.sum((1, 2)).tolist() == [3, 2, 4]
    assert torch.equal(masks.any(0), IDS > 0) and masks[2, 2].all()
    assert result.to("cpu").ids.equal(IDS)
    assert fastseg.PanopticSegmentation is PanopticSegmentation


def test_places_of_segments():
    assert panoptic().numbered().tolist() == [[1, 1, 0, 2], [1, 0, 0, 2], [3, 3, 3, 3]]
    odd = torch.tensor([[5, -4, 2**40, 0, 7]])
    assert places(odd, [7, 0, 5]).tolist() == [[3, 0, 0, 2, 1]]
    assert places(odd, []).tolist() == [[0] * 5]
    many = places(torch.arange(300), range(300))
    assert many.dtype == np.uint16 and many.tolist() == list(range(1, 301))
    assert places(torch.tensor([255], dtype=torch.uint8), [300, 255]).tolist() == [2]


def test_what_scores_too_little_becomes_void():
    kept = panoptic().above(0.7)
    assert [one.id for one in kept.segments] == [1, 7]
    assert kept.ids.tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [7, 7, 7, 7]]
    assert kept.ids.dtype == torch.int32
    nothing = panoptic().above(0.95)
    assert len(nothing) == 0 and not nothing.ids.any()
    assert IDS.unique().tolist() == [0, 1, 2, 7], "the original stays"


def test_coco_annotation():
    annotation, colors = panoptic().to_coco(42, category_ids=[17, 18, 193])
    assert json.loads(json.dumps(annotation)) == annotation
    assert (annotation["image_id"], annotation["file_name"]) == (42, "000000000042.png")
    infos = annotation["segments_info"]
    assert [(one["id"], one["category_id"], one["area"]) for one in infos] == [
        (1, 17, 3),
        (2, 17, 2),
        (7, 193, 4),
    ]
    assert [one["bbox"] for one in infos] == [[0, 0, 2, 2], [3, 0, 1, 2], [0, 2, 4, 1]]
    assert {one["iscrowd"] for one in infos} == {0}
    assert colors.dtype == np.uint8 and np.array_equal(rgb2id(colors), IDS.numpy())
    assert panoptic().to_coco(1, file_name="a.jpg")[0]["file_name"] == "a.png"
    assert [one["category_id"] for one in panoptic().segments_info()] == [0, 0, 2]


def test_large_ids_use_all_three_bytes():
    ids = torch.tensor([[1 + 256 * 2 + 65536 * 3, 0]], dtype=torch.int64)
    _, colors = panoptic(ids, [Segment(197121, 0, True, 1.0, 1)]).to_coco(1)
    assert colors.tolist() == [[[1, 2, 3], [0, 0, 0]]]


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_boxes_are_those_of_the_masks(height, width, random):
    rows = [[random.choice([0, 0, 1, 2, 300]) for _ in range(width)] for _ in range(height)]
    ids = torch.tensor(rows, dtype=torch.int32)
    present = [one for one in ids.unique().tolist() if one]
    result = panoptic(ids, [Segment(one, 0, True, 1.0, 1) for one in present])
    for mask, info in zip(result.masks(), result.segments_info(), strict=True):
        y, x = (axis.tolist() for axis in mask.nonzero(as_tuple=True))
        corner = min(x), min(y)
        assert info["bbox"] == [*corner, max(x) + 1 - corner[0], max(y) + 1 - corner[1]]


def test_true_segments_keep_their_boxes_and_areas_and_score_a_quality_of_1(tmp_path):
    evaluator = PanopticEvaluator(PANOPTIC / "ground_truth.json", PANOPTIC / "ground_truth")
    with panoptic_results(tmp_path / "panoptic.json") as writer:
        for annotation in GROUND_TRUTH["annotations"]:
            result = from_files(annotation)
            found, colors = result.to_coco(annotation["image_id"], category_ids=COCO_PANOPTIC.ids)
            for one, truth in zip(found["segments_info"], annotation["segments_info"], strict=True):
                assert all(one[key] == truth[key] for key in ("id", "category_id", "area", "bbox"))
            evaluator.update(annotation["image_id"], colors, found["segments_info"])
            writer.add(annotation["image_id"], result.ids, result.segments_info(COCO_PANOPTIC.ids))
    quality = evaluator.compute()
    from_disk = evaluate_panoptic(
        PANOPTIC / "ground_truth.json", PANOPTIC / "ground_truth", tmp_path / "panoptic.json"
    )
    for numbers in (quality, from_disk):
        assert numbers["All"]["pq"] == numbers["Things"]["sq"] == numbers["Stuff"]["rq"] == 1
    one = json.loads((tmp_path / "panoptic.json").read_text())["annotations"][0]
    with Image.open(tmp_path / "panoptic" / one["file_name"]) as image:
        assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: panoptic(IDS.float()), TypeError, "ids must be integer, got torch.float32"),
        (lambda: panoptic(IDS > 0), TypeError, "ids must be integer, got torch.bool"),
        (lambda: panoptic(IDS[None]), ValueError, r"must be \[height, width\], got \[1, 3, 4\]"),
        (lambda: panoptic(segments=[SEGMENTS[0]] * 2), ValueError, "id 1 comes twice"),
        (
            lambda: panoptic(segments=[Segment(0, 1, True, 1.0, 1)]),
            ValueError,
            "ids must be from 1 to 16777215, got 0",
        ),
        (
            lambda: panoptic(segments=[Segment(1 << 24, 1, True, 1.0, 1)]),
            ValueError,
            "ids must be from 1 to 16777215, got 16777216",
        ),
        (
            lambda: panoptic(segments=[Segment(9, 1, True, 1.0, 1)]).to_coco(1),
            ValueError,
            "no pixel of segment 9",
        ),
        (
            lambda: panoptic().to_coco(1, category_ids=[3, 4]),
            ValueError,
            "category_ids has 2 numbers, none for label 2",
        ),
        (
            lambda: SemanticSegmentation(torch.zeros(2, 3)),
            TypeError,
            "labels must be integer, got torch.float32",
        ),
        (
            lambda: SemanticSegmentation(torch.zeros(2, dtype=torch.long)),
            ValueError,
            r"labels must be \[height, width\], got \[2\]",
        ),
        (
            lambda: SemanticSegmentation(torch.tensor([[-1, 4]])).to_image(),
            ValueError,
            "holds 0 to 65535, got -1 for label -1",
        ),
        (
            lambda: SemanticSegmentation(torch.tensor([[0]])).to_image([65536]),
            ValueError,
            "got 65536 for label 0",
        ),
        (
            lambda: SemanticSegmentation(torch.tensor([[0, 19]])).to_image(CITYSCAPES.ids),
            ValueError,
            "category_ids has 19 numbers, none for label 19",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_semantic_results(dtype):
    result = SemanticSegmentation(torch.tensor([[2, 0, 2], [2, 2, 5]], dtype=dtype), ("a", "b"))
    assert result.image_size == (2, 3)
    assert result.areas() == {2: 4, 0: 1, 5: 1}
    expected = "SemanticSegmentation(3 classes in 2x3: class 2 67%, a 17%, class 5 17%)"
    assert repr(result) == expected
    assert np.asarray(result.to_image()).tolist() == [[2, 0, 2], [2, 2, 5]]
    assert result.to("cpu").labels.dtype == dtype


@pytest.mark.parametrize(("category_ids", "dtype"), [(CITYSCAPES.ids, np.uint8), (None, np.uint8)])
def test_label_image_goes_through_a_file_to_the_evaluator(category_ids, dtype, tmp_path):
    labels = torch.randint(0, 19, (40, 31))
    image = SemanticSegmentation(labels).to_image(category_ids)
    image.save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as read:
        values = np.asarray(read)
    assert values.dtype == dtype
    expected = labels.numpy() if category_ids is None else np.array(category_ids)[labels.numpy()]
    assert np.array_equal(values, expected)
    evaluator = SemanticEvaluator(34)
    evaluator.update(values, expected)
    assert evaluator.compute()["miou"] == 1


def test_label_images_of_many_classes_have_16_bits(tmp_path):
    labels = torch.tensor([[0, 256], [40000, 3]])
    SemanticSegmentation(labels).to_image().save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as read:
        assert np.asarray(read).tolist() == labels.tolist()


def test_empty_images():
    ids = torch.zeros((0, 5), dtype=torch.int32)
    assert panoptic(ids, []).segments_info() == []
    assert repr(panoptic(ids, [])) == "PanopticSegmentation(0 segments in 0x5)"
    assert panoptic(ids, []).masks().shape == (0, 0, 5)
    assert SemanticSegmentation(ids).areas() == {}
    assert "0 classes in 0x5" in repr(SemanticSegmentation(ids))
