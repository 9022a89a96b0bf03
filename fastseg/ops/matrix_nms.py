"""Matrix NMS: scores of masks decay with how much better masks of their class overlap them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.ops._scored_masks import Masks, ScoredMasks, read_scored_masks, take

Kernel = Literal["gaussian", "linear"]

LIBRARY.define(
    "matrix_nms(Tensor intersections, Tensor areas, Tensor labels, Tensor scores, str kernel, "
    "float sigma) -> Tensor"
)
LIBRARY.define(
    "matrix_nms_select(Tensor scores, Tensor decayed, Tensor labels, float filter_threshold, "
    "bool skip_absent, SymInt max_output) -> (Tensor, Tensor, Tensor, Tensor)"
)


def matrix_nms(
    masks: Masks,
    labels: Tensor,
    scores: Tensor,
    *,
    kernel: Kernel = "gaussian",
    sigma: float = 2.0,
    mask_areas: Tensor | None = None,
    threshold: float | None = None,
    filter_threshold: float = -1,
    pre_top_k: int = -1,
    max_output: int = -1,
) -> tuple[Tensor, Tensor, Masks, Tensor]:
    """Lowers the scores of masks that better masks of their class overlap, and sorts by them.

    A score is multiplied by the least f(iou) / f(largest), over the better masks of its label: iou
    is with that mask and `largest` that mask's own largest IoU with one better still. f is
    exp(-sigma * iou^2) or 1 - iou, in float32; 0 / 0 counts as 1. Better is a higher score (NaN
    above all), then a lower index. The IoU with an empty mask is 0.

    Source: SOLOv2, https://arxiv.org/abs/2003.10152, section 3.5; parameters and results of
    mmdetection's `mask_matrix_nms`, whose order among equal scores is left to the device, and whose
    scores become NaN for an empty mask or 0 / 0.

    Args:
        masks: N masks as `pack_masks` takes or makes them: [N, H, W], RLEs or `PackedMasks`.
        labels: [N] integers of any value: the class of each mask.
        scores: [N] float32/float64/float16/bfloat16.
        kernel: "gaussian" or "linear".
        sigma: of the Gaussian kernel; larger ones suppress more. The paper's is its inverse.
        mask_areas: [N], of any real type: what the IoU is computed with instead of the masks'
            areas in pixels. An IoU is at most 1 all the same.
        threshold: of floating masks, as in `pack_masks`.
        filter_threshold: masks whose decayed score is less than this, or NaN, are dropped; 0 or
            less keeps all.
        pre_top_k: only the best K masks by `scores` take part; 0 or less: all.
        max_output: how many are returned at most; 0 or less: all.

    Returns:
        Decayed scores [K] (float32; float64 for float64 scores), labels [K] int64, the masks in the
        form that they came in, and their indices [K] int64, by descending decayed score, equal ones
        as they were before.

    Raises:
        TypeError: as `pack_masks`.
        ValueError: a shape, dtype or parameter is wrong.
    """
    images = read_scored_masks(
        masks, labels, scores, mask_areas=mask_areas, threshold=threshold, batched=False
    )
    limit = max_output if 0 < max_output < len(scores) else len(scores)
    selection = (filter_threshold, pre_top_k, False, limit)
    kept_scores, kept_labels, indices, count = _select_best(images, kernel, sigma, *selection)
    size = int(count)
    kept = indices[0, :size].clone()
    return kept_scores[0, :size].clone(), kept_labels[0, :size].clone(), take(masks, kept), kept


def matrix_nms_padded(
    masks: Masks,
    labels: Tensor,
    scores: Tensor,
    max_output: int,
    *,
    kernel: Kernel = "gaussian",
    sigma: float = 2.0,
    mask_areas: Tensor | None = None,
    threshold: float | None = None,
    filter_threshold: float = -1,
    pre_top_k: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`matrix_nms` with outputs of fixed shapes, of one image or several.

    Nothing waits for the device, so it can be compiled and captured in a CUDA graph. Masks whose
    score is -inf are absent: they are never returned and suppress nothing.

    Source: as `matrix_nms`.

    Args:
        masks: as in `matrix_nms`; of B images [B, N, H, W], or B * N packed masks or RLEs.
        labels: [N] or [B, N], as in `matrix_nms`.
        scores: [N] or [B, N], as in `matrix_nms`.
        max_output: M, the size of the outputs.
        kernel: as in `matrix_nms`.
        sigma: as in `matrix_nms`.
        mask_areas: [N] or [B, N], as in `matrix_nms`.
        threshold: of floating masks, as in `pack_masks`.
        filter_threshold: as in `matrix_nms`.
        pre_top_k: as in `matrix_nms`.

    Returns:
        Scores, labels and indices [M] or [B, M] as from `matrix_nms`, padded with 0, 0 and -1, and
        the number kept, [] or [B] int64.

    Raises:
        TypeError: as `pack_masks`.
        ValueError: a shape, dtype or parameter is wrong.
    """
    if max_output < 0:
        raise ValueError(f"max_output must be at least 0, got {max_output}")
    images = read_scored_masks(
        masks, labels, scores, mask_areas=mask_areas, threshold=threshold, batched=True
    )
    selection = (filter_threshold, pre_top_k, True, max_output)
    *rows, count = _select_best(images, kernel, sigma, *selection)
    batch = scores.shape[:-1]
    kept_scores, kept_labels, indices = (x.reshape(*batch, max_output) for x in rows)
    return kept_scores, kept_labels, indices, count.reshape(batch)


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
        masks: as in `matrix_nms`; also of B images, as in `matrix_nms_padded`.
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


def _select_best(
    images: ScoredMasks,
    kernel: Kernel,
    sigma: float,
    filter_threshold: float,
    pre_top_k: int,
    skip_absent: bool,
    max_output: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, labels and indices [B, max_output], padded, and counts [B]."""
    best = None
    if 0 < pre_top_k < images.scores.shape[1]:
        best = images.scores.sort(dim=1, descending=True, stable=True).indices[:, :pre_top_k]
        images = images.gather(best)
    scores, labels, indices, count = torch.ops.fastseg.matrix_nms_select(
        images.scores,
        _decay(images, kernel, sigma),
        images.labels,
        filter_threshold,
        skip_absent,
        max_output,
    )
    if best is not None:
        indices = torch.where(indices < 0, -1, best.gather(1, indices.clamp(min=0)))
    return scores, labels, indices, count


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
