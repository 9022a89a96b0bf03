"""Stored results of the original Mask2Former, see tests/data/mask2former/SOURCES.txt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastseg.layers.mask_classification import MaskPredictions
from fastseg.layers.masked_attention_decoder import MaskedAttentionDecoder
from fastseg.models import ImageBatch

FOLDER = Path(__file__).parent / "data" / "mask2former"
TENSORS = load_file(FOLDER / "golden.safetensors")
META = json.loads((FOLDER / "golden.json").read_text())
NUM_LAYERS = 4
EVERY = 11


def decoder() -> MaskedAttentionDecoder:
    """With the stored weights."""
    made = MaskedAttentionDecoder(
        num_classes=7,
        num_queries=24,
        in_channels=64,
        channels=64,
        mask_channels=64,
        num_heads=4,
        num_layers=NUM_LAYERS,
        ffn_channels=128,
    )
    weights = {
        key.removeprefix("weights."): tensor
        for key, tensor in TENSORS.items()
        if key.startswith("weights.")
    }
    made.load_state_dict(weights)
    return made.eval()


def inputs() -> tuple[list[Tensor], Tensor]:
    """Of the decoder: scales and mask features."""
    return [TENSORS[f"levels.{i}"] for i in range(3)], TENSORS["mask_features"]


def predictions() -> MaskPredictions:
    """Of the last layer."""
    last = f"layers.{NUM_LAYERS}."
    return MaskPredictions(TENSORS[last + "class_logits"], TENSORS[last + "mask_logits"])


def batch() -> ImageBatch:
    """The image, without its pixels, of which the predictions are."""
    pixels = torch.zeros(1, 3, *META["padded"])
    return ImageBatch(pixels, torch.tensor([META["size"]]), [tuple(META["original_size"])])


def unpacked(rows: Tensor, pixels: int) -> Tensor:
    """numpy.packbits of [N, pixels] -> bool [N, pixels]."""
    return torch.from_numpy(np.unpackbits(rows.numpy(), axis=1)[:, :pixels]).bool()


def attended(words: Tensor, pixels: int) -> Tensor:
    """Packed attention masks int64 [N, ceil(pixels / 64)] -> bool [N, pixels]."""
    bits = (words[..., None] >> torch.arange(64)) & 1
    return bits.flatten(1)[:, :pixels].bool()
