"""YouTubeVISEvaluator against pycocotools on videos whose frames are stacked into one image."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from peers import pycocotools

from fastseg import mask
from fastseg.evaluation import YouTubeVISEvaluator

SIZE = (30, 24)
RANGES = [[0, 1e5**2], [0, 128**2], [128**2, 256**2], [256**2, 1e5**2]]


def random_videos(seed):
    """Tracks of rectangles that drift, seen in some frames alone."""
    rng = np.random.default_rng(seed)
    videos = [
        {"id": 10 + n, "height": SIZE[0], "width": SIZE[1], "length": int(rng.integers(1, 6))}
        for n in range(rng.integers(1, 5))
    ]

    def track(video, start=None):
        box = np.array(rng.integers(0, 12, 4)) if start is None else start
        frames = []
        for _ in range(video["length"]):
            pixels = np.zeros(SIZE, np.uint8)
            box = np.maximum(box + rng.integers(-1, 2, 4), 0)
            pixels[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = 1
            frames.append(pixels if rng.random() < 0.8 else None)
        return frames

    def encoded(frames):
        found = [None if one is None else mask.encode(one) for one in frames]
        return [one and {"size": one["size"], "counts": one["counts"].decode()} for one in found]

    annotations, results = [], []
    for video in videos:
        for _ in range(rng.integers(1, 4)):
            start = np.array(rng.integers(0, 12, 4))
            category = int(rng.integers(1, 3))
            frames = encoded(track(video, start))
            scale = int(rng.choice([1, 500, 5000]))
            areas = [one and int(mask.area(one)) * scale for one in frames]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": video["id"],
                    "category_id": category,
                    "segmentations": frames,
                    "areas": areas,
                    "iscrowd": int(rng.random() < 0.1),
                }
            )
            for _ in range(rng.integers(1, 3)):
                results.append(
                    {
                        "video_id": video["id"],
                        "category_id": category,
                        "score": float(rng.integers(0, 6)) / 6,
                        "segmentations": encoded(track(video, start)),
                    }
                )
    categories = [{"id": one, "name": str(one)} for one in (1, 2)]
    return {"videos": videos, "categories": categories, "annotations": annotations}, results


def mean_area(areas):
    seen = [one for one in areas if one]
    return float(np.mean(seen)) if seen else 0.0


def stacked(entry):
    frames = entry["segmentations"]
    pixels = [np.zeros(SIZE, np.uint8) if one is None else mask.decode(one) for one in frames]
    found = mask.encode(np.concatenate(pixels))
    return {"size": found["size"], "counts": found["counts"].decode()}


def stacked_peer(truth, results, monkeypatch):
    """pycocotools on one image per video; crowd tracks become empty ones out of all ranges."""
    from pycocotools import coco

    images = [{**one, "height": one["height"] * one["length"]} for one in truth["videos"]]
    annotations = [
        {
            **one,
            "image_id": one["video_id"],
            "segmentation": stacked(one),
            "area": 1e20 if one["iscrowd"] else mean_area(one["areas"]),
            "iscrowd": 0,
            "bbox": [0, 0, 0, 0],
        }
        for one in truth["annotations"]
    ]
    areas = {}
    detections = []
    for number, one in enumerate(results, 1):
        areas[number] = mean_area([frame and mask.area(frame) for frame in one["segmentations"]])
        detections.append({**one, "image_id": one["video_id"], "segmentation": stacked(one)})
    load = coco.COCO.loadRes

    def load_with_areas(self, entries):
        loaded = load(self, entries)
        for one in loaded.dataset["annotations"]:
            one["area"] = areas[one["id"]]
        return loaded

    monkeypatch.setattr(coco.COCO, "loadRes", load_with_areas)
    dataset = {"images": images, "categories": truth["categories"], "annotations": annotations}
    return pycocotools(dataset, detections, "segm", areaRng=RANGES)


@pytest.mark.parametrize("seed", range(20))
def test_random_videos(seed, monkeypatch, tmp_path):
    pytest.importorskip("pycocotools")
    truth, results = random_videos(seed)
    peer = stacked_peer(truth, results, monkeypatch)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    for given_truth, given in (
        (truth, results),
        (tmp_path / "truth.json", tmp_path / "results.json"),
    ):
        evaluator = YouTubeVISEvaluator(given_truth)
        evaluator.update(given)
        found = evaluator.compute(per_category=True, curves=True)["segm"]
        np.testing.assert_array_equal(found["curves"].precision, peer.eval["precision"])
        np.testing.assert_array_equal(found["curves"].recall, peer.eval["recall"])
        assert [found[name] for name in list(found)[:12]] == list(peer.stats)


def test_a_track_that_misses_a_frame():
    """Two of three frames found: the sum of intersections over the sum of unions is 2 / 3."""
    rle = {"size": [2, 2], "counts": [0, 4]}
    video = {"id": 1, "height": 2, "width": 2, "length": 3}
    truth = {
        "videos": [video],
        "categories": [{"id": 1}],
        "annotations": [
            {
                "id": 1,
                "video_id": 1,
                "category_id": 1,
                "areas": [4, 4, 4],
                "segmentations": [rle] * 3,
            }
        ],
    }
    result = {"video_id": 1, "category_id": 1, "score": 1, "segmentations": [rle, rle, None]}
    evaluator = YouTubeVISEvaluator(truth)
    evaluator.update([result])
    found = evaluator.compute()["segm"]
    assert found["AP"] == pytest.approx(0.4)  # at 0.5, 0.55, 0.6, 0.65
    with pytest.raises(ValueError, match=r"results\[0\] .*has 2 segmentations, its video 3"):
        evaluator.update([{**result, "segmentations": [rle, rle]}])
    with pytest.raises(TypeError, match="got a mapping"):
        evaluator.update({1: result})
    broken = copy.deepcopy(truth)
    broken["annotations"][0]["segmentations"].pop()
    with pytest.raises(ValueError, match=r"annotation 1 .* has 2 segmentations, its video 3"):
        YouTubeVISEvaluator(broken)
    with pytest.raises(ValueError, match="max_dets must be positive"):
        YouTubeVISEvaluator(truth, max_dets=())
