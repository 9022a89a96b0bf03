"""Linear layers, on the CPU by oneDNN, which multiplies faster than MKL where MKL is slow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.ops import _matrix_product

# Fewer inputs are not worth oneDNN's start, and below 20480 torch does not call it.
_ONEDNN_INPUTS = 1 << 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, in about half the time for float32 on many CPUs.

    Sums are formed in another order, whose rounding error is up to twice that of MKL.

    Args:
        x: [..., C].
        weight: [C_out, C].
        bias: [C_out].

    Returns:
        [..., C_out].
    """
    if not _prefers_onednn(x, weight):
        return F.linear(x, weight, bias)
    # torch multiplies matrices by MKL, which reaches half of oneDNN's speed on processors other
    # than Intel's: on an AMD EPYC, 1000 x 12544 to 1024 takes 142 ms of CPU instead of 242
    # and 5376 x 256 to 1024 13 ms instead of 27, backward alike. torch takes oneDNN for
    # convolutions: here of an image that is one pixel high and channels-last as it is, so that
    # nothing is copied. Dilation says nothing for a 1x1 kernel, but without it a single thread
    # would get MKL all the same.
    image = x.contiguous().view(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(image, weight[:, :, None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def batched_product(a: Tensor, b: Tensor) -> Tensor:
    """``torch.bmm``, in about half the time for float32 on many CPUs where no gradient is wanted.

    Args:
        a: [B, M, K].
        b: [B, K, N]; unlike the convolution of ``linear``, it may have rows as well as columns
            that lie in one piece.

    Returns:
        [B, M, N].
    """
    is_plain = not (torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"))
    if torch.is_grad_enabled() or a.device.type != "cpu" or not is_plain:
        return torch.bmm(a, b)
    return _matrix_product.batched_product(a, b)


def _prefers_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is faster, which accepts the same arguments then."""
    # A compiler that is told of a linear layer has its own choice (Inductor would even be slower
    # with the convolution), and what is exported may run anywhere.
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.numel() < _ONEDNN_INPUTS:
        return False
    fits = weight.dim() == 2 and weight.shape[0] > 0 and weight.shape[1] == x.shape[-1]
    is_float = x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return fits and is_float and _matrix_product.has_onednn()


class Linear(nn.Linear):
    """``torch.nn.Linear`` by ``linear``; arguments, parameters and state dict are the same."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., C_in] -> [..., C_out]."""
        return linear(input, self.weight, self.bias)
