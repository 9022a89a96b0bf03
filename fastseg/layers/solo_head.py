"""Heads of SOLO: segmenting objects by locations (Wang et al., 2020, sections 3 and 4).

SOLO has an output channel per cell, which is that cell's mask. Decoupled SOLO has one per row and
one per column of cells; a mask is the product of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import ConvLayer
from fastseg.layers.grid_heads import (
    NUM_GRIDS,
    conv_tower,
    coordinates,
    grid_levels,
    initialise,
    initialise_prior,
    to_grid,
    with_coordinates,
)


@dataclass(frozen=True)
class SOLOPredictions:
    """What ``SOLOHead`` predicts for a batch of images.

    Attributes:
        class_logits: per level [B, C, S, S].
        mask_features: per level [B, F, h, w], of which a mask is a linear combination; the sizes
            are 1/4, 1/4, 1/8, 1/16 and 1/16 of the image's.
    """

    class_logits: list[Tensor]
    mask_features: list[Tensor]


class SOLOHead(nn.Module):
    """Mask and class branch on every level of the pyramid.

    Args:
        in_channels: channels of the pyramid.
        num_classes: number of classes; there is no background.
        channels: channels of both branches.
        conv_layers: per convolution of a branch, what makes it.
        num_grids: per level, the number of cells along each side.
    """

    one_per_cell: ClassVar[bool] = True

    def __init__(
        self,
        *,
        in_channels: int = 256,
        num_classes: int = 80,
        channels: int = 256,
        conv_layers: Sequence[ConvLayer] = (nn.Conv2d,) * 7,
        num_grids: Sequence[int] = NUM_GRIDS,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_grids = tuple(num_grids)
        self.class_convs = conv_tower(in_channels, channels, conv_layers)
        self.class_predictor = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.mask_convs = conv_tower(in_channels + 2, channels, conv_layers)
        self.mask_predictors = nn.ModuleList(
            nn.Conv2d(channels, num_grid**2, 1) for num_grid in num_grids
        )
        predictors = [self.class_predictor, *self.mask_predictors]
        initialise(towers=(self.class_convs, self.mask_convs), predictors=predictors)
        for predictor in predictors:
            initialise_prior(cast(nn.Conv2d, predictor))

    def forward(self, pyramid: Sequence[Tensor]) -> SOLOPredictions:
        """P2..P6, each [B, C, H / 2^i, W / 2^i] -> predictions of all cells."""
        class_logits, mask_features = [], []
        for level, num_grid in zip(grid_levels(pyramid), self.num_grids, strict=True):
            class_logits.append(self.class_predictor(self.class_convs(to_grid(level, num_grid))))
            mask_features.append(doubled(self.mask_convs(with_coordinates(level))))
        return SOLOPredictions(class_logits, mask_features)

    def mask_probabilities(self, predictions: SOLOPredictions, cells: Tensor) -> Tensor:
        """Masks [B, K, H / 4, W / 4] of cells [B, K], see ``GridHead``.

        The other cells' channels are not computed.
        """
        first = 0
        masks = torch.zeros_like(cells[:, :, None, None], dtype=torch.float32)
        for level, features in enumerate(predictions.mask_features):
            num_cells = self.num_grids[level] ** 2
            local = cells - first
            on_level = (local >= 0) & (local < num_cells)
            found = self.combine(level, features, local.clamp(0, num_cells - 1))
            found = F.interpolate(
                found, size=predictions.mask_features[0].shape[-2:], mode="bilinear"
            )
            masks = torch.where(on_level[:, :, None, None], found, masks)
            first += num_cells
        return masks

    def training_masks(
        self, predictions: SOLOPredictions, level: int, image: int, cells: Tensor
    ) -> Tensor:
        """Masks [P, h, w] of cells [P] of one level of one image, probabilities."""
        features = predictions.mask_features[level][image, None]
        return self.combine(level, features, cells[None])[0]

    def combine(self, level: int, features: Tensor, cells: Tensor) -> Tensor:
        """Masks [B, K, h, w] of cells [B, K] of one level from its features [B, F, h, w]."""
        predictor = cast(nn.Conv2d, self.mask_predictors[level])
        weight = predictor.weight.flatten(1)[cells]  # [B, K, F]
        bias = cast(Tensor, predictor.bias)[cells, None]
        masks = torch.baddbmm(bias, weight, features.flatten(2))
        return masks.sigmoid().unflatten(2, features.shape[-2:])


@dataclass(frozen=True)
class DecoupledSOLOPredictions:
    """What ``DecoupledSOLOHead`` predicts for a batch of images.

    Attributes:
        class_logits: per level [B, C, S, S].
        column_logits: per level [B, S, h, w], one map per column of cells; the sizes are 1/4, 1/4,
            1/8, 1/16 and 1/16 of the image's.
        row_logits: the same per row of cells.
    """

    class_logits: list[Tensor]
    column_logits: list[Tensor]
    row_logits: list[Tensor]


class DecoupledSOLOHead(nn.Module):
    """Two mask branches, for columns and rows of cells, and the class branch.

    Args:
        in_channels: channels of the pyramid.
        num_classes: number of classes; there is no background.
        channels: channels of the branches.
        conv_layers: per convolution of a branch, what makes it.
        light: one mask branch serves columns and rows.
        num_grids: per level, the number of cells along each side.
    """

    one_per_cell: ClassVar[bool] = True

    def __init__(
        self,
        *,
        in_channels: int = 256,
        num_classes: int = 80,
        channels: int = 256,
        conv_layers: Sequence[ConvLayer] = (nn.Conv2d,) * 7,
        light: bool = False,
        num_grids: Sequence[int] = NUM_GRIDS,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_grids = tuple(num_grids)
        self.light = light
        self.class_convs = conv_tower(in_channels, channels, conv_layers)
        self.class_predictor = nn.Conv2d(channels, num_classes, 3, padding=1)
        if light:
            self.mask_convs = conv_tower(in_channels + 2, channels, conv_layers)
        else:
            self.column_convs = conv_tower(in_channels + 1, channels, conv_layers)
            self.row_convs = conv_tower(in_channels + 1, channels, conv_layers)
        self.column_predictors, self.row_predictors = (
            nn.ModuleList(nn.Conv2d(channels, num_grid, 3, padding=1) for num_grid in num_grids)
            for _ in range(2)
        )
        towers = [module for name, module in self.named_children() if name.endswith("_convs")]
        predictors = [self.class_predictor, *self.column_predictors, *self.row_predictors]
        initialise(towers=towers, predictors=predictors)
        for predictor in predictors:
            initialise_prior(cast(nn.Conv2d, predictor))

    def forward(self, pyramid: Sequence[Tensor]) -> DecoupledSOLOPredictions:
        """P2..P6, each [B, C, H / 2^i, W / 2^i] -> predictions of all cells."""
        class_logits, column_logits, row_logits = [], [], []
        for i, (level, num_grid) in enumerate(
            zip(grid_levels(pyramid), self.num_grids, strict=True)
        ):
            class_logits.append(self.class_predictor(self.class_convs(to_grid(level, num_grid))))
            for_columns, for_rows = self.mask_features(level)
            column_logits.append(self.column_predictors[i](for_columns))
            row_logits.append(self.row_predictors[i](for_rows))
        return DecoupledSOLOPredictions(class_logits, column_logits, row_logits)

    def mask_features(self, level: Tensor) -> tuple[Tensor, Tensor]:
        """Features of one level for its columns and for its rows, at twice its size."""
        if self.light:
            features = doubled(self.mask_convs(with_coordinates(level)))
            return features, features
        x, y = coordinates(level).split(1, dim=1)
        return (
            doubled(self.column_convs(torch.cat((level, x), dim=1))),
            doubled(self.row_convs(torch.cat((level, y), dim=1))),
        )

    def mask_probabilities(self, predictions: DecoupledSOLOPredictions, cells: Tensor) -> Tensor:
        """Masks [B, K, H / 4, W / 4] of cells [B, K], see ``GridHead``."""
        size = predictions.row_logits[0].shape[-2:]
        columns, rows = (
            torch.cat(
                [F.interpolate(level.sigmoid(), size=size, mode="bilinear") for level in levels],
                dim=1,
            )
            for levels in (predictions.column_logits, predictions.row_logits)
        )  # [B, sum of S, H / 4, W / 4]
        column = torch.zeros_like(cells)
        row = torch.zeros_like(cells)
        first_cell = first_line = 0
        for num_grid in self.num_grids:
            local = cells - first_cell
            on_level = local >= 0  # or on a later one, which then overwrites it
            column = torch.where(on_level, first_line + local % num_grid, column)
            row = torch.where(
                on_level, first_line + torch.div(local, num_grid, rounding_mode="floor"), row
            )
            first_cell += num_grid**2
            first_line += num_grid
        return take_maps(columns, column) * take_maps(rows, row)

    def training_masks(
        self, predictions: DecoupledSOLOPredictions, level: int, image: int, cells: Tensor
    ) -> Tensor:
        """Masks [P, h, w] of cells [P] of one level of one image, probabilities."""
        num_grid = self.num_grids[level]
        columns = predictions.column_logits[level][image, cells % num_grid]
        rows = predictions.row_logits[level][
            image, torch.div(cells, num_grid, rounding_mode="floor")
        ]
        return rows.sigmoid() * columns.sigmoid()


def doubled(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, C, 2h, 2w]."""
    return F.interpolate(x, scale_factor=2, mode="bilinear")


def take_maps(maps: Tensor, index: Tensor) -> Tensor:
    """Picks maps [B, N, h, w] per image by an index [B, K]: [B, K, h, w]."""
    return maps.gather(1, index[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
