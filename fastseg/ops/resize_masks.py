"""From low-resolution mask logits to masks of the image's size: pixels, bits or run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.ops._resize_steps import checked_masks, resize_steps
from fastseg.ops.pack_masks import PackedMasks, empty_packed
from fastseg.ops.rle import RLE, rles_of_words, words_for

_ARGUMENTS = "(Tensor masks, SymInt[2] size, SymInt[] via, SymInt[] crop, float threshold)"
LIBRARY.define(f"resize_masks{_ARGUMENTS} -> Tensor")
LIBRARY.define(f"mask_scores{_ARGUMENTS} -> Tensor")
LIBRARY.define(f"resize_masks_packed{_ARGUMENTS} -> (Tensor, Tensor, Tensor)")


@overload
def resize_masks(
    masks: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    output: Literal["rle"] = "rle",
) -> list[RLE]: ...


@overload
def resize_masks(
    masks: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    output: Literal["bool"],
) -> Tensor: ...


@overload
def resize_masks(
    masks: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    output: Literal["packed"],
) -> PackedMasks: ...


def resize_masks(
    masks: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    output: Literal["rle", "bool", "packed"] = "rle",
) -> list[RLE] | Tensor | PackedMasks:
    """Resizes mask logits or probabilities bilinearly and tells which pixels lie above a threshold.

    Models predict masks of a part of their input's size. They resize these to the input, cut off
    its padding, resize the rest to the original image and compare with a threshold. This does all
    of it at once, without ever holding the N x H x W resized values:

    - SOLOv2 (mmdetection): probabilities, `threshold=0.5`, `via` four times their size, `crop` the
      resized image, `size` the original image;
    - Mask2Former and SAM: logits, `threshold=0`, `via` the padded input (SAM: 1024 x 1024), `crop`
      the resized image, `size` the original image;
    - YOLO and others with one resize: without `via`.

    Results equal, bit for bit, torch's on the same kind of device, `F.interpolate(x, size,
    mode="bilinear", align_corners=False)` for each resize of float32 masks [N, 1, h, w] (torch
    2.14; others differ among each other in the last bits). torch's CPU kernel for resizing to
    height + width <= 128 sums in another order than its CUDA kernel, so that there values at the
    threshold may fall on the other side on CUDA, here as in torch.

    Not differentiable.

    Args:
        masks: [N, h, w] or [N, 1, h, w]; computed in float32 whatever their type, any strides.
        size: (height, width) of the result in pixels.
        threshold: pixels of values > threshold are inside; NaN is outside.
        via: (height, width) of the first of two resizes; None for one resize alone.
        crop: (height, width) of what the second resize starts from: the top left part of the
            first's result. The default is all of it.
        output: "rle" for COCO's run lengths, for which no pixels are made (on CUDA the call waits
            for the result); "bool"; or "packed", for one bit a pixel with areas and boxes.

    Returns:
        For "rle" a list of N dicts {"size": [H, W], "counts": bytes}, for "bool" [N, H, W] bool,
        for "packed" `PackedMasks`.

    Raises:
        ValueError: a shape or output is wrong, a side is below 1, crop exceeds via or stands
            without it, or (for "rle") the result has 2^32 pixels or more.
    """
    masks = checked_masks(masks, "masks")
    steps = resize_steps(size, via, crop)
    if output == "rle":
        return _run_lengths(masks, *steps, threshold)
    if output == "packed":
        words, areas, boxes = torch.ops.fastseg.resize_masks_packed(masks, *steps, threshold)
        return PackedMasks(words, areas, boxes, size[1])
    if output != "bool":
        raise ValueError(f"output must be 'rle', 'bool' or 'packed', got {output!r}")
    return torch.ops.fastseg.resize_masks(masks, *steps, threshold)


def _run_lengths(
    masks: Tensor, size: list[int], via: list[int], crop: list[int], threshold: float
) -> list[RLE]:
    if not (masks.is_cuda or _C.build_info()["cuda_emulator"]):
        return _C.resize_masks_rle(masks, size, via, crop, threshold)
    height, width = size
    words = words_for(len(masks), height, width, masks.device)
    _C.resize_masks_bits(masks, words, height, via, crop, threshold, stream_of(masks))
    return rles_of_words(words, height)


@torch.library.impl(LIBRARY, "resize_masks", "CPU")
@torch.library.impl(LIBRARY, "resize_masks", "CUDA")
def _resize_masks(
    masks: Tensor, size: Sequence[int], via: Sequence[int], crop: Sequence[int], threshold: float
) -> Tensor:
    output = masks.new_empty((len(masks), *size), dtype=torch.bool)
    # Older versions of torch export no bool.
    pixels = output.view(torch.uint8)
    _C.resize_masks(masks, pixels, size[1], list(via), list(crop), threshold, stream_of(masks))
    return output


@torch.library.register_fake("fastseg::resize_masks")
def _resize_masks_fake(
    masks: Tensor, size: Sequence[int], via: Sequence[int], crop: Sequence[int], threshold: float
) -> Tensor:
    return masks.new_empty((masks.shape[0], *size), dtype=torch.bool)


@torch.library.impl(LIBRARY, "resize_masks_packed", "CPU")
@torch.library.impl(LIBRARY, "resize_masks_packed", "CUDA")
def _resize_masks_packed(
    masks: Tensor, size: Sequence[int], via: Sequence[int], crop: Sequence[int], threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    words, areas, boxes = empty_packed((len(masks), *size), masks.device)
    stream = stream_of(masks)
    _C.resize_masks(masks, words, size[1], list(via), list(crop), threshold, stream)
    _C.measure_words(words, size[1], areas, boxes, stream)
    return words, areas, boxes


@torch.library.register_fake("fastseg::resize_masks_packed")
def _resize_masks_packed_fake(
    masks: Tensor, size: Sequence[int], via: Sequence[int], crop: Sequence[int], threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_packed((masks.shape[0], *size), masks.device)


def mask_scores(
    logits: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.0,
    via: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
) -> Tensor:
    """The mean probability of the pixels of each mask that `resize_masks` makes from logits.

    MaskFormer and Mask2Former multiply an instance's class probability by it: the sum of
    sigmoid(logit) over the pixels inside, divided by their number + 1e-6, at the original image's
    size. Resized logits are neither held in memory nor computed where a mask surely is not.

    The same masks give the same bits on any number of threads. Not differentiable.

    Source: `instance_inference` of Mask2Former (Cheng et al., 2022).

    Args:
        logits: [N, h, w] or [N, 1, h, w]; see `resize_masks`.
        size: (height, width) of the masks in pixels.
        threshold: pixels of logits > threshold are inside; NaN is outside.
        via: (height, width) of the first of two resizes; None for one resize alone.
        crop: (height, width) of what the second resize starts from.

    Returns:
        [N] float32, 0 for a mask without pixels.

    Raises:
        ValueError: a shape is wrong, a side is below 1, or crop exceeds via or stands without it.
    """
    logits = checked_masks(logits, "logits")
    return torch.ops.fastseg.mask_scores(logits, *resize_steps(size, via, crop), threshold)


@torch.library.impl(LIBRARY, "mask_scores", "CPU")
@torch.library.impl(LIBRARY, "mask_scores", "CUDA")
def _mask_scores(
    masks: Tensor, size: Sequence[int], via: Sequence[int], crop: Sequence[int], threshold: float
) -> Tensor:
    tallies = masks.new_zeros((len(masks), 2), dtype=torch.int64)
    _C.mask_scores(masks, tallies, list(size), list(via), list(crop), threshold, stream_of(masks))
    sums, areas = tallies.double().unbind(1)
    return (sums / _C.SCORE_UNITS / (areas + 1e-6)).float()


@torch.library.register_fake("fastseg::mask_scores")
def _mask_scores_fake(
    masks: Tensor, size: Sequence[int], via: Sequence[int], crop: Sequence[int], threshold: float
) -> Tensor:
    return masks.new_empty((masks.shape[0],), dtype=torch.float32)
