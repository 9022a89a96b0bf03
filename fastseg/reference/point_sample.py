"""Samples of maps at points as their definition reads (Kirillov et al., PointRend, 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg.reference.ms_deform_attn import bilinear


def point_sample(input: Tensor, points: Tensor) -> Tensor:
    """See `fastseg.ops.point_sample`."""
    if input.dtype == torch.bool:
        input = input.float()
    height, width = input.shape[2:]
    rows = input.flatten(2).transpose(1, 2)[:, None]  # [N, 1, HW, C]
    samples = bilinear(rows, height, width, points[:, None, None])  # [N, 1, 1, P, C]
    return samples[:, 0, 0].transpose(1, 2)
