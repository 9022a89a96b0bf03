"""Masks at one bit a pixel, with their areas and bounding boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of

RLE = dict[str, Any]  # {"size": [height, width], "counts": bytes | str | list[int]}

WORD_PIXELS = 64

LIBRARY.define("pack_masks(Tensor masks, float? threshold) -> (Tensor, Tensor, Tensor)")
LIBRARY.define("unpack_masks(Tensor words, SymInt width) -> Tensor")


@dataclass(frozen=True, eq=False)
class PackedMasks:
    """N masks of one size at one bit a pixel; made by `pack_masks`.

    Indexing with a slice or an index tensor gives `PackedMasks` again.

    Args:
        words: [N, H, ceil(W / 64)] int64: bit b of word i of a row is column 64 * i + b; bits past
            the width are 0.
        areas: [N] int64 pixels inside.
        boxes: [N, 4] int64 x0, y0, x1, y1 around them in pixels, with x1 and y1 exclusive; zeros
            for an empty mask.
        width: W.
    """

    words: Tensor
    areas: Tensor
    boxes: Tensor
    width: int

    @property
    def height(self) -> int:
        return self.words.shape[1]

    @property
    def device(self) -> torch.device:
        return self.words.device

    def __len__(self) -> int:
        return self.words.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> PackedMasks:
        return PackedMasks(self.words[index], self.areas[index], self.boxes[index], self.width)

    def to(self, device: torch.device | str) -> PackedMasks:
        fields = (self.words, self.areas, self.boxes)
        words, areas, boxes = (tensor.to(device) for tensor in fields)
        return PackedMasks(words, areas, boxes, self.width)


def pack_masks(masks: Any, threshold: float | None = None) -> PackedMasks:
    """Packs masks to one bit a pixel and finds their areas and bounding boxes, in one pass.

    Args:
        masks: [N, H, W], any strides; rows or columns should be contiguous, others are slower. Bool
            or any integer type: a pixel that is not 0 is inside. Or float32/float64/float16/
            bfloat16 logits or probabilities, with a threshold. A torch tensor, or on the CPU a
            NumPy array or anything with `__dlpack__`. Also a list of COCO RLEs of one size, which
            are packed on the CPU without pixels in between.
        threshold: of floating masks, for which it is required: a pixel is inside when its value is
            above the threshold (which takes the masks' type, as in `masks > threshold`); NaN is
            outside.

    Returns:
        The masks as `PackedMasks`, on their device.

    Raises:
        TypeError: masks are of another type, floating without a threshold, or not floating with
            one.
        ValueError: masks have another number of dimensions, the threshold is NaN, or RLEs are
            malformed or of several sizes.
    """
    if isinstance(masks, (list, tuple)):
        _check_threshold("RLEs", False, threshold)
        return _pack_rles(masks)
    if isinstance(masks, np.ndarray):
        _check_threshold(str(masks.dtype), masks.dtype.kind == "f", threshold)
        _check_shape(masks.shape)
        words, areas, boxes = empty_packed(masks.shape, torch.device("cpu"))
        _C.pack_masks(masks, words, areas, boxes, threshold or 0.0)
        return PackedMasks(words, areas, boxes, masks.shape[2])
    if not isinstance(masks, Tensor):
        if not hasattr(masks, "__dlpack__"):
            raise TypeError(f"masks must be a tensor or a list of RLEs, got {type(masks).__name__}")
        masks = torch.from_dlpack(masks)
    _check_threshold(str(masks.dtype), masks.is_floating_point(), threshold)
    _check_shape(masks.shape)
    words, areas, boxes = torch.ops.fastseg.pack_masks(masks.detach(), threshold)
    return PackedMasks(words, areas, boxes, masks.shape[2])


def unpack_masks(packed: PackedMasks) -> Tensor:
    """Unpacks masks to one byte a pixel.

    Args:
        packed: N masks.

    Returns:
        [N, H, W] bool on the masks' device.
    """
    return torch.ops.fastseg.unpack_masks(packed.words, packed.width)


def empty_packed(shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the words, areas and boxes of `PackedMasks` of masks [N, H, W]."""
    count, height, width = shape
    row_words = (width + WORD_PIXELS - 1) // WORD_PIXELS
    words = torch.empty((count, height, row_words), dtype=torch.int64, device=device)
    areas = torch.empty(count, dtype=torch.int64, device=device)
    return words, areas, torch.empty((count, 4), dtype=torch.int64, device=device)


def _check_threshold(dtype: str, floating: bool, threshold: float | None) -> None:
    if floating and threshold is None:
        raise TypeError(f"threshold is required for floating masks, got masks of {dtype}")
    if not floating and threshold is not None:
        raise TypeError(f"threshold is for floating masks alone, got {threshold} for {dtype}")
    if threshold is not None and math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan")


def _check_shape(shape: Sequence[int]) -> None:
    if len(shape) != 3:
        raise ValueError(f"masks must have shape [N, H, W], got {tuple(shape)}")


def _pack_rles(rles: Sequence[RLE]) -> PackedMasks:
    height, width, toggles, offsets = _C.rle_parse(rles)
    outputs = empty_packed((len(offsets) - 1, height, width), torch.device("cpu"))
    _C.pack_runs(toggles, offsets, width, *outputs)
    return PackedMasks(*outputs, width)


@torch.library.impl(LIBRARY, "pack_masks", "CPU")
@torch.library.impl(LIBRARY, "pack_masks", "CUDA")
def _pack_masks(masks: Tensor, threshold: float | None) -> tuple[Tensor, Tensor, Tensor]:
    outputs = empty_packed(masks.shape, masks.device)
    # Older versions of torch export no bool.
    pixels = masks.view(torch.uint8) if masks.dtype == torch.bool else masks
    _C.pack_masks(pixels, *outputs, threshold or 0.0, stream_of(masks))
    return outputs


@torch.library.register_fake("fastseg::pack_masks")
def _pack_masks_fake(masks: Tensor, threshold: float | None) -> tuple[Tensor, Tensor, Tensor]:
    return empty_packed(masks.shape, masks.device)


@torch.library.impl(LIBRARY, "unpack_masks", "CPU")
@torch.library.impl(LIBRARY, "unpack_masks", "CUDA")
def _unpack_masks(words: Tensor, width: int) -> Tensor:
    masks = _empty_masks(words, width)
    _C.unpack_masks(words.contiguous(), masks.view(torch.uint8), stream_of(words))
    return masks


@torch.library.register_fake("fastseg::unpack_masks")
def _empty_masks(words: Tensor, width: int) -> Tensor:
    return words.new_empty((words.shape[0], words.shape[1], width), dtype=torch.bool)
