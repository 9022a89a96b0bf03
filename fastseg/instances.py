"""The instances found in one image: boxes, scores, labels, and masks kept as run lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastseg import mask as coco_mask
from fastseg.categories import category_id, class_name

RLE = dict[str, Any]  # {"size": [height, width], "counts": bytes}, as in COCO


@dataclass(eq=False, repr=False)
class Instances:
    """One image's result. Its masks stay run lengths (about 100 bytes each) until asked for.

    Indexing with an integer, a slice, a list, or a bool or integer tensor gives `Instances` again.

    Args:
        boxes: [N, 4] float, x1, y1, x2, y2 in pixels of the image.
        scores: [N] float.
        labels: [N] integer.
        rles: N COCO run-length masks of `image_size`, see `fastseg.ops.rle_encode`.
        image_size: height and width of the image.
        class_names: names indexed by label, or None where the model knows none.

    Raises:
        ValueError: if the fields do not describe the same N instances of one image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    rles: list[RLE]
    image_size: tuple[int, int]
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.rles)
        height, width = (int(side) for side in self.image_size)
        self.image_size = (height, width)
        expected = {"boxes": (count, 4), "scores": (count,), "labels": (count,)}
        for name, shape in expected.items():
            actual = tuple(getattr(self, name).shape)
            if actual != shape:
                raise ValueError(f"{name} must be {shape} for {count} rles, got {actual}")
        if self.labels.is_floating_point() or self.labels.dtype == torch.bool:
            raise ValueError(f"labels must be integers, got {self.labels.dtype}")
        for index, rle in enumerate(self.rles):
            if tuple(rle["size"]) != self.image_size:
                raise ValueError(
                    f"rles[{index}] has size {tuple(rle['size'])}, the image has {self.image_size}"
                )

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[Instances]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: Any) -> Instances:
        rows = self._rows(index)
        picked = torch.tensor(rows, dtype=torch.int64, device=self.boxes.device)
        return replace(
            self,
            boxes=self.boxes[picked],
            scores=self.scores[picked],
            labels=self.labels[picked],
            rles=[self.rles[row] for row in rows],
        )

    def _rows(self, index: Any) -> list[int]:
        """Row numbers that an index of any supported kind selects, in its order."""
        count = len(self)
        if isinstance(index, slice):
            return list(range(count))[index]
        if isinstance(index, (str, bytes)) or index is None:
            raise TypeError(f"Instances cannot be indexed with {index!r}")
        try:
            wanted = torch.as_tensor(index)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"Instances cannot be indexed with {index!r}") from error
        if wanted.dtype == torch.bool:
            if tuple(wanted.shape) != (count,):
                raise IndexError(
                    f"a bool index must have shape ({count},), got {tuple(wanted.shape)}"
                )
            return wanted.nonzero().flatten().tolist()
        if wanted.numel() == 0:
            return []
        if wanted.is_floating_point() or wanted.is_complex() or wanted.dim() > 1:
            raise TypeError(
                "Instances are indexed with integers or bools in at most one dimension, got "
                f"{wanted.dtype} of shape {tuple(wanted.shape)}"
            )
        rows = wanted.reshape(-1).tolist()
        for row in rows:
            if not -count <= row < count:
                raise IndexError(f"index {row} is out of range for {count} instances")
        return [row % count for row in rows]

    def __repr__(self) -> str:
        height, width = self.image_size
        text = f"Instances({len(self)} in {height}x{width}"
        if len(self):
            counts = Counter(self.names).most_common()
            shown = ", ".join(f"{number} {name}" for name, number in counts[:5])
            more = f" and {len(counts) - 5} more classes" if len(counts) > 5 else ""
            low, high = self.scores.min().item(), self.scores.max().item()
            text += f": {shown}{more}; scores {low:.2f}-{high:.2f}"
        return text + ")"

    @property
    def names(self) -> list[str]:
        """Class name of each instance, "class 3" where the model has no name for label 3."""
        return [class_name(label, self.class_names) for label in self.labels.tolist()]

    def class_name(self, index: int) -> str:
        """Class name of one instance."""
        return self[index].names[0]

    def masks(self, device: torch.device | str | None = None) -> Tensor:
        """Decodes the masks.

        Args:
            device: where the masks shall lie; default: where the boxes are.

        Returns:
            [N, height, width] bool.
        """
        from fastseg.ops import rle_decode

        device = self.boxes.device if device is None else torch.device(device)
        if not self.rles:
            return torch.zeros((0, *self.image_size), dtype=torch.bool, device=device)
        return rle_decode(self.rles, device=device)

    def above(self, score: float) -> Instances:
        """Those with a score greater than `score`, in the same order."""
        return self[self.scores > score]

    def to(self, device: torch.device | str) -> Instances:
        """The same instances with boxes, scores and labels on `device`."""
        return replace(
            self,
            boxes=self.boxes.to(device),
            scores=self.scores.to(device),
            labels=self.labels.to(device),
        )

    def to_coco(
        self, image_id: int | str, *, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Entries of a COCO results file: JSON-ready, boxes as x, y, width, height.

        Args:
            image_id: the image's id in the COCO dataset.
            category_ids: category id of each label; None: labels are ids.

        Raises:
            ValueError: there is no category id for a label.
        """
        corners = self.boxes.detach().double().cpu()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
        return [
            {
                "image_id": image_id,
                "category_id": category_id(label, category_ids),
                "bbox": box,
                "score": score,
                "segmentation": {"size": list(rle["size"]), "counts": _as_text(rle["counts"])},
            }
            for box, score, label, rle in zip(
                boxes, self.scores.tolist(), self.labels.tolist(), self.rles, strict=True
            )
        ]

    def to_torchvision(self) -> dict[str, Tensor]:
        """The dictionary that torchvision's detection models return.

        Its `masks` [N, 1, height, width] float32 hold 0 and 1, not probabilities: the mask is
        already decided where it is stored as run lengths.
        """
        return {
            "boxes": self.boxes,
            "labels": self.labels,
            "scores": self.scores,
            "masks": self.masks()[:, None].to(torch.float32),
        }


def boxes_around(rles: list[RLE]) -> Tensor:
    """float32 [N, 4], (x1, y1, x2, y2) around masks given as COCO RLE; zeros for an empty one."""
    boxes = torch.from_numpy(coco_mask.toBbox(rles)).float().reshape(-1, 4)
    return torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), dim=1)


def _as_text(counts: bytes | str) -> str:
    return counts.decode("ascii") if isinstance(counts, bytes) else counts
