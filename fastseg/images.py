"""Reads whatever a user calls an image into one form: an RGB tensor [3, height, width]."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

ImageInput: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | Tensor"

IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))

# Floating-point images are 0-1. Resampling overshoots a little, which is let through; values
# beyond these bounds mean another scale (0-255, mean-subtracted), which would be a wrong result.
_FLOAT_BOUNDS = (-0.5, 1.5)


class ImageError(ValueError):
    """An image that cannot be read; the message starts with its file name or its kind."""


def load_image(source: ImageInput) -> Tensor:
    """Reads one image.

    EXIF orientation is applied. Grey becomes three equal channels, palettes become colours,
    transparency is laid over white, and of several frames the first is taken. Images of more than
    8 bits in an integer or floating-point file have no agreed white, so their range (0.1st to
    99.9th percentile) is stretched to 0-1.

    Args:
        source: path, PIL image, array [height, width] or [height, width, 1, 3 or 4] (uint8, uint16,
            bool, or float 0-1), or tensor [height, width] or [1 or 3, height, width] of the same
            types.

    Returns:
        [3, height, width] uint8, or float32 0-1.

    Raises:
        ImageError: if the file cannot be read or the array is none of the above.
    """
    if isinstance(source, (str, os.PathLike)):
        return _from_file(Path(source))
    if isinstance(source, Image.Image):
        return _from_pil(source)
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    raise ImageError(
        f"an image must be a path, PIL image, NumPy array or tensor, got {type(source).__name__}"
    )


def image_files(directory: str | os.PathLike[str]) -> list[Path]:
    """Image files directly in a directory, by name.

    Raises:
        ImageError: if the directory cannot be listed or holds no image.
    """
    try:
        entries = sorted(Path(directory).iterdir())
    except OSError as error:
        raise ImageError(f"{directory}: {error.strerror or error}") from error
    files = [
        entry
        for entry in entries
        if entry.suffix.lower() in IMAGE_SUFFIXES and entry.name[0] != "." and entry.is_file()
    ]
    if not files:
        raise ImageError(f"{directory}: no image files ({' '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def _from_file(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            return _from_pil(image)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them trip on
        raise ImageError(f"{path}: cannot be read as an image ({error})") from error


def _from_pil(image: Image.Image) -> Tensor:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _from_channels(_stretched(np.asarray(image))[:, :, None])
    if image.mode == "RGB":
        return _from_channels(np.array(image))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return _from_channels(np.array(image.convert("RGB")))


def _from_array(array: np.ndarray) -> Tensor:
    channels = array[:, :, None] if array.ndim == 2 else array
    if channels.ndim != 3 or channels.shape[2] not in (1, 3, 4):
        raise ImageError(
            "a NumPy image must be [height, width] or [height, width, 1, 3 or 4], got shape "
            f"{array.shape}"
        )
    if array.dtype == np.uint16:
        channels = _stretched(channels)
    elif array.dtype == bool:
        channels = channels.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        channels = channels.astype(np.float32)
    elif array.dtype != np.uint8:
        raise ImageError(f"a NumPy image must be uint8, uint16, bool or float, got {array.dtype}")
    if channels.shape[2] == 4:
        white = 255 if channels.dtype == np.uint8 else 1
        opacity = channels[:, :, 3:].astype(np.float32) / white
        blended = channels[:, :, :3] * opacity + white * (1 - opacity)
        channels = (blended.round() if white == 255 else blended).astype(channels.dtype)
    return _from_channels(np.array(channels))


def _from_tensor(tensor: Tensor) -> Tensor:
    image = tensor.detach()
    image = image[None] if image.dim() == 2 else image
    if image.dim() != 3 or image.shape[0] not in (1, 3):
        raise ImageError(
            f"a tensor image must be [1 or 3, height, width], got shape {tuple(tensor.shape)}"
        )
    if image.dtype == torch.uint16:
        image = torch.from_numpy(_stretched(image.cpu().numpy())).to(image.device)
    elif image.dtype == torch.bool:
        image = image.to(torch.uint8) * 255
    elif image.is_floating_point():
        image = image.to(torch.float32)
    elif image.dtype != torch.uint8:
        raise ImageError(f"a tensor image must be uint8, uint16, bool or float, got {image.dtype}")
    return _checked(image.expand(3, -1, -1))


def _from_channels(array: np.ndarray) -> Tensor:
    """[height, width, 1 or 3] uint8 or float32 -> the result of `load_image`."""
    return _checked(torch.from_numpy(array).permute(2, 0, 1).expand(3, -1, -1))


def _checked(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    if height == 0 or width == 0:
        raise ImageError(f"an image must have pixels, got {height} x {width}")
    if image.is_floating_point():
        low, high = (bound.item() for bound in torch.aminmax(image))
        if not (low >= _FLOAT_BOUNDS[0] and high <= _FLOAT_BOUNDS[1]):  # NaN fails both
            raise ImageError(
                f"a floating-point image must be 0-1, got values from {low:.4g} to {high:.4g}"
            )
    return image


def _stretched(array: np.ndarray) -> np.ndarray:
    """Maps the range of an image of unknown white to 0-1 float32."""
    values = array.astype(np.float32)
    if values.size == 0:
        return values
    if not np.isfinite(values).all():
        raise ImageError("an image must be finite, got NaN or infinity")
    low, high = np.percentile(values, (0.1, 99.9))
    if high <= low:  # less than 0.1 % of the pixels stand out, or none
        low, high = values.min(), values.max()
    scale = 1 / (high - low) if high > low else 0.0
    return np.clip((values - low) * scale, 0, 1).astype(np.float32)
