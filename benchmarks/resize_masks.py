"""From mask logits to masks of the image's size, against torch and pycocotools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.agreement import close, equal
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, object_logits

Size = tuple[int, int]
Output = Literal["rle", "bool", "packed"]
OUTPUTS: tuple[Output, ...] = ("rle", "bool", "packed")


@dataclass(frozen=True)
class Way:
    """How a model resizes its masks."""

    model: str
    cells: Size
    via: Size
    crop: Size
    size: Size
    threshold: float


WAYS = (
    Way("Mask2Former", (256, 256), (1024, 1024), (683, 1024), (800, 1200), 0.0),
    Way("SOLOv2", (200, 304), (800, 1216), (800, 1216), (480, 640), 0.5),
)
QUICK = (Way("Mask2Former", (16, 16), (64, 64), (43, 64), (80, 120), 0.0),)


def cases(setting: Setting) -> Iterator[Case]:
    """100 masks to each output, and noise (the worst case: nothing can be skipped)."""
    for way in QUICK if setting.quick else WAYS:
        masks = _objects(5 if setting.quick else 100, way, setting)
        for output in OUTPUTS:
            yield _case(way, masks, output)
        if way.threshold == 0:
            yield _scores(masks, way)
    noise = torch.randn(masks.shape, generator=generator()).to(setting.device, setting.dtype)
    yield _case(way, noise, "rle", "noise")


def _objects(count: int, way: Way, setting: Setting) -> Tensor:
    logits = object_logits(count, *way.cells, generator())
    masks = logits.sigmoid() if way.threshold > 0 else logits
    return masks.to(setting.device, setting.dtype)


def _scores(masks: Tensor, way: Way) -> Case:
    return Case(
        name=f"{way.model}'s scores of {len(masks)} objects at {way.size[0]}x{way.size[1]}",
        providers={
            "fastseg": lambda: _scores_fastseg(way, masks),
            "torch": lambda: _scores_torch(way, masks),
        },
        bytes_moved=masks.numel() * masks.element_size(),
        # The peer adds up to a million numbers in float32.
        agreement=close(rtol=1e-4),
    )


def _case(way: Way, masks: Tensor, output: Output, what: str = "objects") -> Case:
    height, width = way.size
    # Run lengths never exist as pixels: only the masks must be read.
    row_bytes = {"rle": 0, "bool": width, "packed": 8 * -(-width // 64)}[output]
    written = len(masks) * height * row_bytes
    return Case(
        name=f"{way.model}'s {len(masks)} {what} to {height}x{width} {output}",
        providers={
            "fastseg": lambda: _fastseg(way, masks, output),
            "torch": lambda: _torch(way, masks, output),
        },
        bytes_moved=masks.numel() * masks.element_size() + written,
        agreement=equal,
    )


def _fastseg(way: Way, masks: Tensor, output: Output) -> Run:
    from fastseg import ops

    options = {"threshold": way.threshold, "via": way.via, "crop": way.crop}
    if output == "packed":
        return lambda: ops.resize_masks(masks, way.size, output="packed", **options).words
    return lambda: ops.resize_masks(masks, way.size, output=output, **options)


def _torch(way: Way, masks: Tensor, output: Output) -> Run:
    def resize() -> Tensor:
        values = F.interpolate(masks[:, None].float(), way.via, mode="bilinear")
        values = values[..., : way.crop[0], : way.crop[1]]
        return F.interpolate(values, way.size, mode="bilinear")[:, 0] > way.threshold

    return {"bool": resize, "rle": _encode(resize), "packed": _pack(resize)}[output]


def _scores_fastseg(way: Way, masks: Tensor) -> Run:
    from fastseg import ops

    return lambda: ops.mask_scores(masks, way.size, via=way.via, crop=way.crop)


def _scores_torch(way: Way, masks: Tensor) -> Run:
    def run() -> Tensor:
        values = F.interpolate(masks[:, None].float(), way.via, mode="bilinear")
        values = values[..., : way.crop[0], : way.crop[1]]
        logits = F.interpolate(values, way.size, mode="bilinear").flatten(1)
        inside = (logits > 0).float()
        return (logits.sigmoid() * inside).sum(1) / (inside.sum(1) + 1e-6)

    return run


def _encode(resize: Callable[[], Tensor]) -> Run:
    from pycocotools import mask

    def run() -> list[dict[str, Any]]:
        return [mask.encode(np.asfortranarray(one)) for one in resize().cpu().numpy()]

    return run


def _pack(resize: Callable[[], Tensor]) -> Run:
    def run() -> Tensor:
        pixels = resize()
        whole_words = F.pad(pixels, (0, -pixels.shape[2] % 64)).cpu().numpy()
        bits = np.packbits(whole_words, axis=2, bitorder="little")
        return torch.from_numpy(bits.view(np.int64)).to(pixels.device)

    return run
