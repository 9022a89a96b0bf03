"""The tensors of a call of deformable convolution as the kernels take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import allows_tf32, kernel_capability, stream_of

_EMULATES_CUDA = _C.build_info()["cuda_emulator"]


class Call:
    """A call's tensors and numbers, and what its kernels can do with them."""

    def __init__(
        self,
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        *pairs: Sequence[int],
    ) -> None:
        self.on_device = input.is_cuda or _EMULATES_CUDA
        self.accumulate = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.dtype = input.dtype if self.on_device else self.accumulate  # of the products
        self.input = input
        self.offset = offset.to(self.accumulate)
        self.mask = None if mask is None else mask.to(self.accumulate)
        self.stream = stream_of(input)
        self.capability = kernel_capability(input)
        out_channels, group_channels, *kernel = weight.shape
        self.channels = input.shape[1]
        self.groups = self.channels // group_channels
        self.taps = kernel[0] * kernel[1]
        self.pixels = offset.shape[2] * offset.shape[3]
        # [groups, D / groups, taps * C / groups], as columns are laid out
        kernels = weight.permute(0, 2, 3, 1).reshape(self.groups, out_channels // self.groups, -1)
        self.kernels = kernels.to(self.dtype).contiguous()  # that of a transposed weight is not
        self.geometry = (kernel, *pairs)
        self.offset_groups = offset.shape[1] // (2 * self.taps)

    @property
    def exact(self) -> bool:
        """Whether float32 is multiplied as it is, not as TF32."""
        return self.dtype == torch.float32 and not (allows_tf32() and self.capability >= (8, 0))

    def needs_columns(self) -> bool:
        """Whether the kernels that keep columns in shared memory cannot take these tensors."""
        return not (
            self.on_device
            and self.dtype in (torch.float32, torch.float16, torch.bfloat16)
            and self.capability >= ((8, 0) if self.dtype == torch.bfloat16 else (7, 5))
            and self.groups == 1
            and self.channels // self.offset_groups % 32 == 0
            and self.input.shape[1:].numel() < 2**31
        )


def aligned(tensor: Tensor) -> Tensor:
    """The tensor at an address that 16 divides."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
