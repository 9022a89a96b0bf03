"""Annotations and results as columns: what COCO's files hold, in the form that is evaluated."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg import _C

# What the ends of variable-length rows point into; they move when columns are joined.
_ENDS = {
    "mask_ends": "text_ends",
    "text_ends": "text",
    "polygon_ends": "coordinate_ends",
    "coordinate_ends": "coordinates",
}


@dataclass(eq=False)
class Columns:
    """N annotations or results with M masks. Numbers that an entry lacks are NaN.

    Args:
        ids: [N] int64, 0 where there are none.
        image_ids: [N] int64.
        category_ids: [N] int64.
        scores: [N] float64.
        areas: [N] float64.
        boxes: [N, 4] float64, x, y, width, height.
        crowds: [N] uint8.
        ignores: [N] uint8.
        mask_ends: [N] int64: entry n has the masks mask_ends[n - 1] to mask_ends[n]; one or none,
            or one per frame of a video.
        sizes: [M, 2] int64, height and width; -1 for polygons.
        text: uint8, the compressed run lengths of all masks.
        text_ends: [M] int64, where each mask's run lengths end in `text`.
        coordinates: float64, x, y of the corners of all polygons.
        coordinate_ends: int64, where each polygon ends in `coordinates`.
        polygon_ends: [M] int64, where each mask's polygons end in `coordinate_ends`.
    """

    ids: NDArray[np.int64]
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    areas: NDArray[np.float64]
    boxes: NDArray[np.float64]
    crowds: NDArray[np.uint8]
    ignores: NDArray[np.uint8]
    mask_ends: NDArray[np.int64]
    sizes: NDArray[np.int64]
    text: NDArray[np.uint8]
    text_ends: NDArray[np.int64]
    coordinates: NDArray[np.float64]
    coordinate_ends: NDArray[np.int64]
    polygon_ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def from_dicts(cls, entries: Sequence[dict[str, Any]], name: str) -> Columns:
        """Reads annotations or results.

        Args:
            entries: dicts as in COCO's files; values may be NumPy's or torch's.
            name: what to call the entries in errors.
        """
        return cls(**_C.annotations_from_dicts(list(entries), name))

    @classmethod
    def from_json(cls, text: bytes | mmap.mmap, place: tuple[int, int], name: str) -> Columns:
        """Reads annotations or results from the JSON array at `place` in a text.

        Args:
            text: as bytes.
            place: where the array begins and ends.
            name: what to call the entries in errors.
        """
        return cls(**_C.annotations_from_json(text, *place, name))

    @classmethod
    def from_file(cls, path: str | Path, name: str, with_masks: bool = True) -> Columns:
        """Reads a file of results, a JSON array.

        Args:
            path: the file.
            name: what to call the entries in errors.
            with_masks: False: leave the masks out, which are most of the file.
        """
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                return cls(**_C.annotations_from_file(file.fileno(), size, name, with_masks))
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_instances(
        cls,
        image_id: int,
        boxes: NDArray[np.float64],
        scores: NDArray[np.float64],
        category_ids: NDArray[np.int64],
        rles: Sequence[dict[str, Any]],
    ) -> Columns:
        """The results of one image.

        Args:
            image_id: its id.
            boxes: [N, 4] x1, y1, x2, y2.
            scores: [N].
            category_ids: [N].
            rles: N run-length masks.
        """
        count = len(rles)
        corners = boxes.astype(np.float64)
        flags = np.zeros(count, np.uint8)
        return cls(
            ids=np.zeros(count, np.int64),
            image_ids=np.full(count, image_id, np.int64),
            category_ids=category_ids.astype(np.int64),
            scores=scores.astype(np.float64),
            areas=np.full(count, np.nan),
            boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1),
            crowds=flags,
            ignores=flags,
            mask_ends=np.arange(1, count + 1),
            **_C.masks_from_rles(list(rles), f"image {image_id}: rles"),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Columns]) -> Columns:
        """The entries of all parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        joined: dict[str, Any] = {}
        for field in fields(cls):
            arrays = [getattr(part, field.name) for part in parts]
            if target := _ENDS.get(field.name):
                sizes = [0, *(len(getattr(part, target)) for part in parts)]
                shifts = np.cumsum(sizes[:-1])
                arrays = [array + shift for array, shift in zip(arrays, shifts, strict=True)]
            joined[field.name] = np.concatenate(arrays) if arrays else None
        return cls(**joined) if parts else cls.from_dicts([], "results")

    def mask_counts(self) -> NDArray[np.int64]:
        """[N]: masks of each entry."""
        return np.diff(self.mask_ends, prepend=0)


@contextmanager
def mapped(path: str | Path) -> Iterator[bytes | mmap.mmap]:
    """A file's bytes, mapped into memory."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            yield text


def positions(ids: NDArray[Any], known: NDArray[Any]) -> NDArray[np.int64]:
    """Where each id is in `known`; -1 where it is not.

    Args:
        ids: [N] integers.
        known: [K] integers, ascending.
    """
    if len(known) == 0 or len(ids) == 0:
        return np.full(len(ids), -1, np.int64)
    low, high = int(known[0]), int(known[-1])
    if high - low < 8 * len(ids):  # one look into a table instead of a search
        table = np.full(high - low + 1, -1, np.int32)
        table[known - low] = np.arange(len(known))
        inside = (ids >= low) & (ids <= high)
        return np.where(inside, table[np.where(inside, ids - low, 0)], -1).astype(np.int64)
    found = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[found] == ids, found, -1)
