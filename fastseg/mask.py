"""Drop-in for `pycocotools.mask`: NumPy in, NumPy out, no torch.

Functions, argument order and result types are pycocotools'. It is more liberal in what it takes
(any integer type, any memory order, counts as bytes, str or a list of ints; a pixel that is not 0
is inside) and raises ValueError where pycocotools returns uninitialised memory: counts that stop
before the end of the mask, strings of unlike sizes decoded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg import _C

__all__ = ["area", "boundary", "decode", "encode", "toBbox"]

RLE = dict[str, Any]  # {"size": [height, width], "counts": bytes | str | list[int]}


def encode(bimask: NDArray[Any]) -> Any:
    """Encodes masks.

    Args:
        bimask: [H, W] or [H, W, N] bool or any integer type, any memory order.

    Returns:
        One dict `{"size": [H, W], "counts": bytes}`, or N of them for [H, W, N].

    Raises:
        TypeError: bimask is floating point.
        ValueError: bimask has another number of dimensions, or 2^32 pixels or more a mask.
    """
    bimask = np.asarray(bimask)
    return _C.rle_encode(bimask.transpose(2, 0, 1) if bimask.ndim == 3 else bimask)


def decode(rleObjs: Sequence[RLE] | RLE) -> NDArray[np.uint8]:
    """Decodes RLEs of one size.

    Args:
        rleObjs: one RLE or a list of N.

    Returns:
        [H, W] uint8 of 0 and 1 in Fortran order; [H, W, N] for a list.

    Raises:
        ValueError: a string is malformed, counts do not sum to H * W, or sizes differ.
    """
    height, width, toggles, offsets = _C.rle_parse(_as_list(rleObjs))
    masks = np.empty((height, width, len(offsets) - 1), dtype=np.uint8, order="F")
    _C.rle_fill(toggles, offsets, masks.transpose(2, 0, 1))
    return masks[:, :, 0] if isinstance(rleObjs, dict) else masks


def area(rleObjs: Sequence[RLE] | RLE) -> NDArray[np.uint32] | np.uint32:
    """Counts the pixels inside.

    Args:
        rleObjs: one RLE or a list of N. Counts may stop before the end of the mask.

    Returns:
        [N] uint32, or one number for one RLE.

    Raises:
        ValueError: a string is malformed, or counts go past the end of the mask.
    """
    areas = _C.rle_area(_as_list(rleObjs))
    return areas[0] if isinstance(rleObjs, dict) else areas


def toBbox(rleObjs: Sequence[RLE] | RLE) -> NDArray[np.float64]:
    """Finds the smallest boxes of whole pixels around the masks.

    A run that goes from one column into the next counts as full height, as in pycocotools.

    Args:
        rleObjs: one RLE or a list of N. Counts may stop before the end of the mask.

    Returns:
        [N, 4] float64: left, top, width, height in pixels, zeros for an empty mask; [4] for one.

    Raises:
        ValueError: a string is malformed, or counts go past the end of the mask.
    """
    boxes = _C.rle_to_bbox(_as_list(rleObjs))
    return boxes[0] if isinstance(rleObjs, dict) else boxes


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
        ValueError: a string is malformed, counts do not sum to H * W, the ratio is outside 0 to 1
            or the dilation below 1.
    """
    if dilation is not None and dilation < 1:
        raise ValueError(f"dilation must be from 1 to 2^32 - 1 pixels, got {dilation}")
    boundaries = _C.rle_boundary(_as_list(rles), dilation_ratio, dilation or 0)
    return boundaries[0] if isinstance(rles, dict) else boundaries


def _as_list(rles: Sequence[RLE] | RLE) -> Sequence[RLE]:
    return [rles] if isinstance(rles, dict) else rles
