"""Shapes as run lengths: cut, turn, scale, take apart and trace masks without decoding them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastseg import _C
from fastseg.mask.coco import RLE, as_list


def boundary(
    rles: Sequence[RLE] | RLE, dilation_ratio: float = 0.02, dilation: int | None = None
) -> Any:
    """Takes the inner boundary of masks: their pixels close to a pixel outside.

    A pixel is part of it when a pixel at most `dilation` rows and columns away lies outside the
    mask or the image. This is `mask - erode(mask)` with a 3 x 3 square `dilation` times.

    Source: Cheng et al., "Boundary IoU", CVPR 2021; the pixels are those of its code.

    Args:
        rles: one RLE or a list of N, of any sizes.
        dilation_ratio: the dilation as a share of the image's diagonal, from 0 to 1; the product is
            rounded half to even and at least 1. Cityscapes uses 0.005.
        dilation: in pixels, instead of the ratio.

    Returns:
        One RLE for each.

    Raises:
        ValueError: the ratio is outside 0 to 1 or the dilation below 1.
    """
    if dilation is not None and dilation < 1:
        raise ValueError(f"dilation must be from 1 to 2^32 - 1 pixels, got {dilation}")
    return _like(rles, _C.rle_boundary(as_list(rles), dilation_ratio, dilation or 0))


def crop(rles: Sequence[RLE] | RLE, boxes: Any) -> Any:
    """Cuts boxes out of masks.

    Args:
        rles: one RLE or a list of N, of any sizes.
        boxes: left, top, width and height in whole pixels, as `toBbox` gives them: [N, 4], or [4]
            for all. A box may reach past its mask: nothing is inside there, so this also pads.

    Returns:
        One RLE of size [height, width] for each.

    Raises:
        TypeError: boxes are not numbers.
        ValueError: boxes are not whole numbers, not [4] or [N, 4], or begin or are too far out.
    """
    masks = as_list(rles)
    given = np.asarray(boxes)
    if given.dtype.kind not in "iuf":
        raise TypeError(f"boxes must be numbers, got {given.dtype}")
    if given.shape not in ((4,), (len(masks), 4)):
        raise ValueError(f"boxes must be [4] or [{len(masks)}, 4], got shape {list(given.shape)}")
    if not np.all(np.abs(given) < 2**53) or np.any(given != np.floor(given)):
        raise ValueError("boxes must be whole numbers of pixels")
    whole: NDArray[np.int64] = np.broadcast_to(given.astype(np.int64), (len(masks), 4))
    return _like(rles, _C.rle_crop(masks, whole))


def resize(rles: Sequence[RLE] | RLE, size: Sequence[int]) -> Any:
    """Scales masks, taking the nearest pixel.

    Row i of the result is row `floor((i + 0.5) * H / height)` of the mask, exactly; so for columns.

    Args:
        rles: one RLE or a list of N, of any sizes.
        size: height and width of the result; at most 2^30 rows and 2^24 columns.

    Returns:
        One RLE of that size for each; nothing is inside where the mask has no pixels.

    Raises:
        ValueError: size is negative or too large.
    """
    height, width = size
    return _like(rles, _C.rle_resize(as_list(rles), operator.index(height), operator.index(width)))


def flip(rles: Sequence[RLE] | RLE, direction: Literal["horizontal", "vertical"]) -> Any:
    """Mirrors masks.

    Args:
        rles: one RLE or a list of N, of any sizes.
        direction: "horizontal" exchanges left and right, "vertical" top and bottom.

    Returns:
        One RLE for each.

    Raises:
        ValueError: direction is something else.
    """
    if direction not in ("horizontal", "vertical"):
        raise ValueError(f"direction must be 'horizontal' or 'vertical', got {direction!r}")
    return _like(rles, _C.rle_flip(as_list(rles), direction == "horizontal"))


def complement(rles: Sequence[RLE] | RLE) -> Any:
    """Exchanges inside and outside.

    Args:
        rles: one RLE or a list of N, of any sizes.

    Returns:
        One RLE for each.
    """
    return _like(rles, _C.rle_complement(as_list(rles)))


def subtract(rles: Sequence[RLE] | RLE, others: Sequence[RLE] | RLE) -> Any:
    """Takes the pixels of one mask that are not in another.

    Args:
        rles: one RLE or a list of N.
        others: what is taken away from each: one RLE or a list of N, of the same sizes.

    Returns:
        One RLE for each.

    Raises:
        ValueError: the numbers of masks or their sizes differ.
    """
    return _like(rles, _C.rle_subtract(as_list(rles), as_list(others)))


def connected_components(
    rles: Sequence[RLE] | RLE, connectivity: int = 8, min_area: int = 0
) -> Any:
    """Takes masks apart into their connected regions.

    Args:
        rles: one RLE or a list of N, of any sizes.
        connectivity: 4, pixels that share a side are connected, or 8, a corner is enough.
        min_area: smaller regions are left out.

    Returns:
        A list of RLEs for each: its regions in the order of their first pixels, column by column.

    Raises:
        ValueError: connectivity is neither 4 nor 8.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity must be 4 or 8, got {connectivity}")
    return _like(rles, _C.rle_connected_components(as_list(rles), connectivity == 8, min_area))


def remove_small_regions(
    rles: Sequence[RLE] | RLE, min_area: int, mode: Literal["holes", "islands"]
) -> Any:
    """Fills small holes, or removes small islands; pixels that meet at a corner are connected.

    Source: the clean-up of masks in Segment Anything's automatic mask generator.

    Args:
        rles: one RLE or a list of N, of any sizes.
        min_area: the pixels that a hole or island needs to stay.
        mode: "holes" fills connected regions outside the mask, the surroundings among them where
            these are small; "islands" removes regions of the mask, but for the first of the largest
            ones when all are small.

    Returns:
        One RLE for each.

    Raises:
        ValueError: mode is something else.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f"mode must be 'holes' or 'islands', got {mode!r}")
    return _like(rles, _C.rle_remove_small_regions(as_list(rles), min_area, mode == "holes"))


def to_polygons(rles: Sequence[RLE] | RLE, join_holes: bool = True) -> Any:
    """Traces masks along the edges of their pixels, exactly.

    Corners are whole numbers, pixel (x, y) covers x to x + 1 and y to y + 1. Regions are of pixels
    that share a side. Outer contours are clockwise on screen, holes counter-clockwise, without a
    repeated last corner.

    Args:
        rles: one RLE or a list of N, of any sizes.
        join_holes: cut each region from its outer contour to its holes, as COCO's format has no
            holes. The cuts have no width: `merge(frPyObjects(polygons, H, W))` is the mask again.

    Returns:
        For each RLE a list of polygons `[x0, y0, x1, y1, ...]`, one a region. Without join_holes
        each of these is a list: the outer contour, then the holes. Filling all of them by the
        even-odd rule gives the mask. Regions come in the order of their first pixels, column by
        column.
    """
    return _like(rles, _C.rle_to_polygons(as_list(rles), join_holes))


def _like(rles: Sequence[RLE] | RLE, results: list[Any]) -> Any:
    """One result for one RLE."""
    return results[0] if isinstance(rles, dict) else results
