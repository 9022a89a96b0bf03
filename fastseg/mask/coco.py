"""The functions of `pycocotools.mask`; what differs is told in `fastseg.mask`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg import _C

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
    height, width, toggles, offsets = _C.rle_parse(as_list(rleObjs))
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
    areas = _C.rle_area(as_list(rleObjs))
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
    boxes = _C.rle_to_bbox(as_list(rleObjs))
    return boxes[0] if isinstance(rleObjs, dict) else boxes


def iou(dt: Any, gt: Any, pyiscrowd: Any) -> Any:
    """Computes the IoU of all pairs of masks, or of boxes.

    Args:
        dt: M detections: RLEs, or boxes (left, top, width, height) as an array [M, 4] or a list.
        gt: N objects of the same kind.
        pyiscrowd: N flags. An object that is a crowd counts as no larger than what it shares with
            the detection: the union is then the detection.

    Returns:
        [M, N] float64 in Fortran order; `[]` when M or N is 0, as in pycocotools. Masks without
        common pixels have 0, and masks of unlike sizes whose boxes overlap have -1.

    Raises:
        TypeError: dt or gt is neither, or they are not of one kind.
        ValueError: a string is malformed, counts go past the end of the mask, boxes are not [*, 4],
            or pyiscrowd is not as long as gt.
    """
    if len(dt) == 0 or len(gt) == 0:
        return []
    crowd = np.asarray(pyiscrowd, dtype=np.uint8)
    if crowd.shape != (len(gt),):
        raise ValueError(f"pyiscrowd must have {len(gt)} flags, got shape {crowd.shape}")
    are_masks = [_are_rles(dt, "dt"), _are_rles(gt, "gt")]
    if are_masks[0] != are_masks[1]:
        raise TypeError("dt and gt must both be RLEs or both be boxes")
    if are_masks[0]:
        return _C.rle_iou(dt, gt, crowd)
    return _C.rle_box_iou(_as_boxes(dt, "dt"), _as_boxes(gt, "gt"), crowd)


def merge(rleObjs: Sequence[RLE], intersect: bool = False) -> RLE:
    """Unites masks, or intersects them.

    Args:
        rleObjs: N RLEs of one size.
        intersect: take the pixels in all masks instead of those in any.

    Returns:
        One RLE without runs of length 0 (but a first one); of size [0, 0] for N = 0.

    Raises:
        ValueError: a string is malformed, counts do not sum to H * W, or sizes differ.
    """
    return _C.rle_merge(rleObjs, bool(intersect))


def frPyObjects(pyobj: Any, h: int, w: int) -> Any:
    """Encodes polygons, boxes or uncompressed RLEs.

    Args:
        pyobj: N polygons `[x0, y0, x1, y1, ...]` in pixels, whose first has more than four numbers;
            N boxes (left, top, width, height) as an array [N, 4] or a list; N uncompressed RLEs; or
            one of these alone. Pixel (x, y) covers x to x + 1 and y to y + 1.
        h: height of the masks; RLEs have their own.
        w: width of the masks.

    Returns:
        N dicts `{"size": [h, w], "counts": bytes}`, one for each polygon, or one for one alone.

    Raises:
        TypeError: pyobj is something else.
        ValueError: a coordinate is NaN, infinite or beyond 429,496,728, a polygon has an odd number
            of them, counts go past the end of the mask, h * w is 2^32 or more, or w above 2^24.
    """
    if isinstance(pyobj, dict):
        return _C.rle_compress([pyobj])[0]
    if isinstance(pyobj, np.ndarray):
        return _C.rle_from_boxes(_as_boxes(pyobj, "pyobj"), int(h), int(w))
    if not isinstance(pyobj, (list, tuple)):
        raise TypeError(f"pyobj must be a list, an array or a dict, got {type(pyobj).__name__}")
    if not pyobj:
        return []
    if isinstance(pyobj[0], dict):
        return _C.rle_compress(pyobj)
    if not hasattr(pyobj[0], "__len__"):
        return frPyObjects([pyobj], h, w)[0]
    if len(pyobj[0]) == 4:
        return _C.rle_from_boxes(_as_boxes(pyobj, "pyobj"), int(h), int(w))
    if len(pyobj[0]) < 4:
        raise ValueError(f"pyobj[0] must have four numbers or more, got {len(pyobj[0])}")
    return _C.rle_from_polygons(pyobj, int(h), int(w))


def as_list(rles: Sequence[RLE] | RLE) -> Sequence[RLE]:
    return [rles] if isinstance(rles, dict) else rles


def _are_rles(objects: Any, name: str) -> bool:
    """Whether these are RLEs, else boxes."""
    if isinstance(objects, np.ndarray):
        return False
    kinds = {isinstance(one, dict) for one in objects}
    if isinstance(objects, dict) or len(kinds) > 1:
        raise TypeError(f"{name} must be a list of RLEs or of boxes, or an array of boxes")
    return kinds.pop()


def _as_boxes(boxes: Any, name: str) -> NDArray[np.float64]:
    """[N, 4] float64, C-contiguous."""
    array = np.ascontiguousarray(boxes, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"{name} must be boxes [*, 4], got shape {list(array.shape)}")
    return array
