"""SOLOv2 against stored results of mmdetection and the original repository.

FASTSEG_GOLDEN=FOLDER: also against the complete results that the stored ones are a part of, with
weights, in its folders solov2_mmdet and solov2_official.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from pycocotools import mask as coco_mask
from safetensors.torch import load_file
from solov2_golden import META, NUM_CLASSES, PADDED, TENSORS, predictions

from fastseg import Instances, load_model
from fastseg.backbones import resnet18
from fastseg.checkpoints import mmdetection_solo
from fastseg.checkpoints.keys import renamed
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.solov2_head import MaskFeatureHead, SOLOv2Head
from fastseg.losses import InstanceTargets, SOLOLoss
from fastseg.losses.solo import LIGHT_SCALE_RANGES
from fastseg.models import SOLO, ImageBatch

full = pytest.mark.skipif(
    "FASTSEG_GOLDEN" not in os.environ,
    reason="FASTSEG_GOLDEN does not name a folder with solov2_mmdet and solov2_official",
)


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict]:
    folder = Path(os.environ["FASTSEG_GOLDEN"]) / name
    return load_file(folder / "fixture.safetensors"), json.loads((folder / "meta.json").read_text())


def weights() -> dict[str, torch.Tensor]:
    tensors, _ = golden("solov2_mmdet")
    return {
        key.removeprefix("weights/"): tensor
        for key, tensor in tensors.items()
        if key.startswith("weights/")
    }


def images(pixels: torch.Tensor) -> ImageBatch:
    originals = [tuple(size) for size in META["original_sizes"]]
    return ImageBatch(pixels, torch.tensor(META["sizes"]), originals)


def assert_same_instances(
    ours: Instances, scores: torch.Tensor, labels: torch.Tensor, counts: list[str]
) -> None:
    assert ours.labels.tolist() == labels.tolist()
    torch.testing.assert_close(ours.scores, scores, rtol=0, atol=1e-5)
    masks = coco_mask.decode(ours.rles)
    expected = coco_mask.decode([{"size": ours.image_size, "counts": text} for text in counts])
    assert (masks != expected).mean() <= 1e-4


@pytest.mark.parametrize("name", ["out", "alt_out"])
def test_from_predictions_to_instances(name):
    options = {} if name == "out" else META["alt_test_cfg"]
    body = resnet18()
    model = SOLO(
        backbone=BackboneWithFPN(
            body=body, fpn=FeaturePyramidNetwork(in_channels=body.out_channels, out_channels=64)
        ),
        head=SOLOv2Head(
            in_channels=64,
            num_classes=NUM_CLASSES,
            channels=64,
            mask_features=MaskFeatureHead(in_channels=64, channels=64, out_channels=64),
        ),
        **options,
    )
    with torch.inference_mode():
        results = model.postprocess(model.detect(predictions()), images(torch.zeros(2, 3, *PADDED)))
    assert [len(one) for one in results] == ([79, 89] if name == "out" else [30, 30])
    for image, ours in enumerate(results):
        scores, labels = (TENSORS[f"{name}.{image}.{key}"] for key in ("scores", "labels"))
        assert_same_instances(ours, scores, labels, META[name][image])


@full
def test_whole_model():
    tensors, meta = golden("solov2_mmdet")
    model = load_model(weights(), image_mean=(0, 0, 0))
    batch = images(tensors["in/batch"])
    with torch.inference_mode():
        stages = model.backbone.body(batch.pixels)
        pyramid = model.backbone.fpn(stages)
        found = model.predict_grids(batch.pixels)
        results = model.postprocess(model(batch.pixels, batch.sizes), batch)
    pairs = [(f"mid/backbone.{i}", stages[i]) for i in range(4)]
    pairs += [(f"mid/fpn.{i}", pyramid[i]) for i in range(1, 5)]
    pairs += [(f"mid/kernel_pred.{i}", found.kernels[i]) for i in range(5)]
    pairs += [(f"mid/cls_logit.{i}", found.class_logits[i]) for i in range(5)]
    pairs += [
        ("mid/mask_feat", found.mask_features),
        ("mid/fpn.0@every4thchannel", pyramid[0][:, ::4]),
    ]
    for name, x in pairs:
        torch.testing.assert_close(x, tensors[name], rtol=0, atol=1e-4)
    for image, ours in enumerate(results):
        counts = [rle["counts"] for rle in meta["expected"]["results"][image]["masks"]]
        scores, labels = (tensors[f"out/{image}.{key}"] for key in ("scores", "labels"))
        assert_same_instances(ours, scores, labels, counts)


@full
def test_names_of_the_original_repository():
    _, meta = golden("solov2_official")
    names = meta["config"] if "key_map_mmdet_to_official" not in meta else meta
    official = {names["key_map_mmdet_to_official"][key]: value for key, value in weights().items()}
    expected = load_model(weights()).state_dict()
    loaded = load_model(official).state_dict()
    assert loaded.keys() == expected.keys()
    for key, tensor in loaded.items():
        assert torch.equal(tensor, expected[key]), key


@full
@pytest.mark.parametrize("empty", [False, True])
def test_losses_and_gradients_of_the_whole_model(empty):
    from solov2_golden import truth

    tensors, meta = golden("solov2_mmdet")
    model = load_model(weights()).train()
    targets = [truth(image) for image in range(2)]
    if empty:
        targets = [InstanceTargets(one.boxes[:0], one.labels[:0], one.masks[:0]) for one in targets]
    losses = SOLOLoss(scale_ranges=LIGHT_SCALE_RANGES, dice_normalizer="cells")(
        model.head, model.predict_grids(tensors["in/batch"]), targets, PADDED
    )
    losses.total.backward()
    prefix = "train/empty_" if empty else "train/"
    torch.testing.assert_close(losses.classes, tensors[prefix + "loss_cls"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.masks, tensors[prefix + "loss_mask"], rtol=1e-5, atol=0)
    norms = meta["expected"]["empty_grad_norm" if empty else "grad_norm"]
    norms = renamed(
        {key: torch.tensor(value) for key, value in norms.items() if value is not None},
        mmdetection_solo.RULES,
    )
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, norm in norms.items():
        torch.testing.assert_close(gradients[name].norm(), norm.float(), rtol=1e-3, atol=1e-6)
