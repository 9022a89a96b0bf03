"""Mask2Former, ResNet-50, against mmdetection's with the same random weights."""

from __future__ import annotations

import warnings

import mmdetection_peer
import pytest
import torch
from made_up_images import images
from pycocotools import mask as coco_mask
from torch import nn

from fastseg import load_model

mmdetection_peer.import_mmdet()


@pytest.fixture(scope="module")
def case():
    """A peer, ours with its weights, and a batch of unlike images of odd sizes."""
    peer = mmdetection_peer.mmdet_model("mask2former/mask2former_r50_8xb2-lsj-50e_coco", 1)
    with torch.no_grad():
        for name, module in peer.panoptic_head.named_modules():
            if name.endswith(("sampling_offsets", "attention_weights")):
                module.weight.normal_(std=0.05)
            if name == "cls_embed":
                module.weight.normal_(std=0.2)
            if name.startswith("mask_embed.") and isinstance(module, nn.Linear):
                module.weight.normal_(std=(1.5 / module.in_features) ** 0.5)
    model = load_model(peer.state_dict(), min_size=128, max_size=224)
    return peer, model, model.preprocess(images((101, 150), (163, 131)))


def test_every_layer(case):
    peer, model, batch = case
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classes, masks = peer.panoptic_head(peer.extract_feat(batch.pixels), [None] * 2)
        layers = model.predict_layers(batch.pixels)
    assert len(layers) == len(classes) == 10
    for layer, class_logits, mask_logits in zip(layers, classes, masks, strict=True):
        # What the README promises.
        torch.testing.assert_close(layer.class_logits, class_logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(layer.mask_logits, mask_logits, rtol=0, atol=1e-3)
    assert 0.05 < (layers[-1].mask_logits > 0).float().mean() < 0.95


def test_instances(case):
    peer, model, batch = case
    with torch.inference_mode():
        results = model.postprocess(model(batch.pixels, batch.sizes), batch, "instance")
    expected = mmdetection_peer.mmdet_results(
        peer, batch.pixels, [tuple(size) for size in batch.sizes.tolist()], batch.original_sizes
    )
    for ours, theirs in zip(results, expected, strict=True):
        assert len(ours) == 100
        order = theirs["scores"].argsort(descending=True, stable=True)
        # One pixel more or less is much of the mean over a small mask.
        torch.testing.assert_close(ours.scores, theirs["scores"][order], rtol=0, atol=1e-4)
        same = ours.labels == theirs["labels"][order]
        assert same.float().mean() > 0.9  # near scores may change places
        masks = torch.from_numpy(coco_mask.decode(ours.rles)).permute(2, 0, 1).bool()
        differs = (masks != theirs["masks"][order])[same].float().mean((1, 2))
        assert (differs <= 1e-4).float().mean() > 0.95
