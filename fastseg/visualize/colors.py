"""Colours that can be told apart, on dark and on pale images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Points of a low-discrepancy sequence in the plane (hue, lightness): any prefix is spread evenly
# and each point lies far from the one before. The steps are powers of the root of x^3 = x + 1.
_HUE_STEP = 0.7548776662466927
_LIGHTNESS_STEP = 0.5698402909980532
_LIGHTNESS_RANGE = (0.65, 0.87)  # of OKLab: stands out on dark and on pale images
_MAX_CHROMA = 0.24
_STUFF_CHROMA = 0.12  # paler, so that objects stand out
_NATURAL = {
    "sky": (110, 180, 240),
    "tree": (85, 160, 100),
    "vegetation": (85, 160, 100),
    "plant": (105, 175, 110),
    "grass": (155, 200, 100),
    "terrain": (175, 200, 125),
    "field": (175, 200, 125),
    "water": (50, 150, 200),
    "sea": (50, 150, 200),
    "river": (60, 160, 190),
    "lake": (60, 160, 190),
    "sand": (235, 205, 130),
    "dirt": (185, 140, 95),
    "earth": (185, 140, 95),
    "gravel": (200, 165, 130),
    "rock": (165, 150, 140),
    "mountain": (150, 135, 170),
    "snow": (225, 235, 250),
    "road": (150, 130, 170),
    "pavement": (200, 170, 200),
    "sidewalk": (200, 170, 200),
    "building": (205, 130, 110),
    "house": (215, 145, 110),
    "wall": (215, 190, 150),
    "floor": (190, 160, 120),
}
_SHADES = (0.2, 0.8)  # range of lightness and hue (radians) among the objects of a class

_CANDIDATES = 48  # colours considered for an instance; the one least like its neighbours' wins


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
    return _rgb(lightness, hue, _MAX_CHROMA)


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


def segment_colors(
    labels: Sequence[int], names: Sequence[str], things: Sequence[bool]
) -> np.ndarray:
    """A colour for each region of a panoptic or semantic result.

    Args:
        labels: class of each region.
        names: name of the class; sky is blue and grass is green.
        things: whether it is an object; the objects of a class have shades of the class's colour.

    Returns:
        [1 + N, 3] uint8 RGB, first black for no region. A class has its colour in all images.
    """
    base = palette(max(labels, default=0) + 1)[list(labels)].reshape(-1, 3)
    chroma = np.where(things, _MAX_CHROMA, _STUFF_CHROMA)
    for index, name in enumerate(names):
        base[index] = _NATURAL.get(name, base[index])
    lightness, a, b = _rgb_to_oklab(base).T
    natural = np.array([name in _NATURAL for name in names], dtype=bool)
    before = np.array([labels[:n].count(label) for n, label in enumerate(labels)], dtype=np.int64)
    shade = np.stack([before * _LIGHTNESS_STEP, before * _HUE_STEP])
    shade = np.where(things, (0.5 + shade) % 1 - 0.5, 0)
    colors = _rgb(
        lightness + _SHADES[0] * shade[0],
        np.arctan2(b, a) + _SHADES[1] * shade[1],
        np.where(natural, np.hypot(a, b), chroma),
    )
    return np.concatenate([np.zeros((1, 3), np.uint8), colors])


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


def _rgb(lightness: np.ndarray, hue: np.ndarray, max_chroma: np.ndarray | float) -> np.ndarray:
    """8-bit colours [N, 3]; screens show less chroma for some hues: the most that each can show."""
    colors = np.zeros((len(hue), 3))
    for share in np.linspace(1 / 6, 1, 41):
        chroma = share * max_chroma
        lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
        linear = _oklab_to_linear_rgb(lab)
        shown = (linear >= 0).all(axis=1) & (linear <= 1).all(axis=1)
        colors[shown] = linear[shown]
    encoded = np.where(colors <= 0.0031308, 12.92 * colors, 1.055 * colors ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().astype(np.uint8)


def _oklab_to_linear_rgb(lab: np.ndarray) -> np.ndarray:
    cone_roots = lab @ np.linalg.inv(_LMS_TO_OKLAB).T
    return cone_roots**3 @ np.linalg.inv(_LINEAR_RGB_TO_LMS).T


def _rgb_to_oklab(colors: np.ndarray) -> np.ndarray:
    encoded = colors / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    return np.cbrt(linear @ _LINEAR_RGB_TO_LMS.T) @ _LMS_TO_OKLAB.T
