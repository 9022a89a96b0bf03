"""Multi-scale deformable attention: sparse attention to feature maps of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._fixed_point import fixed_point_units, wants_fixed_point
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.reference.ms_deform_attn import ms_deform_attn as _reference
from fastseg.reference.ms_deform_attn import ms_deform_attn_fused as _fused_reference

# With reference points the op is the fused form: locations are offsets, weights are logits.
_LEVELS = "Tensor? shape_tensor, Tensor? start_tensor, SymInt[] shapes, SymInt[] starts"
_POINTS = "Tensor? reference_points, Tensor locations, Tensor weights"
LIBRARY.define(f"ms_deform_attn(Tensor value, {_LEVELS}, {_POINTS}) -> Tensor")
LIBRARY.define(
    f"ms_deform_attn_backward(Tensor grad_output, Tensor value, {_LEVELS}, {_POINTS}, "
    "bool needs_reference_grad) -> (Tensor, Tensor, Tensor, Tensor)"
)


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Sums bilinear samples of the value maps, for each query and head, over levels and points.

    Source: Zhu et al., Deformable DETR, 2021, Eq. 3, between the projections; semantics and
    argument order of its `MSDeformAttnFunction` (so also of Mask2Former, mmcv and transformers),
    without its last one, `im2col_step`: all images are computed together.

    Args:
        value: [B, S, M, D] float32/float64/float16/bfloat16: the maps of L <= 8 levels as rows,
            one level after the other, for M heads of D channels. Any strides.
        spatial_shapes: (height, width) of each level: [L, 2] int64, or a sequence of pairs.
        level_start_index: first row of each level: [L] int64, or a sequence; None: without gaps.
        sampling_locations: [B, Q, M, L, P, 2], x and y in units of the map's width and height, so
            that 0 and 1 are the borders; beyond them lie zeros. Used in float32 (float64 for
            float64 value) whatever its type. A sample at NaN counts as 0.
        attention_weights: [B, Q, M, L, P], used in float32 (float64) likewise. One that is not
            finite makes its query and head so, wherever its sample lies.

    Returns:
        [B, Q, M * D] of value's dtype; sums are float32 (float64). Differentiable twice in all
        three tensors. On CUDA the gradient of value is summed in an order that varies, unless
        `torch.use_deterministic_algorithms(True)`: then in fixed point, 40 bits or more below the
        largest term, and wholly NaN where a gradient is not finite.

    Raises:
        ValueError: shapes do not fit each other. Where spatial_shapes or level_start_index lie on
            CUDA, levels that do not fit value give NaN instead, as looking would cost a
            synchronisation.
    """
    _check_dims("value", value, 4)
    _check_dims("sampling_locations", sampling_locations, 6)
    _check_dims("attention_weights", attention_weights, 5)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    levels = _levels(spatial_shapes, level_start_index, value.device)
    return torch.ops.fastseg.ms_deform_attn(
        value, *levels, None, sampling_locations.to(dtype), attention_weights.to(dtype)
    )


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int] | None,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """`ms_deform_attn` of what a Deformable DETR layer predicts: offsets and logits.

    Locations and weights are computed where they are used and never stored. Attention weights are
    the softmax of the logits over levels and points together. A location is the reference point
    plus offset / (width, height), or within a reference box its centre plus
    offset / P * size / 2.

    Source: Zhu et al., Deformable DETR, 2021; as its module computes between the linear layers.

    Args:
        value: [B, S, M, D] float32/float64/float16/bfloat16, as for `ms_deform_attn`.
        spatial_shapes: (height, width) of each level: [L, 2] int64, or a sequence of pairs.
        level_start_index: first row of each level: [L] int64, or a sequence; None: without gaps.
        reference_points: [B, Q, L, 2], x and y in units of each map's width and height; or
            [B, Q, L, 4], centre x, y, width and height of a box. Like the two below used in
            float32 (float64 for float64 value) whatever its type. Expanded dimensions cost
            nothing.
        sampling_offsets: [B, Q, M, L, P, 2] x and y. A sample at NaN counts as 0.
        attention_logits: [B, Q, M, L, P].

    Returns:
        [B, Q, M * D] of value's dtype; sums are float32 (float64). Differentiable twice in all
        four tensors; for the gradient of value see `ms_deform_attn`.

    Raises:
        ValueError: shapes do not fit each other; for levels see `ms_deform_attn`.
    """
    _check_dims("value", value, 4)
    _check_dims("reference_points", reference_points, 4)
    _check_dims("sampling_offsets", sampling_offsets, 6)
    _check_dims("attention_logits", attention_logits, 5)
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    points = (x.to(dtype) for x in (reference_points, sampling_offsets, attention_logits))
    levels = _levels(spatial_shapes, level_start_index, value.device)
    return torch.ops.fastseg.ms_deform_attn(value, *levels, *points)


def _check_dims(name: str, tensor: Tensor, dims: int) -> None:
    if tensor.dim() != dims or not tensor.is_floating_point():
        raise ValueError(
            f"{name} must be floating point with {dims} dimensions, got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}"
        )


_INTEGERS = (torch.int64, torch.int32)
_Levels = tuple[Tensor | None, Tensor | None, list[int], list[int]]


def _levels(
    shapes: Tensor | Sequence[tuple[int, int]],
    starts: Tensor | Sequence[int] | None,
    device: torch.device,
) -> _Levels:
    """The op's arguments: tensors on the value's device, or lists."""
    pairs: list[tuple[int, int]] = []
    if isinstance(shapes, Tensor):
        if shapes.dim() != 2 or shapes.shape[1] != 2 or shapes.dtype not in _INTEGERS:
            raise ValueError(
                f"spatial_shapes must be integers [L, 2], got {shapes.dtype} of shape "
                f"{tuple(shapes.shape)}"
            )
        shapes = shapes.to(device, torch.int64)
        if starts is None:
            areas = shapes.prod(dim=1)
            starts = areas.cumsum(0) - areas
    else:
        try:
            pairs = [(height, width) for height, width in shapes]
        except (TypeError, ValueError):
            raise ValueError(
                f"spatial_shapes must be pairs (height, width), got {shapes}"
            ) from None
        _check_integers("spatial_shapes", [side for pair in pairs for side in pair])
        if starts is None:
            starts = list(accumulate([height * width for height, width in pairs], initial=0))[:-1]
    if isinstance(starts, Tensor):
        if starts.dtype not in _INTEGERS:
            raise ValueError(f"level_start_index must be integers, got {starts.dtype}")
        starts = starts.to(device, torch.int64)
    else:
        _check_integers("level_start_index", starts)
    return (
        shapes if isinstance(shapes, Tensor) else None,
        starts if isinstance(starts, Tensor) else None,
        [side for pair in pairs for side in pair],
        [] if isinstance(starts, Tensor) else list(starts),
    )


def _check_integers(name: str, numbers: Sequence[Any]) -> None:
    for number in numbers:
        if not hasattr(number, "__index__"):
            raise ValueError(f"{name} must be integers, got {number!r}")


def _empty_output(value: Tensor, locations: Tensor) -> Tensor:
    return value.new_empty(*locations.shape[:3], value.shape[3])


@torch.library.impl(LIBRARY, "ms_deform_attn", "CPU")
@torch.library.impl(LIBRARY, "ms_deform_attn", "CUDA")
def _forward(value: Tensor, *arguments: Any) -> Tensor:
    output = _empty_output(value, arguments[-2])
    _C.ms_deform_attn_forward(value, *arguments, output, stream_of(value))
    return output.flatten(2)


@torch.library.register_fake("fastseg::ms_deform_attn")
def _forward_fake(value: Tensor, *arguments: Any) -> Tensor:
    return _empty_output(value, arguments[-2]).flatten(2)


@torch.library.impl(LIBRARY, "ms_deform_attn_backward", "CPU")
@torch.library.impl(LIBRARY, "ms_deform_attn_backward", "CUDA")
def _backward(
    grad_output: Tensor, value: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *points, needs_reference_grad = arguments
    *_, references, locations, weights = points
    grad_output = grad_output.unflatten(2, value.shape[2:])
    units = None
    if wants_fixed_point(value):
        units = _units(grad_output, weights, is_logits=references is not None)
    # Gradients are summed in float32 whatever their type; only float64 needs more.
    sums_dtype = weights.dtype if units is None else torch.int64
    grad_value = torch.zeros(value.shape, dtype=sums_dtype, device=value.device)
    grad_locations = weights.new_empty(locations.shape)
    grad_weights = weights.new_empty(weights.shape)
    head_shares = None  # of the gradient of the reference points
    if needs_reference_grad:
        head_shares = weights.new_empty(*weights.shape[:4], references.shape[3])
    _C.ms_deform_attn_backward(
        grad_output,
        value,
        *points,
        grad_value,
        head_shares,
        grad_locations,
        grad_weights,
        units,
        stream_of(value),
    )
    if units is not None:
        grad_value = grad_value.double().div_(units)
    grad_references = weights.new_empty(0) if head_shares is None else head_shares.sum(2)
    return grad_value.to(value.dtype), grad_references, grad_locations, grad_weights


def _units(grad_output: Tensor, weights: Tensor, *, is_logits: bool) -> Tensor:
    """Fixed-point units of the gradient of value: a sample adds at most |weight * grad_output|."""
    if not (grad_output.numel() and weights.numel()):
        return grad_output.new_ones(1, dtype=torch.float64)
    largest = grad_output.abs().max().double()
    if not is_logits:
        largest = largest * weights.abs().max().double()
    return fixed_point_units(largest, weights.shape[1] * weights.shape[3] * weights.shape[4])


@torch.library.register_fake("fastseg::ms_deform_attn_backward")
def _backward_fake(
    grad_output: Tensor, value: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *_, references, locations, weights, needs_reference_grad = arguments
    return (
        value.new_empty(value.shape),
        weights.new_empty(references.shape if needs_reference_grad else 0),
        weights.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, shape_tensor, start_tensor, ctx.shapes, ctx.starts, *points = inputs
    ctx.save_for_backward(value, shape_tensor, start_tensor, *points)


def _autograd(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    value, shape_tensor, start_tensor, *points = ctx.saved_tensors
    needs_reference_grad = ctx.needs_input_grad[5]
    grad_value, grad_references, *grads = torch.ops.fastseg.ms_deform_attn_backward(
        grad_output,
        value,
        shape_tensor,
        start_tensor,
        ctx.shapes,
        ctx.starts,
        *points,
        needs_reference_grad,
    )
    if not needs_reference_grad:
        grad_references = None
    return grad_value, None, None, None, None, grad_references, *grads


def _setup_double_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_output, value, shape_tensor, start_tensor, ctx.shapes, ctx.starts, *points, _ = inputs
    ctx.save_for_backward(grad_output, value, shape_tensor, start_tensor, *points)


def _double_autograd(ctx: Any, grad_value: Tensor, *grad_points: Tensor) -> tuple[Any, ...]:
    """Through the definition, whose gradients torch can differentiate again."""
    grad_output, value, shape_tensor, start_tensor, *points = ctx.saved_tensors
    shapes = ctx.shapes if shape_tensor is None else shape_tensor.flatten().tolist()
    starts = ctx.starts if start_tensor is None else start_tensor.tolist()
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    fused = points[0] is not None
    definition = _fused_reference if fused else _reference
    if not fused:
        points, grad_points = points[1:], grad_points[1:]
    elif grad_points[0].numel() == 0:  # nobody wanted the gradient of the reference points
        grad_points = (torch.zeros_like(points[0]), *grad_points[1:])
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (grad_output, value, *points)]
        output = definition(inputs[1], pairs, starts, *inputs[2:])
        first = torch.autograd.grad(output, inputs[1:], inputs[0], create_graph=True)
        second = torch.autograd.grad(first, inputs, (grad_value, *grad_points), allow_unused=True)
    of_points = second[2:] if fused else (None, *second[2:])
    return second[0], second[1], None, None, None, None, *of_points, None


torch.library.register_autograd(
    "fastseg::ms_deform_attn", _autograd, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd(
    "fastseg::ms_deform_attn_backward",
    _double_autograd,
    setup_context=_setup_double_context,
    lib=LIBRARY,
)
