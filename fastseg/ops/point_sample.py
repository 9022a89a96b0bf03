"""Bilinear samples of maps at points, and the points where a mask is uncertain (PointRend)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._fixed_point import fixed_point_units, wants_fixed_point
from fastseg.ops._registry import LIBRARY, stream_of
from fastseg.reference.point_sample import point_sample as _reference

LIBRARY.define("point_sample(Tensor input, Tensor points) -> Tensor")
LIBRARY.define(
    "point_sample_input_grad(Tensor grad_output, Tensor points, SymInt height, SymInt width) "
    "-> Tensor"
)
LIBRARY.define(
    "point_sample_points_grad(Tensor grad_output, Tensor input, Tensor points) -> Tensor"
)


def point_sample(input: Tensor, points: Tensor) -> Tensor:
    """Samples maps bilinearly at points; beyond the maps lie zeros.

    Source: Kirillov et al., PointRend, 2020; equal to
    `grid_sample(input, 2 * points - 1, align_corners=False)` and so to `point_sample` of
    detectron2, Mask2Former and mmcv.

    Args:
        input: [N, C, H, W] float32/float64/float16/bfloat16, or bool for masks of zeros and ones;
            any strides. Where maps share their points, let them be channels: each point is then
            located once.
        points: [N, P, 2], x and y in units of the map's width and height: 0 and 1 are the borders,
            pixel centres lie at half pixels. Used in float32 (float64 for float64 input) whatever
            its type. A sample at NaN is 0.

    Returns:
        [N, C, P] of input's dtype, float32 for bool; sums are float32 (float64). Differentiable
        twice in both tensors. On CUDA the gradient of input is summed in an order that varies,
        unless `torch.use_deterministic_algorithms(True)`: then in fixed point, and wholly NaN
        where a gradient is not finite.

    Raises:
        ValueError: shapes or types do not fit, or a map spans 2^31 elements or more.
    """
    for name, tensor, dims in (("input", input, 4), ("points", points, 3)):
        masks = name == "input" and tensor.dtype == torch.bool
        if tensor.dim() != dims or not (tensor.is_floating_point() or masks):
            wanted = "floating point or bool" if name == "input" else "floating point"
            raise ValueError(
                f"{name} must be {wanted} with {dims} dimensions, got {tensor.dtype} of "
                f"shape {tuple(tensor.shape)}"
            )
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return torch.ops.fastseg.point_sample(input, points.to(dtype))


@torch.no_grad()
def sample_uncertain_points(
    logits: Tensor,
    num_points: int,
    oversample_ratio: float = 3.0,
    importance_sample_ratio: float = 0.75,
    generator: torch.Generator | None = None,
    random: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Draws points of each mask, most of them where its logit is near 0.

    Source: PointRend, section 3.2; draws random numbers in the order of detectron2, Mask2Former
    and mmdetection, so that with the same seed the points are theirs.

    Args:
        logits: [N, 1, H, W] of masks, 0 on their outlines.
        num_points: P, points per mask.
        oversample_ratio: int(P * this) uniform points are drawn to choose from, at least 1.
        importance_sample_ratio: int(P * this) points, 0 to P, are those of smallest |logit|; the
            rest is drawn uniformly.
        generator: of the random numbers, on logits' device; None: torch's own.
        random: the two arrays of uniform numbers in [0, 1), if drawn already:
            [N, int(P * oversample_ratio), 2] and [N, P - int(P * importance_sample_ratio), 2].

    Returns:
        [N, P, 2] float32, x and y in [0, 1) as `point_sample` takes them: first the uncertain
        points, in any order. Without gradient.

    Raises:
        ValueError: a shape, number or ratio is out of range.
    """
    if logits.dim() != 4 or logits.shape[1] != 1:
        raise ValueError(f"logits must have shape [N, 1, H, W], got {tuple(logits.shape)}")
    if num_points < 0:
        raise ValueError(f"num_points must not be negative, got {num_points}")
    if not oversample_ratio >= 1:
        raise ValueError(f"oversample_ratio must be at least 1, got {oversample_ratio}")
    if not 0 <= importance_sample_ratio <= 1:
        raise ValueError(
            f"importance_sample_ratio must lie within 0 and 1, got {importance_sample_ratio}"
        )
    drawn = int(num_points * oversample_ratio)
    uncertain = int(importance_sample_ratio * num_points)
    sizes = [(logits.shape[0], count, 2) for count in (drawn, num_points - uncertain)]
    if random is not None:
        for i, size in enumerate(sizes):
            if random[i].shape != size:
                raise ValueError(
                    f"random[{i}] must have shape {size}, got {tuple(random[i].shape)}"
                )
        candidates, rest = (numbers.to(logits.device, torch.float32) for numbers in random)
    else:
        candidates = torch.rand(sizes[0], generator=generator, device=logits.device)
    certainty = point_sample(logits, candidates)[:, 0].abs()
    # To sort them would take longer than to choose them.
    chosen = torch.topk(certainty, uncertain, dim=1, largest=False, sorted=False).indices
    points = torch.gather(candidates, 1, chosen[..., None].expand(-1, -1, 2))
    if random is None:
        rest = torch.rand(sizes[1], generator=generator, device=logits.device)
    return torch.cat([points, rest], dim=1)


@torch.library.impl(LIBRARY, "point_sample", "CPU")
@torch.library.impl(LIBRARY, "point_sample", "CUDA")
def _forward(input: Tensor, points: Tensor) -> Tensor:
    output = _forward_fake(input, points)
    _C.point_sample(input, points, output, stream_of(input))
    return output


@torch.library.register_fake("fastseg::point_sample")
def _forward_fake(input: Tensor, points: Tensor) -> Tensor:
    dtype = torch.float32 if input.dtype == torch.bool else input.dtype
    return input.new_empty(*input.shape[:2], points.shape[1], dtype=dtype)


@torch.library.impl(LIBRARY, "point_sample_input_grad", "CPU")
@torch.library.impl(LIBRARY, "point_sample_input_grad", "CUDA")
def _input_grad(grad_output: Tensor, points: Tensor, height: int, width: int) -> Tensor:
    units = None
    if wants_fixed_point(grad_output):
        largest = grad_output.abs().max() if grad_output.numel() else grad_output.new_ones(())
        units = fixed_point_units(largest.double(), points.shape[1])
    # Summed in float32 whatever its type; only float64 needs more.
    grad = torch.zeros(
        *grad_output.shape[:2],
        height,
        width,
        dtype=points.dtype if units is None else torch.int64,
        device=points.device,
    )
    _C.point_sample_input_grad(grad_output, points, grad, units, stream_of(grad_output))
    if units is not None:
        grad = grad.double().div_(units)
    return grad.to(grad_output.dtype)


@torch.library.register_fake("fastseg::point_sample_input_grad")
def _input_grad_fake(grad_output: Tensor, points: Tensor, height: int, width: int) -> Tensor:
    return grad_output.new_empty(*grad_output.shape[:2], height, width)


@torch.library.impl(LIBRARY, "point_sample_points_grad", "CPU")
@torch.library.impl(LIBRARY, "point_sample_points_grad", "CUDA")
def _points_grad(grad_output: Tensor, input: Tensor, points: Tensor) -> Tensor:
    grad = _points_grad_fake(grad_output, input, points)
    _C.point_sample_points_grad(grad_output, input, points, grad, stream_of(input))
    return grad


@torch.library.register_fake("fastseg::point_sample_points_grad")
def _points_grad_fake(grad_output: Tensor, input: Tensor, points: Tensor) -> Tensor:
    return points.new_empty(points.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, points = inputs
    ctx.size = input.shape[2:]
    # Points alone do for the gradient of input, and mostly only that is wanted.
    ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, points)


def _autograd(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    input, points = ctx.saved_tensors
    grad_input = grad_points = None
    if ctx.needs_input_grad[0]:
        grad_input = torch.ops.fastseg.point_sample_input_grad(grad_output, points, *ctx.size)
    if ctx.needs_input_grad[1]:
        grad_points = torch.ops.fastseg.point_sample_points_grad(
            grad_output, input.to(grad_output.dtype), points
        )
    return grad_input, grad_points


def _setup_input_grad_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _input_grad_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The sum <grad, input_grad(g, points)> is <point_sample(grad, points), g>."""
    grad_output, points = ctx.saved_tensors
    grad_points = None
    if ctx.needs_input_grad[1]:
        grad_points = torch.ops.fastseg.point_sample_points_grad(grad_output, grad, points)
    return torch.ops.fastseg.point_sample(grad, points), grad_points, None, None


def _setup_points_grad_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _points_grad_autograd(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """Through the definition, whose gradients torch can differentiate again."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
        grad_output, input, points = inputs
        # In the type of the points: the definition rounds to that of its result.
        samples = _reference(input.to(points.dtype), points)
        (first,) = torch.autograd.grad(
            samples, points, grad_output.to(points.dtype), create_graph=True
        )
        return torch.autograd.grad(first, inputs, grad, allow_unused=True)


for _name, _backward, _setup in (
    ("point_sample", _autograd, _setup_context),
    ("point_sample_input_grad", _input_grad_autograd, _setup_input_grad_context),
    ("point_sample_points_grad", _points_grad_autograd, _setup_points_grad_context),
):
    torch.library.register_autograd(
        f"fastseg::{_name}", _backward, setup_context=_setup, lib=LIBRARY
    )
