"""Instances: indexing, filtering, decoding and conversion to other formats."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from fastseg.instances import Instances
from fastseg.ops import rle_encode

SIZE = (6, 8)
SCORES = (0.9, 0.5, 0.7)


@pytest.fixture
def masks():
    masks = torch.zeros((3, *SIZE), dtype=torch.bool)
    masks[0, 1:4, 2:5] = True
    masks[1, :, 7] = True
    return masks  # the third is empty


@pytest.fixture
def instances(masks):
    return Instances(
        boxes=torch.tensor([[2.0, 1, 5, 4], [7, 0, 8, 6], [0, 0, 0, 0]]),
        scores=torch.tensor(SCORES),
        labels=torch.tensor([1, 2, 1]),
        rles=rle_encode(masks),
        image_size=SIZE,
        class_names=("background", "cell", "vessel"),
    )


def empty():
    return Instances(
        torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0, dtype=torch.int64), [], SIZE
    )


def test_masks_decode_to_what_was_encoded(instances, masks):
    assert torch.equal(instances.masks(), masks)
    assert instances.masks().dtype == torch.bool


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (1, [1]),
        (-1, [2]),
        (np.int64(0), [0]),
        (torch.tensor(2), [2]),
        (slice(None, None, -1), [2, 1, 0]),
        (slice(1, None), [1, 2]),
        ([2, 0, 2], [2, 0, 2]),
        ([], []),
        ((0, -2), [0, 1]),
        (torch.tensor([True, False, True]), [0, 2]),
        (np.array([False, False, False]), []),
        (np.array([1, 1]), [1, 1]),
    ],
)
def test_every_kind_of_index_selects_all_fields(instances, masks, index, rows):
    picked = instances[index]
    assert len(picked) == len(rows)
    assert torch.equal(picked.boxes, instances.boxes[rows])
    assert picked.scores.tolist() == pytest.approx([SCORES[row] for row in rows])
    assert torch.equal(picked.labels, instances.labels[rows])
    assert torch.equal(picked.masks(), masks[rows])
    assert (picked.image_size, picked.class_names) == (SIZE, instances.class_names)


@pytest.mark.parametrize("index", [3, -4, [0, 3], torch.tensor([True, False])])
def test_an_index_out_of_range_raises_index_error(instances, index):
    with pytest.raises(IndexError, match=r"out of range for 3 instances|shape \(3,\)"):
        instances[index]


@pytest.mark.parametrize(
    "index", [0.5, "cell", None, torch.ones(1, 1, dtype=torch.int64), object()]
)
def test_other_index_types_raise_type_error(instances, index):
    with pytest.raises(TypeError, match="indexed with"):
        instances[index]


def test_iteration_gives_one_instance_each(instances):
    assert [len(one) for one in instances] == [1, 1, 1]
    assert [one.names for one in instances] == [["cell"], ["vessel"], ["cell"]]


def test_above_is_strict_and_keeps_the_order(instances):
    assert instances.above(0.5).scores.tolist() == pytest.approx([0.9, 0.7])
    assert len(instances.above(1.0)) == 0


def test_names_come_from_labels_and_unknown_labels_are_numbered(instances):
    assert instances.names == ["cell", "vessel", "cell"]
    assert instances.class_name(-2) == "vessel"
    instances.class_names = ("background", "cell")
    assert instances.class_name(1) == "class 2"
    instances.class_names = None
    assert instances.names == ["class 1", "class 2", "class 1"]


def test_coco_results_are_json_that_pycocotools_decodes(instances, masks):
    entries = json.loads(json.dumps(instances.to_coco(17)))
    assert [entry["image_id"] for entry in entries] == [17, 17, 17]
    assert [entry["category_id"] for entry in entries] == [1, 2, 1]
    assert entries[0]["bbox"] == [2, 1, 3, 3]
    assert entries[0]["score"] == pytest.approx(0.9)
    decoded = [coco_mask.decode(entry["segmentation"]) for entry in entries]
    assert np.array_equal(np.stack(decoded), masks.numpy())
    mapped = instances.to_coco(17, category_ids=[0, 10, 20])
    assert [entry["category_id"] for entry in mapped] == [10, 20, 10]
    with pytest.raises(ValueError, match="category_ids has 2 numbers, none for label 2"):
        instances.to_coco(17, category_ids=[0, 10])


def test_torchvision_form_has_float_masks_with_a_channel(instances, masks):
    result = instances.to_torchvision()
    assert sorted(result) == ["boxes", "labels", "masks", "scores"]
    assert result["masks"].dtype == torch.float32
    assert torch.equal(result["masks"], masks[:, None].float())


def test_no_instances_are_a_result_like_any_other():
    nothing = empty()
    assert len(nothing) == 0
    assert nothing.masks().shape == (0, *SIZE)
    assert nothing.to_torchvision()["masks"].shape == (0, 1, *SIZE)
    assert nothing.to_coco(1) == []
    assert len(nothing.above(0.5)) == len(nothing[:]) == 0
    assert repr(nothing) == "Instances(0 in 6x8)"


def test_repr_summarises(instances):
    assert repr(instances) == "Instances(3 in 6x8: 2 cell, 1 vessel; scores 0.50-0.90)"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("boxes", torch.zeros(2, 4), r"boxes must be \(3, 4\).*got \(2, 4\)"),
        ("boxes", torch.zeros(3, 5), r"boxes must be \(3, 4\).*got \(3, 5\)"),
        ("scores", torch.zeros(4), r"scores must be \(3,\)"),
        ("labels", torch.zeros(3), "labels must be integers, got torch.float32"),
        ("image_size", (8, 6), r"rles\[0\] has size \(6, 8\), the image has \(8, 6\)"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(instances, field, value, message):
    fields = {**vars(instances), field: value}
    with pytest.raises(ValueError, match=message):
        Instances(**fields)
