"""Non-maximum suppression of masks: greedy, Fast and soft NMS, with exact or fixed output sizes."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.ops._scored_masks import Masks, ScoredMasks, read_scored_masks

LIBRARY.define(
    "mask_nms(Tensor intersections, Tensor areas, Tensor labels, Tensor scores, str method, "
    "float iou_threshold, float sigma, float min_score, bool skip_absent, SymInt max_output)"
    " -> (Tensor, Tensor, Tensor)"
)


@overload
def mask_nms(
    masks: Masks,
    scores: Tensor,
    labels: Tensor | None = None,
    iou_threshold: float = 0.5,
    *,
    method: Literal["greedy", "fast"] = "greedy",
    threshold: float | None = None,
    max_output: None = None,
) -> Tensor: ...
@overload
def mask_nms(
    masks: Masks,
    scores: Tensor,
    labels: Tensor | None = None,
    iou_threshold: float = 0.5,
    *,
    method: Literal["greedy", "fast"] = "greedy",
    threshold: float | None = None,
    max_output: int,
) -> tuple[Tensor, Tensor]: ...
def mask_nms(
    masks: Masks,
    scores: Tensor,
    labels: Tensor | None = None,
    iou_threshold: float = 0.5,
    *,
    method: Literal["greedy", "fast"] = "greedy",
    threshold: float | None = None,
    max_output: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Keeps the masks that overlap no better mask of their class too much.

    Better is a higher score (NaN above all), then a lower index. A mask goes when its IoU with a
    better mask of its label is above the threshold: with one that is kept, as in
    `fastseg.ops.nms` ("greedy"), or with any ("fast"), which removes more. The IoU is that of
    `mask_iou`, and 0 for an empty mask.

    Source: greedy, the `mask_nms` of AdelaiDet's SOLOv2; fast, YOLACT,
    https://arxiv.org/abs/1904.02689, section 5, on masks in place of boxes.

    Args:
        masks: N masks as `pack_masks` takes or makes them: [N, H, W], RLEs or `PackedMasks`. With
            max_output also B images: [B, N, H, W], or B * N packed masks.
        scores: [N] or [B, N] float32/float64/float16/bfloat16.
        labels: [N] or [B, N] integers of any value; None: all masks are of one class.
        iou_threshold: a mask goes when its IoU is greater than this.
        method: "greedy" or "fast".
        threshold: of floating masks, as in `pack_masks`.
        max_output: M, the size of the padded form: outputs have fixed shapes and nothing waits for
            the device, so it can be compiled and captured in a CUDA graph. Masks whose score is
            -inf are absent: they are never returned and suppress nothing.

    Returns:
        [K] int64 indices of the masks kept, by descending score. With max_output a pair: indices
        [M] or [B, M] int64, padded with -1, and the number kept, [] or [B] int64.

    Raises:
        TypeError: as `pack_masks`.
        ValueError: a shape, dtype or parameter is wrong.
    """
    if method not in ("greedy", "fast"):
        raise ValueError(f"method must be 'greedy' or 'fast', got {method!r}")
    images = _read(masks, scores, labels, threshold, max_output)
    _, indices, count = _walk(images, method, max_output, iou_threshold)
    if max_output is None:
        return indices[0, : int(count)].clone()
    batch = scores.shape[:-1]
    return indices.reshape(*batch, max_output), count.reshape(batch)


@overload
def soft_mask_nms(
    masks: Masks,
    scores: Tensor,
    labels: Tensor | None = None,
    iou_threshold: float = 0.3,
    *,
    method: Literal["linear", "gaussian"] = "linear",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    threshold: float | None = None,
    max_output: None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def soft_mask_nms(
    masks: Masks,
    scores: Tensor,
    labels: Tensor | None = None,
    iou_threshold: float = 0.3,
    *,
    method: Literal["linear", "gaussian"] = "linear",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    threshold: float | None = None,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor]: ...
def soft_mask_nms(
    masks: Masks,
    scores: Tensor,
    labels: Tensor | None = None,
    iou_threshold: float = 0.3,
    *,
    method: Literal["linear", "gaussian"] = "linear",
    sigma: float = 0.5,
    min_score: float = 1e-3,
    threshold: float | None = None,
    max_output: int | None = None,
) -> tuple[Tensor, ...]:
    """Lowers the scores of masks that overlap better ones of their class, one after the other.

    The best mask left is taken; the scores of the others of its label are multiplied by 1 - IoU
    where the IoU is at least the threshold ("linear"), or by exp(-IoU^2 / sigma) ("gaussian");
    those below min_score go; and so on.

    Source: Soft-NMS, https://arxiv.org/abs/1704.04503, as mmcv's `soft_nms` does it for boxes, with
    the IoU of `mask_iou` in its place. There, the best box is returned even below min_score.

    Args:
        masks: as in `mask_nms`.
        scores: as in `mask_nms`; they are lowered in float32, in float64 for float64 scores.
        labels: as in `mask_nms`.
        iou_threshold: of the linear method: smaller IoUs change nothing.
        method: "linear" or "gaussian".
        sigma: of the Gaussian method; smaller ones suppress more.
        min_score: masks are dropped once their score is less than this.
        threshold: of floating masks, as in `pack_masks`.
        max_output: as in `mask_nms`.

    Returns:
        Scores [K] when taken (float32; float64 for float64 scores), which descend, and indices of
        the masks [K] int64. With max_output: scores and indices [M] or [B, M], padded with 0 and
        -1, and the number kept, [] or [B] int64.

    Raises:
        TypeError: as `pack_masks`.
        ValueError: a shape, dtype or parameter is wrong.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"method must be 'linear' or 'gaussian', got {method!r}")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    images = _read(masks, scores, labels, threshold, max_output)
    outputs = _walk(images, method, max_output, iou_threshold, sigma, min_score)
    kept_scores, indices, count = outputs
    if max_output is None:
        size = int(count)
        return kept_scores[0, :size].clone(), indices[0, :size].clone()
    batch = scores.shape[:-1]
    shape = (*batch, max_output)
    return kept_scores.reshape(shape), indices.reshape(shape), count.reshape(batch)


def _read(
    masks: Masks,
    scores: Tensor,
    labels: Tensor | None,
    threshold: float | None,
    max_output: int | None,
) -> ScoredMasks:
    if max_output is not None and max_output < 0:
        raise ValueError(f"max_output must be at least 0, got {max_output}")
    batched = max_output is not None
    return read_scored_masks(masks, labels, scores, threshold=threshold, batched=batched)


def _walk(
    images: ScoredMasks,
    method: str,
    max_output: int | None,
    iou_threshold: float,
    sigma: float = 1.0,
    min_score: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.fastseg.mask_nms(
        images.intersections(),
        images.areas,
        images.labels,
        images.scores,
        method,
        iou_threshold,
        sigma,
        min_score,
        max_output is not None,
        images.scores.shape[1] if max_output is None else max_output,
    )


@torch.library.impl(LIBRARY, "mask_nms", "CPU")
@torch.library.impl(LIBRARY, "mask_nms", "CUDA")
def _mask_nms(
    intersections: Tensor,
    areas: Tensor,
    labels: Tensor,
    scores: Tensor,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    skip_absent: bool,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor]:
    outputs = _empty_outputs(scores, max_output)
    current = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    removed = torch.empty(scores.shape, dtype=torch.uint8, device=scores.device)
    options = (method, iou_threshold, sigma, min_score, skip_absent, stream_of(scores))
    _C.mask_nms(intersections, areas, labels, scores, current, removed, *outputs, *options)
    return outputs


@torch.library.register_fake("fastseg::mask_nms")
def _mask_nms_fake(
    intersections: Tensor,
    areas: Tensor,
    labels: Tensor,
    scores: Tensor,
    method: str,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    skip_absent: bool,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_outputs(scores, max_output)


def _empty_outputs(scores: Tensor, max_output: int) -> tuple[Tensor, Tensor, Tensor]:
    shape, device = (scores.shape[0], max_output), scores.device
    kept_scores = torch.empty(shape, dtype=scores.dtype, device=device)
    indices = torch.empty(shape, dtype=torch.int64, device=device)
    return kept_scores, indices, torch.empty(shape[:1], dtype=torch.int64, device=device)
