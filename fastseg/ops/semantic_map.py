"""The class of each pixel from the classes and masks of queries, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._matrix_product import fast_product, has_fast_product
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.ops._resize_steps import checked_masks, resize_steps

# Rows of masks and classes in memory at a time: enough of them that few are made twice.
_CPU_BYTES, _CUDA_BYTES = 32 << 20, 256 << 20

LIBRARY.define(
    "semantic_map(Tensor class_probabilities, Tensor mask_logits, SymInt[2] size, SymInt[] via,"
    " SymInt[] crop, bool resize_scores) -> Tensor"
)


def semantic_map(
    class_probabilities: Tensor,
    mask_logits: Tensor,
    size: tuple[int, int],
    *,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    resize_scores: bool = True,
) -> Tensor:
    """Gives each pixel the class with the greatest sum of class x mask probability over queries.

    Mask logits are resized bilinearly to the size of the padded input (`via`), their sigmoid is
    multiplied with the classes of the queries, and the scores of the classes are cropped to the
    image without padding (`crop`) and resized to the original image (`size`), or the other way
    around (`resize_scores`). Neither the Q x H x W masks nor the K x H x W scores are ever in
    memory: at a time there are a few rows of both.

    Sums over queries are torch's matrix product in float32, TF32 where torch allows it. Not
    differentiable. Nothing is read back from the device.

    Source: `semantic_inference` of MaskFormer and Mask2Former (Cheng et al., 2021 and 2022).

    Args:
        class_probabilities: [Q, K], of each query, without "no object"; in float32 whatever their
            type.
        mask_logits: [Q, h, w] or [Q, 1, h, w]; in float32 whatever their type, any strides.
        size: (height, width) of the result in pixels.
        via: (height, width) that logits are resized to first; None for one resize alone.
        crop: (height, width) of the top left part of these that is resized to the result. The
            default is all of it.
        resize_scores: with `via`, the second resize is that of the classes' scores, as for models
            that make semantic maps alone; False: that of the logits, before their sigmoid, as the
            original does for models that make panoptic maps or instances as well.

    Returns:
        int32 [H, W], labels; among equal scores the lowest one.

    Raises:
        ValueError: a shape is wrong, there are no classes, a side is below 1, or crop exceeds via
            or stands without it.
    """
    mask_logits = checked_masks(mask_logits, "mask_logits")
    shape = tuple(class_probabilities.shape)
    if len(shape) != 2 or shape[0] != mask_logits.shape[0] or shape[1] < 1:
        raise ValueError(
            f"class_probabilities must have shape [{len(mask_logits)}, K] with K > 0 for as many "
            f"mask_logits, got {list(shape)}"
        )
    return torch.ops.fastseg.semantic_map(
        class_probabilities.detach().float(),
        mask_logits,
        *resize_steps(size, via, crop),
        resize_scores,
    )


@torch.library.impl(LIBRARY, "semantic_map", "CPU")
@torch.library.impl(LIBRARY, "semantic_map", "CUDA")
def _semantic_map(
    class_probabilities: Tensor,
    mask_logits: Tensor,
    size: Sequence[int],
    via: Sequence[int],
    crop: Sequence[int],
    resize_scores: bool,
) -> Tensor:
    height, width = size
    # What logits are resized to, and the part of it that scores are computed of.
    if via and resize_scores:
        steps: tuple[Sequence[int], ...] = (list(via), [], [])
        score_rows, columns = crop
    else:
        steps = (list(size), list(via), list(crop))
        score_rows, columns = height, width
    labels = mask_logits.new_empty((height, width), dtype=torch.int32)
    by_class = class_probabilities.t().contiguous()
    row_bytes = 4 * columns * sum(by_class.shape)
    rows = max(4, (_CUDA_BYTES if mask_logits.is_cuda else _CPU_BYTES) // row_bytes)
    rows = min(rows, score_rows)
    buffer = by_class.new_empty(len(mask_logits) * rows * columns)
    stream = stream_of(mask_logits)
    for begin, end, top, bottom in _strips(height, score_rows, rows):
        shape = (bottom - top, columns)
        pixels = shape[0] * columns
        probabilities = buffer[: len(mask_logits) * pixels].view(len(mask_logits), pixels)
        _C.mask_probabilities(mask_logits, probabilities.unflatten(1, shape), top, *steps, stream)
        scores = _scores(by_class, probabilities)
        _C.resized_argmax(
            scores.unflatten(1, shape),
            labels[begin:end],
            (top, score_rows),
            (begin, height),
            stream,
        )
        del scores  # the next ones take its memory
    return labels


def _scores(by_class: Tensor, probabilities: Tensor) -> Tensor:
    """[K, pixels] in float32."""
    if has_fast_product(by_class, probabilities):
        return fast_product(by_class, probabilities)
    scores = by_class.new_empty(len(by_class), probabilities.shape[1])
    return torch.mm(by_class, probabilities, out=scores)  # with `out`, autocast does not apply


def _strips(height: int, score_rows: int, most_rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Rows [begin, end) of the result, and [top, bottom) of scores, at most so many of these."""
    scale = score_rows / height
    begin = 0
    while begin < height:
        end, top = begin, max(int((begin + 0.5) * scale - 0.5) - 1, 0)
        # Rows come from the two around their centre, here with one to spare on either side.
        if score_rows == height:
            top, end = begin, min(begin + most_rows, height)
            bottom = end
        else:
            end = max(begin + 1, min(int((top + most_rows - 3) / scale), height))
            bottom = min(int((end - 0.5) * scale - 0.5) + 3, score_rows)
        yield begin, end, top, bottom
        begin = end


@torch.library.register_fake("fastseg::semantic_map")
def _semantic_map_fake(
    class_probabilities: Tensor,
    mask_logits: Tensor,
    size: Sequence[int],
    via: Sequence[int],
    crop: Sequence[int],
    resize_scores: bool,
) -> Tensor:
    return mask_logits.new_empty(tuple(size), dtype=torch.int32)
