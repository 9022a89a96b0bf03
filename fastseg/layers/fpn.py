"""Feature Pyramid Network (Lin et al., 2017, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import ConvNorm, NormLayer
from fastseg.layers.initial_weights import fan_in_uniform, initialise_convolutions


class FeaturePyramidNetwork(nn.Module):
    """Lateral 1x1 convolutions, a top-down path that adds, and a 3x3 convolution per level.

    Args:
        in_channels: channels of each backbone stage, the finest first.
        out_channels: channels of every level of the pyramid.
        norm_layer: makes the normalisation after each convolution from a channel count; none as
            in the paper by default.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        out_channels: int = 256,
        norm_layer: NormLayer | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.inner_blocks = nn.ModuleList(
            ConvNorm(
                in_channels=channels,
                out_channels=out_channels,
                kernel_size=1,
                norm_layer=norm_layer,
            )
            for channels in in_channels
        )
        self.layer_blocks = nn.ModuleList(
            ConvNorm(
                in_channels=out_channels,
                out_channels=out_channels,
                kernel_size=3,
                norm_layer=norm_layer,
            )
            for _ in in_channels
        )
        initialise_convolutions(self, fan_in_uniform)

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Builds the pyramid.

        Args:
            stages: C2, C3, C4, C5, each [B, C_i, H / 2^i, W / 2^i].

        Returns:
            P2, P3, P4, P5 at the stages' sizes and P6 = every second position of P5.
        """
        laterals = [block(stage) for block, stage in zip(self.inner_blocks, stages, strict=True)]
        for fine, coarse in zip(laterals[-2::-1], laterals[:0:-1], strict=True):
            add_resized(fine, coarse)
        pyramid = [block(level) for block, level in zip(self.layer_blocks, laterals, strict=True)]
        # A view of every second position would be of no memory format.
        return [*pyramid, F.max_pool2d(pyramid[-1], kernel_size=1, stride=2)]


def add_resized(fine: Tensor, coarse: Tensor) -> None:
    """Adds a map to a finer one, each of whose pixels gets the nearest one's value."""
    height, width = coarse.shape[-2:]
    if torch.is_grad_enabled() or fine.shape[-2:] != (2 * height, 2 * width):
        fine += F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        return
    # Without the resized map, whose memory costs more time than the sums.
    fine.unflatten(3, (width, 2)).unflatten(2, (height, 2)).add_(coarse[:, :, :, None, :, None])


class BackboneWithFPN(nn.Module):
    """A backbone whose stages feed a feature pyramid.

    Args:
        body: image [B, 3, H, W] -> C2..C5; has ``out_channels``, one number per stage.
        fpn: C2..C5 -> P2..P6.
    """

    def __init__(self, *, body: nn.Module, fpn: FeaturePyramidNetwork) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> P2..P6."""
        return self.fpn(self.body(pixels))
