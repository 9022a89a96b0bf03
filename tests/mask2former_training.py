"""Stored training results of Mask2Former's repository: two predictions for two images.

"final" is the last layer's prediction, "aux0" that of the learned queries. The points are 256 per
mask; everything comes from a small network with random weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses import InstanceTargets

FOLDER = Path(__file__).parent / "data"
# Logits and targets; "points" and matches are the final prediction's.
MATCHING = load_file(FOLDER / "mask2former_matching.safetensors")
POINTS = load_file(FOLDER / "mask2former_points.safetensors")
# Logits, "points" and matches of aux0; losses of both, weighted.
LOSSES = load_file(FOLDER / "mask2former_losses.safetensors")
SIZES = [(155, 187), (128, 150)]
PADDED = (160, 192)
NUM_POINTS = 256


def targets(tensors: dict[str, Tensor] = MATCHING, names: str = "{}{}") -> list[InstanceTargets]:
    """Of both images.

    Args:
        tensors: that hold labels and packed masks.
        names: of the tensors, for "labels" or "masks" and the image's number.
    """
    found = []
    for i, (height, width) in enumerate(SIZES):
        packed = tensors[names.format("masks", i)].numpy()
        bits = np.unpackbits(packed, axis=1, count=height * width)
        masks = torch.from_numpy(bits).view(-1, height, width).bool()
        labels = tensors[names.format("labels", i)]
        found.append(InstanceTargets(torch.zeros(len(masks), 4), labels, masks))
    return found


def predictions() -> list[MaskPredictions]:
    """aux0 and final."""
    return [MaskPredictions(one["class_logits"], one["mask_logits"]) for one in (LOSSES, MATCHING)]


def random_numbers(tensors: dict[str, Tensor]) -> list[Tensor]:
    """What the original drew, of the complete fixture's five predictions."""
    order = ["final", *(f"aux{i}" for i in range(4))]
    kinds = ("match_img0", "match_img1", "loss_oversampled", "loss_random")
    return [tensors[f"rand/{name}.{kind}"] for name in order for kind in kinds]


def replay(numbers: list[Tensor]) -> Callable[[tuple[int, ...]], Tensor]:
    """Draws what was drawn before, and no more than that."""
    left: Iterator[Tensor] = iter(numbers)

    def rand(shape: tuple[int, ...]) -> Tensor:
        drawn = next(left)
        assert drawn.shape == shape
        return drawn

    return rand
