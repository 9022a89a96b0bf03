"""Draws instances over their image: tinted masks, contours, boxes and labels.

Every step works inside one mask's bounding box, so the cost follows the area of the objects, not
instances x image. Small images are enlarged first, so that lines and text stay fine beside them.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from fastseg.instances import RLE, Instances
from fastseg.visualize.canvas import LabelPen, line_width
from fastseg.visualize.colors import instance_colors


def draw_instances(
    canvas: np.ndarray,
    instances: Instances,
    *,
    labels: bool,
    boxes: bool,
    contours: bool,
    alpha: float,
    scale: int,
) -> Image.Image:
    """Draws instances over `canvas`, which is overwritten; the options are those of `draw`."""
    line = line_width(canvas)
    corners = _pixel_boxes(instances, scale)
    colors = instance_colors(corners)
    # Small objects are drawn over large ones.
    order = np.argsort(-np.prod(corners[:, 2:] - corners[:, :2], axis=1), kind="stable")
    picture = Image.fromarray(canvas)
    for index in order:
        _tint(picture, instances.rles[index], colors[index], alpha, line if contours else 0, scale)
    if boxes:
        canvas[:] = picture
        for index in order:
            _outline_box(canvas, corners[index], colors[index], max(1, line // 2))
        picture = Image.fromarray(canvas)
    if labels:
        _write_labels(picture, instances, corners, colors)
    return picture


def _pixel_boxes(instances: Instances, scale: int) -> np.ndarray:
    """[N, 4] int64 corners in the enlarged picture, inside it; NaN counts as 0."""
    height, width = instances.image_size
    limit = np.array([width, height, width, height], dtype=np.float64) * scale
    boxes = instances.boxes.detach().double().cpu().numpy().reshape(-1, 4) * scale
    boxes = np.clip(np.nan_to_num(boxes), 0, limit)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    return boxes.round().astype(np.int64)


def _tint(
    picture: Image.Image, rle: RLE, color: np.ndarray, alpha: float, line: int, scale: int
) -> None:
    """Blends one mask into the picture, with an outline of `line` pixels inside its edge."""
    from fastseg.ops import rle_decode

    mask = rle_decode(rle).numpy()
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[top:bottom].any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    coverage = _coverage(mask[top:bottom, left:right], scale)
    opacity = np.asarray(Image.fromarray(coverage).point([round(c * alpha) for c in range(256)]))
    if line:
        opacity = np.maximum(opacity, np.minimum(coverage, ~_eroded(coverage, line)))
    opacity = np.ascontiguousarray(opacity[scale:-scale, scale:-scale])
    place = (left * scale, top * scale, right * scale, bottom * scale)
    red, green, blue = color.tolist()
    picture.paste((red, green, blue), place, Image.fromarray(opacity))


def _coverage(mask: np.ndarray, scale: int) -> np.ndarray:
    """Enlarges a mask with smooth edges one pixel wide.

    Args:
        mask: [height, width] bool.
        scale: the factor.

    Returns:
        [(height + 2) * scale, (width + 2) * scale] uint8, 255 where it is covered; the margin is
        empty.
    """
    padded = np.pad(mask, 1).view(np.uint8) * np.uint8(255)
    if scale == 1:
        return padded
    image = Image.fromarray(padded)
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    # Takes the pixel staircase off the outline; in a wider blur a single pixel would vanish.
    image = image.filter(ImageFilter.GaussianBlur(0.35 * scale))
    sharper = (np.arange(256) - 127.5) * (2 * scale) + 127.5
    return np.asarray(image.point(sharper.clip(0, 255).round().tolist()))


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
    pen = LabelPen(picture)
    names = instances.names
    scores = instances.scores.tolist()
    for index in sorted(range(len(names)), key=lambda index: -scores[index]):
        left, top, right, bottom = boxes[index].tolist()
        text = _fitting_text(names[index], scores[index], right - left, bottom - top, pen)
        if text is not None:
            height = pen.size_of(text)[1]
            corners = [(left, y) for y in (top - height, top, bottom - height, bottom)]
            pen.write(text, colors[index], corners)


def _fitting_text(name: str, score: float, width: int, height: int, pen: LabelPen) -> str | None:
    """The longest label that would cover at most a sixth of its box, None if there is none."""
    for text in (f"{name} {score:.2f}", f"{score:.2f}"):
        text_width, text_height = pen.size_of(text)
        if 6 * text_width * text_height <= width * height:
            return text
    return None
