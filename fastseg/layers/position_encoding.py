"""Positions in an image as sines and cosines (Carion et al., DETR, 2020, appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0


def sine_position_encoding(
    height: int, width: int, channels: int, *, device: torch.device
) -> Tensor:
    """Encodes each pixel's y in the first half of the channels and its x in the second.

    A coordinate runs from 0 (exclusive) to 2 pi (inclusive) over the image, whatever its size; a
    pair of channels holds sine and cosine of it divided by 10000^(2 i / (channels / 2)).

    Args:
        height: H, of the map.
        width: W.
        channels: C, a multiple of 4.
        device: of the result.

    Returns:
        float32 [H * W, C], row by row.
    """
    if channels % 4:
        raise ValueError(f"channels must be a multiple of 4, got {channels}")
    y = encode(height, channels // 2, device)[:, None].expand(-1, width, -1)
    x = encode(width, channels // 2, device)[None].expand(height, -1, -1)
    return torch.cat((y, x), dim=2).flatten(0, 1)


def encode(length: int, channels: int, device: torch.device) -> Tensor:
    """One axis, [length, channels]."""
    steps = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    pairs = torch.arange(0, channels, 2, dtype=torch.float32, device=device)
    positions = steps / (length + 1e-6) * (2 * math.pi)
    angles = positions[:, None] / TEMPERATURE ** (pairs / channels)
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)
