"""MaskFormer's pixel decoder (Cheng et al., 2021): a feature pyramid with group normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import ConvNorm
from fastseg.layers.initial_weights import fan_in_uniform, initialise_convolutions
from fastseg.layers.pixel_decoder import group_norm


class BasePixelDecoder(nn.Module):
    """Top-down from stride 32 to stride 4, with a 3x3 convolution at each scale.

    Args:
        in_channels: channels of each stage of the backbone, the finest first.
        channels: of the pyramid.
        mask_channels: of the mask features.
    """

    def __init__(
        self, *, in_channels: Sequence[int], channels: int = 256, mask_channels: int = 256
    ) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(
            ConvNorm(
                in_channels=number, out_channels=channels, kernel_size=1, norm_layer=group_norm
            )
            for number in in_channels[:-1]
        )
        self.output = nn.ModuleList(
            ConvNorm(
                in_channels=number,
                out_channels=channels,
                kernel_size=3,
                norm_layer=group_norm,
                relu=True,
            )
            for number in (*[channels] * (len(in_channels) - 1), in_channels[-1])
        )
        self.mask_features = nn.Conv2d(channels, mask_channels, 3, padding=1)
        initialise_convolutions(self, fan_in_uniform)

    def forward(self, stages: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Builds the pyramid.

        Args:
            stages: the backbone's, at strides 4, 8, 16 and 32.

        Returns:
            The last stage alone, which the transformer decoder looks at, and the mask features
            [B, C_mask, H / 4, W / 4].
        """
        return [stages[-1]], self.pyramid(stages[:-1], stages[-1])

    def pyramid(self, stages: Sequence[Tensor], coarsest: Tensor) -> Tensor:
        """The mask features from the stages at strides 4, 8 and 16 and features at stride 32."""
        x = self.output[-1](coarsest)
        for i in reversed(range(len(self.lateral))):
            up = F.interpolate(x, size=stages[i].shape[2:], mode="nearest")
            x = self.output[i](self.lateral[i](stages[i]) + up)
        y: Tensor = self.mask_features(x)
        return y
