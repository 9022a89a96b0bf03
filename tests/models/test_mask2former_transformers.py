"""Mask2Former and MaskFormer against transformers' with the same random weights."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastseg import load_model
from fastseg.layers.mask_classification import MaskPredictions
from fastseg.models import Mask2Former, MaskFormer

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
        # What the README promises.
        torch.testing.assert_close(ours.class_logits, theirs.class_logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.mask_logits, theirs.mask_logits, rtol=0, atol=1e-3)
    assert 0.05 < (last.mask_logits > 0).float().mean() < 0.95
    assert last.class_logits.std() > 0.3


def test_every_layer_of_a_small_mask2former():
    peer = peer_mask2former(backbone_config=SWIN, **SMALL)
    model = load_model(peer.state_dict(), num_heads=4)
    assert_layers_agree(model, peer, torch.randn(2, 3, 96, 160))


def test_every_layer_of_mask2former_swin_t():
    swin_t = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
    peer = peer_mask2former(backbone_config={**SWIN, **swin_t, "window_size": 7})
    model = load_model(peer.state_dict())
    pixels = torch.randn(1, 3, 256, 320)
    with torch.backends.mkldnn.flags(enabled=False):
        # Sums in the peer's order: a logit of 1e-5 would be on the other side of 0, and the pixel
        # in another mask, with a difference of 1e-3 in all later layers.
        assert_layers_agree(model, peer, pixels)
    with torch.inference_mode():
        masks = model.predict_layers(pixels)[0].mask_logits
    torch.testing.assert_close(masks, peer_layers(peer, pixels)[0].mask_logits, rtol=0, atol=1e-3)


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_every_layer_of_a_small_maskformer(backbone):
    torch.manual_seed(0)
    body = transformers.SwinConfig(**{key: SWIN[key] for key in SWIN if key != "model_type"})
    if backbone == "resnet":
        body = transformers.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[16, 32, 64, 128],
            depths=[1, 2, 1, 1],
            out_features=SWIN["out_features"],
        )
    decoder = transformers.DetrConfig(
        d_model=64,
        decoder_layers=3,
        decoder_attention_heads=4,
        decoder_ffn_dim=80,
        num_queries=20,
    )
    config = transformers.MaskFormerConfig(
        backbone_config=body,
        decoder_config=decoder,
        fpn_feature_size=64,
        mask_feature_size=64,
        num_labels=7,
    )
    peer = transformers.MaskFormerForInstanceSegmentation(config).eval()
    randomise(peer)
    model = load_model(peer.state_dict(), num_heads=4)
    assert isinstance(model, MaskFormer)
    queries = []  # which the peer drops but for the last layer's
    inner = peer.model.transformer_module.decoder
    for layer in inner.layers:
        layer.register_forward_hook(
            lambda _, inputs, output: queries.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
    pixels = torch.randn(2, 3, 96, 160)
    with torch.inference_mode():
        expected = peer(pixels)
        features = peer.model.pixel_level_module(pixels).decoder_last_hidden_state
        layers = model.predict_layers(pixels)
        assert len(layers) == len(queries) == 3
        for ours, x in zip(layers, queries, strict=True):
            x = inner.layernorm(x)
            masks = torch.einsum("bqc,bchw->bqhw", peer.mask_embedder(x), features)
            classes = peer.class_predictor(x)
            # What the README promises; measured are 1e-6 and 2e-5.
            torch.testing.assert_close(ours.class_logits, classes, rtol=0, atol=1e-4)
            torch.testing.assert_close(ours.mask_logits, masks, rtol=0, atol=1e-3)
    assert torch.equal(masks, expected.masks_queries_logits)
    assert 0.05 < (masks > 0).float().mean() < 0.95
