"""Images for models with random weights, and batches of images as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastseg.models.image_batch import ImageBatch


def images(*sizes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """Noise in patches, so that neighbouring pixels are alike as in a photo."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.rand(1, 3, 9, 9, generator=generator) for _ in sizes]
    return [
        nn.functional.interpolate(image, size=size, mode="bicubic")[0].clamp(0, 1)
        for image, size in zip(coarse, sizes, strict=True)
    ]


def padded_batch(unlike: Sequence[Tensor]) -> ImageBatch:
    """Images of their own sizes and values, padded to a common size."""
    sizes = [(image.shape[1], image.shape[2]) for image in unlike]
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    pixels = torch.zeros(len(unlike), 3, height, width)
    for canvas, image in zip(pixels, unlike, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(pixels, torch.tensor(sizes), sizes)
