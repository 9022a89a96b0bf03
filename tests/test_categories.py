"""Classes of well-known data sets: against the packages and files that know them too."""

import ast
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from fastseg import categories
from fastseg.categories import DATA_SETS
from fastseg.checkpoints.coco_classes import COCO_CATEGORY_NAMES, COCO_CLASS_NAMES
from fastseg.evaluation.cityscapes import CITYSCAPES_CLASSES

PANOPTIC = Path(__file__).parent / "data/panoptic/ground_truth.json"


@pytest.mark.parametrize("data_set", DATA_SETS, ids=len)
def test_names_and_ids_are_complete_and_unique(data_set):
    count = len(data_set)
    assert len(set(data_set.names)) == len(data_set.ids) == len(set(data_set.ids)) == count
    assert list(data_set.ids) == sorted(data_set.ids)
    assert list(data_set.things) == sorted(set(data_set.things))
    assert set(data_set.things) <= set(range(count))
    assert all(name == name.strip() and name for name in data_set.names)
    assert categories.by_count(count) is data_set
    assert categories.by_names(list(data_set.names)) is data_set


def test_unknown_counts_and_names():
    assert categories.by_count(7) is None
    assert categories.by_names(None) is None
    assert categories.by_names(("person", "bicycle")) is None


def test_coco_is_that_of_the_annotation_files():
    known = {
        (category, name, int(label in categories.COCO_PANOPTIC.things))
        for label, (category, name) in enumerate(
            zip(categories.COCO_PANOPTIC.ids, categories.COCO_PANOPTIC.names, strict=True)
        )
    }
    listed = json.loads(PANOPTIC.read_text())["categories"]
    assert listed and {(one["id"], one["name"], one["isthing"]) for one in listed} <= known
    assert [len(one) for one in (categories.COCO, categories.COCO_PANOPTIC)] == [80, 133]
    assert categories.COCO_PANOPTIC.things == tuple(range(80))
    assert COCO_CLASS_NAMES.index("toothbrush") == 90 and len(COCO_CLASS_NAMES) == 91
    assert COCO_CLASS_NAMES[12] == "N/A" and COCO_CLASS_NAMES[0] == "background"
    assert tuple(name for name in COCO_CLASS_NAMES[1:] if name != "N/A") == COCO_CATEGORY_NAMES


def test_torchvision_has_the_same_names():
    models = pytest.importorskip("torchvision.models.detection")
    weights = models.MaskRCNN_ResNet50_FPN_Weights.COCO_V1
    assert list(COCO_CLASS_NAMES[1:]) == weights.meta["categories"][1:]


def test_mmdetection_has_the_same_names():
    spec = find_spec("mmdet")
    if spec is None:
        pytest.skip("mmdetection is not installed")
    folder = Path(spec.origin).parent / "datasets"
    assert string_tuples(folder / "coco_panoptic.py")[0] == categories.COCO_PANOPTIC.names
    of_ade20k = string_tuples(folder / "ade20k.py")
    things_first = [name.split(",")[0] for name in of_ade20k[0]]
    assert categories.ADE20K_INSTANCES.names == tuple(things_first[:100])
    assert set(categories.ADE20K.names) == set(things_first)
    in_order = next(one for one in of_ade20k if one[0] == "wall" and len(one) == 150)
    same = [ours == theirs for ours, theirs in zip(categories.ADE20K.names, in_order, strict=True)]
    assert sum(same) > 135, "but for a few synonyms"


def string_tuples(path):
    """All tuples of 100 strings or more that stand in a source file."""
    found = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Tuple)]
    texts = [
        tuple(part.value for part in node.elts if isinstance(part, ast.Constant)) for node in found
    ]
    return [one for one in texts if len(one) >= 100 and isinstance(one[0], str)]


def test_cityscapes_is_that_of_its_scripts():
    helpers = pytest.importorskip("cityscapesscripts.helpers.labels")
    labels = sorted(
        (one for one in helpers.labels if 0 <= one.trainId < 255), key=lambda one: one.trainId
    )
    assert tuple(one.name for one in labels) == categories.CITYSCAPES.names
    assert tuple(one.id for one in labels) == categories.CITYSCAPES.ids
    things = tuple(n for n, one in enumerate(labels) if one.hasInstances)
    assert things == categories.CITYSCAPES.things
    assert categories.CITYSCAPES_INSTANCES.ids == tuple(CITYSCAPES_CLASSES)
