"""The functions of `fastseg.mask` that pycocotools lacks, as their definitions read: on pixels.

Each takes and gives one RLE.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from fastseg.reference.rle import RLE, rle_decode, rle_encode


def boundary(rle: RLE, dilation_ratio: float = 0.02, dilation: int | None = None) -> RLE:
    """See `fastseg.mask.boundary`."""
    mask = rle_decode(rle)
    if dilation is None:
        dilation = max(
            round(dilation_ratio * math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)), 1
        )
    return rle_encode(mask & ~erode(mask, dilation))


def erode(mask: Tensor, distance: int) -> Tensor:
    """The pixels of a mask [H, W] whose whole square of side 2 * distance + 1 lies inside."""
    if mask.numel() == 0:
        return mask
    outside = (~mask).float()
    for _ in range(distance):
        framed = torch.nn.functional.pad(outside[None], (1, 1, 1, 1), value=1.0)
        outside = max_pool2d(framed, 3, stride=1)[0]
    return outside == 0
