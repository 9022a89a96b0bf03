"""Mask branch of Mask R-CNN (He et al., 2017, section 3 and figure 4, right)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import NormLayer, conv_norm_layers
from fastseg.layers.initial_weights import he_normal, initialise_convolutions


class MaskHead(nn.Sequential):
    """3x3 convolutions with ReLU.

    Args:
        in_channels: channels of a pooled region.
        conv_channels: channels of each convolution.
        norm_layer: makes the normalisation after each convolution; none as in the paper by
            default.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        conv_channels: Sequence[int] = (256, 256, 256, 256),
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__(*conv_norm_layers(in_channels, conv_channels, norm_layer))
        self.out_channels = (in_channels, *conv_channels)[-1]
        initialise_convolutions(self, he_normal)


class MaskPredictor(nn.Module):
    """Upsamples by two, then predicts one mask: that of the class that the box branch chose.

    Args:
        in_channels: channels of the mask head's output.
        dim_reduced: channels after the transposed convolution.
        num_classes: number of labels; 1 for masks that all classes share.
    """

    def __init__(self, *, in_channels: int, dim_reduced: int = 256, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(in_channels, dim_reduced, kernel_size=2, stride=2)
        self.mask_fcn_logits = nn.Conv2d(dim_reduced, num_classes, kernel_size=1)
        he_normal(self.conv5_mask.weight)
        he_normal(self.mask_fcn_logits.weight)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Logits of the masks of the given classes; the other classes' are not computed.

        Args:
            x: [R, C, h, w].
            labels: int64 [R].

        Returns:
            [R, 2h, 2w].
        """
        x = F.relu_(self.conv5_mask(x))
        if self.mask_fcn_logits.out_channels == 1:
            labels = torch.zeros_like(labels)
        weight = self.mask_fcn_logits.weight[labels].flatten(1)  # [R, C]
        bias = cast(Tensor, self.mask_fcn_logits.bias)[labels]
        return torch.einsum("rchw,rc->rhw", x, weight) + bias[:, None, None]
