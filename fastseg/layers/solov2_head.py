"""Head of SOLOv2: dynamic instance segmentation (Wang et al., 2020, section 3).

A mask is the convolution of features that all instances share with a kernel that the instance's
cell predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import ConvLayer, ConvNorm
from fastseg.layers.grid_heads import (
    NUM_GRIDS,
    conv_tower,
    coordinates,
    grid_levels,
    group_norm,
    initialise,
    initialise_prior,
    to_grid,
    with_coordinates,
)
from fastseg.layers.linear import batched_product


@dataclass(frozen=True)
class SOLOv2Predictions:
    """What ``SOLOv2Head`` predicts for a batch of images.

    Attributes:
        class_logits: per level [B, C, S, S].
        kernels: per level [B, E, S, S].
        mask_features: [B, E, H / 4, W / 4].
    """

    class_logits: list[Tensor]
    kernels: list[Tensor]
    mask_features: Tensor


class SOLOv2Head(nn.Module):
    """Kernel and class branch on every level of the pyramid, and the mask feature branch.

    Args:
        in_channels: channels of the pyramid.
        num_classes: number of classes; there is no background.
        channels: channels of the kernel and the class branch.
        conv_layers: per convolution of these two branches, what makes it.
        mask_features: P2..P5 -> the features that kernels are convolved with.
        num_grids: per level, the number of cells along each side.
    """

    one_per_cell: ClassVar[bool] = False

    def __init__(
        self,
        *,
        in_channels: int = 256,
        num_classes: int = 80,
        channels: int = 512,
        conv_layers: Sequence[ConvLayer] = (nn.Conv2d,) * 4,
        mask_features: MaskFeatureHead,
        num_grids: Sequence[int] = NUM_GRIDS,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_grids = tuple(num_grids)
        self.class_convs = conv_tower(in_channels, channels, conv_layers)
        self.class_predictor = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.kernel_convs = conv_tower(in_channels + 2, channels, conv_layers)
        self.kernel_predictor = nn.Conv2d(channels, mask_features.out_channels, 3, padding=1)
        self.mask_features = mask_features
        initialise(
            towers=(self.class_convs, self.kernel_convs),
            predictors=(self.class_predictor, self.kernel_predictor),
        )
        initialise_prior(self.class_predictor)

    def forward(self, pyramid: Sequence[Tensor]) -> SOLOv2Predictions:
        """P2..P6, each [B, C, H / 2^i, W / 2^i] -> predictions of all cells."""
        class_logits, kernels = [], []
        for level, num_grid in zip(grid_levels(pyramid), self.num_grids, strict=True):
            x = to_grid(level, num_grid)  # [B, C, S, S]
            position = to_grid(coordinates(level), num_grid)
            class_logits.append(self.class_predictor(self.class_convs(x)))
            kernels.append(self.kernel_predictor(self.kernel_convs(torch.cat((x, position), 1))))
        return SOLOv2Predictions(class_logits, kernels, self.mask_features(pyramid[:4]))

    def mask_probabilities(self, predictions: SOLOv2Predictions, cells: Tensor) -> Tensor:
        """Masks [B, K, H / 4, W / 4] of cells [B, K], see ``GridHead``."""
        kernels = torch.cat([level.flatten(2) for level in predictions.kernels], dim=2)
        index = cells[:, None].expand(-1, kernels.shape[1], -1)
        chosen = kernels.gather(2, index).transpose(1, 2)  # [B, K, E]
        return convolve(predictions.mask_features, chosen).sigmoid_()

    def training_masks(
        self, predictions: SOLOv2Predictions, level: int, image: int, cells: Tensor
    ) -> Tensor:
        """Masks [P, H / 4, W / 4] of cells [P] of one level of one image, probabilities."""
        kernels = predictions.kernels[level][image].flatten(1)[:, cells]  # [E, P]
        return convolve(predictions.mask_features[image, None], kernels.T[None])[0].sigmoid()


class MaskFeatureHead(nn.Module):
    """Adds up P2..P5 at a quarter of the image's size (section 3.3 and figure 3, "mask feature").

    Level i is convolved and doubled i times. The coarsest level has coordinates appended.

    Args:
        in_channels: channels of the pyramid.
        channels: channels in between.
        out_channels: channels of the result, and so the length of a kernel.
        conv_layer: makes the convolutions.
    """

    NUM_LEVELS = 4

    def __init__(
        self,
        *,
        in_channels: int = 256,
        channels: int = 128,
        out_channels: int = 256,
        conv_layer: ConvLayer = nn.Conv2d,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        last = self.NUM_LEVELS - 1
        self.levels = nn.ModuleList(
            conv_tower(
                in_channels + 2 if level == last else in_channels,
                channels,
                [conv_layer] * max(level, 1),
            )
            for level in range(self.NUM_LEVELS)
        )
        self.predictor = ConvNorm(
            in_channels=channels,
            out_channels=out_channels,
            kernel_size=1,
            norm_layer=group_norm,
            relu=True,
            conv_layer=conv_layer,
        )
        initialise(towers=(self.levels, self.predictor), predictors=())

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """P2..P5 -> [B, out_channels, H / 4, W / 4]."""
        *fine, coarsest = pyramid
        total = self.levels[0](fine[0])
        for convs, x in zip(self.levels[1:], [*fine[1:], with_coordinates(coarsest)], strict=True):
            for conv in cast(nn.Sequential, convs):
                x = F.interpolate(conv(x), scale_factor=2, mode="bilinear")
            total = x.add_(total)  # resizing keeps no result for its gradient
        return self.predictor(total)


def convolve(features: Tensor, kernels: Tensor) -> Tensor:
    """Features [B, E, h, w] with 1x1 kernels [B, K, E]: [B, K, h, w]."""
    return batched_product(kernels, features.flatten(2)).unflatten(2, features.shape[-2:])
