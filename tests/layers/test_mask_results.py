"""Results of queries against MaskFormer's rules in torch, and against the original's own results.

mask2former_results.npz, .json in tests/data: facebookresearch/Mask2Former (commit 9b0651c, on
detectron2 0.6, torch 2.14.1, CPU) on made-up logits of the image's size (mask_cls, mask_pred as
float16): what its instance_inference (of all classes and of things alone, in no order),
panoptic_inference and semantic_inference returned, and the settings of each case.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg import _C
from fastseg.layers.mask_results import ImageFrame, instances_of, panoptic_of, semantic_of
from fastseg.reference.mask_results import instance_results, panoptic_results
from fastseg.reference.resize_masks import resize_logits

DATA = Path(__file__).parents[1] / "data" / "mask2former_results"
STORED = np.load(DATA.with_suffix(".npz"))
SETTINGS = json.loads(DATA.with_suffix(".json").read_text())

FRAMES = {
    "larger than the batch": ImageFrame((128, 160), (100, 157), (233, 281)),
    "smaller": ImageFrame((128, 160), (128, 133), (60, 99)),
    "as resized": ImageFrame((128, 160), (111, 160), (111, 160)),
}


def stored(case: str, name: str) -> Tensor:
    return torch.from_numpy(STORED[f"{case}.{name}"])


def logits_of(case: str) -> tuple[Tensor, Tensor, ImageFrame]:
    masks = stored(case, "mask_pred").float()
    size = (masks.shape[1], masks.shape[2])
    return stored(case, "mask_cls"), masks, ImageFrame(size, size, size)


def made_up(num_queries: int = 20, num_classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Queries that are sure of their class, "no object" in one of four, and of their masks."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(num_classes, (num_queries,), generator=generator)
    classes[::4] = num_classes
    class_logits = 7 * F.one_hot(classes, num_classes + 1).float()
    class_logits += torch.randn(class_logits.shape, generator=generator)
    coarse = torch.randn(num_queries, 1, 5, 6, generator=generator) - 0.6
    masks = 9 * F.interpolate(coarse, (32, 40), mode="bicubic")[:, 0]
    return class_logits, masks


def pairs_of(scores: Tensor, labels: Tensor, areas: Tensor) -> Tensor:
    """[N, 3], sorted by label, then area, then score: the order of instances is not the rule's."""
    rows = torch.stack([labels.double(), areas.double(), scores.double()], dim=1)
    for column in (2, 1, 0):
        rows = rows[rows[:, column].argsort(stable=True)]
    return rows


@pytest.mark.parametrize("which", ["all", "things"])
@pytest.mark.parametrize("case", SETTINGS)
def test_stored_instances(case: str, which: str) -> None:
    settings = SETTINGS[case]
    kept = settings["things"] if which == "things" else None
    found = instances_of(*logits_of(case), top_k=settings["topk"], labels_kept=kept)
    areas = found.masks().sum((1, 2))
    expected = [stored(case, f"inst_{which}.{name}") for name in ("scores", "classes", "areas")]
    torch.testing.assert_close(
        pairs_of(found.scores, found.labels, areas), pairs_of(*expected), rtol=0, atol=1e-6
    )
    assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize("case", SETTINGS)
def test_stored_panoptic_maps(case: str) -> None:
    settings = SETTINGS[case]
    found = panoptic_of(
        *logits_of(case),
        thing_classes=settings["things"],
        object_mask_threshold=settings["object_mask_threshold"],
        overlap_threshold=settings["overlap_threshold"],
    )
    assert torch.equal(found.ids, stored(case, "panoptic_seg").int())
    assert described(found.segments) == settings["segments_info"]


@pytest.mark.parametrize("case", SETTINGS)
def test_stored_semantic_maps(case: str) -> None:
    expected = stored(case, "semantic_argmax")
    for resize_scores in (True, False):
        found = semantic_of(*logits_of(case), resize_scores=resize_scores, class_names=["a"] * 7)
        assert torch.equal(found.labels, expected.int())
        assert found.class_names == ("a",) * 7


def described(segments: list) -> list[dict]:
    return [{"id": s.id, "isthing": s.is_thing, "category_id": s.label} for s in segments]


@pytest.mark.parametrize("name", FRAMES)
def test_instances(name: str, device: torch.device) -> None:
    class_logits, masks = (x.to(device) for x in made_up())
    frame = FRAMES[name]
    for top_k, kept in ((30, None), (30, [0, 3]), (1000, None), (30, [])):
        found = instances_of(class_logits, masks, frame, top_k=top_k, labels_kept=kept)
        resized = resize_logits(masks, frame.original, frame.padded, frame.image)
        scores, labels, inside = instance_results(
            class_logits.cpu(), resized.cpu(), top_k=top_k, labels_kept=kept
        )
        areas = found.masks().sum((1, 2)).cpu()
        ours = pairs_of(found.scores.cpu(), found.labels.cpu(), areas)
        torch.testing.assert_close(
            ours, pairs_of(scores, labels, inside.sum((1, 2))), rtol=0, atol=1e-5
        )
        assert (found.scores.diff() <= 0).all() and found.image_size == frame.original


def test_boxes_and_names_of_instances() -> None:
    class_logits, masks = made_up()
    frame = FRAMES["as resized"]
    found = instances_of(class_logits, masks, frame, class_names=[*"abcde"])
    assert found.class_names == tuple("abcde") and len(found) == 100
    for mask, box in zip(found.masks(), found.boxes, strict=True):
        y, x = mask.nonzero().unbind(1)
        edges = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        assert box.tolist() == edges


@pytest.mark.parametrize("inside_only", [True, False])
@pytest.mark.parametrize("name", FRAMES)
def test_panoptic_maps(name: str, inside_only: bool, device: torch.device) -> None:
    frame, seen = FRAMES[name], set()
    for seed in range(6):
        class_logits, masks = (x.to(device) for x in made_up(seed=seed))
        options = {
            "thing_classes": [0, 1],
            "object_mask_threshold": (0.8, 0.98)[seed % 2],
            "overlap_threshold": (0.8, 0.5, 0.0)[seed % 3],
            "inside_only": inside_only,
        }
        found = panoptic_of(class_logits, masks, frame, **options)
        resized = resize_logits(masks, frame.original, frame.padded, frame.image)
        ids, segments = panoptic_results(class_logits, resized, **options)
        # Values at a threshold round to either side where the order of sums differs.
        different = (found.ids != ids).sum().item()
        of_cuda = device.type == "cuda" or _C.build_info()["cuda_emulator"]
        assert different == 0 or (different < 20 and of_cuda)
        assert described(found.segments) == segments
        areas = [int((found.ids == segment.id).sum()) for segment in found.segments]
        assert areas == [segment.area for segment in found.segments]
        seen |= {(segment.is_thing, segment.label) for segment in found.segments}
    assert {is_thing for is_thing, _ in seen} == {True, False}


def test_merged_stuff_is_one_segment_with_the_best_score() -> None:
    class_logits = torch.tensor([[9.0, 0, 0], [0, 7.0, 0], [8.0, 0, 0], [0, 9.0, 0]])
    masks = torch.full((4, 2, 8), -9.0)
    for query in range(4):
        masks[query, :, 2 * query : 2 * query + 2] = 9
    frame = ImageFrame((2, 8), (2, 8), (2, 8))
    found = panoptic_of(class_logits, masks, frame, thing_classes=[0])
    assert found.ids[0].tolist() == [1, 1, 2, 2, 3, 3, 2, 2]
    assert [(s.label, s.is_thing, s.area) for s in found.segments] == [
        (0, True, 4),
        (1, False, 8),
        (0, True, 4),
    ]
    scores = class_logits.softmax(1).max(1).values
    assert [s.score for s in found.segments] == [scores[0], scores[3], scores[2]]


def test_no_query_is_kept(device: torch.device) -> None:
    class_logits, masks = (x.to(device) for x in made_up())
    frame = FRAMES["smaller"]
    for options in ({"object_mask_threshold": 1.0}, {"overlap_threshold": 1e9}):
        found = panoptic_of(class_logits, masks, frame, thing_classes=[0, 1], **options)
        assert found.segments == [] and not found.ids.any()
        assert found.ids.shape == (60, 99) and found.ids.dtype == torch.int32
    nothing = torch.full_like(class_logits, -9.0)
    nothing[:, -1] = 9
    found = panoptic_of(nothing, masks, frame, thing_classes=[0, 1])
    assert found.segments == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    class_logits, masks = (x.to(dtype) for x in made_up())
    frame = FRAMES["larger than the batch"]
    ours = panoptic_of(class_logits, masks, frame, thing_classes=[0])
    expected = panoptic_of(class_logits.float(), masks.float(), frame, thing_classes=[0])
    assert torch.equal(ours.ids, expected.ids) and ours.segments == expected.segments
    found = instances_of(class_logits, masks, frame)
    expected_instances = instances_of(class_logits.float(), masks.float(), frame)
    assert torch.equal(found.scores, expected_instances.scores)
    assert found.rles == expected_instances.rles
