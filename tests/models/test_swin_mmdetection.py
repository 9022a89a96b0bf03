"""Swin against mmdetection's, whose patch merging has its inputs in another order."""

from __future__ import annotations

import mmdetection_peer
import pytest
import torch

from fastseg.checkpoints import load_swin

mmdetection_peer.import_mmdet()


@pytest.mark.parametrize(
    ("window_size", "size"), [(7, (224, 192)), (7, (97, 131)), (4, (30, 50)), (12, (65, 6))]
)
@torch.no_grad()
def test_stages_equal_mmdetection(window_size, size):
    from mmdet.models.backbones import SwinTransformer

    peer = SwinTransformer(
        embed_dims=16,
        depths=(2, 2, 4, 2),
        num_heads=(1, 2, 4, 8),
        window_size=window_size,
        out_indices=(0, 1, 2, 3),
    )
    peer.eval()
    for parameter in peer.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        else:
            parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    tensors = {f"backbone.{key}": tensor for key, tensor in peer.state_dict().items()}
    model = load_swin({"state_dict": tensors}, prefix="backbone.").eval()

    pixels = torch.randn(2, 3, *size)
    for ours, theirs in zip(model(pixels), peer(pixels), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * theirs.abs().max().item())
