"""Draws instances over their image: tinted masks, contours, boxes and labels.

Every step works inside one mask's bounding box, so the cost follows the area of the objects, not
instances x image. Small images are enlarged first, so that lines and text stay fine beside them.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.ImageFont import FreeTypeFont

from fastseg.images import ImageInput, load_image
from fastseg.instances import RLE, Instances

_COMFORTABLE_SIDE = 1024  # pixels; smaller images are enlarged to about this by default

# Points of a low-discrepancy sequence in the plane (hue, lightness): any prefix is spread evenly
# and each point lies far from the one before. The steps are powers of the root of x^3 = x + 1.
_HUE_STEP = 0.7548776662466927
_LIGHTNESS_STEP = 0.5698402909980532
_LIGHTNESS_RANGE = (0.65, 0.87)  # of OKLab: stands out on dark and on pale images
_MAX_CHROMA = 0.24

_CANDIDATES = 48  # colours considered for an instance; the one least like its neighbours' wins


def draw(
    image: ImageInput,
    instances: Instances,
    *,
    labels: bool = True,
    boxes: bool = True,
    contours: bool = True,
    alpha: float = 0.5,
    scale: int | None = None,
) -> Image.Image:
    """Draws the instances over the image they were found in.

    Each instance has a colour of its own, unlike those of its neighbours. A label shows class and
    score, only the score where the object is small, and is left out where it would cover another.

    Args:
        image: the image, of any kind that `Predictor` takes.
        instances: the result for this image.
        labels: write class name and score.
        boxes: draw the boxes.
        contours: draw the masks' outlines.
        alpha: opacity of the masks' tint, 0 to 1.
        scale: whole factor by which the picture is enlarged; default: to about 1024 pixels.

    Returns:
        RGB image, `scale` times as large as the input.

    Raises:
        ValueError: if the instances belong to an image of another size, or an argument is out of
            its range.
    """
    pixels = load_image(image)
    size = tuple(pixels.shape[1:])
    if size != instances.image_size:
        raise ValueError(
            f"the image is {size[0]}x{size[1]}, the instances belong to one of "
            f"{instances.image_size[0]}x{instances.image_size[1]}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if scale is None:
        scale = max(1, round(_COMFORTABLE_SIDE / max(size)))
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")

    canvas = _enlarged(pixels, scale)
    line = max(1, round(max(canvas.shape[:2]) / 640))
    corners = _pixel_boxes(instances, scale)
    colors = instance_colors(corners)
    # Small objects are drawn over large ones.
    order = np.argsort(-np.prod(corners[:, 2:] - corners[:, :2], axis=1), kind="stable")
    for index in order:
        _tint(canvas, instances.rles[index], colors[index], alpha, line if contours else 0, scale)
    if boxes:
        for index in order:
            _outline_box(canvas, corners[index], colors[index], max(1, line // 2))
    picture = Image.fromarray(canvas)
    if labels:
        _write_labels(picture, instances, corners, colors)
    return picture


def palette(count: int) -> np.ndarray:
    """The first colours of an endless sequence in which each differs from all before.

    Args:
        count: number of colours.

    Returns:
        [count, 3] uint8 RGB, all bright enough for a dark and dark enough for a pale image.
    """
    index = np.arange(count)
    hue = 2 * np.pi * ((0.08 + index * _HUE_STEP) % 1)
    low, high = _LIGHTNESS_RANGE
    lightness = low + (high - low) * ((0.5 + index * _LIGHTNESS_STEP) % 1)
    colors = np.zeros((count, 3))
    # Screens show less chroma for some hues: take the most that each can show.
    for chroma in np.linspace(0.04, _MAX_CHROMA, 41):
        lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
        linear = _oklab_to_linear_rgb(lab)
        shown = (linear >= 0).all(axis=1) & (linear <= 1).all(axis=1)
        colors[shown] = linear[shown]
    encoded = np.where(colors <= 0.0031308, 12.92 * colors, 1.055 * colors ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


def instance_colors(boxes: np.ndarray) -> np.ndarray:
    """A colour for each instance: all different, and clearly so among neighbours.

    Args:
        boxes: [N, 4] x1, y1, x2, y2.

    Returns:
        [N, 3] uint8 RGB.
    """
    count = len(boxes)
    colors = palette(count + _CANDIDATES)
    lab = _rgb_to_oklab(colors)
    reach = np.maximum(boxes[:, 2:] - boxes[:, :2], 1).mean(axis=1)  # a box's own size
    free = list(range(len(colors)))
    chosen = np.zeros(count, dtype=np.int64)
    for index in range(count):
        before = boxes[:index]
        gaps = np.maximum(before[:, :2] - boxes[index, 2:], boxes[index, :2] - before[:, 2:])
        gap = np.maximum(gaps, 0).max(axis=1, initial=0) / (reach[index] + reach[:index]) * 2
        near = gap < 1
        candidates = np.array(free[:_CANDIDATES])
        difference = np.linalg.norm(lab[candidates, None] - lab[chosen[:index][near]], axis=2)
        # A colour may come closer to that of an instance farther away.
        best = np.argmax((difference * (1 + gap[near])).min(axis=1, initial=1))
        chosen[index] = free.pop(int(best))
    return colors[chosen]


def _enlarged(pixels: torch.Tensor, scale: int) -> np.ndarray:
    """[3, height, width] -> [height * scale, width * scale, 3] uint8, writable."""
    if pixels.is_floating_point():
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    array = np.array(pixels.permute(1, 2, 0).cpu().numpy(), order="C")
    if scale == 1:
        return array
    image = Image.fromarray(array)
    size = (image.width * scale, image.height * scale)
    return np.array(image.resize(size, Image.Resampling.BICUBIC))


def _pixel_boxes(instances: Instances, scale: int) -> np.ndarray:
    """[N, 4] int64 corners in the enlarged picture, inside it; NaN counts as 0."""
    height, width = instances.image_size
    limit = np.array([width, height, width, height], dtype=np.float64) * scale
    boxes = instances.boxes.detach().double().cpu().numpy().reshape(-1, 4) * scale
    boxes = np.clip(np.nan_to_num(boxes), 0, limit)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    return boxes.round().astype(np.int64)


def _tint(
    canvas: np.ndarray, rle: RLE, color: np.ndarray, alpha: float, line: int, scale: int
) -> None:
    """Blends one mask into the canvas, with an outline of `line` pixels inside its edge."""
    from fastseg.ops import rle_decode

    mask = rle_decode(rle).numpy()
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    coverage = _coverage(mask[top:bottom, left:right], scale)
    opacity = coverage * np.float32(alpha)
    if line:
        edge = np.minimum(coverage, 1 - _eroded(coverage, line))
        opacity = np.maximum(opacity, edge)
    opacity = opacity[scale:-scale, scale:-scale, None]
    region = canvas[top * scale : bottom * scale, left * scale : right * scale]
    blended = region + (color.astype(np.float32) - region) * opacity
    region[:] = (blended + 0.5).astype(np.uint8)


def _coverage(mask: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges a mask with smooth edges one pixel wide.

    Args:
        mask: [height, width] bool.
        scale: the factor.

    Returns:
        [(height + 2) * scale, (width + 2) * scale] float32, 0-1; the margin is empty.
    """
    padded = np.pad(mask, 1)
    if scale == 1:
        return padded.astype(np.float32)
    image = Image.fromarray(padded.astype(np.uint8) * 255)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    # Takes the pixel staircase off the outline; in a wider blur a single pixel would vanish.
    image = image.filter(ImageFilter.GaussianBlur(0.35 * scale))
    coverage = np.asarray(image).astype(np.float32) / 255
    return np.clip((coverage - 0.5) * (2 * scale) + 0.5, 0, 1)


def _eroded(coverage: np.ndarray, radius: int) -> np.ndarray:
    """Minimum over an octagon of the radius; outside the array is 0."""
    for step in range(radius):
        padded = np.pad(coverage, 1)
        vertical = np.minimum(np.minimum(padded[:-2], padded[1:-1]), padded[2:])
        rows = vertical if step % 2 else padded[1:-1]  # with the diagonal neighbours or without
        sides = np.minimum(rows[:, :-2], rows[:, 2:])
        coverage = np.minimum(sides, vertical[:, 1:-1])
    return coverage


def _outline_box(canvas: np.ndarray, box: np.ndarray, color: np.ndarray, line: int) -> None:
    left, top, right, bottom = (int(side) for side in box)
    inner_top, inner_bottom = min(top + line, bottom), max(bottom - line, top)
    strips = [
        canvas[top:inner_top, left:right],
        canvas[max(inner_bottom, inner_top) : bottom, left:right],
        canvas[inner_top:inner_bottom, left : min(left + line, right)],
        canvas[inner_top:inner_bottom, max(right - line, left + line) : right],
    ]
    for strip in strips:
        strip[:] = (strip * np.float32(0.35) + color * np.float32(0.65)).astype(np.uint8)


def _write_labels(
    picture: Image.Image, instances: Instances, boxes: np.ndarray, colors: np.ndarray
) -> None:
    """Writes the labels, best score first, each where it covers no other."""
    font = cast(FreeTypeFont, ImageFont.load_default(size=max(11, max(picture.size) / 64)))
    pen = ImageDraw.Draw(picture)
    taken = np.zeros((0, 4), dtype=np.int64)
    names = instances.names
    scores = instances.scores.tolist()
    for index in sorted(range(len(names)), key=lambda index: -scores[index]):
        left, top, right, bottom = boxes[index].tolist()
        text = _fitting_text(names[index], scores[index], right - left, bottom - top, font)
        if text is None:
            continue
        width, height = _text_size(text, font)
        left = max(0, min(left, picture.width - width))
        for y in (top - height, top, bottom - height, bottom):
            place = np.array([left, y, left + width, y + height])
            apart = np.hstack([place[:2] >= taken[:, 2:], place[2:] <= taken[:, :2]]).any(axis=1)
            if 0 <= y <= picture.height - height and apart.all():
                taken = np.vstack([taken, place])
                pen.rounded_rectangle(
                    [left, y, left + width - 1, y + height - 1], height // 5, tuple(colors[index])
                )
                middle = (left + width / 2, y + height / 2)
                pen.text(middle, text, fill=(16, 16, 20), font=font, anchor="mm")
                break


def _fitting_text(
    name: str, score: float, width: int, height: int, font: FreeTypeFont
) -> str | None:
    """The longest label that would cover at most a sixth of its box, None if there is none."""
    for text in (f"{name} {score:.2f}", f"{score:.2f}"):
        text_width, text_height = _text_size(text, font)
        if 6 * text_width * text_height <= width * height:
            return text
    return None


def _text_size(text: str, font: FreeTypeFont) -> tuple[int, int]:
    """Width and height of a label with its margins."""
    return round(font.getlength(text) + 0.6 * font.size), round(1.3 * font.size)


# OKLab (Ottosson 2020): equal distances look about equally different.
_LINEAR_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def _oklab_to_linear_rgb(lab: np.ndarray) -> np.ndarray:
    cone_roots = lab @ np.linalg.inv(_LMS_TO_OKLAB).T
    return cone_roots**3 @ np.linalg.inv(_LINEAR_RGB_TO_LMS).T


def _rgb_to_oklab(colors: np.ndarray) -> np.ndarray:
    encoded = colors / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _LINEAR_RGB_TO_LMS.T) @ _LMS_TO_OKLAB.T
