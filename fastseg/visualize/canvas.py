"""The picture that results are drawn on, and the labels on it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont


def enlarged(pixels: torch.Tensor, scale: int) -> np.ndarray:
    """[3, height, width] -> [height * scale, width * scale, 3] uint8, writable."""
    if pixels.is_floating_point():
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    array = np.array(pixels.permute(1, 2, 0).cpu().numpy(), order="C")
    if scale == 1:
        return array
    image = Image.fromarray(array)
    size = (image.width * scale, image.height * scale)
    return np.array(image.resize(size, Image.Resampling.BICUBIC))


def line_width(canvas: np.ndarray) -> int:
    """Width in pixels of outlines on a picture [height, width, 3]."""
    return max(1, round(max(canvas.shape[:2]) / 640))


class LabelPen:
    """Writes labels, dark on a colour, where they cover no other.

    Args:
        picture: what is written on.
    """

    def __init__(self, picture: Image.Image) -> None:
        self._picture = picture
        self._font = cast(
            FreeTypeFont, ImageFont.load_default(size=max(11, max(picture.size) / 64))
        )
        self._draw = ImageDraw.Draw(picture)
        self._taken = np.zeros((0, 4), dtype=np.int64)

    def size_of(self, text: str) -> tuple[int, int]:
        """Width and height of a label with its margins."""
        font = self._font
        return round(font.getlength(text) + 0.6 * font.size), round(1.3 * font.size)

    def write(self, text: str, color: np.ndarray, corners: Iterable[tuple[int, int]]) -> bool:
        """Writes a label at the first of some places that is free and inside the picture.

        Args:
            text: what is written.
            color: [3] uint8, behind the text.
            corners: left and top; the left side is moved into the picture.

        Returns:
            Whether there was a place.
        """
        width, height = self.size_of(text)
        for left, top in corners:
            left = max(0, min(left, self._picture.width - width))
            place = np.array([left, top, left + width, top + height])
            apart = np.hstack(
                [place[:2] >= self._taken[:, 2:], place[2:] <= self._taken[:, :2]]
            ).any(axis=1)
            if 0 <= top <= self._picture.height - height and apart.all():
                self._taken = np.vstack([self._taken, place])
                box = [left, top, left + width - 1, top + height - 1]
                self._draw.rounded_rectangle(box, height // 5, tuple(color.tolist()))
                middle = (left + width / 2, top + height / 2)
                self._draw.text(middle, text, fill=(16, 16, 20), font=self._font, anchor="mm")
                return True
        return False
