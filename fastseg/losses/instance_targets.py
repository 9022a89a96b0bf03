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
        labels: int64 [N], from 0; there is no background.
        masks: bool [N, h, w], the image's size without padding. SOLO skips an instance whose mask
            is empty; Mask2Former and MaskFormer take it as any other.
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
