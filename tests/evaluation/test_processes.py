"""Evaluators whose processes each have some of the images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch.distributed
import torch.multiprocessing

from fastseg.evaluation import (
    CityscapesInstanceEvaluator,
    PanopticEvaluator,
    SemanticEvaluator,
)

DATA = Path(__file__).parents[1] / "data" / "panoptic"
IMAGES = 6
WITH_REPEATS = ([0, 2, 4], [1, 3, 5, 0])  # as a sampler gives them that fills up with the first


def panoptic(images: list[int]) -> dict:
    annotations = json.loads((DATA / "results.json").read_text())["annotations"][:IMAGES]
    image_ids = [one["image_id"] for one in annotations]
    evaluator = PanopticEvaluator(DATA / "ground_truth.json", image_ids=image_ids)
    for one in (annotations[index] for index in images):
        path = DATA / "results" / one["file_name"]
        evaluator.update(one["image_id"], path, one["segments_info"])
    return evaluator.compute()


def cityscapes(images: list[int]) -> dict:
    evaluator = CityscapesInstanceEvaluator({1: "cell"})
    for index in images:
        random = np.random.default_rng(index)
        ids = np.repeat(np.repeat(random.integers(1000, 1006, (4, 4)), 20, 0), 20, 1)
        masks = ids == random.choice(ids[0])
        masks[: 10 * random.integers(4)] = False
        evaluator.update(index, ids, masks[None], [1], [random.random()])
    return evaluator.compute()


def semantic(images: list[int]) -> dict:
    evaluator = SemanticEvaluator(3)
    for index in images:
        evaluator.update(*np.random.default_rng(index).integers(0, 3, (2, 8, 8)))
    result = evaluator.compute()
    return {**result, "confusion_matrix": result["confusion_matrix"].tolist()}


def _evaluate(rank: int, address: str, found) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    images = WITH_REPEATS[rank]
    unique = list(range(rank, IMAGES, 2))
    found[rank] = panoptic(images), cityscapes(images), semantic(unique)
    torch.distributed.destroy_process_group()


def test_processes_share_their_results(tmp_path):
    images = list(range(IMAGES))
    expected = panoptic(images), cityscapes(images), semantic(images)
    assert 0 < expected[0]["All"]["pq"] < 1
    assert 0 < expected[1]["AP"] < 1
    with torch.multiprocessing.Manager() as manager:
        found = manager.list([None, None])
        address = f"file://{tmp_path}/rendezvous"
        torch.multiprocessing.spawn(_evaluate, (address, found), nprocs=2)
        assert str(list(found)) == str([expected, expected])  # NaN is not equal to itself
