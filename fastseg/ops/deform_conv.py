"""Deformable convolution, v1 and v2, without a buffer for the columns of all pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastseg import _C, reference
from fastseg.ops._deform_conv_checks import check, pair_of
from fastseg.ops._registry import LIBRARY, stream_of

# Columns of a tile: on the CPU they stay in the L2 and L3 caches between kernel and product, on
# CUDA in the L2 cache, and the product is large enough to run at full speed.
_TILE_BYTES_CPU = 4 << 20
_TILE_BYTES_CUDA = 24 << 20

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
        ValueError: a shape, dtype or number is wrong, or the output would have no pixels.
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


def _allows_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    # torch before 2.9 has the older switch alone.
    return (
        matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    )


class _Tiles:
    """A call's tensors as the kernels take them, and the tiles of pixels that it goes through."""

    def __init__(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        *pairs: Sequence[int],
    ) -> None:
        self.on_device = input.is_cuda or _C.build_info()["cuda_emulator"]
        self.accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.dtype = input.dtype if self.on_device else self.accumulate  # of the products
        # oneDNN is twice as fast as MKL, which torch.bmm calls, on processors other than Intel's.
        self.uses_onednn = (
            not input.is_cuda
            and self.dtype == torch.float32
            and torch.backends.mkldnn.is_available()
        )
        self.input = input.contiguous(memory_format=torch.channels_last)
        self.offset = offset.to(self.accumulate)
        self.mask = None if mask is None else mask.to(self.accumulate)
        self.stream = stream_of(input)
        self.capability = (
            torch.cuda.get_device_capability(input.device) if input.is_cuda else (8, 0)
        )
        out_channels, group_channels, *kernel = weight.shape
        self.taps = kernel[0] * kernel[1]
        self.groups = input.shape[1] // group_channels
        # [groups, D / groups, taps * C / groups], as columns are laid out
        kernels = weight.reshape(self.groups, -1, group_channels, self.taps).transpose(2, 3)
        self.kernels = kernels.reshape(self.groups, out_channels // self.groups, -1).to(self.dtype)
        self.geometry = (kernel, *pairs)
        self.offset_groups = offset.shape[1] // (2 * self.taps)

    @property
    def exact(self) -> bool:
        """Whether float32 is multiplied as it is, not as TF32."""
        return self.dtype == torch.float32 and not (_allows_tf32() and self.capability >= (8, 0))

    def needs_columns(self) -> bool:
        """Whether the kernels that keep columns in shared memory cannot take these tensors."""
        return not (
            self.on_device
            and self.dtype in (torch.float32, torch.float16, torch.bfloat16)
            and self.capability >= ((8, 0) if self.dtype == torch.bfloat16 else (7, 5))
            and self.groups == 1
            and self.input.shape[1] // self.offset_groups % 32 == 0
            and self.input.shape[1:].numel() < 2**31
            and self.input.data_ptr() % 16 == 0
            and self.kernels.data_ptr() % 16 == 0
        )

    def __iter__(self) -> Iterator[tuple[int, slice, Tensor]]:
        """(image, pixels, columns for them [groups, pixels, taps * C / groups], to be written)."""
        pixels = self.offset.shape[2] * self.offset.shape[3]
        row = self.taps * self.input.shape[1] * self.dtype.itemsize
        tile = (_TILE_BYTES_CUDA if self.on_device else _TILE_BYTES_CPU) // row
        tile = min(max(tile // 64 * 64, 64), pixels)
        buffer = self.kernels.new_empty(self.groups * tile * self.kernels.shape[2])
        for image in range(self.input.shape[0]):
            for first in range(0, pixels, tile):
                count = min(tile, pixels - first)
                columns = buffer[: self.groups * count * self.kernels.shape[2]]
                yield image, slice(first, first + count), columns.view(self.groups, count, -1)

    def arguments(self, image: int, pixels: slice, columns: Tensor) -> tuple[Any, ...]:
        """What the kernels of both directions take for a tile."""
        tensors = (self.input, self.offset, self.mask, columns)
        return (*tensors, self.geometry, self.offset_groups, image, pixels.start)

    def product(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        """Matrix products of the groups, in `out` where that costs nothing."""
        if self.groups == 1 and self.uses_onednn:
            product = torch.ops.mkldnn._linear_pointwise(left[0], right[0].mT, None, "none", [], "")
            return product[None]
        return torch.bmm(left, right) if out is None else torch.bmm(left, right, out=out)

    def grouped(self, maps: Tensor) -> Tensor:
        """Maps [B, D, OH, OW] as matrices [B, groups, D / groups, pixels], without a copy."""
        return maps.flatten(2).unflatten(1, (self.groups, -1))


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
    output = _empty_output(input, offset, weight)
    tiles = _Tiles(input, offset, weight, mask, stride, padding, dilation)
    if not tiles.needs_columns():
        tensors = (tiles.input, tiles.offset, tiles.mask, tiles.kernels[0], bias, output)
        options = (tiles.geometry, tiles.offset_groups, tiles.exact, tiles.stream)
        _C.deform_conv_product(*tensors, *options)
        return output
    matrices = tiles.grouped(output)
    shift = None if bias is None else bias.view(tiles.groups, -1, 1).to(tiles.dtype)
    for image, pixels, columns in tiles:
        _C.deform_conv_sample(*tiles.arguments(image, pixels, columns), tiles.stream)
        target = matrices[image, :, :, pixels]
        if target.stride(1) == 1:
            product = tiles.product(columns, tiles.kernels.mT).mT
        else:
            product = tiles.product(tiles.kernels, columns.mT)
        target.copy_(product if shift is None else product.add_(shift))
    return output


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
    tiles = _Tiles(input, offset, weight, mask, stride, padding, dilation)
    fixed_point = tiles.on_device and torch.are_deterministic_algorithms_enabled()
    units = _units(tiles, grad_output) if fixed_point else None
    grad_input = torch.zeros_like(
        tiles.input, dtype=torch.int64 if fixed_point else tiles.accumulate
    )
    grad_offset = torch.empty_like(tiles.offset)
    grad_mask = None if tiles.mask is None else torch.empty_like(tiles.mask)
    outputs = (grad_input, grad_offset, grad_mask, units)
    if tiles.needs_columns() or weight.shape[0] * weight.itemsize % 16:
        grad_kernels = _gradients_through_columns(tiles, grad_output, *outputs)
    else:
        grad_kernels = _gradients(tiles, grad_output, *outputs)
    if units is not None:
        grad_input = grad_input.double().div_(units)
    grad_weight = grad_kernels.unflatten(2, (tiles.taps, -1)).transpose(2, 3)
    return (
        grad_input.to(input.dtype).contiguous(memory_format=_memory_format(input)),
        grad_offset.to(offset.dtype),
        grad_weight.to(weight.dtype).reshape(weight.shape).contiguous(),
        offset.new_empty(0) if mask is None or grad_mask is None else grad_mask.to(mask.dtype),
    )


def _gradients_through_columns(
    tiles: _Tiles, grad_output: Tensor, *outputs: Tensor | None
) -> Tensor:
    """Writes the gradients of input, offset and mask, returns that of the kernels."""
    grad_kernels = torch.zeros_like(tiles.kernels, dtype=tiles.accumulate)
    matrices = tiles.grouped(grad_output.contiguous(memory_format=_memory_format(grad_output)))
    for image, pixels, columns in tiles:
        grad = matrices[image, :, :, pixels].to(tiles.dtype)
        columns = tiles.product(grad.mT, tiles.kernels, out=columns)
        arguments = tiles.arguments(image, pixels, columns)
        _C.deform_conv_backward(*arguments, *outputs, tiles.stream)
        grad_kernels += tiles.product(grad, columns)
    return grad_kernels


def _gradients(tiles: _Tiles, grad_output: Tensor, *outputs: Tensor | None) -> Tensor:
    """The same without columns in memory."""
    grads = grad_output.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
    grads = grads if grads.data_ptr() % 16 == 0 else grads.clone()
    kernels = tiles.kernels[0]
    # A block sums 256 outputs x 128 columns over a share of the pixels: about 256 blocks.
    blocks = math.ceil(kernels.shape[0] / 256) * math.ceil(kernels.shape[1] / 128)
    shares = max(1, min(256 // blocks, grads.shape[0] // 512))
    partials = kernels.new_empty((shares, *kernels.shape), dtype=tiles.accumulate)
    _C.deform_conv_gradients(
        *(tiles.input, tiles.offset, tiles.mask, kernels.mT.contiguous(), grads),
        *(tiles.geometry, tiles.offset_groups, tiles.exact),
        *outputs,
        partials,
        tiles.stream,
    )
    return partials.sum(0, keepdim=True)


def _units(tiles: _Tiles, grad_output: Tensor) -> Tensor:
    """Fixed-point units [1] in which no sum of the input's gradient overflows 63 bits.

    A sample adds at most the largest possible gradient of a column. 0 when that is not finite.
    """
    largest = tiles.kernels.abs().sum(1, dtype=tiles.accumulate).amax()
    largest = largest * grad_output.abs().amax()
    if tiles.mask is not None:
        largest = largest * tiles.mask.abs().amax()
    samples = tiles.taps * tiles.offset.shape[2] * tiles.offset.shape[3]
    bits = 61 - math.ceil(math.log2(samples))
    return (2.0**bits / largest.clamp(min=2.0**-60)).to(tiles.accumulate).view(1)


def _empty_output(input: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    return torch.empty(
        (input.shape[0], weight.shape[0], *offset.shape[2:]),
        dtype=input.dtype,
        device=input.device,
        memory_format=_memory_format(input),
    )


@torch.library.register_fake("fastseg::deform_conv2d")
def _forward_fake(input: Tensor, offset: Tensor, weight: Tensor, *arguments: Any) -> Tensor:
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
