"""What every pixel of one image belongs to: segments, or classes alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastseg import _C
from fastseg.categories import category_id, class_name
from fastseg.evaluation.panoptic_files import MAX_ID, id2rgb, png_name

VOID = 0  # the id of pixels that belong to no segment


@dataclass(frozen=True)
class Segment:
    """One thing, or all that there is of one kind of stuff.

    Args:
        id: its pixels have this number, from 1 to 2^24 - 1.
        label: its class.
        is_thing: whether it is a countable object.
        score: the confidence.
        area: number of its pixels.
    """

    id: int
    label: int
    is_thing: bool
    score: float
    area: int


@dataclass(frozen=True, eq=False, repr=False)
class PanopticSegmentation:
    """One image's segments, which do not overlap.

    Args:
        ids: [height, width] integer, the id of each pixel's segment, 0 where there is none (void).
        segments: a description of each id that occurs.
        class_names: names indexed by label, or None where the model knows none.

    Raises:
        TypeError: ids are no integers.
        ValueError: ids have another shape, or a segment's id is out of range or comes twice.
    """

    ids: Tensor
    segments: list[Segment]
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_map("ids", self.ids)
        counts = Counter(segment.id for segment in self.segments)
        for number, count in counts.items():
            if count > 1:
                raise ValueError(f"segments: id {number} comes twice")
            if not VOID < number <= MAX_ID:
                raise ValueError(f"segments: ids must be from 1 to {MAX_ID}, got {number}")

    def __len__(self) -> int:
        return len(self.segments)

    def __repr__(self) -> str:
        height, width = self.image_size
        counts = [f"{count} {name}" for name, count in Counter(self.names).most_common()]
        return f"PanopticSegmentation({len(self)} segments in {height}x{width}{_listed(counts)})"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def names(self) -> list[str]:
        """Class name of each segment, "class 3" where the model has no name for label 3."""
        return [class_name(segment.label, self.class_names) for segment in self.segments]

    def masks(self) -> Tensor:
        """[N, height, width] bool, the pixels of each segment, where the ids are."""
        numbers = torch.tensor(
            [segment.id for segment in self.segments], dtype=self.ids.dtype, device=self.ids.device
        )
        return self.ids == numbers[:, None, None]

    def numbered(self) -> NDArray[Any]:
        """[height, width] unsigned: k where the k-th segment is, counted from 1, and 0 for void."""
        return places(self.ids, [segment.id for segment in self.segments])

    def above(self, score: float) -> PanopticSegmentation:
        """The segments with a score greater than `score`; the others' pixels become void."""
        kept = [segment for segment in self.segments if segment.score > score]
        numbers = torch.tensor([segment.id for segment in kept], device=self.ids.device)
        is_kept = torch.isin(self.ids, numbers.to(self.ids.dtype))
        return replace(self, ids=self.ids.where(is_kept, VOID), segments=kept)

    def to(self, device: torch.device | str) -> PanopticSegmentation:
        """The same with ids on `device`."""
        return replace(self, ids=self.ids.to(device))

    def segments_info(self, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """The segments in COCO's words, JSON-ready; `bbox` is x, y, width, height in pixels.

        Args:
            category_ids: category id of each label; None: labels are ids.

        Raises:
            ValueError: there is no category id for a label, or a segment without any pixel.
        """
        boxes = _boxes(self.ids.cpu().numpy())
        if missing := [one.id for one in self.segments if one.id not in boxes]:
            raise ValueError(f"segments: ids have no pixel of segment {missing[0]}")
        return [
            {
                "id": segment.id,
                "category_id": category_id(segment.label, category_ids),
                "bbox": boxes[segment.id],
                "area": segment.area,
                "iscrowd": 0,
                "score": segment.score,
            }
            for segment in self.segments
        ]

    def to_coco(
        self,
        image_id: int,
        *,
        category_ids: Sequence[int] | None = None,
        file_name: str | None = None,
    ) -> tuple[dict[str, Any], NDArray[np.uint8]]:
        """An entry of a COCO panoptic results file, and the picture that belongs to it.

        Args:
            image_id: the image's id in the COCO dataset.
            category_ids: category id of each label; None: labels are ids.
            file_name: what the picture will be called; the default is the id in 12 digits.

        Returns:
            The annotation with its `segments_info`, and [height, width, 3] uint8 colours of the
            ids, R + 256 G + 65536 B, to be saved as PNG. `fastseg.evaluation.panoptic_results`
            writes both.

        Raises:
            ValueError: see `segments_info`.
        """
        annotation = {
            "image_id": image_id,
            "file_name": png_name(file_name or f"{image_id:012d}.png"),
            "segments_info": self.segments_info(category_ids),
        }
        return annotation, id2rgb(self.ids.cpu().numpy())


@dataclass(frozen=True, eq=False, repr=False)
class SemanticSegmentation:
    """The class of each pixel of one image.

    Args:
        labels: [height, width] integer.
        class_names: names indexed by label, or None where the model knows none.

    Raises:
        TypeError: labels are no integers.
        ValueError: labels have another shape.
    """

    labels: Tensor
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        _check_map("labels", self.labels)

    def __repr__(self) -> str:
        height, width = self.image_size
        total = max(1, height * width)
        shares = [
            f"{class_name(label, self.class_names)} {pixels / total:.0%}"
            for label, pixels in self.areas().items()
        ]
        return f"SemanticSegmentation({len(shares)} classes in {height}x{width}{_listed(shares)})"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.labels.shape[0], self.labels.shape[1]

    def areas(self) -> dict[int, int]:
        """Number of pixels of each label that occurs, the largest first."""
        array = self.labels.cpu().numpy()
        labels, _, pixels = _C.label_pairs(array, array)
        order = np.argsort(-pixels, kind="stable")
        return dict(zip(labels[order].tolist(), pixels[order].tolist(), strict=True))

    def to(self, device: torch.device | str) -> SemanticSegmentation:
        """The same with labels on `device`."""
        return replace(self, labels=self.labels.to(device))

    def to_image(self, category_ids: Sequence[int] | None = None) -> Image.Image:
        """The labels as a grey image to be saved as PNG, of 8 bits where they suffice, else of 16.

        Args:
            category_ids: the value of each label, such as Cityscapes' ids; None: the label itself.

        Raises:
            ValueError: there is no value for a label, or it does not fit 16 bits.
        """
        values = {label: category_id(label, category_ids) for label in sorted(self.areas())}
        for label, value in values.items():
            if label < 0 or not 0 <= value <= 65535:
                raise ValueError(f"a label image holds 0 to 65535, got {value} for label {label}")
        dtype = np.uint8 if max(values.values(), default=0) <= 255 else np.uint16
        table = np.zeros(max(values, default=0) + 1, dtype=dtype)
        table[list(values)] = list(values.values())
        return Image.fromarray(table[self.labels.cpu().numpy()])


def places(values: Tensor, wanted: Sequence[int]) -> NDArray[Any]:
    """Where each value stands in `wanted`, counted from 1, and 0 for others.

    Args:
        values: integers of any shape.
        wanted: different numbers of 0 or more, and not so large that a table of them is.

    Returns:
        Unsigned integers of the least width that suffices.
    """
    array = values.cpu().numpy()
    beyond = max(wanted, default=0) + 1
    table = np.zeros(beyond + 1, np.min_scalar_type(len(wanted)))
    table[list(wanted)] = np.arange(1, len(wanted) + 1)
    known = (array >= 0) & (array <= beyond)
    return table[np.where(known, array, beyond)]


def _check_map(name: str, values: Tensor) -> None:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must be integer, got {values.dtype}")
    if values.dim() != 2:
        raise ValueError(f"{name} must be [height, width], got {list(values.shape)}")


def _boxes(ids: NDArray[Any]) -> dict[int, list[int]]:
    """x, y, width and height of each id, void too, from the runs of equal ids in the rows."""
    begins = np.ones(ids.shape, dtype=bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    rows, lefts = np.nonzero(begins)
    if not len(rows):
        return {}
    rights = np.append(lefts[1:], 0)  # a run ends where the next begins, or with its row
    rights[rights == 0] = ids.shape[1]
    numbers = ids[rows, lefts]
    order = np.argsort(numbers, kind="stable")
    found, first = np.unique(numbers[order], return_index=True)
    left = np.minimum.reduceat(lefts[order], first)
    right = np.maximum.reduceat(rights[order], first)
    top = np.minimum.reduceat(rows[order], first)
    bottom = np.maximum.reduceat(rows[order], first) + 1
    boxes = np.stack([left, top, right - left, bottom - top], axis=1)
    return dict(zip(found.tolist(), boxes.tolist(), strict=True))


def _listed(words: list[str]) -> str:
    """The first five, after a colon, and how many more there are."""
    if not words:
        return ""
    more = f" and {len(words) - 5} more classes" if len(words) > 5 else ""
    return f": {', '.join(words[:5])}{more}"
