"""RoIAlign of one feature map, or of all levels of a feature pyramid in one launch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of

Boxes = Tensor | Sequence[Tensor]

_ARGUMENTS = (
    "float[] spatial_scales, int sampling_ratio, bool aligned, str level_rule, "
    "float canonical_scale, int canonical_level"
)
LIBRARY.define(
    f"roi_align(Tensor[] features, Tensor boxes, SymInt[2] output_size, {_ARGUMENTS}) -> Tensor"
)
LIBRARY.define(
    "roi_align_backward(Tensor grad_output, Tensor boxes, SymInt[] image_sizes, bool[] "
    f"channels_last, {_ARGUMENTS}) -> Tensor[]"
)


def roi_align(
    input: Tensor,
    boxes: Boxes,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Pools each box of a feature map to a fixed size; results are torchvision's.

    Source: He et al., Mask R-CNN, 2017; semantics of `torchvision.ops.roi_align`.

    Args:
        input: [B, C, H, W] float32/float64/float16/bfloat16; channels-last is the fast layout.
        boxes: [K, 5] (image index, x1, y1, x2, y2) in image pixels, or a list of B tensors [L, 4].
            Coordinates are used in float32 (float64 for float64 input) whatever their type.
        output_size: bins per RoI, one int or (height, width).
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: samples per bin side; <= 0 takes ceil(bin side) per RoI.
        aligned: shifts by half a pixel so that pixel centres lie at half integers, and allows
            RoIs smaller than one cell.

    Returns:
        [K, C, height, width] of input's dtype; channels-last when input is. Boxes with a NaN or
        infinite coordinate pool to 0.

    Raises:
        ValueError: a shape or an image index is wrong. On CUDA, where that check would cost a
            synchronisation, RoIs of an image outside the batch pool to NaN instead.
    """
    return multi_scale_roi_align(
        [input], boxes, output_size, [spatial_scale], sampling_ratio, aligned
    )


def multi_scale_roi_align(
    features: Sequence[Tensor],
    boxes: Boxes,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 2,
    aligned: bool = False,
    level_rule: str = "torchvision",
    canonical_scale: float = 224,
    canonical_level: int = 4,
) -> Tensor:
    """Pools each box from the pyramid level that suits its size, all levels in one launch.

    Source: Lin et al., Feature Pyramid Networks, 2017, Eq. 1; semantics of torchvision's
    `MultiScaleRoIAlign`, detectron2's `ROIPooler` or mmdetection's `SingleRoIExtractor`.

    Args:
        features: 1 to 8 maps [B, C, H_l, W_l], finest first, of one dtype.
        boxes: [K, 5] (image index, x1, y1, x2, y2) in image pixels, or a list of B tensors [L, 4].
        output_size: bins per RoI, one int or (height, width).
        spatial_scales: feature pixels per image pixel of each level, such as 1/4, 1/8, ...
        sampling_ratio: samples per bin side; <= 0 takes ceil(bin side) per RoI.
        aligned: as in `roi_align`.
        level_rule: "torchvision", "detectron2" or "mmdet". All give level k =
            floor(canonical_level + log2(sqrt(area) / canonical_scale)); they differ in the epsilon
            that guards exact powers of two.
        canonical_scale: side in pixels of a box that belongs to canonical_level.
        canonical_level: its level, where level k has scale 2^-k.

    Returns:
        [K, C, height, width] of the features' dtype; channels-last when the first level is.

    Raises:
        ValueError: as `roi_align`; also levels and scales that do not match.
    """
    features = list(features)
    if not features or any(feature.dim() != 4 for feature in features):
        shapes = [tuple(feature.shape) for feature in features]
        raise ValueError(f"features must be maps [B, C, H, W], got shapes {shapes}")
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"output_size must be one or two positive ints, got {output_size}")
    if any(not (scale > 0 and math.isfinite(scale)) for scale in spatial_scales):
        raise ValueError(f"spatial_scales must be positive, got {list(spatial_scales)}")
    return torch.ops.fastseg.roi_align(
        features,
        _box_rows(boxes, features[0]),
        size,
        list(spatial_scales),
        sampling_ratio,
        aligned,
        level_rule,
        float(canonical_scale),
        canonical_level,
    )


def _box_rows(boxes: Boxes, input: Tensor) -> Tensor:
    """Boxes as rows (image index, x1, y1, x2, y2) of the type that coordinates are used in."""
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    if isinstance(boxes, Tensor):
        if boxes.dim() != 2 or boxes.shape[1] != 5:
            raise ValueError(f"boxes must have shape [K, 5], got {tuple(boxes.shape)}")
        return boxes.to(dtype)
    if len(boxes) != input.shape[0]:
        raise ValueError(f"boxes must list one tensor per image ({input.shape[0]}), {len(boxes)=}")
    for i, image_boxes in enumerate(boxes):
        if image_boxes.dim() != 2 or image_boxes.shape[1] != 4:
            raise ValueError(f"boxes[{i}] must have shape [L, 4], got {tuple(image_boxes.shape)}")
    rows = [
        torch.nn.functional.pad(image_boxes.to(dtype), (1, 0), value=i)
        for i, image_boxes in enumerate(boxes)
    ]
    return torch.cat(rows)


def _is_channels_last(map: Tensor) -> bool:
    return map.stride(1) == 1 and map.shape[1] > 1


def _empty_output(features: list[Tensor], boxes: Tensor, output_size: Sequence[int]) -> Tensor:
    memory_format = (
        torch.channels_last if _is_channels_last(features[0]) else torch.contiguous_format
    )
    shape = (boxes.shape[0], features[0].shape[1], *output_size)
    return torch.empty(
        shape, dtype=features[0].dtype, device=features[0].device, memory_format=memory_format
    )


def _empty_grads(
    grad_output: Tensor, image_sizes: Sequence[int], channels_last: Sequence[bool]
) -> list[Tensor]:
    # Gradients are summed in float32 whatever their type; only float64 needs more.
    dtype = torch.float64 if grad_output.dtype == torch.float64 else torch.float32
    batch, sizes = image_sizes[0], image_sizes[1:]
    return [
        torch.empty(
            (batch, grad_output.shape[1], sizes[2 * level], sizes[2 * level + 1]),
            dtype=dtype,
            device=grad_output.device,
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        for level, last in enumerate(channels_last)
    ]


@torch.library.impl(LIBRARY, "roi_align", "CPU")
@torch.library.impl(LIBRARY, "roi_align", "CUDA")
def _forward(
    features: list[Tensor], boxes: Tensor, output_size: Sequence[int], *arguments: Any
) -> Tensor:
    output = _empty_output(features, boxes, output_size)
    _C.roi_align_forward(features, boxes, output, *arguments, stream_of(output))
    return output


@torch.library.impl(LIBRARY, "roi_align_backward", "CPU")
@torch.library.impl(LIBRARY, "roi_align_backward", "CUDA")
def _backward(
    grad_output: Tensor,
    boxes: Tensor,
    image_sizes: Sequence[int],
    channels_last: Sequence[bool],
    *arguments: Any,
) -> list[Tensor]:
    grads = _empty_grads(grad_output, image_sizes, channels_last)
    _C.roi_align_backward(grad_output, boxes, grads, *arguments, stream_of(grad_output))
    return [grad.to(grad_output.dtype) for grad in grads]


@torch.library.register_fake("fastseg::roi_align")
def _forward_fake(
    features: list[Tensor], boxes: Tensor, output_size: Sequence[int], *arguments: Any
) -> Tensor:
    return _empty_output(features, boxes, output_size)


@torch.library.register_fake("fastseg::roi_align_backward")
def _backward_fake(
    grad_output: Tensor,
    boxes: Tensor,
    image_sizes: Sequence[int],
    channels_last: Sequence[bool],
    *arguments: Any,
) -> list[Tensor]:
    grads = _empty_grads(grad_output, image_sizes, channels_last)
    return [grad.to(grad_output.dtype) for grad in grads]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, _, *ctx.arguments = inputs
    ctx.save_for_backward(boxes)
    sizes = [size for feature in features for size in feature.shape[2:]]
    ctx.image_sizes = [features[0].shape[0], *sizes]
    ctx.channels_last = [_is_channels_last(feature) for feature in features]


def _autograd(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    grads = torch.ops.fastseg.roi_align_backward(
        grad_output, *ctx.saved_tensors, ctx.image_sizes, ctx.channels_last, *ctx.arguments
    )
    return grads, None, None, *(None for _ in ctx.arguments)


def _setup_double_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad_output, boxes, _, _, *ctx.arguments = inputs
    ctx.save_for_backward(boxes)
    ctx.output_size = grad_output.shape[2:]


def _double_autograd(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    # The op is linear in its features, so the gradient of its backward is its forward.
    grad = torch.ops.fastseg.roi_align(grads, *ctx.saved_tensors, ctx.output_size, *ctx.arguments)
    return grad, None, None, None, *(None for _ in ctx.arguments)


torch.library.register_autograd(
    "fastseg::roi_align", _autograd, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd(
    "fastseg::roi_align_backward",
    _double_autograd,
    setup_context=_setup_double_context,
    lib=LIBRARY,
)
