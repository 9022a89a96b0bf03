"""COCO run-length encoding of masks, and its inverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import stream_of
from fastseg.ops.pack_masks import PackedMasks

RLE = dict[str, Any]  # {"size": [height, width], "counts": bytes | str | list[int]}

# Writes the positions of changes, given where those of each column end; see `rles_of_changes`.
Emit = Callable[[Tensor, Tensor], None]

_ROWS_PER_WORD = 32
_USUAL_CHANGES = 2  # of a column
_USUAL_BYTES = 1024  # of a mask's string
_DLPACK_CUDA = (2, 13)  # device memory, managed memory


@dataclass(frozen=True, eq=False)
class PaddedRles:
    """Run lengths of N masks of one size in memory of a fixed size; made by `rle_encode_padded`.

    Args:
        data: uint8, in one piece so that one copy brings all to the host: the bytes of `ends`, then
            `text`.
        count: N.
        height: of the masks in pixels.
        width: of the masks in pixels.
        max_changes: the changes of value that there is room for.
    """

    data: Tensor
    count: int
    height: int
    width: int
    max_changes: int

    @property
    def ends(self) -> Tensor:
        """[N + 1] int64: where each mask's string ends in `text`, then how often all masks change.

        Where these are more than max_changes, the rest is undefined.
        """
        return self.data[: self._text_start].view(torch.int64)

    @property
    def text(self) -> Tensor:
        """[bytes] uint8: the strings one after the other, then anything."""
        return self.data[self._text_start :]

    @property
    def _text_start(self) -> int:
        return 8 * (self.count + 1)

    def to_list(self) -> list[RLE]:
        """The masks as N dicts {"size": [H, W], "counts": bytes}; waits for the device.

        Raises:
            ValueError: the masks change more often than max_changes.
        """
        ends, text = self.to_host()
        if ends[-1] > self.max_changes:
            raise ValueError(
                f"max_changes must be at least {ends[-1]} for these masks, got {self.max_changes}"
            )
        return self.split(ends, text)

    def to_host(self) -> tuple[list[int], bytes]:
        """`ends` and the strings. One copy where these are short, a second one for the rest."""
        start = self._text_start
        expected = start + self.count * _USUAL_BYTES
        host = self.data[:expected].cpu()
        ends = host[:start].view(torch.int64).tolist()
        text = host[start:].numpy().tobytes()
        if ends[-1] <= self.max_changes and ends[-2] > len(text):
            text += self.data[expected : start + ends[-2]].cpu().numpy().tobytes()
        return ends, text

    def split(self, ends: list[int], text: bytes) -> list[RLE]:
        """The RLEs of what `to_host` gave."""
        size = (self.height, self.width)
        starts = [0, *ends[:-2]]
        return [
            {"size": list(size), "counts": text[start:end]}
            for start, end in zip(starts, ends[:-1], strict=True)
        ]

    @staticmethod
    def empty(
        count: int, height: int, width: int, max_changes: int, device: torch.device
    ) -> PaddedRles:
        """Memory for masks with this many changes, whatever they are."""
        runs, pixels = max_changes + count, count * height * width
        # A number of k characters is 2^(5 k - 6) or more, and so is the run itself or the one two
        # before: 2 * pixels / 2^(5 k - 6) numbers have as many.
        text = sum(min(runs, 2 * pixels >> max(5 * k - 6, 0)) for k in range(1, 8))
        data = torch.empty(8 * (count + 1) + text, dtype=torch.uint8, device=device)
        return PaddedRles(data, count, height, width, max_changes)

    @staticmethod
    def from_list(rles: Sequence[RLE], max_changes: int) -> PaddedRles:
        """RLEs of one size, one at least, on the CPU."""
        height, width = rles[0]["size"]
        padded = PaddedRles.empty(len(rles), height, width, max_changes, torch.device("cpu"))
        changes = len(_C.rle_parse(rles)[2])
        text = b"".join(rle["counts"] for rle in rles)
        ends = np.cumsum([len(rle["counts"]) for rle in rles])
        padded.ends.copy_(torch.tensor([*ends.tolist(), changes]))
        if changes <= max_changes:
            padded.text[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return padded


def rle_encode(masks: Any) -> Any:
    """Encodes masks as COCO run lengths, byte for byte as pycocotools does.

    Source: COCO's mask format: runs in column-major order, zeros first, in a variable-length code.

    Args:
        masks: [N, H, W] or [H, W] bool or any integer type; a pixel that is not 0 is inside. A
            torch tensor, a NumPy array or anything with `__dlpack__`, on the CPU or CUDA, with any
            strides: row-major and column-major masks are both read without a copy. Or N
            `PackedMasks`.

    Returns:
        N dicts `{"size": [H, W], "counts": bytes}`, or one for [H, W]. Masks on CUDA are encoded
        there, to the last character.

    Raises:
        TypeError: masks are floating point (threshold them first) or no array.
        ValueError: masks have another number of dimensions, or 2^32 pixels or more each.
    """
    if isinstance(masks, PackedMasks):
        if _encodes_on_device(masks.words):
            return rles_of_words(_words_of_packed(masks), masks.height)
        return _C.rle_encode_words(masks.words.contiguous(), masks.width)
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


def rle_encode_padded(masks: Tensor | PackedMasks, max_changes: int) -> PaddedRles:
    """Encodes masks in memory of a fixed size, without waiting for the device.

    For CUDA graphs and for overlapping with other work: what is launched depends on the masks'
    shape and max_changes alone, and the strings stay on the device until they are asked for.

    Source: COCO's mask format, see `rle_encode`.

    Args:
        masks: [N, H, W] bool or any integer type, or `PackedMasks`; N, H and W at least 1.
        max_changes: how many changes of value all N masks together may have, counted along the
            columns (an object has about twice its width). Memory grows by some 8 bytes for each.

    Returns:
        The run lengths on the masks' device; `PaddedRles.to_list` brings them to the host.

    Raises:
        TypeError: masks are floating point.
        ValueError: masks have another number of dimensions, no pixels, or 2^32 pixels or more each;
            or max_changes is negative.
    """
    pixels = masks.words if isinstance(masks, PackedMasks) else masks
    if pixels.is_floating_point():
        raise TypeError(f"masks must be boolean or integer, got {pixels.dtype}; threshold first")
    if pixels.dim() != 3 or pixels.numel() == 0:
        raise ValueError(
            f"masks must have shape [N, H, W] without zeros, got {tuple(pixels.shape)}"
        )
    if max_changes < 0:
        raise ValueError(f"max_changes must be at least 0, got {max_changes}")
    if not _encodes_on_device(pixels):
        return PaddedRles.from_list(rle_encode(masks), max_changes)
    words = _words_of_packed(masks) if isinstance(masks, PackedMasks) else _words_of_pixels(masks)
    height = pixels.shape[1]
    changes, emit = _changes_of_words(words, height)
    return _encode_changes(changes, changes.flatten().cumsum(0), height, emit, max_changes)


def words_for(count: int, height: int, width: int, device: torch.device) -> Tensor:
    """Memory for masks as bits in columns, [N, ceil(H / 32), W] int32 (csrc/rle/rle.h)."""
    chunks = -(-height // _ROWS_PER_WORD)
    return torch.empty((count, chunks, width), dtype=torch.int32, device=device)


def rles_of_words(words: Tensor, height: int) -> list[RLE]:
    """RLEs of N masks on CUDA that are given as bits in columns, as `words_for` describes."""
    if words.numel() == 0:
        return empty_rles(len(words), height, words.shape[2])
    changes, emit = _changes_of_words(words, height)
    return rles_of_changes(changes, height, emit)


def rles_of_changes(changes: Tensor, height: int, emit: Emit) -> list[RLE]:
    """RLEs of masks on CUDA, from how often each column changes and a kernel that tells where.

    All is made on the device, in memory for as many changes as masks usually have. The host waits
    once, for the strings; masks with more changes are encoded again in memory of the right size.

    Args:
        changes: [N, W] int32, N, W and the masks' height at least 1: the changes along each column.
        height: H of the masks.
        emit: emit(column_ends, toggles) writes the positions of all changes to toggles [capacity]
            int32, as far as they fit; column_ends [N * W] int64 is the cumulative sum of changes.
    """
    column_ends = changes.flatten().cumsum(0)
    capacity = _USUAL_CHANGES * changes.numel()
    padded = _encode_changes(changes, column_ends, height, emit, capacity)
    ends, text = padded.to_host()
    if ends[-1] > capacity:
        padded = _encode_changes(changes, column_ends, height, emit, int(ends[-1]))
        ends, text = padded.to_host()
    return padded.split(ends, text)


def empty_rles(count: int, height: int, width: int) -> list[RLE]:
    """RLEs of masks without pixels."""
    return [{"size": [height, width], "counts": b"0"} for _ in range(count)]


def _encode_on_device(masks: Tensor) -> Any:
    if masks.is_floating_point() or masks.dim() not in (2, 3) or masks.numel() == 0:
        return _C.rle_encode(masks.cpu())  # an error or nothing to do: the CPU knows both
    if masks.dim() == 2:
        return _encode_on_device(masks[None])[0]
    return rles_of_words(_words_of_pixels(masks), masks.shape[1])


def _encodes_on_device(masks: Tensor) -> bool:
    return masks.is_cuda or _C.build_info()["cuda_emulator"]


def _words_of_pixels(masks: Tensor) -> Tensor:
    count, height, width = masks.shape
    words = words_for(count, height, width, masks.device)
    # Older versions of torch export no bool.
    pixels = masks.view(torch.uint8) if masks.dtype == torch.bool else masks
    _C.rle_bits(pixels, words, stream_of(masks))
    return words


def _words_of_packed(masks: PackedMasks) -> Tensor:
    words = words_for(len(masks), masks.height, masks.width, masks.device)
    _C.rle_transpose(masks.words.contiguous(), words, stream_of(words))
    return words


def _changes_of_words(words: Tensor, height: int) -> tuple[Tensor, Emit]:
    count, _, width = words.shape
    stream = stream_of(words)
    changes = torch.empty((count, width), dtype=torch.int32, device=words.device)
    _C.rle_toggles(words, height, changes, None, None, stream)
    return changes, lambda ends, toggles: _C.rle_toggles(
        words, height, changes, ends, toggles, stream
    )


def _encode_changes(
    changes: Tensor, column_ends: Tensor, height: int, emit: Emit, capacity: int
) -> PaddedRles:
    """Toggles, then the bytes of each block of runs, then the characters."""
    count, width = changes.shape
    stream, device = stream_of(changes), changes.device
    toggles = torch.empty(capacity, dtype=torch.int32, device=device)
    emit(column_ends, toggles)
    blocks = -(-(capacity + count) // _C.RLE_BLOCK_RUNS)
    block_bytes = torch.empty(blocks, dtype=torch.int64, device=device)
    padded = PaddedRles.empty(count, height, width, capacity, device)
    ends, text = padded.ends, padded.text
    arguments = (toggles, column_ends, height, width)
    _C.rle_strings(*arguments, block_bytes, text, ends, False, stream)
    _C.rle_strings(*arguments, block_bytes.cumsum(0), text, ends, True, stream)
    return padded
