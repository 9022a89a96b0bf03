"""Mask2Former and MaskFormer against transformers' with the same random weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastseg import load_model
from fastseg.layers.mask_classification import MaskPredictions
from fastseg.models import Mask2Former

transformers = pytest.importorskip("transformers", reason="the peer that is compared with")

SWIN = {
    "model_type": "swin",
    "embed_dim": 16,
    "depths": [2, 2, 3, 2],
    "num_heads": [2, 2, 4, 4],
    "window_size": 5,
    "drop_path_rate": 0.0,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
SMALL = {
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "encoder_feedforward_dim": 96,
    "dim_feedforward": 80,
    "encoder_layers": 3,
    "decoder_layers": 6,
    "num_attention_heads": 4,
    "num_queries": 20,
    "num_labels": 7,
}


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights as after training: offsets and attention that depend on the input, masks with
    opinions, and normalisations that do something.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            module.weight.copy_(0.7 + 0.6 * torch.rand_like(module.weight))
            module.bias.normal_(std=0.1)
        if name.endswith(("sampling_offsets", "attention_weights")):
            module.weight.normal_(std=0.1)
        if name.endswith("class_predictor"):
            module.weight.normal_(std=0.3)
        if isinstance(module, nn.Linear) and "mask_embedder" in name:
            module.weight.normal_(std=(1.5 / module.in_features) ** 0.5)
        if isinstance(module, nn.Embedding):
            module.weight.normal_(std=1.0)


def peer_mask2former(**config: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.Mask2FormerConfig(use_auxiliary_loss=True, **config)
    peer = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    randomise(peer)
    return peer


@torch.inference_mode()
def peer_layers(peer: nn.Module, pixels: Tensor) -> list[MaskPredictions]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peer(pixels, output_auxiliary_logits=True)
    layers = [
        MaskPredictions(one["class_queries_logits"], one["masks_queries_logits"])
        for one in found.auxiliary_logits
    ]
    return [*layers, MaskPredictions(found.class_queries_logits, found.masks_queries_logits)]


def assert_layers_agree(model: Mask2Former, peer: nn.Module, pixels: Tensor) -> None:
    expected = peer_layers(peer, pixels)
    with torch.inference_mode():
        layers = model.predict_layers(pixels)
        last = model(pixels, torch.tensor([pixels.shape[2:]] * len(pixels)))
    assert len(layers) == len(expected)
    for ours, theirs in zip([*layers, last], [*expected, expected[-1]], strict=True):
        torch.testing.assert_close(ours.class_logits, theirs.class_logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.mask_logits, theirs.mask_logits, rtol=0, atol=1e-3)
    assert 0.05 < (last.mask_logits > 0).float().mean() < 0.95
    assert last.class_logits.std() > 0.3


def test_every_layer_of_a_small_mask2former():
    peer = peer_mask2former(backbone_config=SWIN, **SMALL)
    model = load_model(peer.state_dict(), num_heads=4)
    assert_layers_agree(model, peer, torch.randn(2, 3, 96, 160))


@pytest.mark.slow
def test_every_layer_of_mask2former_swin_t():
    swin_t = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
    peer = peer_mask2former(backbone_config={**SWIN, **swin_t, "window_size": 7})
    model = load_model(peer.state_dict())
    assert_layers_agree(model, peer, torch.randn(1, 3, 256, 320))
