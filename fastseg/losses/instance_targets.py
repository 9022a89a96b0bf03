"""The truth about an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class InstanceTargets:
    """The true instances of one image, in pixels of the image that enters the network.

    Attributes:
        boxes: float [N, 4], (x1, y1, x2, y2).
        labels: int64 [N], as the model numbers classes: from 0, but from 1 for Mask R-CNN in
            torchvision's conventions, whose 0 is the background.
        masks: bool [N, h, w], the image's size without padding. SOLO skips an instance whose mask
            is empty; the others take it as any other.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor

    def resized(self, size: Sequence[int]) -> InstanceTargets:
        """The instances of the image after it is resized, as by a model's ``preprocess``.

        Args:
            size: new (height, width); its pixels are inside a mask where the nearest old ones are.
        """
        if len(self.labels) == 0:
            return replace(self, masks=self.masks.new_zeros(0, *size))
        masks, (height, width) = self.masks, self.masks.shape[1:]
        for dim, old, new in ((1, height, size[0]), (2, width, size[1])):
            centers = torch.arange(new, device=masks.device) + 0.5
            masks = masks.index_select(dim, (centers * (old / new)).long())
        scale = (size[1] / width, size[0] / height)
        return replace(self, boxes=self.boxes * self.boxes.new_tensor(2 * scale), masks=masks)


def check_targets(
    targets: Sequence[InstanceTargets], batch: int, size: Sequence[int], device: torch.device
) -> None:
    """ValueError where labels and masks do not fit a batch of images.

    Args:
        targets: to be checked; boxes and values are not.
        batch: number of images.
        size: (height, width) of the padded batch.
        device: where masks shall be.
    """
    if len(targets) != batch:
        raise ValueError(f"targets must be one for each of {batch} images, got {len(targets)}")
    for i, target in enumerate(targets):
        if target.masks.dim() != 3 or target.labels.shape != target.masks.shape[:1]:
            raise ValueError(
                f"targets[{i}] must have labels [N] and masks [N, h, w], got shapes "
                f"{tuple(target.labels.shape)} and {tuple(target.masks.shape)}"
            )
        if target.masks.dtype != torch.bool or target.masks.device != device:
            raise ValueError(
                f"targets[{i}] must have bool masks on {device}, got "
                f"{target.masks.dtype} on {target.masks.device}"
            )
        if target.masks.shape[1] > size[0] or target.masks.shape[2] > size[1]:
            raise ValueError(
                f"targets[{i}] must have masks no larger than the padded image, {tuple(size)}, "
                f"got {tuple(target.masks.shape[1:])}"
            )
