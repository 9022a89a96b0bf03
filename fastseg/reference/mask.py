"""The functions of `fastseg.mask` that pycocotools lacks, as their definitions read: on pixels.

Each takes and gives one RLE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d, pad

from fastseg.reference.rle import RLE, rle_decode, rle_encode

SIDES = ((0, 1), (1, 0), (0, -1), (-1, 0))
CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def boundary(rle: RLE, dilation_ratio: float = 0.02, dilation: int | None = None) -> RLE:
    """See `fastseg.mask.boundary`."""
    mask = rle_decode(rle)
    if dilation is None:
        diagonal = math.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2)
        dilation = max(round(dilation_ratio * diagonal), 1)
    return rle_encode(mask & ~erode(mask, dilation))


def erode(mask: Tensor, distance: int) -> Tensor:
    """The pixels of a mask [H, W] whose whole square of side 2 * distance + 1 lies inside."""
    if mask.numel() == 0:
        return mask
    outside = (~mask).float()
    for _ in range(distance):
        outside = max_pool2d(pad(outside[None], (1, 1, 1, 1), value=1.0), 3, stride=1)[0]
    return outside == 0


def crop(rle: RLE, box: Sequence[int]) -> RLE:
    """See `fastseg.mask.crop`."""
    mask = rle_decode(rle)
    left, top, width, height = box
    result = torch.zeros(height, width, dtype=torch.bool)
    for y in range(height):
        for x in range(width):
            if 0 <= top + y < mask.shape[0] and 0 <= left + x < mask.shape[1]:
                result[y, x] = mask[top + y, left + x]
    return rle_encode(result)


def resize(rle: RLE, size: Sequence[int]) -> RLE:
    """See `fastseg.mask.resize`."""
    mask = rle_decode(rle)
    height, width = size
    if mask.numel() == 0:
        return rle_encode(torch.zeros(height, width, dtype=torch.bool))
    rows = [(2 * i + 1) * mask.shape[0] // (2 * height) for i in range(height)]
    columns = [(2 * i + 1) * mask.shape[1] // (2 * width) for i in range(width)]
    return rle_encode(mask[rows][:, columns])


def flip(rle: RLE, direction: str) -> RLE:
    """See `fastseg.mask.flip`."""
    return rle_encode(rle_decode(rle).flip(1 if direction == "horizontal" else 0))


def complement(rle: RLE) -> RLE:
    """See `fastseg.mask.complement`."""
    return rle_encode(~rle_decode(rle))


def subtract(rle: RLE, other: RLE) -> RLE:
    """See `fastseg.mask.subtract`."""
    return rle_encode(rle_decode(rle) & ~rle_decode(other))


def connected_components(rle: RLE, connectivity: int = 8, min_area: int = 0) -> list[RLE]:
    """See `fastseg.mask.connected_components`."""
    found = regions(rle_decode(rle), connectivity)
    return [rle_encode(region) for region in found if region.sum() >= min_area]


def remove_small_regions(rle: RLE, min_area: int, mode: str) -> RLE:
    """See `fastseg.mask.remove_small_regions`."""
    mask = rle_decode(rle)
    if mode == "holes":
        for hole in regions(~mask, 8):
            if hole.sum() < min_area:
                mask = mask | hole
        return rle_encode(mask)
    islands = sorted(regions(mask, 8), key=lambda region: -int(region.sum()))
    for island in islands[1:] if islands and islands[0].sum() < min_area else islands:
        if island.sum() < min_area:
            mask = mask & ~island
    return rle_encode(mask)


def regions(mask: Tensor, connectivity: int) -> list[Tensor]:
    """The connected regions of a mask [H, W], column by column of their first pixels."""
    steps = SIDES if connectivity == 4 else SIDES + CORNERS
    rest = {(x, y) for y, x in mask.nonzero().tolist()}
    found = []
    for seed in sorted(rest):
        region, front = torch.zeros_like(mask), [seed]
        while front:
            x, y = front.pop()
            if (x, y) in rest:
                rest.remove((x, y))
                region[y, x] = True
                front += [(x + dx, y + dy) for dx, dy in steps]
        if region.any():
            found.append(region)
    return found


def fill(rings: list[Any], height: int, width: int) -> RLE:
    """The inverse of `fastseg.mask.to_polygons`: pixels whose centre lies inside, even-odd rule."""
    result = torch.zeros(height, width, dtype=torch.bool)
    for ring in rings:
        corners = list(zip(ring[::2], ring[1::2], strict=True))
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if x0 == x1:  # what lies to the right of an edge changes sides
                result[min(y0, y1) : max(y0, y1), x0:] ^= True
    return rle_encode(result)
