"""The attention module of Deformable DETR (Zhu et al., 2021), with its state dict's keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastseg.layers.linear import Linear
from fastseg.ops import ms_deform_attn_fused


class MSDeformAttn(nn.Module):
    """Attention of each query to a few points per level, placed around its reference point.

    Offsets from that point and the points' weights are linear functions of the query. At first
    each head looks in a direction of its own, its p-th point p + 1 cells away, and all points
    weigh the same. Keys of its state dict are those of Deformable DETR's module, which mmcv's and
    transformers' have too.

    Source: Zhu et al., Deformable DETR, 2021, section 4.1.

    Args:
        channels: C, of queries, values and output.
        num_levels: L, feature maps of different resolution, at most 8.
        num_heads: M, a divisor of C.
        num_points: P, points per head and level.

    Raises:
        ValueError: num_heads does not divide channels.
    """

    def __init__(
        self, channels: int = 256, num_levels: int = 4, num_heads: int = 8, num_points: int = 4
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"num_heads must divide channels, got {channels=}, {num_heads=}")
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(channels, samples * 2)
        self.attention_weights = Linear(channels, samples)
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the projections anew and points the heads in their directions."""
        angles = torch.arange(self.num_heads, device="cpu") * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)  # [M, 2]
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, device="cpu")[:, None]
        offsets = directions[:, None, None] * steps  # [M, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(offsets.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value_input: Tensor,
        spatial_shapes: Tensor | Sequence[tuple[int, int]],
        level_start_index: Tensor | Sequence[int] | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attends from every query to the maps.

        Args:
            query: [B, Q, C], positional embedding included.
            reference_points: [B, Q, L, 2], x and y in units of each map's width and height, where
                offsets count in cells; or [B, Q, L, 4], centre and size of a box, where offsets
                count in halves of the box per P.
            value_input: [B, S, C]: the maps of all levels as rows, one level after the other.
            spatial_shapes: (height, width) of each level: [L, 2] int64, or a sequence of pairs.
            level_start_index: first row of each level: [L] int64, or a sequence; None: without
                gaps.
            padding_mask: [B, S] bool, True where a row of value_input is padding and counts as 0.

        Returns:
            [B, Q, C].

        Raises:
            ValueError: shapes do not fit each other.
        """
        value = self.value_proj(value_input)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0)
        samples = (self.num_heads, self.num_levels, self.num_points)
        attended = ms_deform_attn_fused(
            value.unflatten(2, (self.num_heads, -1)),
            spatial_shapes,
            level_start_index,
            reference_points,
            self.sampling_offsets(query).unflatten(2, (*samples, 2)),
            self.attention_weights(query).unflatten(2, samples),
        )
        return self.output_proj(attended)

    def extra_repr(self) -> str:
        return (
            f"num_levels={self.num_levels}, num_heads={self.num_heads}, "
            f"num_points={self.num_points}"
        )
