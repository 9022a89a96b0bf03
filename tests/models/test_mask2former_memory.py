"""Memory of a whole inference: tensors that are alive at the same time, by their bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from live_tensors import LiveTensors
from torch import Tensor, nn

from fastseg.models import ImageBatch, mask2former_swin_t

SIZE = 192
SWIN_T = {
    "model_type": "swin",
    "embed_dim": 96,
    "depths": [2, 2, 6, 2],
    "num_heads": [3, 6, 12, 24],
    "window_size": 7,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}


def memory(model: nn.Module, run: Callable[[], Any], pixels: Tensor) -> LiveTensors:
    with torch.no_grad(), LiveTensors([*model.parameters(), *model.buffers(), pixels]) as live:
        run()
    return live


def test_a_whole_inference_takes_less_than_half_of_transformers():
    transformers = pytest.importorskip("transformers", reason="the peer that is compared with")
    pixels = torch.rand(1, 3, SIZE, SIZE)
    model = mask2former_swin_t()
    batch = ImageBatch(pixels, torch.tensor([[SIZE, SIZE]]), [(SIZE, SIZE)])
    ours = memory(
        model, lambda: model.postprocess(model(pixels, batch.sizes), batch, "instance"), pixels
    )
    config = transformers.Mask2FormerConfig(backbone_config=SWIN_T, num_labels=80)
    peer = transformers.Mask2FormerForUniversalSegmentation(config).eval()
    theirs = memory(peer, lambda: peer(pixels), pixels)  # without its post-processing
    assert ours.peak < 0.5 * theirs.peak
    masks = 100 * SIZE * SIZE * 4
    assert ours.largest < masks / 4  # nothing near the size of all masks of the image
