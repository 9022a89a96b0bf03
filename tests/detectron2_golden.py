"""Stored results of detectron2's Mask R-CNN, and the weights and images that they are of.

`data/detectron2_mask_rcnn.json` was made by detectron2's own Python code (commit 02b5c4e, without
its compiled operators) in double precision. Per model it has the names and shapes of the tensors;
these are drawn from a seed, and some are then scaled by a stored factor or replaced by stored
numbers, with which scores and boxes spread as a trained network's do.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "detectron2_mask_rcnn.json").read_text()
)


def images(sizes: list[tuple[int, int]]) -> list[Tensor]:
    """Squares of one colour: uint8 [3, h, w] of these (height, width)s, red first."""
    generator = torch.Generator().manual_seed(1)
    colours = [torch.randint(0, 256, (3, 13, 13), generator=generator) for _ in sizes]
    return [
        one.repeat_interleave(14, 1).repeat_interleave(14, 2)[:, :height, :width].to(torch.uint8)
        for one, (height, width) in zip(colours, sizes, strict=True)
    ]


def seeded(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Tensors of these names and shapes, in single precision.

    They are drawn evenly: equal on every machine, which normally distributed numbers are not.
    """
    generator = torch.Generator().manual_seed(2)
    tensors = {}
    for name, shape in sorted(shapes.items()):
        drawn = torch.rand(shape, generator=generator)
        if name.endswith(("norm.weight", "running_var")):
            tensors[name] = (0.5 + drawn) * (0.2 if "conv3.norm" in name else 1.0)
        elif len(shape) < 2:
            tensors[name] = 0.2 * (drawn - 0.5)
        else:
            tensors[name] = (2 * drawn - 1) * (6 / drawn[0].numel()) ** 0.5
    return tensors


def weights(golden: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of one of the stored models under detectron2's names."""
    tensors = seeded(golden["shapes"])
    for name, factor in golden["factors"].items():
        tensors[name] = tensors[name] * factor
    return tensors | {name: torch.tensor(values) for name, values in golden["biases"].items()}
