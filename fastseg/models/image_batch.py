"""From images of any sizes to one padded batch, as torchvision's detectors do it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ImageBatch:
    """Images resized, padded to one size and stacked.

    Attributes:
        pixels: float [B, 3, H, W], normalised; zeros right of and below each image.
        sizes: int64 [B, 2], (height, width) of each image after resizing, without padding; on the
            device of ``pixels``.
        original_sizes: (height, width) of each image before resizing.
    """

    pixels: Tensor
    sizes: Tensor
    original_sizes: list[tuple[int, int]]

    def padded_rows(
        self, counts: Tensor
    ) -> Iterator[tuple[tuple[int, slice], list[int], tuple[int, int]]]:
        """For each image the index of its rows in padded results, its size and original size.

        Args:
            counts: int64 [B], rows in use per image; read back from the device.
        """
        numbers = zip(counts.tolist(), self.sizes.tolist(), self.original_sizes, strict=True)
        for image, (count, size, original) in enumerate(numbers):
            yield (image, slice(count)), size, original


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Normalises, resizes and pads images.

    Attributes:
        min_size: length of the shorter side after resizing,
        max_size: unless the longer side would then exceed this.
        image_mean: RGB mean that is subtracted, for pixels from 0 to 1.
        image_std: RGB standard deviation that is divided by.
        size_divisible: the padded height and width are multiples of this.
        fixed_size: (width, height) that all images are resized to instead.
        round_sizes: heights and widths are rounded to the nearest integer rather than down.
    """

    min_size: int = 800
    max_size: int = 1333
    image_mean: Sequence[float] = (0.485, 0.456, 0.406)
    image_std: Sequence[float] = (0.229, 0.224, 0.225)
    size_divisible: int = 32
    fixed_size: tuple[int, int] | None = None
    round_sizes: bool = False

    def sizes_and_colors(self) -> dict[str, Any]:
        """What models take as arguments of their own."""
        names = ("min_size", "max_size", "image_mean", "image_std", "size_divisible")
        return {name: getattr(self, name) for name in names}

    def __call__(
        self, images: Sequence[Tensor], *, device: torch.device, dtype: torch.dtype
    ) -> ImageBatch:
        """Makes a batch.

        Args:
            images: each [3, h, w] float, RGB from 0 to 1, of any size and on any device.
            device: where the batch goes.
            dtype: type of its pixels; the arithmetic before is done in the images' type.

        Raises:
            TypeError: an image is not a floating-point tensor.
            ValueError: there is no image, or one is not [3, h, w] with h, w > 0.
        """
        if len(images) == 0:
            raise ValueError("images is empty")
        for i, image in enumerate(images):
            check_image(image, f"images[{i}]")
        original_sizes = [(image.shape[1], image.shape[2]) for image in images]
        resized = [self.resize(self.normalize(image.to(device))) for image in images]
        sizes = [(image.shape[1], image.shape[2]) for image in resized]

        height, width = (
            -(-max(lengths) // self.size_divisible) * self.size_divisible
            for lengths in zip(*sizes, strict=True)
        )
        pixels = torch.zeros(len(images), 3, height, width, dtype=dtype, device=device)
        for target, image in zip(pixels, resized, strict=True):
            target[:, : image.shape[1], : image.shape[2]] = image
        return ImageBatch(
            pixels=pixels,
            sizes=torch.tensor(sizes, device=device),
            original_sizes=original_sizes,
        )

    def normalize(self, image: Tensor) -> Tensor:
        """Subtracts the mean and divides by the standard deviation of each channel."""
        mean = torch.tensor(self.image_mean, dtype=image.dtype, device=image.device)
        std = torch.tensor(self.image_std, dtype=image.dtype, device=image.device)
        return (image - mean[:, None, None]) / std[:, None, None]

    def resize(self, image: Tensor) -> Tensor:
        """Bilinear resize [3, h, w] -> [3, h', w'] that keeps the aspect ratio."""
        height, width = self.resized_size(image.shape[1], image.shape[2])
        if min(height, width) < 1:
            raise ValueError(
                f"an image of {image.shape[1]}x{image.shape[2]} pixels would be resized to "
                f"{height}x{width} with min_size={self.min_size}, max_size={self.max_size}"
            )
        return F.interpolate(
            image[None], size=(height, width), mode="bilinear", align_corners=False
        )[0]

    def resized_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) after resizing, in double precision."""
        if self.fixed_size is not None:
            return self.fixed_size[1], self.fixed_size[0]
        scale = min(self.min_size / min(height, width), self.max_size / max(height, width))
        half = 0.5 if self.round_sizes else 0.0
        return int(height * scale + half), int(width * scale + half)


def check_image(image: Tensor, name: str) -> None:
    """Raises where ``image`` is not a floating-point tensor [3, h, w] with pixels."""
    if not isinstance(image, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"{name} must be floating point with values 0 to 1, got {image.dtype}")
    if image.dim() != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(f"{name} must be [3, h, w] with h, w > 0, got {list(image.shape)}")
