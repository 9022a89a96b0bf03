"""Multi-scale deformable attention: sparse attention to feature maps of several resolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.reference.ms_deform_attn import ms_deform_attn as _reference

_LEVELS = "Tensor? shape_tensor, Tensor? start_tensor, SymInt[] shapes, SymInt[] starts"
LIBRARY.define(
    f"ms_deform_attn(Tensor value, {_LEVELS}, Tensor sampling_locations, "
    "Tensor attention_weights) -> Tensor"
)
LIBRARY.define(
    f"ms_deform_attn_backward(Tensor grad_output, Tensor value, {_LEVELS}, "
    "Tensor sampling_locations, Tensor attention_weights, bool deterministic) "
    "-> (Tensor, Tensor, Tensor)"
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
    argument order of its `MSDeformAttnFunction` (so also of Mask2Former, mmcv and transformers).

    Args:
        value: [B, S, M, D] float32/float64/float16/bfloat16: the maps of L <= 8 levels as rows,
            one level after the other, for M heads of D channels. Any strides.
        spatial_shapes: (height, width) of each level: [L, 2] int64, or a sequence of pairs.
        level_start_index: first row of each level: [L] int64, or a sequence; None: without gaps.
        sampling_locations: [B, Q, M, L, P, 2], x and y in units of the map's width and height, so
            that 0 and 1 are the borders; beyond them lie zeros. Used in float32 (float64 for
            float64 value) whatever its type. A sample at NaN counts as 0.
        attention_weights: [B, Q, M, L, P], used in float32 (float64) likewise.

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
    for name, tensor, dims in (
        ("value", value, 4),
        ("sampling_locations", sampling_locations, 6),
        ("attention_weights", attention_weights, 5),
    ):
        if tensor.dim() != dims or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be floating point with {dims} dimensions, got {tensor.dtype} of "
                f"shape {tuple(tensor.shape)}"
            )
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    levels = _levels(spatial_shapes, level_start_index, value.device)
    return torch.ops.fastseg.ms_deform_attn(
        value, *levels, sampling_locations.to(dtype), attention_weights.to(dtype)
    )


_Levels = tuple[Tensor | None, Tensor | None, list[int], list[int]]


def _levels(
    shapes: Tensor | Sequence[tuple[int, int]],
    starts: Tensor | Sequence[int] | None,
    device: torch.device,
) -> _Levels:
    """The op's arguments: tensors on the value's device, or lists."""
    pairs: list[tuple[int, int]] = []
    if isinstance(shapes, Tensor):
        if shapes.dim() != 2 or shapes.shape[1] != 2 or shapes.is_floating_point():
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
        if starts is None:
            starts = list(accumulate([height * width for height, width in pairs], initial=0))[:-1]
    if isinstance(starts, Tensor):
        starts = starts.to(device, torch.int64)
    return (
        shapes if isinstance(shapes, Tensor) else None,
        starts if isinstance(starts, Tensor) else None,
        [side for pair in pairs for side in pair],
        [] if isinstance(starts, Tensor) else list(starts),
    )


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
def _backward(grad_output: Tensor, value: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *levels, locations, weights, deterministic = arguments
    grad_output = grad_output.unflatten(2, value.shape[2:])
    # Gradients are summed in float32 whatever their type; only float64 needs more.
    grads = (
        torch.zeros(value.shape, dtype=weights.dtype, device=value.device),
        torch.empty(locations.shape, dtype=weights.dtype, device=value.device),
        torch.empty(weights.shape, dtype=weights.dtype, device=value.device),
    )
    fixed_point = largest = None
    if deterministic and grad_output.numel() and weights.numel():
        fixed_point = torch.zeros(value.shape, dtype=torch.int64, device=value.device)
        largest = torch.stack([x.abs().max().double() for x in (grad_output, weights)])
    _C.ms_deform_attn_backward(
        grad_output,
        value,
        *levels,
        locations,
        weights,
        *grads,
        fixed_point,
        largest,
        stream_of(value),
    )
    return grads[0].to(value.dtype), grads[1], grads[2]


@torch.library.register_fake("fastseg::ms_deform_attn_backward")
def _backward_fake(
    grad_output: Tensor, value: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, locations, weights, _ = arguments
    return (
        torch.empty(value.shape, dtype=value.dtype, device=value.device),
        torch.empty(locations.shape, dtype=locations.dtype, device=value.device),
        torch.empty(weights.shape, dtype=weights.dtype, device=value.device),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, shape_tensor, start_tensor, ctx.shapes, ctx.starts, locations, weights = inputs
    ctx.save_for_backward(value, shape_tensor, start_tensor, locations, weights)


def _autograd(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    value, shape_tensor, start_tensor, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.fastseg.ms_deform_attn_backward(
        grad_output,
        value,
        shape_tensor,
        start_tensor,
        ctx.shapes,
        ctx.starts,
        locations,
        weights,
        torch.are_deterministic_algorithms_enabled() and value.is_cuda,
    )
    return grad_value, None, None, None, None, grad_locations, grad_weights


def _setup_double_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_output, value, shape_tensor, start_tensor, ctx.shapes, ctx.starts, *rest, _ = inputs
    ctx.save_for_backward(grad_output, value, shape_tensor, start_tensor, *rest)


def _double_autograd(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Through the definition, whose gradients torch can differentiate again."""
    grad_output, value, shape_tensor, start_tensor, locations, weights = ctx.saved_tensors
    shapes = ctx.shapes if shape_tensor is None else shape_tensor.flatten().tolist()
    starts = ctx.starts if start_tensor is None else start_tensor.tolist()
    pairs = list(zip(shapes[::2], shapes[1::2], strict=True))
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (grad_output, value, locations, weights)]
        output = _reference(inputs[1], pairs, starts, inputs[2], inputs[3])
        first = torch.autograd.grad(output, inputs[1:], inputs[0], create_graph=True)
        second = torch.autograd.grad(first, inputs, grads, allow_unused=True)
    return second[0], second[1], None, None, None, None, second[2], second[3], None


torch.library.register_autograd(
    "fastseg::ms_deform_attn", _autograd, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd(
    "fastseg::ms_deform_attn_backward",
    _double_autograd,
    setup_context=_setup_double_context,
    lib=LIBRARY,
)
