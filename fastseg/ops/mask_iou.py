"""IoU of all pairs of masks, exact, from pixels, packed bits or run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.ops.pack_masks import PackedMasks, pack_masks

RLE = dict[str, Any]  # {"size": [height, width], "counts": bytes | str | list[int]}
Masks = Tensor | PackedMasks | Sequence[RLE]

LIBRARY.define(
    "mask_intersections(Tensor words_a, Tensor words_b, Tensor boxes_a, Tensor boxes_b) -> Tensor"
)
LIBRARY.define(
    "mask_iou(Tensor intersections, Tensor areas_a, Tensor areas_b, Tensor? iscrowd, str mode)"
    " -> Tensor"
)


def mask_iou(
    a: Masks,
    b: Masks | None = None,
    iscrowd: Tensor | Sequence[bool] | None = None,
    mode: Literal["iou", "iof"] = "iou",
) -> Tensor:
    """Computes the IoU of each mask in a with each in b; results equal pycocotools' bit for bit.

    Intersections and areas are counted in integers, on one bit a pixel within the overlap of the
    masks' boxes, or on run lengths where both are run lengths; pixels are never widened.

    Source: semantics of `pycocotools.mask.iou`.

    Args:
        a: masks [Na, H, W] of any boolean or integer type (not 0 = inside), `PackedMasks`, or a
            list of Na COCO RLEs of one size. Floating masks go through `pack_masks` first. What is
            compared more than once is best packed once.
        b: Nb masks of the same height and width, in any of these forms, not necessarily a's; on
            the same device, but RLEs go with masks on any. None: a itself, at half the cost.
        iscrowd: [Nb]; for a mask of b that is a crowd, the union is replaced by the area in a, as
            for `mode="iof"`.
        mode: "iou", intersection over union; or "iof", intersection over the area in a (share of
            the foreground).

    Returns:
        [Na, Nb] float64, 0 where masks do not intersect; on the masks' device, on the CPU for RLEs.

    Raises:
        TypeError: masks are of another type, or floating.
        ValueError: sizes or devices differ, iscrowd has another shape, or mode is another word.
    """
    if mode not in ("iou", "iof"):
        raise ValueError(f"mode must be 'iou' or 'iof', got {mode!r}")
    if b is a:
        b = None
    if _are_rles(a) and (b is None or _are_rles(b)):
        common, areas_a, areas_b = (torch.from_numpy(array) for array in _C.run_intersections(a, b))
    else:
        packed_a, packed_b = _packed(a, b)
        areas_a, areas_b = packed_a.areas, packed_b.areas
        common = torch.ops.fastseg.mask_intersections(
            packed_a.words, packed_b.words, packed_a.boxes, packed_b.boxes
        )
    crowd = None if iscrowd is None else _checked_crowd(iscrowd, common)
    return torch.ops.fastseg.mask_iou(common, areas_a, areas_b, crowd, mode)


def _are_rles(masks: Masks) -> bool:
    return isinstance(masks, (list, tuple))


def _packed(a: Masks, b: Masks | None) -> tuple[PackedMasks, PackedMasks]:
    """Both as bits of one size on one device; an empty list of RLEs takes the other's."""
    packed_a = a if isinstance(a, PackedMasks) else pack_masks(a)
    if b is None:
        return packed_a, packed_a
    packed_b = b if isinstance(b, PackedMasks) else pack_masks(b)
    if _are_rles(a):
        packed_a = packed_a.to(packed_b.device) if len(packed_a) else packed_b[:0]
    if _are_rles(b):
        packed_b = packed_b.to(packed_a.device) if len(packed_b) else packed_a[:0]
    size_a, size_b = ((masks.height, masks.width) for masks in (packed_a, packed_b))
    if size_a != size_b:
        raise ValueError(f"masks must be of one size, got {size_a} for a and {size_b} for b")
    if packed_a.device != packed_b.device:
        devices = f"{packed_a.device} for a and {packed_b.device} for b"
        raise ValueError(f"masks must lie on one device, got {devices}")
    return packed_a, packed_b


def _checked_crowd(iscrowd: Tensor | Sequence[bool], common: Tensor) -> Tensor:
    crowd = torch.as_tensor(iscrowd, device=common.device)
    if crowd.dim() != 1 or crowd.shape[0] != common.shape[1]:
        raise ValueError(f"iscrowd must have shape [{common.shape[1]}], got {tuple(crowd.shape)}")
    return crowd.bool()


@torch.library.impl(LIBRARY, "mask_intersections", "CPU")
@torch.library.impl(LIBRARY, "mask_intersections", "CUDA")
def _mask_intersections(
    words_a: Tensor, words_b: Tensor, boxes_a: Tensor, boxes_b: Tensor
) -> Tensor:
    common = _mask_intersections_fake(words_a, words_b, boxes_a, boxes_b)
    tensors = [tensor.contiguous() for tensor in (words_a, words_b, boxes_a, boxes_b)]
    _C.mask_intersections(*tensors, common, stream_of(words_a))
    return common


@torch.library.register_fake("fastseg::mask_intersections")
def _mask_intersections_fake(
    words_a: Tensor, words_b: Tensor, boxes_a: Tensor, boxes_b: Tensor
) -> Tensor:
    return words_a.new_empty((words_a.shape[0], words_b.shape[0]), dtype=torch.int64)


@torch.library.impl(LIBRARY, "mask_iou", "CPU")
@torch.library.impl(LIBRARY, "mask_iou", "CUDA")
def _mask_iou(
    intersections: Tensor, areas_a: Tensor, areas_b: Tensor, iscrowd: Tensor | None, mode: str
) -> Tensor:
    ious = _mask_iou_fake(intersections, areas_a, areas_b, iscrowd, mode)
    # Older versions of torch export no bool.
    crowd = None if iscrowd is None else iscrowd.view(torch.uint8)
    _C.mask_iou(intersections, areas_a, areas_b, crowd, ious, mode, stream_of(intersections))
    return ious


@torch.library.register_fake("fastseg::mask_iou")
def _mask_iou_fake(
    intersections: Tensor, areas_a: Tensor, areas_b: Tensor, iscrowd: Tensor | None, mode: str
) -> Tensor:
    return intersections.new_empty(intersections.shape, dtype=torch.float64)
