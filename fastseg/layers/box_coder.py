"""Boxes as offsets from reference boxes (Girshick et al., R-CNN, 2014, appendix C).

Boxes are (x1, y1, x2, y2) in pixels, float32 whatever the type of the network. The order of the
arithmetic is torchvision's, so that equal inputs give bit-equal boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# exp() of a larger offset would turn the smallest anchor (16 px) into more than 1000 px.
MAX_LOG_RATIO = math.log(1000.0 / 16)


def encode_boxes(
    boxes: Tensor, references: Tensor, weights: tuple[float, float, float, float]
) -> Tensor:
    """Offsets that ``decode_boxes`` turns into given boxes: what a network shall predict.

    Args:
        boxes: [..., 4] float32, of positive width and height.
        references: [..., 4] float32, anchors or proposals, likewise.
        weights: what the offsets are multiplied by.

    Returns:
        float32 [..., 4], (dx, dy, dw, dh).
    """
    x1, y1, x2, y2 = references.unbind(-1)
    width, height = x2 - x1, y2 - y1
    center_x, center_y = x1 + 0.5 * width, y1 + 0.5 * height

    x1, y1, x2, y2 = boxes.unbind(-1)
    new_width, new_height = x2 - x1, y2 - y1
    new_center_x, new_center_y = x1 + 0.5 * new_width, y1 + 0.5 * new_height
    return torch.stack(
        (
            weights[0] * (new_center_x - center_x) / width,
            weights[1] * (new_center_y - center_y) / height,
            weights[2] * torch.log(new_width / width),
            weights[3] * torch.log(new_height / height),
        ),
        dim=-1,
    )


def decode_boxes(
    deltas: Tensor,
    references: Tensor,
    weights: tuple[float, float, float, float],
    *,
    limit_shrinking: bool = False,
) -> Tensor:
    """Applies predicted offsets to reference boxes.

    Args:
        deltas: [..., 4] float, (dx, dy, dw, dh): shift of the centre in units of the reference's
            size and logarithm of the ratio of the sizes, each times its weight.
        references: [..., 4] float32, anchors or proposals; broadcast against ``deltas``.
        weights: what the offsets were multiplied by in training.
        limit_shrinking: dw and dh are not less than ``-MAX_LOG_RATIO`` either.

    Returns:
        float32 [..., 4].
    """
    x1, y1, x2, y2 = references.unbind(-1)
    width, height = x2 - x1, y2 - y1
    center_x, center_y = x1 + 0.5 * width, y1 + 0.5 * height

    dx, dy, dw, dh = (
        delta / weight for delta, weight in zip(deltas.float().unbind(-1), weights, strict=True)
    )
    center_x, center_y = dx * width + center_x, dy * height + center_y
    least = -MAX_LOG_RATIO if limit_shrinking else None
    half_width = 0.5 * (torch.exp(dw.clamp(least, MAX_LOG_RATIO)) * width)
    half_height = 0.5 * (torch.exp(dh.clamp(least, MAX_LOG_RATIO)) * height)
    return torch.stack(
        (
            center_x - half_width,
            center_y - half_height,
            center_x + half_width,
            center_y + half_height,
        ),
        dim=-1,
    )


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clips each image's boxes to the image.

    Args:
        boxes: [B, ..., 4] float32.
        sizes: [B, 2] int64, (height, width) of each image.
    """
    limits = sizes.flip(-1).repeat(1, 2).to(boxes.dtype)  # [B, 4]: w, h, w, h
    limits = limits.view(-1, *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def has_sides(boxes: Tensor, min_size: float) -> Tensor:
    """Whether both sides of each box [..., 4] are at least ``min_size`` px; false for NaN."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(-1)
