"""COCOEvaluator against stored numbers, pycocotools and faster-coco-eval, and its own contract."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import DATA, NAMES, pycocotools, random_dataset, stored, without_boxes

from fastseg import Instances, ops
from fastseg.evaluation import COCO, COCOEvaluator

EXPECTED = json.loads((DATA / "expected.json").read_text())
UNKNOWN_CATEGORIES = pytest.mark.filterwarnings("ignore:.*results are left out")


def evaluate(truth, results, metric, **options):
    evaluator = COCOEvaluator(truth, metric, **options)
    evaluator.update(results)
    return evaluator.compute(per_category=True, curves=True)[metric]


def assert_same_curves(ours, peer) -> None:
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(getattr(ours["curves"], name), peer.eval[name])


def assert_same_numbers(ours, expected) -> None:
    for name in NAMES:
        assert ours[name] == pytest.approx(expected[name], abs=1e-12), name
    for category, value in expected.get("per_category_AP", {}).items():
        value = -1 if value is None else value
        assert ours["per_category"][int(category)] == pytest.approx(value, abs=1e-12), category


@pytest.mark.parametrize(
    ("truth", "results", "key", "metric"),
    [
        ("fake100", "fake100_segm", "fakesegm100", "segm"),
        ("fake100", "fake100_segm", "fakesegm100", "boundary"),
        ("fake100", "fake100_bbox", "fakebbox100", "bbox"),
        ("balloon", "balloon_results", "detectron2_results", "bbox"),
        ("balloon", "balloon_results", "detectron2_results", "segm"),
        ("balloon", "balloon_results", "detectron2_results", "boundary"),
    ],
)
def test_stored_numbers(truth, results, key, metric):
    ours = evaluate(stored(truth), stored(results), metric)
    assert_same_numbers(ours, EXPECTED[truth][key][metric])


def test_published_numbers():
    published = EXPECTED["fake100"]["published"]
    for metric in ("bbox", "segm"):
        ours = evaluate(stored("fake100"), stored(f"fake100_{metric}"), metric)
        np.testing.assert_allclose([ours[name] for name in NAMES], published[metric], atol=1e-12)


def test_area_of_detections_with_boxes_and_masks():
    """The trap: pycocotools takes the area of the box where results have one."""
    truth, results = stored("balloon"), stored("balloon_results")
    expected = EXPECTED["balloon"]["detectron2_results"]
    by_mask = evaluate(truth, results, "segm")
    by_box = evaluate(truth, results, "segm", detection_area="box")
    assert_same_numbers(by_mask, expected["segm"])
    assert_same_numbers(by_box, expected["segm_area_from_bbox_field"])
    assert [name for name in NAMES if by_mask[name] != by_box[name]] != []
    alone = evaluate(truth, without_boxes(results), "segm", detection_area="box")
    assert_same_numbers(alone, expected["segm"])


def test_small_case_with_whole_files_as_results():
    truth, results = stored("small"), stored("small_results")
    assert_same_numbers(evaluate(truth, results, "bbox"), EXPECTED["fake100"]["fce_small"]["bbox"])


@UNKNOWN_CATEGORIES
@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    metric=st.sampled_from(["bbox", "segm"]),
    use_categories=st.booleans(),
    max_dets=st.sampled_from([(1, 10, 100), (1, 2, 3), (2,)]),
    has_boxes=st.booleans(),
)
def test_random_datasets_as_pycocotools(seed, metric, use_categories, max_dets, has_boxes):
    pytest.importorskip("pycocotools")
    truth, results = random_dataset(seed, polygons=metric == "segm")
    if not results:
        return
    if not has_boxes:
        results = without_boxes(results)
    options = {"use_categories": use_categories, "max_dets": max_dets}
    ours = evaluate(truth, results, metric, detection_area="box", **options)
    peer = pycocotools(truth, results, metric, useCats=int(use_categories), maxDets=list(max_dets))
    assert_same_curves(ours, peer)
    if max_dets == (1, 10, 100):
        assert [ours[name] for name in NAMES] == list(peer.stats)


@UNKNOWN_CATEGORIES
@pytest.mark.parametrize("seed", range(12))
def test_boundary_as_faster_coco_eval(seed):
    faster = pytest.importorskip("faster_coco_eval")
    truth, results = random_dataset(seed, polygons=True)
    results = without_boxes(results)
    ours = evaluate(truth, results, "boundary", dilation_ratio=0.05)
    dataset = faster.COCO(copy.deepcopy(truth))
    peer = faster.COCOeval_faster(
        dataset, dataset.loadRes(copy.deepcopy(results)), "boundary", boundary_dilation_ratio=0.05
    )
    peer.evaluate()
    peer.accumulate()
    for name in ("precision", "recall"):
        np.testing.assert_allclose(getattr(ours["curves"], name), peer.eval[name], 0, 1e-12)


def test_all_metrics_at_once_are_those_of_each():
    truth, results = stored("fake100"), stored("fake100_segm")
    results = [{**one, "bbox": [1, 2, 30, 40]} for one in results]
    evaluator = COCOEvaluator(truth)
    evaluator.update(results)
    together = evaluator.compute()
    for metric in ("bbox", "segm", "boundary"):
        alone = evaluate(truth, results, metric)
        assert together[metric] == {name: alone[name] for name in together[metric]}


def test_id_zero_counts_like_any_other():
    """pycocotools takes a match with annotation 0 for none."""
    truth, results = random_dataset(3, unknown_category=False)
    expected = evaluate(truth, results, "segm")
    for one in truth["annotations"]:
        one["id"] -= 1
    assert_same_numbers(evaluate(truth, results, "segm"), expected)


def test_other_limits_and_thresholds():
    truth, results = stored("fake100"), stored("fake100_segm")
    ours = evaluate(truth, results, "segm", max_dets=(5, 50), iou_thresholds=(0.3, 0.5))
    assert list(ours)[:8] == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR5", "AR50"]
    peer = pycocotools(
        truth, results, "segm", maxDets=[5, 50], iouThrs=np.array([0.3, 0.5]), useCats=1
    )
    assert_same_curves(ours, peer)
    assert ours["AP75"] == -1
    assert ours["AP50"] == pytest.approx(EXPECTED["fake100"]["fakesegm100"]["segm"]["AP50"])


def test_some_images():
    truth, results = stored("fake100"), stored("fake100_segm")
    chosen = [image["id"] for image in truth["images"]][::3]
    ours = evaluate(truth, results, "segm", image_ids=chosen)
    assert_same_curves(ours, pycocotools(truth, without_boxes(results), "segm", imgIds=chosen))
    with pytest.raises(ValueError, match="image_ids: the ground truth has no image 5"):
        COCOEvaluator(truth, image_ids=[5])


def test_no_results_give_zero_and_reset_forgets():
    truth, results = random_dataset(1, unknown_category=False)
    evaluator = COCOEvaluator(truth, "segm")
    assert evaluator.compute()["segm"]["AP"] == 0
    evaluator.update(results)
    full = evaluator.compute()["segm"]
    assert full["AP"] > 0
    evaluator.reset()
    assert evaluator.compute()["segm"]["AP"] == 0
    evaluator.update([])
    assert evaluator.compute()["segm"]["AR100"] == 0


def test_no_ground_truth_gives_minus_one():
    evaluator = COCOEvaluator({"images": [], "annotations": [], "categories": []})
    assert set(evaluator.compute()["segm"].values()) == {-1.0}


def test_missing_iscrowd_is_zero():
    truth, results = random_dataset(5, unknown_category=False)
    for one in truth["annotations"]:
        one["iscrowd"] = 0
    expected = evaluate(truth, results, "segm")
    for one in truth["annotations"]:
        del one["iscrowd"]
    assert_same_numbers(evaluate(truth, results, "segm"), expected)


# ---- forms of results ----------------------------------------------------------------------------


def test_files_dicts_and_parts_are_the_same(tmp_path):
    truth, results = stored("fake100"), stored("fake100_segm")
    expected = evaluate(truth, results, "segm")
    (tmp_path / "truth.json").write_text(json.dumps(truth, indent=1))
    (tmp_path / "results.json").write_text(json.dumps(results))
    from_files = evaluate(tmp_path / "truth.json", str(tmp_path / "results.json"), "segm")
    assert_same_numbers(from_files, expected)
    evaluator = COCOEvaluator(COCO(truth), "segm")
    images = sorted({one["image_id"] for one in results}, reverse=True)
    for part in (images[:7], images[7:]):
        evaluator.update([one for one in results if one["image_id"] in part])
    assert_same_numbers(evaluator.compute()["segm"], {name: expected[name] for name in NAMES})
    loaded = COCO(truth).loadRes(results)
    assert_same_numbers(evaluate(truth, loaded, "segm"), expected)


def test_results_with_values_of_numpy_and_torch():
    truth, results = stored("balloon"), stored("balloon_results")
    odd = [
        {
            "image_id": np.int64(one["image_id"]),
            "category_id": torch.tensor(one["category_id"]),
            "score": np.float64(one["score"]),
            "bbox": np.array(one["bbox"]),
            "segmentation": {
                "size": np.array(one["segmentation"]["size"]),
                "counts": one["segmentation"]["counts"].encode(),
            },
        }
        for one in results
    ]
    for metric in ("bbox", "segm"):
        assert_same_numbers(evaluate(truth, odd, metric), evaluate(truth, results, metric))


@pytest.mark.parametrize("labels_are_ids", [True, False])
def test_instances(labels_are_ids):
    truth, results = stored("fake100"), stored("fake100_segm")
    sizes = {one["id"]: (one["height"], one["width"]) for one in truth["images"]}
    ids = sorted(one["id"] for one in truth["categories"])
    images = {}
    for image_id, size in sizes.items():
        found = [one for one in results if one["image_id"] == image_id]
        labels = [one["category_id"] for one in found]
        if not labels_are_ids:
            labels = [ids.index(label) for label in labels]
        images[image_id] = Instances(
            boxes=torch.zeros(len(found), 4),
            scores=torch.tensor([one["score"] for one in found], dtype=torch.float64),
            labels=torch.tensor(labels, dtype=torch.int64),
            rles=[one["segmentation"] for one in found],
            image_size=size,
        )
    options = {} if labels_are_ids else {"category_ids": ids}
    assert_same_numbers(
        evaluate(truth, images, "segm", **options), evaluate(truth, results, "segm")
    )


def test_labels_without_category_are_refused():
    truth, _ = random_dataset(1)
    image = truth["images"][0]
    size = (image["height"], image["width"])
    rle = {"size": size, "counts": b""}
    one = Instances(torch.zeros(1, 4), torch.ones(1), torch.tensor([4]), [rle], size)
    with pytest.raises(ValueError, match=rf"image {image['id']}: labels must be from 0 to 1"):
        COCOEvaluator(truth, "segm", category_ids=[1, 3]).update({image["id"]: one})


@pytest.mark.parametrize("form", ["pixels", "packed", "rles"])
def test_masks_of_an_image_in_any_form(form):
    truth, results = stored("fake100"), stored("fake100_segm")
    chosen = [image["id"] for image in truth["images"]][:9]
    evaluator = COCOEvaluator(truth, ("bbox", "segm"), image_ids=chosen)
    for image in chosen:
        found = [one for one in results if one["image_id"] == image]
        rles = [one["segmentation"] for one in found]
        masks = {"rles": rles}
        if form != "rles":
            pixels = ops.rle_decode(rles)
            masks = {"masks": pixels if form == "pixels" else ops.pack_masks(pixels)}
        scores = [one["score"] for one in found]
        labels = torch.tensor([one["category_id"] for one in found])
        evaluator.update({image: {"scores": scores, "labels": labels, **masks}})
    computed = evaluator.compute()
    for metric in ("bbox", "segm"):
        expected = evaluate(truth, results, metric, image_ids=chosen)
        assert computed[metric] == {name: expected[name] for name in NAMES}
    with pytest.raises(
        ValueError, match=rf"image {image}: scores must be {len(found)} as the masks"
    ):
        evaluator.update({image: {"scores": scores[1:], "labels": labels, **masks}})


@UNKNOWN_CATEGORIES
def test_text_for_image_ids(tmp_path):
    truth, results = random_dataset(1)
    for entries, key in (
        (truth["images"], "id"),
        (truth["annotations"], "image_id"),
        (results, "image_id"),
    ):
        for one in entries:
            one[key] = f"image {one[key]}"
    ours = evaluate(truth, results, "segm")
    assert ours["AP"] > 0
    assert_same_curves(ours, pycocotools(truth, without_boxes(results), "segm"))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "results.json").write_text(json.dumps(results))
    from_files = evaluate(tmp_path / "truth.json", tmp_path / "results.json", "segm")
    assert_same_numbers(from_files, ours)
    with pytest.raises(ValueError, match=r"image 'unknown'.* is of an image that the ground truth"):
        COCOEvaluator(truth, "segm").update([{**results[0], "image_id": 3}])


# ---- several processes ---------------------------------------------------------------------------


def _evaluate_part(rank: int, address: str, found) -> None:
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    truth, results = stored("fake100"), stored("fake100_segm")
    images = [one["id"] for one in truth["images"]]
    mine = images[:40] if rank == 0 else images[37:]  # three of them come twice
    evaluator = COCOEvaluator(truth, ("segm", "boundary"))
    for image in mine:
        evaluator.update([one for one in results if one["image_id"] == image])
    found[rank] = evaluator.compute()
    torch.distributed.destroy_process_group()


def test_merges_across_processes(tmp_path):
    with torch.multiprocessing.Manager() as manager:
        found = manager.list([None, None])
        address = f"file://{tmp_path}/rendezvous"
        torch.multiprocessing.spawn(_evaluate_part, (address, found), nprocs=2)
        first, second = found
    assert first == second
    for metric in ("segm", "boundary"):
        assert_same_numbers(
            first[metric], evaluate(stored("fake100"), stored("fake100_segm"), metric)
        )


def test_cpu_variants(run_on_cpu_variant):
    run_on_cpu_variant("evaluation/test_coco.py", "stored_numbers or random_datasets")
