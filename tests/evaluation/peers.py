"""Peers' evaluations of the same dicts, and small random datasets."""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).resolve().parents[1] / "data/evaluation"
NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
NAMES += ["AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]

Dataset = dict[str, Any]
Results = list[dict[str, Any]]


def stored(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


def without_boxes(results: Results) -> Results:
    return [{key: one[key] for key in one if key != "bbox"} for one in results]


def pycocotools(truth: Dataset, results: Results, metric: str, **params: Any) -> Any:
    """pycocotools' COCOeval after evaluate, accumulate and summarize."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        dataset.dataset = copy.deepcopy(truth)
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(copy.deepcopy(results)), metric)
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        if len(evaluation.params.maxDets) == 3:
            evaluation.summarize()
    return evaluation


def random_dataset(
    seed: int, polygons: bool = False, unknown_category: bool = True
) -> tuple[Dataset, Results]:
    """Images of 24x20 to 40x32 with rectangles for objects: many overlap, many scores are equal,
    some images, categories and masks are empty, some annotations are crowd regions, some results
    are of a category that the dataset lacks.
    """
    rng = np.random.default_rng(seed)
    categories = [3, 1, 7, 90][: rng.integers(1, 5)]
    images = [
        {"id": int(one), "height": int(rng.integers(24, 41)), "width": int(rng.integers(20, 33))}
        for one in rng.permutation(50)[: rng.integers(1, 7)]
    ]
    annotations, results = [], []

    for image in images:
        for _ in range(rng.integers(0, 7)):
            box = _rectangle(rng, image)
            segmentation: Any = _encoded(rng, image, box)
            if polygons and rng.random() < 0.7:
                corners = (rng.random((rng.integers(1, 3), 8)) * 20).round(2)
                segmentation = corners.tolist()
            scale = rng.choice([1, 50, 1000])  # so that all ranges of area occur
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice(categories)),
                    "bbox": [float(side) for side in box],
                    "area": float(box[2] * box[3] * scale),
                    "iscrowd": int(rng.random() < 0.15),
                    "segmentation": segmentation,
                }
            )
        for _ in range(rng.integers(0, 9)):
            box = _rectangle(rng, image)
            if annotations and rng.random() < 0.6:
                near = annotations[-1 - rng.integers(0, min(4, len(annotations)))]["bbox"]
                box = tuple(max(int(side) + int(rng.integers(-1, 2)), 0) for side in near)
                box = (*box[:2], min(box[2], image["width"]), min(box[3], image["height"]))
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": int(
                        rng.choice([*categories, *([11] if unknown_category else [])])
                    ),
                    "bbox": [float(side) for side in box],
                    "score": float(rng.integers(0, 8)) / 8,
                    "segmentation": _encoded(rng, image, box),
                }
            )
    rng.shuffle(results)
    dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": one, "name": f"class {one}"} for one in categories],
    }
    return dataset, results


Box = tuple[int, int, int, int]


def _rectangle(rng: np.random.Generator, image: dict[str, Any]) -> Box:
    left, top = rng.integers(0, 10, 2)
    width, height = rng.integers(0, 11, 2) * rng.integers(1, 3)
    return left, top, min(width, image["width"] - left), min(height, image["height"] - top)


def _encoded(rng: np.random.Generator, image: dict[str, Any], box: Box) -> dict[str, Any]:
    """A box's mask, some with gaps."""
    from fastseg import mask

    pixels = np.zeros((image["height"], image["width"]), np.uint8)
    pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    if rng.random() < 0.3:
        pixels[rng.integers(0, 9) :: 7] = 0
    rle = mask.encode(pixels)
    return {"size": rle["size"], "counts": rle["counts"].decode()}
