"""What the heads of SOLO (Wang et al., 2020) and SOLOv2 (Wang et al., 2020) have in common.

The image is divided into S x S cells on each level of the pyramid; a cell classifies the instance
whose centre falls into it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import ConvLayer, ConvNorm, conv_norm_layers

NUM_GRIDS = (40, 36, 24, 16, 12)
group_norm = partial(nn.GroupNorm, 32)
# Probability of each class that a cell begins training with (Lin et al., focal loss, 2017).
PRIOR = 0.01


class GridHead(Protocol):
    """What inference and losses ask of a head, whose predictions only itself understands.

    Attributes:
        num_classes: number of classes; there is no background.
        num_grids: per level, the number of cells along each side.
        one_per_cell: a cell learns the mask of one instance at most.
    """

    num_classes: int
    num_grids: tuple[int, ...]
    one_per_cell: ClassVar[bool]

    def mask_probabilities(self, predictions: Any, cells: Tensor) -> Tensor:
        """Masks of some cells.

        Args:
            predictions: of B images.
            cells: int64 [B, K], indices into the cells of all levels, one level after the other.

        Returns:
            [B, K, H / 4, W / 4], probabilities.
        """

    def training_masks(self, predictions: Any, level: int, image: int, cells: Tensor) -> Tensor:
        """Masks [P, h, w] of cells [P] of one level of one image, probabilities."""


def conv_tower(in_channels: int, channels: int, conv_layers: Sequence[ConvLayer]) -> nn.Sequential:
    """3x3 convolutions with group normalisation and ReLU, one per element of ``conv_layers``."""
    widths = (channels,) * len(conv_layers)
    return nn.Sequential(*conv_norm_layers(in_channels, widths, group_norm, conv_layers))


def initialise(towers: Iterable[nn.Module], predictors: Iterable[nn.Module]) -> None:
    """The papers' initial weights: deviation 0.01, without bias."""
    for tower in towers:
        for module in tower.modules():
            if isinstance(module, ConvNorm):
                nn.init.normal_(cast(Tensor, module[0].weight), std=0.01)
    for predictor in predictors:
        nn.init.normal_(cast(Tensor, predictor.weight), std=0.01)
        nn.init.zeros_(cast(Tensor, predictor.bias))


def initialise_prior(predictor: nn.Conv2d) -> None:
    """Sets biases so that each probability begins near ``PRIOR``."""
    nn.init.constant_(cast(Tensor, predictor.bias), -math.log((1 - PRIOR) / PRIOR))


def coordinates(x: Tensor) -> Tensor:
    """x, then y, each from -1 to 1 over a map [B, C, H, W]: [B, 2, H, W], channels-last."""
    batch, _, height, width = x.shape
    xs = torch.linspace(-1, 1, width, device=x.device).to(x.dtype)
    ys = torch.linspace(-1, 1, height, device=x.device).to(x.dtype)
    maps = (xs.expand(height, width), ys[:, None].expand(height, width))
    # What they are appended to is channels-last, and the result is so only if both are.
    stacked = torch.stack(maps).expand(batch, 2, height, width)
    return stacked.contiguous(memory_format=torch.channels_last)


def with_coordinates(x: Tensor) -> Tensor:
    """Appends two channels to [B, C, H, W], see ``coordinates``."""
    return torch.cat((x, coordinates(x)), dim=1)


def grid_levels(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """P2..P6 at strides 8, 8, 16, 32, 32: P2 is halved, P6 enlarged to the size of P5."""
    first, *middle, last = pyramid
    return [
        F.interpolate(first, scale_factor=0.5, mode="bilinear"),
        *middle,
        F.interpolate(last, size=middle[-1].shape[-2:], mode="bilinear"),
    ]


def to_grid(x: Tensor, num_grid: int) -> Tensor:
    """Resizes [B, C, H, W] so that there is a pixel per cell: [B, C, S, S]."""
    return F.interpolate(x, size=(num_grid, num_grid), mode="bilinear")
