"""Deformable convolution against torchvision's, forward and backward."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.harness.agreement import close, relative_norm
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator


def cases(setting: Setting) -> Iterator[Case]:
    """3x3 with masks on the stride-8 and stride-16 maps of two 800x1344 images; depthwise too."""
    shapes = ((2, 8, 6, 7),) if setting.quick else ((2, 256, 100, 168), (2, 512, 50, 84))
    for direction in ("forward", "backward"):
        for layout, shape in itertools.product(("nhwc", "nchw"), shapes):
            yield _case(Workload(setting, direction, layout, shape, groups=1))
        yield _case(Workload(setting, direction, "nhwc", shapes[-1], groups=shapes[-1][1]))


@dataclass(frozen=True)
class Workload:
    """One combination of the settings that matter to speed; as many channels out as in."""

    setting: Setting
    direction: str
    layout: str
    shape: tuple[int, int, int, int]
    groups: int

    def operands(self, layout: str) -> list[Tensor]:
        """Input, offsets of about 2 pixels, weight, mask."""
        batch, channels, height, width = self.shape
        inputs = channels // self.groups
        random = generator(0)
        tensors = [
            torch.randn(self.shape, generator=random),
            torch.randn(batch, 18, height, width, generator=random) * 2,
            torch.randn(channels, inputs, 3, 3, generator=random) / (3 * inputs**0.5),
            torch.rand(batch, 9, height, width, generator=random),
        ]
        order = torch.channels_last if layout == "nhwc" else torch.contiguous_format
        tensors[0] = tensors[0].contiguous(memory_format=order)
        return [
            tensor.to(self.setting.device, self.setting.dtype).requires_grad_(
                self.direction == "backward"
            )
            for tensor in tensors
        ]


def _case(work: Workload) -> Case:
    batch, channels, height, width = work.shape
    pixels = batch * height * width
    backward = work.direction == "backward"
    kind = "" if work.groups == 1 else "depthwise "
    weights = 9 * channels**2 // work.groups
    elements = (2 * channels + 27) * pixels + weights
    half = work.setting.dtype.itemsize == 2
    return Case(
        name=f"{batch}x{channels}x{height}x{width} 3x3 v2 {kind}{work.direction} {work.layout}",
        providers={
            "fastseg": lambda: _fastseg(work),
            "torchvision": lambda: _torchvision(work),
        },
        bytes_moved=elements * work.setting.dtype.itemsize * (2 if backward else 1),
        flops=2 * pixels * weights * (2 if backward else 1),
        # The weights' gradients, up to 350, are sums of 33,600 products in another order than the
        # peer's: measured 1.2e-4 beyond 1e-5 of the value. A half's sums are rounded to 11 bits
        # or 8, the peer's columns before them as well.
        agreement=relative_norm(2e-2) if half else close(rtol=1e-5, atol=3e-4),
        needs_grad=backward,
    )


def _fastseg(work: Workload) -> Run:
    from fastseg.ops import deform_conv2d

    operands = work.operands(work.layout)
    input, offset, weight, mask = operands
    return _direction(
        work, operands, lambda: deform_conv2d(input, offset, weight, padding=1, mask=mask)
    )


def _torchvision(work: Workload) -> Run:
    from torchvision.ops import deform_conv2d

    # Its kernels read NCHW and copy every other layout, so NCHW is its best mode in all cases.
    operands = work.operands("nchw")
    input, offset, weight, mask = operands
    return _direction(
        work, operands, lambda: deform_conv2d(input, offset, weight, padding=1, mask=mask)
    )


def _direction(work: Workload, operands: list[Tensor], convolve: Callable[[], Tensor]) -> Run:
    """The forward pass, or the backward pass alone."""
    if work.direction == "forward":
        return convolve
    output = convolve()
    grad = torch.randn(output.shape, generator=generator(1)).to(output)
    return lambda: torch.autograd.grad(output, operands, grad, retain_graph=True)
