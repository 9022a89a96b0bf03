"""Gradient sums in fixed point: they come out the same in whatever order CUDA's threads add."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastseg import _C


def wants_fixed_point(tensor: Tensor) -> bool:
    """Whether sums over this tensor's elements are to be in fixed point.

    They are on CUDA for `torch.use_deterministic_algorithms(True)`; the CPU's kernels add in order.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return False
    return tensor.is_cuda or _C.build_info()["cuda_emulator"]


def fixed_point_units(largest: Tensor, terms: int) -> Tensor:
    """Units per 1, [1] float64, with which no sum overflows 63 bits; a sum over them is its value.

    Args:
        largest: [] float64: no term is greater. Where it is not finite, units are 0 or NaN, which
            makes quotients NaN.
        terms: the most terms of a sum.
    """
    bits = 61 - math.ceil(math.log2(max(terms, 1)))
    return (2.0**bits / largest.clamp(min=2.0**-900)).view(1)
