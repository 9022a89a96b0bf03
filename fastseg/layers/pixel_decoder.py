"""Mask2Former's pixel decoder (Cheng et al., 2022): deformable attention between three scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import ConvNorm
from fastseg.layers.encoder_layer import EncoderLayer
from fastseg.layers.initial_weights import fan_in_uniform, initialise_convolutions
from fastseg.layers.ms_deform_attn import MSDeformAttn
from fastseg.layers.position_encoding import sine_position_encoding


def group_norm(channels: int) -> nn.GroupNorm:
    """With the 32 groups of its paper."""
    return nn.GroupNorm(32, channels)


class DeformableEncoderLayer(EncoderLayer):
    """Multi-scale deformable attention (Zhu et al., 2021).

    Args:
        channels: of the tokens.
        num_levels: number of scales.
        num_heads: heads of the attention.
        num_points: sampling points per head and scale.
        ffn_channels: between the two linear layers.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_levels: int,
        num_heads: int,
        num_points: int,
        ffn_channels: int,
    ) -> None:
        attention = MSDeformAttn(channels, num_levels, num_heads, num_points)
        super().__init__(attention, channels=channels, ffn_channels=ffn_channels)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        references: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Applies the layer.

        Args:
            tokens: [B, S, C], the pixels of all scales, one scale after the other.
            positions: [S, C].
            references: [B, S, L, 2], where a token lies in each scale.
            shapes: (height, width) of each scale.

        Returns:
            [B, S, C].
        """
        attended = self.self_attn(tokens + positions, references, tokens, shapes)
        return self.with_attended(tokens, attended)


class MSDeformAttnPixelDecoder(nn.Module):
    """A deformable transformer encoder on the coarse stages, and from there to stride 4.

    Args:
        in_channels: channels of each stage of the backbone, the finest first. All but the first
            enter the encoder.
        channels: C, of the encoder.
        mask_channels: of the mask features.
        num_heads: heads of the encoder's attention.
        num_points: sampling points per head and scale.
        num_layers: layers of the encoder.
        ffn_channels: between the linear layers of its feed-forward networks.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int = 256,
        mask_channels: int = 256,
        num_heads: int = 8,
        num_points: int = 4,
        num_layers: int = 6,
        ffn_channels: int = 1024,
    ) -> None:
        super().__init__()
        finest, *coarse = in_channels
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(number, channels, 1), group_norm(channels))
            for number in reversed(coarse)
        )
        self.level_embed = nn.Parameter(torch.empty(len(coarse), channels))
        nn.init.normal_(self.level_embed)
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(
                channels=channels,
                num_levels=len(coarse),
                num_heads=num_heads,
                num_points=num_points,
                ffn_channels=ffn_channels,
            )
            for _ in range(num_layers)
        )
        self.lateral = ConvNorm(
            in_channels=finest, out_channels=channels, kernel_size=1, norm_layer=group_norm
        )
        self.output = ConvNorm(
            in_channels=channels,
            out_channels=channels,
            kernel_size=3,
            norm_layer=group_norm,
            relu=True,
        )
        self.mask_features = nn.Conv2d(channels, mask_channels, 1)
        initialise_convolutions(self, fan_in_uniform)
        for projection in self.input_projections:
            nn.init.xavier_uniform_(projection.get_parameter("0.weight"))

    def forward(self, stages: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Refines the backbone's features.

        Args:
            stages: the backbone's, at strides 4, 8, 16 and 32.

        Returns:
            The encoder's scales [B, C, h, w], the coarsest first, and the mask features
            [B, C_mask, H / 4, W / 4].
        """
        coarse = reversed(stages[1:])
        maps = [project(x) for project, x in zip(self.input_projections, coarse, strict=True)]
        levels = self.encode(maps)
        up = F.interpolate(levels[-1], stages[0].shape[2:], mode="bilinear", align_corners=False)
        return levels, self.mask_features(self.output(self.lateral(stages[0]) + up))

    def encode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Lets the pixels of all scales, each [B, C, h, w], attend to one another."""
        batch, channels = maps[0].shape[:2]
        shapes = [(x.shape[2], x.shape[3]) for x in maps]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # [B, S, C]
        positions = [
            sine_position_encoding(*shape, channels, device=tokens.device) + embed
            for shape, embed in zip(shapes, self.level_embed, strict=True)
        ]
        places = torch.cat(positions).to(tokens.dtype)
        references = pixel_centers(shapes, tokens.device)[None, :, None]
        references = references.expand(batch, -1, len(shapes), -1)
        for layer in self.layers:
            tokens = layer(tokens, places, references, shapes)
        rows = tokens.split([height * width for height, width in shapes], dim=1)
        return [
            row.unflatten(1, shape).permute(0, 3, 1, 2)
            for row, shape in zip(rows, shapes, strict=True)
        ]


def pixel_centers(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """float32 [S, 2]: x and y of the pixels of all scales, in units of their scale's sides."""
    centers = []
    for height, width in shapes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        grid = (x[None].expand(height, -1), y[:, None].expand(-1, width))
        centers.append(torch.stack(grid, dim=2).flatten(0, 1))
    return torch.cat(centers)
