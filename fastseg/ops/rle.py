"""COCO run-length encoding of masks, and its inverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import stream_of

RLE = dict[str, Any]  # {"size": [height, width], "counts": bytes | str | list[int]}

_ROWS_PER_WORD = 32
_DLPACK_CUDA = (2, 13)  # device memory, managed memory


def rle_encode(masks: Any) -> Any:
    """Encodes masks as COCO run lengths, byte for byte as pycocotools does.

    Source: COCO's mask format: runs in column-major order, zeros first, in a variable-length code.

    Args:
        masks: [N, H, W] or [H, W] bool or any integer type; a pixel that is not 0 is inside. A
            torch tensor, a NumPy array or anything with `__dlpack__`, on the CPU or CUDA, with any
            strides: row-major and column-major masks are both read without a copy.

    Returns:
        N dicts `{"size": [H, W], "counts": bytes}`, or one for [H, W]. Masks on CUDA are encoded
        there; what comes to the host is 4 bytes a run.

    Raises:
        TypeError: masks are floating point (threshold them first) or no array.
        ValueError: masks have another number of dimensions, or 2^32 pixels or more each.
    """
    if not isinstance(masks, Tensor):
        device_of = getattr(masks, "__dlpack_device__", None)
        if device_of is None or int(device_of()[0]) not in _DLPACK_CUDA:
            return _C.rle_encode(masks)
        masks = torch.from_dlpack(masks)
    if masks.dtype == torch.bool:
        masks = masks.view(torch.uint8)  # older versions of torch export no bool
    return _encode_on_device(masks) if masks.is_cuda else _C.rle_encode(masks)


def rle_decode(rles: Sequence[RLE] | RLE, device: torch.device | str | None = None) -> Tensor:
    """Decodes COCO run lengths.

    Source: COCO's mask format, see `rle_encode`.

    Args:
        rles: N dicts `{"size": [H, W], "counts": ...}` of one size, or one dict. Counts may be the
            compressed string (bytes or str) or a list of ints. Runs of length 0 are allowed.
        device: where the masks go; the default is the CPU.

    Returns:
        [N, H, W] bool, or [H, W] for one dict; [0, 0, 0] for an empty list.

    Raises:
        ValueError: a string is malformed, counts do not sum to H * W, sizes differ, or a size has
            2^32 pixels or more; the message names the entry.
        TypeError: an entry is no dict, or its counts are of another type.
    """
    single = isinstance(rles, dict)
    height, width, toggles, offsets = _C.rle_parse([rles] if single else rles)
    shape = (len(offsets) - 1, height, width)
    if device is None or torch.device(device).type == "cpu":
        # NumPy's memory: it asks for huge pages, without which page faults cost more than decoding.
        pixels = np.empty(shape, dtype=np.bool_)
        _C.rle_fill(toggles, offsets, pixels)
        masks = torch.from_numpy(pixels)
    else:
        masks = torch.empty(shape, dtype=torch.bool, device=device)
        # The toggles' bits: torch has few operations on uint32.
        positions = torch.from_numpy(toggles.view(np.int32)).to(masks.device)
        mask_offsets = torch.from_numpy(offsets).to(masks.device)
        _C.rle_fill(positions, mask_offsets, masks.view(torch.uint8), stream_of(masks))
    return masks[0] if single else masks


def _encode_on_device(masks: Tensor) -> Any:
    """The CUDA path: 1 bit a pixel, then the positions of changes, then strings on the host."""
    if masks.is_floating_point() or masks.dim() not in (2, 3) or masks.numel() == 0:
        return _C.rle_encode(masks.cpu())  # an error or nothing to do: the CPU knows both
    if masks.dim() == 2:
        return _encode_on_device(masks[None])[0]
    count, height, width = masks.shape
    stream = stream_of(masks)
    chunks = -(-height // _ROWS_PER_WORD)
    words = torch.empty((count, chunks, width), dtype=torch.int32, device=masks.device)
    changes = torch.zeros((count, width), dtype=torch.int32, device=masks.device)
    _C.rle_mark(masks, words, changes, stream)
    return strings_from_changes(
        changes, height, lambda ends, toggles: _C.rle_emit(words, ends, toggles, height, stream)
    )


def strings_from_changes(
    changes: Tensor, height: int, emit: Callable[[Tensor, Tensor], None]
) -> list[RLE]:
    """RLEs of masks on CUDA, from how often each column changes and a kernel that tells where.

    Args:
        changes: [N, W] int32, N and W at least 1: the changes along each column.
        height: H of the masks.
        emit: emit(column_ends, toggles) writes the positions of all changes to toggles [sum] int32;
            column_ends [N * W] int64 is the cumulative sum of the changes.
    """
    width = changes.shape[1]
    column_ends = changes.flatten().cumsum(0)
    ends = column_ends[width - 1 :: width].cpu()
    toggles = torch.empty(int(ends[-1]), dtype=torch.int32, device=changes.device)
    emit(column_ends, toggles)
    return _C.rle_encode_toggles(toggles.cpu(), ends, height, width)
