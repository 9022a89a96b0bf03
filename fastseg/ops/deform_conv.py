"""Deformable convolution, v1 and v2, without a buffer for the columns of all pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastseg import _C, reference
from fastseg.ops._deform_conv_call import Call, aligned
from fastseg.ops._deform_conv_checks import check, check_types, pair_of
from fastseg.ops._deform_conv_tiles import make_tiles
from fastseg.ops._fixed_point import fixed_point_units, wants_fixed_point
from fastseg.ops._registry import LIBRARY

_GEOMETRY = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation"
LIBRARY.define(
    f"deform_conv2d(Tensor input, Tensor offset, Tensor weight, Tensor? bias, {_GEOMETRY}, "
    "Tensor? mask) -> Tensor"
)
LIBRARY.define(
    "deform_conv2d_backward(Tensor grad_output, Tensor input, Tensor offset, Tensor weight, "
    f"Tensor? mask, {_GEOMETRY}) -> (Tensor, Tensor, Tensor, Tensor)"
)


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
) -> Tensor:
    """Convolves with taps that are moved per output pixel; results are torchvision's.

    A tap reads its moved position bilinearly; cells beyond the border count as 0. An infinite
    offset reads 0, a NaN offset NaN. Between two cells derivatives are as usual, on a cell they are
    those towards the next one, which is so for a tap exactly one cell before the border too (in
    mmcv that one has none). Positions and sums are float32 (float64 for float64 input)
    whatever the types. Under autocast it is computed in the autocast type, like a convolution;
    offset and mask keep theirs. In float32 on CUDA, products obey torch's switch for TF32.

    Differentiable twice; the second derivative is computed by the definition in plain torch,
    slowly and with columns of all pixels. Results are the same in every run, with one exception
    that `torch.use_deterministic_algorithms(True)` removes: on CUDA the input's gradient is summed
    in any order. (With it, sums are in fixed point of about 40 bits below the largest gradient
    that can occur.)

    Source: Dai et al., Deformable Convolutional Networks, 2017; with mask Zhu et al., Deformable
    ConvNets v2, 2019; semantics of `torchvision.ops.deform_conv2d`.

    Args:
        input: [B, C, H, W] float32/float64/float16/bfloat16; channels-last is the fast layout.
        offset: [B, 2 * G * kh * kw, OH, OW] in input pixels, any floating type: for each of G
            groups of input channels and each tap (dy, dx). G is taken from the shape.
        weight: [D, C / groups, kh, kw] of input's dtype; groups is taken from the shape.
        bias: [D] of input's dtype.
        stride: input pixels per output pixel, one int or (along y, along x).
        padding: cells of zeros around the input, one int or a pair.
        dilation: input pixels between taps, one int or a pair.
        mask: [B, G * kh * kw, OH, OW] factors of what taps read, any floating type (v2).

    Returns:
        [B, D, OH, OW] of input's dtype, OH = (H + 2 * padding - dilation * (kh - 1) - 1) // stride
        + 1; channels-last when input is.

    Raises:
        ValueError: a shape, dtype, device or number is wrong, or the output would have no pixels.
        TypeError: not a tensor, or not a number.
    """
    pairs = (
        pair_of("stride", stride, 1),
        pair_of("padding", padding, 0),
        pair_of("dilation", dilation, 1),
    )
    check(input, offset, weight, bias, *pairs, mask)
    return torch.ops.fastseg.deform_conv2d(input, offset, weight, bias, *pairs, mask)


def _memory_format(input: Tensor) -> torch.memory_format:
    channels_last = input.stride(1) == 1 and input.shape[1] > 1
    return torch.channels_last if channels_last else torch.contiguous_format


@torch.library.impl(LIBRARY, "deform_conv2d", "CPU")
@torch.library.impl(LIBRARY, "deform_conv2d", "CUDA")
def _forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    mask: Tensor | None,
) -> Tensor:
    check_types(input, weight, bias)
    output = _empty_output(input, offset, weight)
    call = Call(input, offset, weight, mask, stride, padding, dilation)
    if not call.needs_columns():
        channels_last = aligned(input.contiguous(memory_format=torch.channels_last))
        tensors = (channels_last, call.offset, call.mask, aligned(call.kernels[0]), bias, output)
        options = (call.geometry, call.offset_groups, call.exact, call.stream)
        _C.deform_conv_product(*tensors, *options)
        return output
    maps = _grouped(output, call.groups)
    shift = None if bias is None else bias.view(call.groups, -1, 1).to(call.dtype)
    tiles = make_tiles(call, backward=False)
    for tile in tiles:
        _C.deform_conv_sample(*tile.arguments, call.stream)
        tiles.convolve(tile.columns, shift, maps[:, :, tile.images, tile.pixels])
    return output


def _grouped(maps: Tensor, groups: int) -> Tensor:
    """Maps [B, D, OH, OW] as [groups, D / groups, B, pixels], without a copy."""
    return maps.flatten(2).unflatten(1, (groups, -1)).permute(1, 2, 0, 3)


@torch.library.impl(LIBRARY, "deform_conv2d_backward", "CPU")
@torch.library.impl(LIBRARY, "deform_conv2d_backward", "CUDA")
def _backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Call(input, offset, weight, mask, stride, padding, dilation)
    deterministic = wants_fixed_point(input)
    units = _units(call, grad_output) if deterministic else None
    grad_input = torch.zeros_like(
        input,
        dtype=torch.int64 if deterministic else call.accumulate,
        memory_format=torch.channels_last,
    )
    grad_offset = torch.empty_like(call.offset)
    grad_mask = None if call.mask is None else torch.empty_like(call.mask)
    outputs = (grad_input, grad_offset, grad_mask)
    if call.needs_columns() or weight.shape[0] * weight.itemsize % 16:
        grad_input, grad_weight = _gradients_through_columns(call, grad_output, *outputs, units)
    else:
        grad_weight = _gradients(call, grad_output, *outputs, units)
    if units is not None:
        grad_input = grad_input.double().div_(units)
    return (
        grad_input.to(input.dtype).contiguous(memory_format=_memory_format(input)),
        grad_offset.to(offset.dtype),
        grad_weight.to(weight.dtype).reshape(weight.shape).contiguous(),
        offset.new_empty(0) if mask is None or grad_mask is None else grad_mask.to(mask.dtype),
    )


def _gradients_through_columns(
    call: Call,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor | None,
    units: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Fills the gradients of offset and mask; returns those of input and weight.

    The gradient of the input is zero at first, and channels-last.
    """
    tiles = make_tiles(call, backward=True)
    grad_kernels = torch.zeros_like(tiles.kernels, dtype=call.accumulate)
    maps = _grouped(grad_output.contiguous(memory_format=_memory_format(grad_output)), call.groups)
    for tile in tiles:
        own = tile.images
        grad = maps[:, :, own, tile.pixels].flatten(2).to(call.dtype)
        columns = tiles.spread(grad, tile.columns)
        inputs = (*tile.arguments[:3], columns, *tile.arguments[4:])
        grads = (grad_input[own], grad_offset[own], None if grad_mask is None else grad_mask[own])
        _C.deform_conv_backward(*inputs, *grads, units, call.stream)
        tiles.add_kernels(grad, columns, grad_kernels)
    return tiles.restored(grad_input), tiles.as_weight(grad_kernels)


def _gradients(call: Call, grad_output: Tensor, *outputs: Tensor | None) -> Tensor:
    """The same without columns in memory; fills the gradient of the input too."""
    kernels = call.kernels[0]
    grads = aligned(grad_output.permute(0, 2, 3, 1).contiguous().flatten(0, 2))
    # A block sums 256 outputs x 128 columns over a share of the pixels: about 256 blocks.
    blocks = math.ceil(kernels.shape[0] / 256) * math.ceil(kernels.shape[1] / 128)
    shares = max(1, min(256 // blocks, grads.shape[0] // 512))
    partials = kernels.new_empty((shares, *kernels.shape), dtype=call.accumulate)
    _C.deform_conv_gradients(
        aligned(call.input.contiguous(memory_format=torch.channels_last)),
        *(call.offset, call.mask, kernels.mT.contiguous(), grads),
        *(call.geometry, call.offset_groups, call.exact),
        *outputs,
        partials,
        call.stream,
    )
    return partials.sum(0).unflatten(1, (call.taps, -1)).transpose(1, 2)


def _units(call: Call, grad_output: Tensor) -> Tensor:
    """Fixed-point units [1] in which no sum of the input's gradient overflows 63 bits.

    A sample adds at most the largest possible gradient of a column. 0 when that is not finite.
    """
    largest = call.kernels.abs().sum(1, dtype=call.accumulate).amax()
    largest = largest * grad_output.abs().amax()
    if call.mask is not None:
        largest = largest * call.mask.abs().amax()
    samples = call.taps * call.offset.shape[2] * call.offset.shape[3]
    # Smaller gradients would need more units than float32 can hold.
    return fixed_point_units(largest.double().clamp(min=2.0**-60), samples).to(call.accumulate)


def _empty_output(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(
        (input.shape[0], weight.shape[0], *offset.shape[2:]),
        dtype=input.dtype,
        device=input.device,
        memory_format=_memory_format(input),
    )


@torch.library.register_fake("fastseg::deform_conv2d")
def _forward_fake(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> Tensor:
    check_types(input, weight, bias)
    return _empty_output(input, offset, weight)


@torch.library.register_fake("fastseg::deform_conv2d_backward")
def _backward_fake(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_mask = offset.new_empty(0) if mask is None else torch.empty_like(mask)
    return (
        torch.empty_like(input, memory_format=_memory_format(input)),
        torch.empty_like(offset),
        weight.new_empty(weight.shape),
        grad_mask,
    )


@torch.library.impl(LIBRARY, "deform_conv2d", "AutocastCPU")
@torch.library.impl(LIBRARY, "deform_conv2d", "AutocastCUDA")
def _autocast(
    input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> Tensor:
    device = input.device.type
    dtype = torch.get_autocast_dtype(device)
    if input.dtype != torch.float64:
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        return torch.ops.fastseg.deform_conv2d(input, offset, weight, bias, *arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, offset, weight, _, *ctx.geometry, mask = inputs
    ctx.save_for_backward(input, offset, weight, mask)


def _autograd(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    grad_input, grad_offset, grad_weight, grad_mask = torch.ops.fastseg.deform_conv2d_backward(
        grad_output, *ctx.saved_tensors, *ctx.geometry
    )
    grad_bias = grad_output.sum((0, 2, 3)) if ctx.needs_input_grad[3] else None
    if not ctx.needs_input_grad[7]:
        grad_mask = None
    return grad_input, grad_offset, grad_weight, grad_bias, None, None, None, grad_mask


def _setup_double_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_output, input, offset, weight, mask, *ctx.geometry = inputs
    ctx.save_for_backward(grad_output, input, offset, weight, mask)


def _double_autograd(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    present = [tensor for tensor in ctx.saved_tensors if tensor is not None]
    leaves = [tensor.detach().requires_grad_() for tensor in present]
    with torch.enable_grad():
        accumulate = torch.float64 if leaves[1].dtype == torch.float64 else torch.float32
        grad_output, input, offset, weight, *mask = (leaf.to(accumulate) for leaf in leaves)
        output = reference.deform_conv2d(input, offset, weight, None, *ctx.geometry, *mask)
        first = torch.autograd.grad(output, leaves[1:], grad_output, create_graph=True)
        second = torch.autograd.grad(first, leaves, grads[: len(first)], allow_unused=True)
    return (*second, *[None] * (5 - len(second)), None, None, None)


torch.library.register_autograd(
    "fastseg::deform_conv2d", _autograd, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd(
    "fastseg::deform_conv2d_backward",
    _double_autograd,
    setup_context=_setup_double_context,
    lib=LIBRARY,
)
