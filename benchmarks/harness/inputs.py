"""Inputs of realistic shape, the same on every device and in every run."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def generator(seed: int = 0) -> torch.Generator:
    """A generator on the CPU, so that a seed gives the same inputs on every device."""
    return torch.Generator().manual_seed(seed)


def photos(count: int, height: int, width: int, device: torch.device) -> list[Tensor]:
    """Images [3, height, width] from 0 to 1.

    They are noise in patches, so that neighbouring pixels are alike as in a photo.
    """
    coarse = torch.rand(count, 3, 24, 40, generator=generator())
    return list(F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1).to(device))


def proposals(count: int, height: int, width: int, random: torch.Generator) -> Tensor:
    """Boxes like those of a region proposal network: sides log-uniform in 16-600 px, aspect ratio
    e^-0.7 to e^0.7, centres anywhere, clipped to the image.

    Args:
        count: number of boxes.
        height: of the image in pixels.
        width: of the image in pixels.
        random: source of randomness.

    Returns:
        [count, 4] float32 (x1, y1, x2, y2).
    """
    u = torch.rand(4, count, generator=random)
    side = 16 * (600 / 16) ** u[0]
    half_stretch = torch.exp(0.7 * (2 * u[1] - 1) / 2)
    half = torch.stack([side * half_stretch, side / half_stretch], 1) / 2
    centre = torch.stack([width * u[2], height * u[3]], 1)
    limit = torch.tensor([width, height], dtype=torch.float32)
    corners = torch.cat([centre - half, centre + half], 1)
    return corners.clamp(min=0).minimum(limit.repeat(2))


def object_masks(count: int, height: int, width: int, random: torch.Generator) -> Tensor:
    """Masks like those of objects: a wavy ellipse in each of `proposals`.

    Args:
        count: number of masks.
        height: of the image in pixels.
        width: of the image in pixels.
        random: source of randomness.

    Returns:
        [count, height, width] bool.
    """
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask, box in zip(masks, proposals(count, height, width, random).tolist(), strict=True):
        left, top, right, bottom = (int(side) for side in box)
        y = torch.linspace(-1, 1, max(bottom - top, 1))[:, None]
        x = torch.linspace(-1, 1, max(right - left, 1))[None]
        radius = 0.8 + 0.15 * torch.sin(5 * torch.atan2(y, x)) + 0.05 * torch.sin(40 * x * y)
        mask[top : top + len(y), left : left + x.shape[1]] = torch.hypot(x, y) < radius
    return masks


def object_logits(count: int, height: int, width: int, random: torch.Generator) -> Tensor:
    """Mask logits of blobs with wavy outlines, of log-uniform sizes of 3 to 70 % of the image.

    Args:
        count: number of masks.
        height: of the image in cells.
        width: of the image in cells.
        random: source of randomness.

    Returns:
        [count, height, width] float32.
    """
    centre = torch.rand(count, 2, generator=random) * 1.6 - 0.8
    radius = 0.03 * (0.7 / 0.03) ** torch.rand(count, generator=random)
    y = torch.linspace(-1, 1, height)[:, None] - centre[:, 0, None, None]
    x = torch.linspace(-1, 1, width) - centre[:, 1, None, None]
    waves = torch.randn(count, 1, height // 8, width // 8, generator=random)
    texture = F.interpolate(waves, (height, width), mode="bicubic")[:, 0]
    return 30 * (radius[:, None, None] - torch.hypot(y, x)) + texture
