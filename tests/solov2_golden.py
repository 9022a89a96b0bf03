"""Stored results of mmdetection's and the original SOLOv2, see tests/data/solov2/SOURCES.txt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastseg.layers.grid_heads import NUM_GRIDS
from fastseg.layers.solov2_head import SOLOv2Predictions
from fastseg.losses import InstanceTargets

FOLDER = Path(__file__).parent / "data" / "solov2"
TENSORS = load_file(FOLDER / "golden.safetensors")
META = json.loads((FOLDER / "golden.json").read_text())
NUM_CLASSES = 7
PADDED = (160, 224)


def predictions() -> SOLOv2Predictions:
    """Of the two images; kernels that do not matter are 0."""
    channels = TENSORS["mask_features"].shape[1]
    kernels = torch.zeros(2, channels, sum(num_grid**2 for num_grid in NUM_GRIDS))
    for image in range(2):
        cells = TENSORS[f"kernels.{image}.cells"]
        kernels[image, :, cells] = TENSORS[f"kernels.{image}.rows"].T
    levels = kernels.split([num_grid**2 for num_grid in NUM_GRIDS], dim=2)
    return SOLOv2Predictions(
        class_logits=[TENSORS[f"class_logits.{level}"] for level in range(5)],
        kernels=[
            level.unflatten(2, (num_grid, num_grid))
            for level, num_grid in zip(levels, NUM_GRIDS, strict=True)
        ],
        mask_features=TENSORS["mask_features"],
    )


def truth(image: int) -> InstanceTargets:
    """True instances of one of the images."""
    height, width = META["sizes"][image]
    boxes = TENSORS[f"gt.{image}.bboxes"]
    masks = unpacked(TENSORS[f"gt.{image}.masks_packed"], height, width)
    return InstanceTargets(boxes, TENSORS[f"gt.{image}.labels"], masks)


def unpacked(rows: Tensor, height: int, width: int) -> Tensor:
    """numpy.packbits of masks [N, h * w] -> bool [N, h, w]."""
    bits = np.unpackbits(rows.numpy(), axis=1)[:, : height * width]
    return torch.from_numpy(bits).bool().unflatten(1, (height, width))
