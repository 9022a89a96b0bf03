"""Mask2Former against stored results of the original repository.

FASTSEG_GOLDEN=FOLDER: also against the complete results that the stored ones are a part of, with
weights, in its folder mask2former_official.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from mask2former_golden import (
    EVERY,
    META,
    NUM_LAYERS,
    TENSORS,
    attended,
    batch,
    decoder,
    inputs,
    predictions,
    unpacked,
)
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from torch import Tensor

from fastseg import Instances, PanopticSegmentation, load_model
from fastseg.backbones import resnet18
from fastseg.layers.masked_attention_decoder import MaskedAttentionDecoder, resized
from fastseg.layers.pixel_decoder import MSDeformAttnPixelDecoder
from fastseg.models import ImageBatch, Mask2Former

full = pytest.mark.skipif(
    "FASTSEG_GOLDEN" not in os.environ,
    reason="FASTSEG_GOLDEN does not name a folder with mask2former_official",
)


def model(**options) -> Mask2Former:
    """For the post-processing alone: of another width than the predictions' model."""
    body = resnet18()
    return Mask2Former(
        backbone=body,
        pixel_decoder=MSDeformAttnPixelDecoder(in_channels=body.out_channels, num_layers=1),
        decoder=MaskedAttentionDecoder(num_classes=7, num_layers=1),
        thing_classes=META["things"],
        **options,
    )


def assert_same_instances(ours: Instances, scores: Tensor, labels: Tensor, counts: list) -> None:
    """All are there, in whatever order: that of equal scores, and the peer's, is free."""
    expected = [{"size": list(ours.image_size), "counts": text} for text in counts]
    order = scores.argsort(descending=True)
    torch.testing.assert_close(ours.scores, scores[order], rtol=0, atol=1e-5)
    masks = coco_mask.decode(ours.rles)
    left = list(range(len(ours)))
    for i in order.tolist():
        mask = coco_mask.decode(expected[i])
        twin = next(
            j
            for j in left
            if ours.labels[j] == labels[i]
            and abs(ours.scores[j] - scores[i]) <= 1e-5
            and (masks[:, :, j] != mask).mean() <= 1e-4
        )
        left.remove(twin)
    assert left == []


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * expected.abs().max().item())


@torch.inference_mode()
def test_every_layer_of_the_decoder():
    ours = decoder()
    layers = ours.predict_layers(*inputs())
    assert len(layers) == NUM_LAYERS + 1
    for i, layer in enumerate(layers):
        expected = TENSORS[f"layers.{i}.mask_logits"]
        masks = layer.mask_logits if i == NUM_LAYERS else layer.mask_logits.flatten()[::EVERY]
        assert_close(masks, expected)
        assert_close(layer.class_logits, TENSORS[f"layers.{i}.class_logits"])


@torch.inference_mode()
def test_attention_masks():
    ours = decoder()
    levels, mask_features = inputs()
    queries = ours.decode(levels, mask_features)
    reset = 0
    for i in range(NUM_LAYERS):
        features = resized(mask_features, levels[i % 3].shape[2:])
        pixels = features.shape[2] * features.shape[3]
        mask = attended(ours.attention_mask(queries[i], features)[0], pixels)
        empty = ~mask.any(1)
        reset += int(empty.sum())
        assert torch.equal(mask | empty[:, None], ~unpacked(TENSORS[f"blocked.{i}"], pixels))
    assert reset > 5


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_instances(task):
    prefix = "out.inst_all" if task == "instance" else "out.inst"
    counts = META["instances" if task == "instance" else "things_instances"]
    (found,) = model(task=task).postprocess(predictions(), batch(), "instance")
    scores, labels = TENSORS[f"{prefix}_scores"], TENSORS[f"{prefix}_classes"]
    assert len(scores) == (100 if task == "instance" else 49)
    assert_same_instances(found, scores, labels, counts)


def assert_same_segments(
    found: PanopticSegmentation, ids: Tensor, segments: list[dict], limit: float = 0.0
) -> None:
    assert (found.ids != ids).float().mean() <= limit
    assert found.ids.shape == ids.shape
    ours = [
        {"id": one.id, "isthing": one.is_thing, "category_id": one.label} for one in found.segments
    ]
    assert ours == segments


def test_panoptic_segments():
    (found,) = model().postprocess(predictions(), batch(), "panoptic")
    ids = torch.zeros(META["original_size"], dtype=torch.int32)
    for number, counts in META["panoptic"].items():
        mask = coco_mask.decode({"size": META["original_size"], "counts": counts})
        ids[torch.from_numpy(mask) > 0] = int(number)
    assert_same_segments(found, ids, META["segments"])
    assert (ids == 0).any() and len(found) == 2


def test_semantic_map():
    (found,) = model(task="panoptic").postprocess(predictions(), batch(), "semantic")
    labels = torch.full(META["original_size"], -1, dtype=torch.int32)
    for label, counts in META["semantic"].items():
        mask = coco_mask.decode({"size": META["original_size"], "counts": counts})
        labels[torch.from_numpy(mask) > 0] = int(label)
    assert len(labels.unique()) == 2 and (labels >= 0).all()
    assert (found.labels != labels).float().mean() <= 1e-4


def golden() -> tuple[dict[str, Tensor], dict]:
    folder = Path(os.environ["FASTSEG_GOLDEN"]) / "mask2former_official"
    return load_file(folder / "fixture.safetensors"), json.loads((folder / "meta.json").read_text())


@full
def test_whole_model():
    tensors, meta = golden()
    weights = {
        key.removeprefix("weights/"): tensor
        for key, tensor in tensors.items()
        if key.startswith("weights/")
    }
    ours = load_model(weights, thing_classes=meta["things"], min_size=155, max_size=1000)
    images = [tensors[f"in/img{i}"].permute(2, 0, 1) / 255 for i in range(2)]
    pixels = torch.zeros(2, 3, 160, 192)
    for target, image in zip(pixels, images, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = ours.transform.normalize(image)
    with torch.inference_mode():
        stages = ours.backbone(pixels)
        levels, mask_features = ours.pixel_decoder(stages)
        layers = ours.decoder.predict_layers(levels, mask_features)
    pairs = [("in/tensor@flat::9", pixels)]
    pairs += [
        (f"mid/backbone.res{i + 2}{every}", stages[i])
        for i, every in enumerate(("@flat::5", "@flat::3", "", ""))
    ]
    pairs += [(f"mid/multi_scale.{i}", level) for i, level in enumerate(levels)]
    pairs += [("mid/mask_features", mask_features)]
    for name, layer in zip([*(f"aux{i}." for i in range(4)), ""], layers, strict=True):
        pairs += [(f"mid/{name}pred_logits", layer.class_logits)]
        pairs += [(f"mid/{name}pred_masks", layer.mask_logits)]
    for name, x in pairs:
        every = int(name.rpartition("::")[2]) if "::" in name else 1
        assert_close(x.flatten()[::every], tensors[name].flatten())

    sizes = torch.tensor([image.shape[1:] for image in images])
    originals = [tuple(tensors[f"in/out_size{i}"].tolist()) for i in range(2)]
    batch = ImageBatch(pixels, sizes, originals)
    for task, prefix in (("instance", "inst_all"), ("panoptic", "inst")):
        ours.task = task
        for i, found in enumerate(ours.postprocess(layers[-1], batch, "instance")):
            scores, labels = (tensors[f"out/{i}.{prefix}_{name}"] for name in ("scores", "classes"))
            counts = [rle["counts"] for rle in meta["expected"]["results"][i][f"{prefix}_masks"]]
            assert_same_instances(found, scores, labels, counts)
    for i, found in enumerate(ours.postprocess(layers[-1], batch, "panoptic")):
        segments = meta["expected"]["results"][i]["segments_info"]
        assert_same_segments(found, tensors[f"out/{i}.panoptic_seg"], segments, 1e-4)
    for i, found in enumerate(ours.postprocess(layers[-1], batch, "semantic")):
        assert (found.labels != tensors[f"out/{i}.sem_seg_argmax"]).float().mean() <= 1e-4
