"""Deformable convolution through columns in memory: tiles of pixels, and products of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._deform_conv_call import Call
from fastseg.ops._matrix_product import fast_product, has_onednn

# Columns of a tile: on CUDA they stay in the L2 cache, and the product is large enough to run at
# full speed. On the CPU they stay in the L2 and L3 caches between kernel and product; backward a
# tile costs a pass over the weights' gradient too, and groups in vector lanes are at full speed at
# any size.
TILE_BYTES_CUDA = 24 << 20
TILE_BYTES_CPU = 3 << 20
TILE_BYTES_CPU_BACKWARD = 8 << 20
TILE_BYTES_IN_LANES = 1 << 18

# Groups of so few channels are multiplied in the vector lanes on the CPU, if there are so many.
_LANE_CHANNELS = 8
_LANE_GROUPS = 8

# A smaller product is done before oneDNN, which takes 10 us to begin.
_ONEDNN_PRODUCTS = 1 << 20


class Tile(NamedTuple):
    """Some output pixels of an image or all of some images, and their columns.

    Columns are [groups, pixels of all images, taps * C / groups].
    """

    images: slice
    pixels: slice
    columns: Tensor
    arguments: tuple[Any, ...]  # that the kernels of both directions begin with


def make_tiles(call: Call, *, backward: bool) -> Tiles:
    """The kind of tiles that is fastest for a call."""
    if call.on_device:
        return Tiles(call, TILE_BYTES_CUDA)
    few = call.channels // call.groups <= _LANE_CHANNELS and call.groups >= _LANE_GROUPS
    if few and (call.groups == call.channels or call.offset_groups == 1):
        return LaneTiles(call, TILE_BYTES_IN_LANES)
    return Tiles(call, TILE_BYTES_CPU_BACKWARD if backward else TILE_BYTES_CPU)


class Tiles:
    """A call's output pixels, tile by tile; torch multiplies the columns, group by group.

    Maps are handed over as [groups, D / groups, images, pixels], whatever their strides.
    """

    def __init__(self, call: Call, tile_bytes: int) -> None:
        self.call = call
        self.kernels = call.kernels
        self.ordered: Tensor | None = None
        row = call.taps * call.channels * call.dtype.itemsize
        pixels = call.pixels * call.input.shape[0]
        self.tile = min(max(tile_bytes // row // 64 * 64, 64), pixels)
        self.uses_onednn = (
            call.groups == 1
            and call.offset.device.type == "cpu"
            and call.dtype == torch.float32
            and has_onednn()
        )

    def __iter__(self) -> Iterator[Tile]:
        call = self.call
        batch = call.input.shape[0]
        at_once = max(self.tile // call.pixels, 1)
        buffer = self.kernels.new_empty(self.tile * call.taps * call.channels)
        for first in range(0, batch, at_once):
            yield from self._tiles_of(slice(first, min(first + at_once, batch)), buffer)

    def _tiles_of(self, images: slice, buffer: Tensor) -> Iterator[Tile]:
        """Several tiles of one image, or one tile of all."""
        call, count = self.call, images.stop - images.start
        mask = None if call.mask is None else call.mask[images]
        tensors = (self._ordered(call.input[images]), call.offset[images], mask)
        for first in range(0, call.pixels, self.tile):
            pixels = slice(first, min(first + self.tile, call.pixels))
            columns = self.columns(buffer, count * (pixels.stop - first))
            arguments = (*tensors, columns, call.geometry, call.offset_groups, first)
            yield Tile(images, pixels, columns, arguments)

    def _ordered(self, images: Tensor) -> Tensor:
        """Some images [n, C, H, W], channels-last and in the order that columns have."""
        source = self.arranged(images)
        if source is images and images.is_contiguous(memory_format=torch.channels_last):
            return images
        # One for all tiles: a new one for each would exist beside the last tile's.
        if self.ordered is None:
            self.ordered = torch.empty_like(images, memory_format=torch.channels_last)
        ordered = self.ordered[: images.shape[0]]
        target = ordered if source is images else ordered.unflatten(1, source.shape[1:-2])
        target.copy_(source)
        return ordered

    def arranged(self, maps: Tensor) -> Tensor:
        """Maps [B, C, H, W] in the order that columns have, C perhaps as several dimensions."""
        return maps

    def restored(self, maps: Tensor) -> Tensor:
        """Maps in the input's order again."""
        return maps

    def columns(self, buffer: Tensor, pixels: int) -> Tensor:
        count = pixels * self.call.taps * self.call.channels
        return buffer[:count].view(self.call.groups, pixels, -1)

    def convolve(self, columns: Tensor, bias: Tensor | None, target: Tensor) -> None:
        """Writes the outputs of a tile to `target`."""
        if target.stride(1) == 1:
            product = self._product(columns, self.kernels.mT).mT
        else:
            product = self._product(self.kernels, columns.mT)
        self._store(product, bias, target)

    def _store(self, product: Tensor, bias: Tensor | None, target: Tensor) -> None:
        if bias is not None:
            product.add_(bias)
        target.copy_(product.view(target.shape))

    def spread(self, grad: Tensor, columns: Tensor) -> Tensor:
        """The gradients of columns, in the columns' memory where that costs nothing."""
        return self._product(grad.mT, self.kernels, out=columns)

    def add_kernels(self, grad: Tensor, columns: Tensor, sums: Tensor) -> None:
        """Adds to the gradients of the kernels."""
        sums += self._product(grad, columns)

    def as_weight(self, kernels: Tensor) -> Tensor:
        """Kernels [groups, D / groups, taps * C / groups] in the order of the op's weight."""
        return kernels.unflatten(2, (self.call.taps, -1)).transpose(2, 3)

    def _product(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        if self.uses_onednn and left.numel() * right.shape[2] >= _ONEDNN_PRODUCTS:
            product = fast_product(left[0], right[0])
            return product[None]
        return torch.bmm(left, right) if out is None else torch.bmm(left, right, out=out)


class LaneTiles(Tiles):
    """Tiles for many groups of few channels: groups lie side by side, all are multiplied at once.

    A pixel's columns are [taps * C / groups, groups], its outputs [D / groups, groups].
    """

    def __init__(self, call: Call, tile_bytes: int) -> None:
        super().__init__(call, tile_bytes)
        self.kernels = call.kernels.permute(2, 1, 0).contiguous()

    def arranged(self, maps: Tensor) -> Tensor:
        if self.call.groups == self.call.channels:
            return maps
        return maps.unflatten(1, (self.call.groups, -1)).transpose(1, 2)

    def restored(self, maps: Tensor) -> Tensor:
        return maps.unflatten(1, (-1, self.call.groups)).transpose(1, 2).flatten(1, 2)

    def columns(self, buffer: Tensor, pixels: int) -> Tensor:
        count = pixels * self.call.taps * self.call.channels
        return buffer[:count].view(1, pixels, -1)

    def convolve(self, columns: Tensor, bias: Tensor | None, target: Tensor) -> None:
        product = columns.new_empty((columns.shape[1], *self.kernels.shape[1:]))
        _C.deform_conv_groups(self._by_group(columns), self.kernels, product, add=False)
        self._store(product.permute(2, 1, 0), bias, target)

    def spread(self, grad: Tensor, columns: Tensor) -> Tensor:
        kernels = self.kernels.transpose(0, 1)
        grad = grad.permute(2, 1, 0).contiguous()
        _C.deform_conv_groups(grad, kernels, self._by_group(columns), add=False)
        return columns

    def add_kernels(self, grad: Tensor, columns: Tensor, sums: Tensor) -> None:
        left = self._by_group(columns).transpose(0, 1)
        _C.deform_conv_groups(left, grad.permute(2, 1, 0).contiguous(), sums, add=True)

    def as_weight(self, kernels: Tensor) -> Tensor:
        return super().as_weight(kernels.permute(2, 1, 0))

    def _by_group(self, columns: Tensor) -> Tensor:
        return columns.view(columns.shape[1], -1, self.call.groups)
