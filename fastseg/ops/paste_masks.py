"""Pasting of mask probabilities into the image, to probabilities, booleans or run lengths."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.ops.rle import empty_rles, rles_of_changes

Mode = Literal["torchvision", "detectron2"]
_MASK_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

LIBRARY.define(
    "paste_masks(Tensor masks, Tensor boxes, SymInt height, SymInt width, str mode, "
    "float threshold, bool binary) -> Tensor"
)


@overload
def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    *,
    mode: Mode = "torchvision",
    threshold: float = 0.5,
    output: Literal["prob", "bool"] = "prob",
) -> Tensor: ...


@overload
def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    *,
    mode: Mode = "torchvision",
    threshold: float = 0.5,
    output: Literal["rle"],
) -> list[dict[str, Any]]: ...


def paste_masks(
    masks: Tensor,
    boxes: Tensor,
    image_size: tuple[int, int],
    *,
    mode: Mode = "torchvision",
    threshold: float = 0.5,
    output: Literal["prob", "bool", "rle"] = "prob",
) -> Tensor | list[dict[str, Any]]:
    """Pastes each instance's square mask into the image at its box.

    Results equal the named library's on the same kind of device bit for bit, as it computes with
    torch 2.14 (other versions of torch differ among each other by up to about 1e-5):

    - "torchvision", `paste_masks_in_image`: the box, grown by a cell of zeros, is truncated to
      whole pixels and the mask stretched over them; a pixel is set when its value > threshold.
      torch's CPU kernel for resizing to height + width <= 128 sums in another order than its CUDA
      kernel, so small masks may differ in the last bit between CPU and CUDA, here as there.
    - "detectron2": the mask is sampled at the pixel centres inside the box as it is; a pixel is set
      when its value >= threshold. (detectron2's own CPU path leaves out what lies more than a pixel
      outside the box. Thresholds below 0.5 show the difference.)

    Not differentiable: the result is detached from masks and boxes.

    Source: He et al., Mask R-CNN, 2017, Sec. 3.1 (inference).

    Args:
        masks: [N, M, M] or [N, 1, M, M] probabilities; computed in float32 whatever their type.
        boxes: [N, 4] (x1, y1, x2, y2) in pixels; used in float32.
        image_size: (height, width) of the image in pixels.
        mode: which library's definition to follow.
        threshold: for "bool" and "rle".
        output: "prob", "bool", or "rle" for COCO's run lengths of the boolean masks; these are made
            without ever holding N x H x W pixels (on CUDA the call waits for the result).

    Returns:
        [N, H, W] float32 for "prob", [N, H, W] bool for "bool", for "rle" a list of N dicts
        {"size": [H, W], "counts": bytes}. Pixels that a mask does not reach have value 0. A box
        with a NaN or infinite coordinate reaches none; nor does one of negative size in
        torchvision's mode, or without width or height in detectron2's (where a negative size
        mirrors the mask).

    Raises:
        ValueError: a shape, mode or output is wrong, image_size is negative, or (for "rle") the
            image has 2^32 pixels or more.
    """
    masks, boxes = _checked(masks, boxes)
    height, width = image_size
    if height < 0 or width < 0:
        raise ValueError(f"image_size must be (height, width), got {tuple(image_size)}")
    if output == "rle":
        return _run_lengths(masks, boxes, height, width, mode, threshold)
    if output not in ("prob", "bool"):
        raise ValueError(f"output must be 'prob', 'bool' or 'rle', got {output!r}")
    return torch.ops.fastseg.paste_masks(
        masks, boxes, height, width, mode, threshold, output == "bool"
    )


def _checked(masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Masks [N, M, M] and boxes [N, 4] in types that the kernels read."""
    shape = tuple(masks.shape)
    if masks.dim() == 4 and shape[1] == 1:
        masks = masks[:, 0]
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2]:
        raise ValueError(f"masks must have shape [N, M, M] or [N, 1, M, M], got {shape}")
    if boxes.dim() != 2 or boxes.shape[0] != masks.shape[0] or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape [{shape[0]}, 4], got {tuple(boxes.shape)}")
    if masks.dtype not in _MASK_DTYPES:
        masks = masks.float()
    return masks.detach(), boxes.detach().float()


def _run_lengths(
    masks: Tensor, boxes: Tensor, height: int, width: int, mode: str, threshold: float
) -> list[dict[str, Any]]:
    if masks.is_cuda or _C.build_info()["cuda_emulator"]:
        return _run_lengths_cuda(masks, boxes, height, width, mode, threshold)
    counts = _C.paste_masks_rle(masks, boxes, height, width, mode, threshold)
    return [{"size": [height, width], "counts": text} for text in counts]


def _run_lengths_cuda(
    masks: Tensor, boxes: Tensor, height: int, width: int, mode: str, threshold: float
) -> list[dict[str, Any]]:
    """Counts the changes along each column, then writes their positions, then the strings."""
    count, stream = masks.shape[0], stream_of(masks)
    columns = torch.zeros((count, width), dtype=torch.int32, device=masks.device)
    _C.paste_masks_toggles(masks, boxes, columns, None, None, height, mode, threshold, stream)
    if columns.numel() == 0 or height == 0:
        return empty_rles(count, height, width)
    return rles_of_changes(
        columns,
        height,
        lambda ends, toggles: _C.paste_masks_toggles(
            masks, boxes, columns, ends, toggles, height, mode, threshold, stream
        ),
    )


def _empty_output(masks: Tensor, height: int, width: int, binary: bool) -> Tensor:
    dtype = torch.bool if binary else torch.float32
    return masks.new_empty((masks.shape[0], height, width), dtype=dtype)


@torch.library.impl(LIBRARY, "paste_masks", "CPU")
@torch.library.impl(LIBRARY, "paste_masks", "CUDA")
def _paste_masks(
    masks: Tensor, boxes: Tensor, height: int, width: int, mode: str, threshold: float, binary: bool
) -> Tensor:
    output = _empty_output(masks, height, width, binary)
    # Older versions of torch export no bool.
    pixels = output.view(torch.uint8) if binary else output
    _C.paste_masks(masks, boxes, pixels, mode, threshold, stream_of(output))
    return output


@torch.library.register_fake("fastseg::paste_masks")
def _paste_masks_fake(
    masks: Tensor, boxes: Tensor, height: int, width: int, mode: str, threshold: float, binary: bool
) -> Tensor:
    return _empty_output(masks, height, width, binary)
