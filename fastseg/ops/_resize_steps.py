"""What the ops that resize mask logits share: the check of masks and of sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Sides = list[int]


def resize_steps(
    size: Sequence[int], via: Sequence[int] | None, crop: Sequence[int] | None
) -> tuple[Sides, Sides, Sides]:
    """Size, via and crop as the ops take them: via and crop are empty for one resize alone."""
    if crop is not None and via is None:
        raise ValueError(f"crop needs via, the size that it is a part of; got crop {tuple(crop)}")
    for name, sides in (("size", size), ("via", via), ("crop", crop)):
        if sides is not None and (len(sides) != 2 or min(sides) < 1):
            raise ValueError(f"{name} must be (height, width) of at least 1, got {tuple(sides)}")
    if via is None:
        return list(size), [], []
    if crop is not None and (crop[0] > via[0] or crop[1] > via[1]):
        raise ValueError(f"crop must lie within via {tuple(via)}, got {tuple(crop)}")
    return list(size), list(via), list(via if crop is None else crop)


def checked_masks(masks: Tensor, name: str) -> Tensor:
    """Masks [N, h, w], from [N, 1, h, w] too, of a type that the kernels read."""
    shape = tuple(masks.shape)
    if masks.dim() == 4 and shape[1] == 1:
        masks = masks[:, 0]
    if masks.dim() != 3:
        raise ValueError(f"{name} must have shape [N, h, w] or [N, 1, h, w], got {shape}")
    if masks.dtype not in _MASK_DTYPES:
        masks = masks.float()
    return masks.detach()
