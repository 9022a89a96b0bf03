"""Which of many scored masks each pixel belongs to, as panoptic segmentation decides it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.ops._resize_steps import checked_masks, resize_steps

LIBRARY.define(
    "panoptic_map(Tensor mask_logits, Tensor scores, SymInt[2] size, SymInt[] via, SymInt[] crop,"
    " bool inside_only) -> (Tensor, Tensor)"
)


def panoptic_map(
    mask_logits: Tensor,
    scores: Tensor,
    size: tuple[int, int],
    *,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    inside_only: bool = True,
) -> tuple[Tensor, Tensor]:
    """Gives each pixel to the mask with the greatest score x probability, and counts.

    A mask's probability at a pixel is the sigmoid of its logits, resized bilinearly as
    `resize_masks` does: to the size of the padded input (`via`), cropped to the image without
    padding (`crop`), and from there to the original image (`size`). Among equal products the mask
    with the lower index wins, and NaN beats every number, as in `torch.argmax`. This never holds
    the Q x H x W probabilities, and where masks are far from each other it does not compute them.

    Products equal torch's, `scores[:, None, None] * logits.sigmoid()` in float32, within the last
    bit of the exponential. Not differentiable. Nothing is read back from the device, so that the
    op can be captured in a CUDA graph.

    Source: `panoptic_inference` of MaskFormer and Mask2Former (Cheng et al., 2021 and 2022), whose
    thresholds and merging of stuff apply to the counts.

    Args:
        mask_logits: [Q, h, w] or [Q, 1, h, w]; computed in float32 whatever their type, any
            strides.
        scores: [Q], of each mask. Those that are not above 0 take no part: their masks win nothing
            and their areas are 0.
        size: (height, width) of the result in pixels.
        via: (height, width) of the first of two resizes; None for one resize alone.
        crop: (height, width) of what the second resize starts from: the top left part of the
            first's result. The default is all of it.
        inside_only: a pixel belongs to no mask where the winner's probability is below 0.5, as for
            Mask2Former; otherwise to the winner whatever its probability, as for MaskFormer.

    Returns:
        winners: int32 [H, W], the mask that the pixel belongs to, or -1.
        areas: int64 [3, Q], per mask the number of pixels that it wins, of those where its
            probability is at least 0.5, and of those with both.

    Raises:
        ValueError: a shape is wrong, a side is below 1, or crop exceeds via or stands without it.
    """
    mask_logits = checked_masks(mask_logits, "mask_logits")
    if scores.shape != mask_logits.shape[:1]:
        raise ValueError(
            f"scores must have shape [{len(mask_logits)}] for as many mask_logits, "
            f"got {list(scores.shape)}"
        )
    return torch.ops.fastseg.panoptic_map(
        mask_logits, scores.detach().float(), *resize_steps(size, via, crop), inside_only
    )


@torch.library.impl(LIBRARY, "panoptic_map", "CPU")
@torch.library.impl(LIBRARY, "panoptic_map", "CUDA")
def _panoptic_map(
    mask_logits: Tensor,
    scores: Tensor,
    size: Sequence[int],
    via: Sequence[int],
    crop: Sequence[int],
    inside_only: bool,
) -> tuple[Tensor, Tensor]:
    winners = mask_logits.new_empty(tuple(size), dtype=torch.int32)
    areas = mask_logits.new_zeros((3, len(mask_logits)), dtype=torch.int64)
    _C.panoptic_map(
        mask_logits,
        scores,
        winners,
        areas,
        list(via),
        list(crop),
        inside_only,
        stream_of(mask_logits),
    )
    return winners, areas


@torch.library.register_fake("fastseg::panoptic_map")
def _panoptic_map_fake(
    mask_logits: Tensor,
    scores: Tensor,
    size: Sequence[int],
    via: Sequence[int],
    crop: Sequence[int],
    inside_only: bool,
) -> tuple[Tensor, Tensor]:
    return (
        mask_logits.new_empty(tuple(size), dtype=torch.int32),
        mask_logits.new_empty((3, mask_logits.shape[0]), dtype=torch.int64),
    )
