"""COCO run-length encoding as its definition reads. Source: COCO's mask format (`maskApi`)."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch import Tensor

RLE = dict[str, Any]


def rle_encode(masks: Any) -> Any:
    """See `fastseg.ops.rle_encode`."""
    masks = torch.as_tensor(masks)
    if masks.is_floating_point():
        raise TypeError(f"masks must be boolean or integer, got {masks.dtype}")
    if masks.dim() == 2:
        height, width = masks.shape
        return {"size": [height, width], "counts": counts_to_text(runs(masks))}
    return [rle_encode(mask) for mask in masks]


def rle_decode(rles: list[RLE] | RLE, device: torch.device | str | None = None) -> Tensor:
    """See `fastseg.ops.rle_decode`."""
    if not isinstance(rles, dict):
        masks = [rle_decode(rle, device) for rle in rles]
        return torch.stack(masks) if masks else torch.empty(0, 0, 0, dtype=torch.bool)
    height, width = rles["size"]
    counts = rles["counts"]
    if isinstance(counts, (bytes, str)):
        counts = text_to_counts(counts)
    if sum(counts) != height * width:
        raise ValueError(f"counts sum to {sum(counts)}, size is {height} x {width}")
    pixels = [index % 2 == 1 for index, count in enumerate(counts) for _ in range(count)]
    return torch.tensor(pixels, dtype=torch.bool, device=device).reshape(width, height).T


def runs(mask: Tensor) -> list[int]:
    """Lengths of the runs of 0, 1, 0, 1, ... in column-major order; the first may be 0."""
    pixels = (mask != 0).T.flatten().tolist()
    counts = [len(list(run)) for _, run in groupby(pixels)]
    return [0, *counts] if not pixels or pixels[0] else counts


def counts_to_text(counts: list[int]) -> bytes:
    """From the fourth run on, what is written is the difference to the run two before.

    A number is cut into groups of 5 bits, lowest first, until the rest is all copies of the last
    group's sign bit (16); 32 marks that more follow, and '0' is 0.
    """
    text = bytearray()
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group = number & 31
            number >>= 5
            more = number != (-1 if group & 16 else 0)
            text.append((group | 32 if more else group) + ord("0"))
    return bytes(text)


def text_to_counts(text: bytes | str) -> list[int]:
    """The inverse of `counts_to_text`."""
    counts: list[int] = []
    number = shift = 0
    for byte in text.encode() if isinstance(text, str) else text:
        group = byte - ord("0")
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        counts.append(number + counts[-2] if len(counts) > 2 else number)
        number = shift = 0
    return counts
