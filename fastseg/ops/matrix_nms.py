"""Matrix NMS: scores of masks decay with how much better masks of their class overlap them."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.ops._scored_masks import Masks, ScoredMasks, read_scored_masks

Kernel = Literal["gaussian", "linear"]

LIBRARY.define(
    "matrix_nms(Tensor intersections, Tensor areas, Tensor labels, Tensor scores, str kernel, "
    "float sigma) -> Tensor"
)
LIBRARY.define(
    "matrix_nms_select(Tensor scores, Tensor decayed, Tensor labels, float filter_threshold, "
    "bool skip_absent, SymInt max_output) -> (Tensor, Tensor, Tensor, Tensor)"
)


@overload
def matrix_nms(
    masks: Masks,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: Kernel = "gaussian",
    sigma: float = 2.0,
    mask_areas: Tensor | None = None,
    threshold: float | None = None,
    filter_threshold: float = 0.0,
    pre_top_k: int | None = None,
    max_output: None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def matrix_nms(
    masks: Masks,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: Kernel = "gaussian",
    sigma: float = 2.0,
    mask_areas: Tensor | None = None,
    threshold: float | None = None,
    filter_threshold: float = 0.0,
    pre_top_k: int | None = None,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
def matrix_nms(
    masks: Masks,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: Kernel = "gaussian",
    sigma: float = 2.0,
    mask_areas: Tensor | None = None,
    threshold: float | None = None,
    filter_threshold: float = 0.0,
    pre_top_k: int | None = None,
    max_output: int | None = None,
) -> tuple[Tensor, ...]:
    """Lowers the scores of masks that better masks of their class overlap, and sorts by them.

    A score is multiplied by the least f(iou) / f(largest), over the better masks of its label: iou
    is with that mask and `largest` that mask's own largest IoU with one better still. f is
    exp(-sigma * iou^2) or 1 - iou, in float32; 0 / 0 counts as 1. Better is a higher score (NaN
    above all), then a lower index. The IoU with an empty mask is 0.

    Source: SOLOv2, https://arxiv.org/abs/2003.10152, section 3.5; parameters and results of
    mmdetection's `mask_matrix_nms`, whose order among equal scores is left to the device, whose
    scores become NaN for an empty mask or 0 / 0, and which returns `masks[indices]` besides.

    Args:
        masks: N masks as `pack_masks` takes or makes them: [N, H, W], RLEs or `PackedMasks`. With
            max_output also B images: [B, N, H, W], or B * N packed masks.
        labels: [N] or [B, N] integers of any value: the class of each mask.
        scores: [N] or [B, N] float32/float64/float16/bfloat16.
        kernel: "gaussian" or "linear".
        sigma: of the Gaussian kernel; larger ones suppress more. The paper's is its inverse.
        mask_areas: [N] or [B, N], of any real type: what the IoU is computed with instead of the
            masks' areas in pixels. An IoU is at most 1 all the same.
        threshold: of floating masks, as in `pack_masks`.
        filter_threshold: masks whose decayed score is less than this, or NaN, are dropped; 0 or
            less keeps all.
        pre_top_k: only the best K masks by `scores` take part.
        max_output: M, the size of the padded form: outputs have fixed shapes and nothing waits for
            the device, so it can be compiled and captured in a CUDA graph. Masks whose score is
            -inf are absent: they are never returned and suppress nothing.

    Returns:
        Decayed scores [K] (float32; float64 for float64 scores), labels [K] int64 and indices into
        the masks [K] int64, by descending decayed score, equal ones as they were before. With
        max_output: scores, labels and indices [M] or [B, M], padded with 0, 0 and -1, and the
        number kept, [] or [B] int64.

    Raises:
        TypeError: as `pack_masks`.
        ValueError: a shape, dtype or parameter is wrong.
    """
    for name, value, least in (("pre_top_k", pre_top_k, 1), ("max_output", max_output, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    images = read_scored_masks(
        masks,
        labels,
        scores,
        mask_areas=mask_areas,
        threshold=threshold,
        batched=max_output is not None,
    )
    best = None
    if pre_top_k is not None and pre_top_k < images.scores.shape[1]:
        best = images.scores.sort(dim=1, descending=True, stable=True).indices[:, :pre_top_k]
        images = images.gather(best)
    kept_scores, kept_labels, indices, count = torch.ops.fastseg.matrix_nms_select(
        images.scores,
        _decay(images, kernel, sigma),
        images.labels,
        filter_threshold,
        max_output is not None,
        images.scores.shape[1] if max_output is None else max_output,
    )
    if best is not None:
        indices = torch.where(indices < 0, -1, best.gather(1, indices.clamp(min=0)))
    if max_output is None:
        size = int(count)
        return kept_scores[0, :size], kept_labels[0, :size], indices[0, :size]
    batch = scores.shape[:-1]
    rows = (x.reshape(*batch, max_output) for x in (kept_scores, kept_labels, indices))
    return *rows, count.reshape(batch)


def matrix_nms_scores(
    masks: Masks,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: Kernel = "gaussian",
    sigma: float = 2.0,
    mask_areas: Tensor | None = None,
    threshold: float | None = None,
) -> Tensor:
    """The decayed scores of Matrix NMS, in the order of the masks; nothing is dropped.

    Source: SOLO's `matrix_nms(seg_masks, cate_labels, cate_scores, kernel, sigma, sum_masks)`,
    which needs masks sorted by score, which is not needed here.

    Args:
        masks: as in `matrix_nms`; also [B, N, H, W] or B * N packed masks.
        labels: as in `matrix_nms`.
        scores: as in `matrix_nms`.
        kernel: as in `matrix_nms`.
        sigma: as in `matrix_nms`.
        mask_areas: as in `matrix_nms`.
        threshold: of floating masks, as in `pack_masks`.

    Returns:
        [N] or [B, N] float32, float64 for float64 scores.

    Raises:
        TypeError: as `pack_masks`.
        ValueError: a shape, dtype or parameter is wrong.
    """
    images = read_scored_masks(
        masks, labels, scores, mask_areas=mask_areas, threshold=threshold, batched=True
    )
    return _decay(images, kernel, sigma).reshape(scores.shape)


def _decay(images: ScoredMasks, kernel: Kernel, sigma: float) -> Tensor:
    """The decayed scores, [B, N]."""
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    shared = images.intersections()
    return torch.ops.fastseg.matrix_nms(
        shared, images.areas, images.labels, images.scores, kernel, sigma
    )


@torch.library.impl(LIBRARY, "matrix_nms", "CPU")
@torch.library.impl(LIBRARY, "matrix_nms", "CUDA")
def _matrix_nms(
    intersections: Tensor,
    areas: Tensor,
    labels: Tensor,
    scores: Tensor,
    kernel: Kernel,
    sigma: float,
) -> Tensor:
    divisors = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
    decayed = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    arguments = (divisors, decayed, kernel, sigma, stream_of(scores))
    _C.matrix_nms(intersections, areas, labels, scores, *arguments)
    return decayed


@torch.library.register_fake("fastseg::matrix_nms")
def _matrix_nms_fake(
    intersections: Tensor,
    areas: Tensor,
    labels: Tensor,
    scores: Tensor,
    kernel: Kernel,
    sigma: float,
) -> Tensor:
    return torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)


@torch.library.impl(LIBRARY, "matrix_nms_select", "CPU")
@torch.library.impl(LIBRARY, "matrix_nms_select", "CUDA")
def _select(
    scores: Tensor,
    decayed: Tensor,
    labels: Tensor,
    filter_threshold: float,
    skip_absent: bool,
    max_output: int,
) -> tuple[Tensor, ...]:
    outputs = _empty_selection(scores, max_output)
    arguments = (filter_threshold, skip_absent, stream_of(scores))
    _C.matrix_nms_select(scores, decayed, labels, *outputs, *arguments)
    return outputs


@torch.library.register_fake("fastseg::matrix_nms_select")
def _select_fake(
    scores: Tensor,
    decayed: Tensor,
    labels: Tensor,
    filter_threshold: float,
    skip_absent: bool,
    max_output: int,
) -> tuple[Tensor, ...]:
    return _empty_selection(scores, max_output)


def _empty_selection(scores: Tensor, max_output: int) -> tuple[Tensor, ...]:
    shape, device = (scores.shape[0], max_output), scores.device
    return (
        torch.empty(shape, dtype=scores.dtype, device=device),
        torch.empty(shape, dtype=torch.int64, device=device),
        torch.empty(shape, dtype=torch.int64, device=device),
        torch.empty(shape[:1], dtype=torch.int64, device=device),
    )
