"""Feature Pyramid Network (Lin et al., 2017, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import ConvNorm, NormLayer


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

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Builds the pyramid.

        Args:
            stages: C2, C3, C4, C5, each [B, C_i, H / 2^i, W / 2^i].

        Returns:
            P2, P3, P4, P5 at the stages' sizes and P6 = every second position of P5.
        """
        laterals = [block(stage) for block, stage in zip(self.inner_blocks, stages, strict=True)]
        for fine, coarse in zip(laterals[-2::-1], laterals[:0:-1], strict=True):
            fine += F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
        pyramid = [block(level) for block, level in zip(self.layer_blocks, laterals, strict=True)]
        return [*pyramid, pyramid[-1][:, :, ::2, ::2]]


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
