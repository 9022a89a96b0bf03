"""Non-maximum suppression of boxes, plain or per class, with outputs of exact or of fixed size."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of

LIBRARY.define("nms(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold) -> Tensor")
LIBRARY.define(
    "nms_padded(Tensor boxes, Tensor scores, Tensor? idxs, float iou_threshold, "
    "SymInt max_output) -> (Tensor, Tensor)"
)


@overload
def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_output: None = None
) -> Tensor: ...
@overload
def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_output: int
) -> tuple[Tensor, Tensor]: ...
def nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, max_output: int | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Keeps the boxes that overlap no better box too much; results are torchvision's.

    Boxes are visited by score, descending (NaN first, equal scores by index); one is kept unless
    its IoU with a box kept before is above the threshold. IoU = inter / (area + area - inter) in
    float32, in float64 for float64 boxes. An IoU of 0 / 0 or with a NaN box suppresses nothing.

    Source: semantics of `torchvision.ops.nms`, which takes neither half precision on the CPU nor
    a batch.

    Args:
        boxes: [N, 4] (x1, y1, x2, y2) float32/float64/float16/bfloat16; also [B, N, 4] with
            max_output.
        scores: [N] or [B, N], any of these types.
        iou_threshold: a box goes when its IoU is greater than this.
        max_output: M, the size of the padded form: outputs have fixed shapes and nothing waits
            for the device, so it can be compiled and captured in a CUDA graph. Entries whose score
            is -inf are absent: they are never returned and suppress nothing. Exact: equal to the
            first M of what the plain form returns for the entries that are present.

    Returns:
        [K] int64 indices of the boxes kept, by descending score. With max_output a pair: indices
        [M] or [B, M] int64, padded with -1, and the number kept, [] or [B] int64.

    Raises:
        ValueError: a shape, dtype or max_output is wrong.
    """
    return _dispatch(boxes, scores, None, iou_threshold, max_output)


@overload
def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, *, max_output: None = None
) -> Tensor: ...
@overload
def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, *, max_output: int
) -> tuple[Tensor, Tensor]: ...
def batched_nms(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor,
    iou_threshold: float,
    *,
    max_output: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """NMS within each class: boxes suppress only boxes with the same index in idxs.

    Source: semantics of `torchvision.ops.batched_nms` where it loops over the classes. Below 1000
    boxes torchvision shifts the coordinates of each class apart instead, which rounds them; here
    they are compared as they are. Equal scores are ordered by index.

    Args:
        boxes: as in `nms`.
        scores: as in `nms`.
        idxs: [N] or [B, N] integers of any value: class, or pyramid level, of each box.
        iou_threshold: as in `nms`.
        max_output: as in `nms`; M counts the boxes of all classes together.

    Returns:
        As `nms`, sorted by descending score over all classes.

    Raises:
        ValueError: as `nms`; also floating-point idxs.
    """
    if idxs.is_floating_point() or idxs.is_complex():
        raise ValueError(f"idxs must be integers, got {idxs.dtype}")
    return _dispatch(boxes, scores, idxs.to(torch.int64), iou_threshold, max_output)


def _dispatch(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int | None,
) -> Tensor | tuple[Tensor, Tensor]:
    dims = (2,) if max_output is None else (2, 3)
    if boxes.dim() not in dims or boxes.shape[-1] != 4:
        expected = "[N, 4]" if max_output is None else "[N, 4] or [B, N, 4]"
        raise ValueError(f"boxes must have shape {expected}, got {tuple(boxes.shape)}")
    for name, tensor in (("scores", scores), ("idxs", idxs)):
        if tensor is not None and tensor.shape != boxes.shape[:-1]:
            sizes = tuple(boxes.shape[:-1])
            raise ValueError(f"{name} must have shape {sizes}, got {tuple(tensor.shape)}")
    for name, tensor in (("boxes", boxes), ("scores", scores)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    if max_output is None:
        return torch.ops.fastseg.nms(boxes, scores, idxs, iou_threshold)
    if max_output < 0:
        raise ValueError(f"max_output must be at least 0, got {max_output}")
    return torch.ops.fastseg.nms_padded(boxes, scores, idxs, iou_threshold, max_output)


def _run(
    boxes: Tensor,
    scores: Tensor,
    idxs: Tensor | None,
    iou_threshold: float,
    max_output: int,
    skip_absent: bool,
) -> tuple[Tensor, Tensor]:
    indices, count = _padded_outputs(boxes, max_output)
    workspace = None
    if size := _C.nms_workspace_size(boxes, scores, idxs, max_output):
        workspace = torch.empty(size, dtype=torch.uint8, device=boxes.device)
    arguments = (indices, count, workspace, iou_threshold, skip_absent, stream_of(boxes))
    _C.nms(boxes, scores, idxs, *arguments)
    return indices, count


def _padded_outputs(boxes: Tensor, max_output: int) -> tuple[Tensor, Tensor]:
    batch = boxes.shape[:-2]
    indices = torch.empty((*batch, max_output), dtype=torch.int64, device=boxes.device)
    return indices, torch.empty(batch, dtype=torch.int64, device=boxes.device)


@torch.library.impl(LIBRARY, "nms", "CPU")
@torch.library.impl(LIBRARY, "nms", "CUDA")
def _plain(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    indices, count = _run(boxes, scores, idxs, iou_threshold, boxes.shape[0], False)
    return indices[: int(count)].clone()


@torch.library.impl(LIBRARY, "nms_padded", "CPU")
@torch.library.impl(LIBRARY, "nms_padded", "CUDA")
def _padded(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    return _run(boxes, scores, idxs, iou_threshold, max_output, True)


@torch.library.register_fake("fastseg::nms")
def _plain_fake(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    kept = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(kept, dtype=torch.int64)


@torch.library.register_fake("fastseg::nms_padded")
def _padded_fake(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, max_output: int
) -> tuple[Tensor, Tensor]:
    return _padded_outputs(boxes, max_output)
