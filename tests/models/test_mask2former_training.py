"""Training: gradients of the whole Mask2Former, and steps that teach the models something.

FASTSEG_GOLDEN=FOLDER: gradients against the complete stored ones of Mask2Former's repository, with
weights, in its folder mask2former_official.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import mask2former_training as golden
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fastseg import load_model
from fastseg.backbones import resnet18
from fastseg.checkpoints import detectron2_resnet, original_mask2former
from fastseg.checkpoints.keys import renamed
from fastseg.layers.base_pixel_decoder import BasePixelDecoder
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.masked_attention_decoder import MaskedAttentionDecoder
from fastseg.layers.pixel_decoder import MSDeformAttnPixelDecoder
from fastseg.layers.solov2_head import MaskFeatureHead, SOLOv2Head
from fastseg.layers.transformer_decoder import TransformerDecoder
from fastseg.losses import InstanceTargets, Mask2FormerLoss, MaskFormerLoss, SOLOLoss
from fastseg.losses.solo import LIGHT_SCALE_RANGES
from fastseg.models import SOLO, Mask2Former, MaskFormer

pytest.importorskip("scipy", reason="it solves the assignment")


def small_model() -> Mask2Former:
    backbone = resnet18()
    widths = {"channels": 32, "mask_channels": 32, "num_heads": 4}
    return Mask2Former(
        backbone=backbone,
        pixel_decoder=MSDeformAttnPixelDecoder(
            in_channels=backbone.out_channels, num_layers=1, ffn_channels=64, **widths
        ),
        decoder=MaskedAttentionDecoder(
            num_classes=3, num_queries=8, in_channels=32, num_layers=3, ffn_channels=64, **widths
        ),
    )


def image_with_two_instances() -> tuple[Tensor, InstanceTargets]:
    """A red square and a green disk."""
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    square = (x > 6) & (x < 26) & (y > 12) & (y < 40)
    disk = (x - 44) ** 2 + (y - 40) ** 2 < 196
    masks = torch.stack([square, disk])
    pixels = torch.randn(1, 3, 64, 64) / 10
    pixels[0, 0] += 2 * square
    pixels[0, 1] += 2 * disk
    return pixels, InstanceTargets(torch.zeros(2, 4), torch.tensor([0, 2]), masks)


def train(steps: int) -> tuple[Mask2Former, list[Tensor]]:
    """A model after some steps on the image, and the loss before each of them."""
    torch.manual_seed(0)
    model = small_model().train()
    pixels, targets = image_with_two_instances()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = Mask2FormerLoss(num_points=300)
    totals = []
    for _ in range(steps):
        losses = loss(model.predict_layers(pixels), [targets], (64, 64))
        optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(losses.total.detach())
    return model, totals


def test_learns_an_image() -> None:
    """In 45 steps two queries find the instances, and the others "no object"."""
    model, totals = train(45)
    assert totals[-1] < totals[0] / 5
    pixels, targets = image_with_two_instances()
    with torch.no_grad():
        found = model.eval()(pixels, torch.tensor([[64, 64]]))
    labels = found.class_logits[0].argmax(1)
    assert sorted(labels.tolist()) == [0, 2, 3, 3, 3, 3, 3, 3]
    masks = F.interpolate(found.mask_logits, (64, 64), mode="bilinear")[0] > 0
    for label, truth in zip(targets.labels, targets.masks, strict=True):
        (mask,) = masks[labels == label]
        assert (mask & truth).sum() / (mask | truth).sum() > 0.85


def maskformer() -> MaskFormer:
    backbone = resnet18()
    widths = {"channels": 32, "mask_channels": 32}
    return MaskFormer(
        backbone=backbone,
        pixel_decoder=BasePixelDecoder(in_channels=backbone.out_channels, **widths),
        decoder=TransformerDecoder(
            in_channels=backbone.out_channels[-1],
            num_classes=3,
            num_queries=8,
            num_heads=4,
            num_layers=2,
            ffn_channels=64,
            **widths,
        ),
    )


def solov2() -> SOLO:
    body = resnet18()
    fpn = FeaturePyramidNetwork(in_channels=body.out_channels, out_channels=32)
    features = MaskFeatureHead(in_channels=32, channels=32, out_channels=32)
    head = SOLOv2Head(
        in_channels=32,
        num_classes=3,
        channels=32,
        conv_layers=(torch.nn.Conv2d,) * 2,
        mask_features=features,
    )
    return SOLO(backbone=BackboneWithFPN(body=body, fpn=fpn), head=head)


@pytest.mark.parametrize(
    ("kind", "rate"), [("mask2former", 1e-3), ("maskformer", 1e-3), ("solov2", 1e-3)]
)
def test_steps_as_documented(kind: str, rate: float) -> None:
    """From images of two sizes, with instances and without, to a loss that falls."""
    torch.manual_seed(0)
    model = {"mask2former": small_model, "maskformer": maskformer, "solov2": solov2}[kind]()
    model.transform = replace(model.transform, min_size=64, max_size=96)
    model.train()
    pixels, truth = image_with_two_instances()
    images = [pixels[0].sigmoid(), torch.rand(3, 50, 70)]
    nothing = InstanceTargets(torch.zeros(0, 4), truth.labels[:0], torch.zeros(0, 50, 70).bool())
    truth = replace(truth, boxes=torch.tensor([[7.0, 13, 26, 40], [30, 26, 58, 54]]))

    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    totals = []
    for _ in range(6):
        batch = model.preprocess(images)
        padded = (batch.pixels.shape[2], batch.pixels.shape[3])
        targets = [
            one.resized(own)
            for one, own in zip([truth, nothing], batch.sizes.tolist(), strict=True)
        ]
        if kind == "solov2":
            loss = SOLOLoss(scale_ranges=LIGHT_SCALE_RANGES)
            found = loss(model.head, model.predict_grids(batch.pixels), targets, padded)
            total = found.classes + found.masks
        else:
            loss = Mask2FormerLoss() if kind == "mask2former" else MaskFormerLoss()
            total = loss(model.predict_layers(batch.pixels), targets, padded).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


def test_same_seed_same_training() -> None:
    runs = [torch.stack(train(3)[1]) for _ in range(2)]
    assert torch.equal(*runs)
    assert len(runs[0].unique()) == 3


@pytest.mark.parametrize("instances", [0, 2])
def test_every_parameter_gets_a_gradient_under_autocast(instances: int) -> None:
    """Also without instances: parameters without gradient would stop distributed training."""
    model = small_model().train()
    pixels, targets = image_with_two_instances()
    few = InstanceTargets(targets.boxes, targets.labels[:instances], targets.masks[:instances])
    with torch.autocast("cpu", torch.bfloat16):
        losses = Mask2FormerLoss(num_points=100)(model.predict_layers(pixels), [few], (64, 64))
    losses.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.skipif(
    "FASTSEG_GOLDEN" not in os.environ,
    reason="FASTSEG_GOLDEN does not name a folder with mask2former_official",
)
def test_stored_gradients_of_the_original() -> None:
    """Of all parameters the norm, of some the gradient itself."""
    folder = Path(os.environ["FASTSEG_GOLDEN"]) / "mask2former_official"
    tensors = load_file(folder / "fixture.safetensors")
    norms = json.loads((folder / "meta.json").read_text())["expected"]["grad_norm"]

    def stored(prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }

    model = load_model(stored("weights/"), min_size=155, max_size=1000).train()
    pixels = torch.zeros(2, 3, *golden.PADDED)
    for i, (height, width) in enumerate(golden.SIZES):
        image = tensors[f"in/img{i}"].permute(2, 0, 1) / 255
        pixels[i, :, :height, :width] = model.transform.normalize(image)
    losses = Mask2FormerLoss(num_points=golden.NUM_POINTS)(
        model.predict_layers(pixels),
        golden.targets(),
        golden.PADDED,
        rand=golden.replay(golden.random_numbers(tensors)),
    )
    torch.testing.assert_close(losses.total, tensors["train/total"])
    losses.total.backward()

    grads = {name: x.grad for name, x in model.named_parameters() if x.grad is not None}
    rules = (*original_mask2former.RULES, *detectron2_resnet.RULES)
    expected_norms = {name: torch.tensor(norm) for name, norm in norms.items()}
    expected_norms = renamed(expected_norms, rules)
    assert expected_norms.keys() == grads.keys()
    for name, norm in expected_norms.items():
        assert grads[name].norm().item() == pytest.approx(norm.item(), rel=1e-3), name
    for name, expected in renamed(stored("grad/"), rules).items():
        assert (grads[name] - expected).abs().max() <= 2e-3 * expected.abs().max(), name
