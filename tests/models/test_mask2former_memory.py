"""Memory of a whole inference: tensors that are alive at the same time, by their bytes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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


class LiveTensors(TorchDispatchMode):
    """Adds up the storages of ops' outputs that live, but for the known ones.

    What an op allocates inside and frees before it returns is not seen.

    Args:
        known: tensors whose storages do not count.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.tensors: dict[int, tuple[int, list[weakref.ref]]] = {}
        self.peak = 0
        self.largest = 0

    def __torch_dispatch__(
        self, op: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        outputs = op(*args, **(kwargs or {}))
        for x in tree_leaves(outputs):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.known:
                storage = x.untyped_storage()
                _, views = self.tensors.get(storage.data_ptr(), (0, []))
                self.tensors[storage.data_ptr()] = (storage.nbytes(), [*views, weakref.ref(x)])
                self.largest = max(self.largest, storage.nbytes())
        self.tensors = {
            address: (size, views)
            for address, (size, views) in self.tensors.items()
            if any(view() is not None for view in views)
        }
        self.peak = max(self.peak, sum(size for size, _ in self.tensors.values()))
        return outputs


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
