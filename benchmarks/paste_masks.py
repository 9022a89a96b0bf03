"""Pasting of instance masks into the image against torchvision's and detectron2's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.agreement import equal
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, proposals

Paste = Callable[[], Tensor]


def cases(setting: Setting) -> Iterator[Case]:
    """100 and 300 masks of 28x28 in 1080x1920, to probabilities, booleans and run lengths."""
    size = (72, 128) if setting.quick else (1080, 1920)
    for count in (5,) if setting.quick else (100, 300):
        masks, boxes = _instances(count, *size, setting)
        for output in ("rle", "bool", "prob"):
            if output == "rle" or count <= 100:
                yield _case(masks, boxes, size, output)


def _instances(count: int, height: int, width: int, setting: Setting) -> tuple[Tensor, Tensor]:
    """Masks [N, 1, 28, 28] that look like a mask head's: smooth, mostly 1 inside and 0 outside."""
    random = generator()
    coarse = torch.randn(count, 1, 7, 7, generator=random) + 1
    coarse = torch.nn.functional.pad(coarse[..., 1:-1, 1:-1], (1, 1, 1, 1), value=-3)
    logits = torch.nn.functional.interpolate(coarse, (28, 28), mode="bicubic")
    masks = torch.sigmoid(3 * logits).to(setting.device, setting.dtype)
    return masks, proposals(count, height, width, random).to(setting.device)


def _case(masks: Tensor, boxes: Tensor, size: tuple[int, int], output: str) -> Case:
    pixels = len(masks) * size[0] * size[1]
    # Run lengths never exist as pixels: only the masks must be read.
    written = {"rle": 0, "bool": 1, "prob": 4}[output] * pixels
    return Case(
        name=f"paste {len(masks)} masks in {size[0]}x{size[1]} to {output}",
        providers={
            "fastseg": lambda: _fastseg(masks, boxes, size, output),
            "torchvision": lambda: _peer(_torchvision(masks, boxes, size), output),
        },
        bytes_moved=masks.numel() * masks.element_size() + written,
        agreement=equal,
    )


def _fastseg(masks: Tensor, boxes: Tensor, size: tuple[int, int], output: Any) -> Run:
    from fastseg import ops

    return lambda: ops.paste_masks(masks, boxes, size, output=output)


def _torchvision(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Paste:
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    return lambda: paste_masks_in_image(masks.float(), boxes, size)[:, 0]


def _peer(paste: Paste, output: str) -> Run:
    """What one does with a peer's pasted probabilities: threshold, copy to the host, encode."""
    if output == "prob":
        return paste
    if output == "bool":
        return lambda: paste() > 0.5

    from pycocotools import mask

    def encode() -> list[dict[str, Any]]:
        pixels = (paste() > 0.5).cpu().numpy()
        return [mask.encode(np.asfortranarray(one)) for one in pixels]

    return encode
