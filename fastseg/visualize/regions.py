"""Draws panoptic and semantic results: every pixel of a region in its colour.

Work is done on the map of regions as a whole, so that its cost depends on the size of the image
and not on the number of regions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from fastseg.categories import by_names, class_name
from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation, places
from fastseg.visualize.canvas import LabelPen, line_width
from fastseg.visualize.colors import segment_colors

_CELLS = 160  # labels are placed on a map of at most so many cells a side


@dataclass(frozen=True)
class Regions:
    """Regions of an image that do not overlap.

    Args:
        index: [height, width] unsigned, the region of each pixel, 0 for none.
        colors: [1 + regions, 3] uint8; the first is not used.
        texts: for each region the labels that may be written on it, the best first.
    """

    index: np.ndarray
    colors: np.ndarray
    texts: list[list[str]]


def draw_panoptic(
    canvas: np.ndarray,
    result: PanopticSegmentation,
    *,
    labels: bool,
    contours: bool,
    alpha: float,
    scale: int,
) -> Image.Image:
    """Draws segments over `canvas`; the options are those of `draw`."""
    texts = []
    for segment, name in zip(result.segments, result.names, strict=True):
        short = short_name(name)
        texts.append([f"{short} {segment.score:.2f}", short] if segment.is_thing else [short])
    regions = Regions(
        result.numbered(),
        segment_colors(
            [segment.label for segment in result.segments],
            [short_name(name) for name in result.names],
            [segment.is_thing for segment in result.segments],
        ),
        texts,
    )
    return _draw(canvas, regions, labels, contours, alpha, scale)


def draw_semantic(
    canvas: np.ndarray,
    result: SemanticSegmentation,
    *,
    labels: bool,
    contours: bool,
    alpha: float,
    scale: int,
) -> Image.Image:
    """Draws classes over `canvas`; the options are those of `draw`."""
    names = result.class_names
    known = [label for label in result.areas() if label >= 0 and (not names or label < len(names))]
    shown = [short_name(class_name(label, names)) for label in known]
    data_set = by_names(names)
    things = [data_set is None or label in data_set.things for label in known]
    regions = Regions(
        places(result.labels, known),
        segment_colors(known, shown, things),
        [[name] for name in shown],
    )
    return _draw(canvas, regions, labels, contours, alpha, scale)


def short_name(name: str) -> str:
    """A class's name without what tells COCO's panoptic classes from those it had before."""
    return re.sub(r"(-(other|merged|stuff))+$", "", name)


def _draw(
    canvas: np.ndarray, regions: Regions, labels: bool, contours: bool, alpha: float, scale: int
) -> Image.Image:
    picture = Image.fromarray(canvas)
    index = np.repeat(np.repeat(regions.index, scale, axis=0), scale, axis=1)
    tint = Image.fromarray(regions.colors[index])
    picture.paste(tint, mask=Image.fromarray((index > 0) * np.uint8(round(alpha * 255))))
    if contours:
        picture.paste(tint, mask=_rim(index, line_width(canvas), scale))
    if labels:
        _write_labels(picture, regions, scale)
    return picture


def _rim(index: np.ndarray, line: int, scale: int) -> Image.Image:
    """Opacity of the outlines: `line` pixels inside the edge of each region."""
    rim = np.zeros(index.shape, dtype=bool)
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        differs = index[here] != index[there]
        rim[here] |= differs
        rim[there] |= differs
    image = Image.fromarray(_grown(rim, line - 1) * np.uint8(255))
    if scale > 1:  # takes the edge off the pixels' corners
        image = image.filter(ImageFilter.GaussianBlur(0.35 * scale))
    return Image.fromarray(np.asarray(image) * (index > 0))


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    """Spreads what is set over an octagon of the radius."""
    for step in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        source = grown.copy() if step % 2 else mask  # with the diagonal neighbours or without
        grown[:, 1:] |= source[:, :-1]
        grown[:, :-1] |= source[:, 1:]
        mask = grown
    return mask


def _write_labels(picture: Image.Image, regions: Regions, scale: int) -> None:
    """Writes each region's name where the region is widest, the large ones' first."""
    step = -(-max(regions.index.shape) // _CELLS)
    cells = regions.index[step // 2 :: step, step // 2 :: step]
    depth = _depths(cells)
    order = np.argsort(-depth, axis=None, kind="stable")
    ranked = cells.reshape(-1)[order]
    found, first = np.unique(ranked, return_index=True)
    pen = LabelPen(picture)
    for place in np.sort(first[found > 0]):
        region = ranked[place]
        row, column = divmod(int(order[place]), cells.shape[1])
        y, x = ((one * step + step // 2 + 0.5) * scale for one in (row, column))
        reach = float(depth[row, column]) * step * scale
        for text in regions.texts[region - 1]:
            width, height = pen.size_of(text)
            if height > 2 * reach or width > 6 * reach:
                continue
            corner = round(x - width / 2), round(y - height / 2)
            if pen.write(text, regions.colors[region], [corner]):
                break


def _depths(cells: np.ndarray) -> np.ndarray:
    """Steps to the nearest cell of another region or outside the map; 0 where there is none."""
    around = (np.s_[:-2, 1:-1], np.s_[2:, 1:-1], np.s_[1:-1, :-2], np.s_[1:-1, 2:])
    padded = np.pad(cells, 1)
    surrounded = np.logical_and.reduce([padded[one] == cells for one in around])
    inside = cells > 0
    depth = np.zeros(cells.shape, dtype=np.int32)
    while inside.any():
        depth += inside
        margin = np.pad(inside, 1)
        inside = np.logical_and.reduce([surrounded, inside, *(margin[one] for one in around)])
    return depth
