"""Hyper-parameters of Mask2Former's and MaskFormer's checkpoints: inferred, in the file, given."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from mask2former_names import MASKFORMER_PEERS, MMDETECTION, ORIGINAL, PEERS, under_names
from mask2former_small import small_backbone, small_maskformer, small_model

from fastseg import categories, load_model, models
from fastseg.checkpoints import mask2former


@pytest.mark.parametrize(
    ("known", "task"),
    [
        (categories.COCO, "instance"),
        (categories.COCO_PANOPTIC, "panoptic"),
        (categories.ADE20K, "semantic"),
        (categories.CITYSCAPES, "semantic"),
        (None, "instance"),
    ],
)
def test_classes_and_task_by_their_number(known, task):
    model = small_model(small_backbone("swin"), num_classes=len(known or range(11)))
    load = partial(load_model, under_names(model.state_dict(), ORIGINAL))
    loaded = load()
    assert loaded.task == task
    assert loaded.class_names == (known and known.names)
    assert loaded.thing_classes == (known.things if known else tuple(range(11)))
    assert load(task="panoptic").task == "panoptic"
    changed = load(thing_classes=[1], class_names=[str(i) for i in range(len(known or range(11)))])
    assert changed.thing_classes == (1,)
    assert changed.class_names[3] == "3"


@pytest.mark.parametrize(
    "known", [categories.COCO_PANOPTIC, categories.ADE20K, categories.CITYSCAPES]
)
def test_names_tell_another_data_set(known):
    """Of as many classes; another spelling of some is the same data set."""
    model = small_model(small_backbone("swin"), num_classes=len(known))
    load = partial(load_model, model.state_dict())
    respelled = [name.upper() if label % 4 == 0 else name for label, name in enumerate(known.names)]
    loaded = load(class_names=respelled)
    assert loaded.class_names == tuple(respelled)
    assert loaded.thing_classes == known.things
    assert loaded.task != "instance"
    other = load(class_names=[f"cell {label}" for label in range(len(known))])
    assert other.thing_classes == tuple(range(len(known)))
    assert other.task == "instance"


@pytest.mark.parametrize("keys", [("classes", "thing_classes"), ("CLASSES", "THING_CLASSES")])
def test_things_of_mmdetection(keys):
    """A panoptic data set says which of its classes are things; SOLO has no use for it."""
    names, things = keys
    meta = {"dataset_meta": {names: ("cat", "sky", "dog"), things: ["cat", "dog"]}}
    state_dict = under_names(small_model(small_backbone("resnet")).state_dict(), MMDETECTION)
    loaded = load_model({"meta": meta, "state_dict": state_dict})
    assert loaded.class_names == ("cat", "sky", "dog")
    assert loaded.thing_classes == (0, 2)
    assert loaded.task == "panoptic"
    assert load_model({"meta": meta, "state_dict": state_dict}, task="semantic").task == "semantic"
    with torch.device("meta"):
        solo = models.solov2_light_resnet18_fpn(num_classes=3)
    zeros = {key: torch.zeros(tensor.shape) for key, tensor in solo.state_dict().items()}
    solo = load_model({"meta": meta, "state_dict": zeros})
    assert solo.class_names == ("cat", "sky", "dog")


@pytest.mark.parametrize("network", [small_model, small_maskformer])
def test_mmsegmentation_is_semantic(network):
    """Whatever the number of classes and their names, which it calls as mmdetection does."""
    peers = PEERS if network is small_model else MASKFORMER_PEERS
    state_dict = under_names(
        network(small_backbone("resnet")).state_dict(), peers["mmsegmentation"]
    )
    assert load_model(state_dict).task == "semantic"
    meta = {"dataset_meta": {"classes": ("road", "water", "field"), "palette": [[0, 0, 0]] * 3}}
    loaded = load_model({"meta": meta, "state_dict": state_dict})
    assert (loaded.task, loaded.class_names) == ("semantic", ("road", "water", "field"))
    assert load_model(state_dict, task="panoptic").task == "panoptic"


@pytest.mark.parametrize(
    ("num_classes", "options", "sizes"),
    [
        (133, {}, (800, 1333)),
        (19, {}, (1024, 2048)),
        (150, {}, (512, 2048)),
        (150, {"task": "panoptic"}, (640, 2560)),
        (150, {"max_size": 999}, (512, 999)),
        (150, {"class_names": [f"cell {label}" for label in range(150)]}, (800, 1333)),
    ],
)
def test_size_of_images_by_the_data_set(num_classes, options, sizes):
    model = small_model(small_backbone("swin"), num_classes=num_classes)
    transform = load_model(under_names(model.state_dict(), ORIGINAL), **options).transform
    assert (transform.min_size, transform.max_size) == sizes


def test_size_of_images_on_a_large_backbone():
    """The data set's semantic models on Swin-B and -L have larger images."""
    for name, expected in (("t", (512, 2048)), ("b", (640, 2560))):
        with torch.device("meta"):
            model = getattr(models, f"mask2former_swin_{name}")(num_classes=150)
        found = mask2former.defaults(model.state_dict())
        assert (found["min_size"], found["max_size"]) == expected


@pytest.mark.parametrize("peer", MASKFORMER_PEERS)
def test_threshold_of_maskformer(peer):
    """mmdetection changed the original's."""
    model = small_maskformer(small_backbone("resnet"))
    loaded = load_model(under_names(model.state_dict(), MASKFORMER_PEERS[peer]))
    assert loaded.object_mask_threshold == (0.8 if "mmdet" in peer else 0.7)
    assert load_model(model.state_dict(), object_mask_threshold=0.5).object_mask_threshold == 0.5
    assert small_model(small_backbone("resnet")).object_mask_threshold == 0.8


def test_training_goes_on_with_stochastic_depth():
    loaded = load_model(small_model(small_backbone("swin")).state_dict())
    with torch.device("meta"):
        built = models.mask2former_swin_t()
    for model in (loaded, built):
        last_block = model.backbone.layers[3].blocks[-1]
        assert last_block.drop_path.rate == 0.3


def test_every_hyper_parameter_arrives():
    loaded = load_model(
        small_model(small_backbone("resnet")).state_dict(),
        task="semantic",
        min_size=64,
        max_size=90,
        size_divisible=64,
        top_k=7,
        object_mask_threshold=0.7,
        overlap_threshold=0.6,
        stride_in_1x1=True,
        batch_norm_eps=0.5,
        image_mean=(0.1, 0.2, 0.3),
        image_std=(0.4, 0.5, 0.6),
    )
    transform = loaded.transform
    assert (transform.min_size, transform.max_size, transform.size_divisible) == (64, 90, 64)
    assert (transform.image_mean, transform.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (loaded.task, loaded.top_k) == ("semantic", 7)
    assert (loaded.object_mask_threshold, loaded.overlap_threshold) == (0.7, 0.6)
    assert loaded.backbone.layer2[0].conv1.stride == (2, 2)
    assert loaded.backbone.bn1.eps == 0.5
