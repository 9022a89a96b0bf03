"""LVISEvaluator against stored numbers and the package `lvis`."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from peers import DATA, random_dataset, stored, without_boxes

from fastseg.evaluation import LVISEvaluator

EXPECTED = json.loads((DATA / "expected.json").read_text())["lvis"]


def evaluate(truth, results, metric, **options):
    evaluator = LVISEvaluator(truth, metric, **options)
    evaluator.update(results)
    return evaluator.compute(per_category=True, curves=True)[metric]


def lvis_peer(truth, results, metric, max_dets=300):
    np.float = float  # which lvis 0.5.3 uses, and NumPy has no more
    lvis = pytest.importorskip("lvis")
    dataset = lvis.LVIS.__new__(lvis.LVIS)
    lvis.LVIS.__init__.__globals__["logging"].getLogger("lvis").setLevel("ERROR")
    dataset.logger = lvis.LVIS.__init__.__globals__["logging"].getLogger("lvis")
    dataset.dataset = copy.deepcopy(truth)
    dataset._create_index()
    detections = lvis.LVISResults(dataset, copy.deepcopy(results), max_dets)
    evaluation = lvis.LVISEval(dataset, detections, metric)
    evaluation.params.max_dets = max_dets
    evaluation.run()
    return evaluation


@pytest.mark.parametrize("metric", ["bbox", "segm"])
def test_stored_numbers(metric):
    ours = evaluate(stored("lvis"), stored("lvis_results"), metric, detection_area="box")
    for name, value in EXPECTED[metric].items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


def test_numbers_by_the_area_of_masks():
    truth, results = stored("lvis"), stored("lvis_results")
    ours = evaluate(truth, results, "segm")
    alone = evaluate(truth, without_boxes(results), "segm", detection_area="box")
    np.testing.assert_array_equal(ours["curves"].precision, alone["curves"].precision)
    assert ours["APs"] != pytest.approx(EXPECTED["segm"]["APs"], abs=1e-6)


def random_lvis(seed):
    truth, results = random_dataset(seed, polygons=True)
    rng = np.random.default_rng(seed)
    ids = [one["id"] for one in truth["categories"]]
    for image in truth["images"]:
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[key] = [one for one in ids if rng.random() < 0.4]
    for category in truth["categories"]:
        category["frequency"] = "rcf"[rng.integers(3)]
    for one in truth["annotations"]:
        one["iscrowd"] = 0
        one["ignore"] = int(rng.random() < 0.1)
    return truth, results


@pytest.mark.filterwarnings("ignore:.*results are left out", "ignore:The 'warn' method")
@pytest.mark.parametrize("seed", range(25))
def test_random_datasets_as_lvis(seed):
    truth, results = random_lvis(seed)
    metric = ("segm", "bbox")[seed % 2]
    max_dets = (300, 3)[seed // 2 % 2]
    ours = evaluate(truth, results, metric, max_dets=max_dets, detection_area="box")
    peer = lvis_peer(truth, results, metric, max_dets)
    np.testing.assert_array_equal(ours["curves"].precision[..., 0], peer.eval["precision"])
    np.testing.assert_array_equal(ours["curves"].recall[..., 0], peer.eval["recall"])
    for name, value in peer.get_results().items():
        assert ours[name] == value, name


def test_parts_of_the_federated_ground_truth_are_needed():
    truth, _ = random_lvis(0)
    broken = copy.deepcopy(truth)
    del broken["images"][0]["neg_category_ids"]
    with pytest.raises(ValueError, match=rf"image {broken['images'][0]['id']} has no list of neg"):
        LVISEvaluator(broken)
    broken = copy.deepcopy(truth)
    broken["categories"][0]["frequency"] = "x"
    with pytest.raises(ValueError, match="category 3 must have a frequency of r, c or f, got 'x'"):
        LVISEvaluator(broken)
    with pytest.raises(ValueError, match="max_dets must be at least 1, got 0"):
        LVISEvaluator(truth, max_dets=0)
    with pytest.raises(ValueError, match="dilation_ratio must be in"):
        LVISEvaluator(truth, dilation_ratio=2)
