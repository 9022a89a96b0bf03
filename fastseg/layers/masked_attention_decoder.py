"""Mask2Former's transformer decoder (Cheng et al., 2022, section 3.2): masked attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg import ops
from fastseg.layers.decoder_layer import DecoderLayer
from fastseg.layers.mask_classification import MaskClassifier
from fastseg.layers.position_encoding import sine_position_encoding


class MaskedAttentionLayer(DecoderLayer):
    """First masked attention to the image, then attention among the queries (figure 3)."""

    def forward(
        self, x: Tensor, query_embed: Tensor, key: Tensor, value: Tensor, packed_mask: Tensor
    ) -> Tensor:
        """[B, Q, C] -> [B, Q, C]; arguments as of ``attend_pixels``."""
        x = self.attend_pixels(x, query_embed, key, value, packed_mask)
        return self.feed_forward(self.attend_queries(x, query_embed))


class MaskedAttentionDecoder(MaskClassifier):
    """Queries look at one scale after the other, each only within the mask it predicts so far.

    Args:
        num_classes: K; "no object" is one more.
        num_queries: Q.
        in_channels: channels of the pixel decoder's scales.
        channels: C, of the queries.
        mask_channels: of the mask features.
        num_heads: heads of the attentions.
        num_layers: number of layers; they take the scales in turn, the coarsest first.
        ffn_channels: between the linear layers of the feed-forward networks.
        num_levels: number of scales.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_queries: int = 100,
        in_channels: int = 256,
        channels: int = 256,
        mask_channels: int = 256,
        num_heads: int = 8,
        num_layers: int = 9,
        ffn_channels: int = 2048,
        num_levels: int = 3,
    ) -> None:
        super().__init__(channels=channels, mask_channels=mask_channels, num_classes=num_classes)
        self.num_queries = num_queries
        self.query_features = nn.Embedding(num_queries, channels)
        self.query_embed = nn.Embedding(num_queries, channels)
        self.level_embed = nn.Embedding(num_levels, channels)
        self.input_projections = nn.ModuleList(
            nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)
            for _ in range(num_levels)
        )
        self.layers = nn.ModuleList(
            MaskedAttentionLayer(channels=channels, num_heads=num_heads, ffn_channels=ffn_channels)
            for _ in range(num_layers)
        )

    def decode(self, levels: Sequence[Tensor], mask_features: Tensor) -> list[Tensor]:
        """The learned queries and those after each layer, [B, Q, C], normalised.

        Args:
            levels: the pixel decoder's scales [B, C_in, h, w], the coarsest first.
            mask_features: [B, C_mask, H / 4, W / 4].
        """
        keys, values = self.memory(levels)
        # A mask of a smaller size is made from mask features of that size: products and bilinear
        # interpolation commute, and no mask of the full size is needed.
        with torch.no_grad():
            features = [resized(mask_features, x.shape[2:]) for x in levels]
        x = self.query_features.weight.expand(len(mask_features), -1, -1)
        queries = [self.norm(x)]
        for i, layer in enumerate(self.layers):
            level = i % len(levels)
            mask = self.attention_mask(queries[-1], features[level])
            x = layer(x, self.query_embed.weight, keys[level], values[level], mask)
            queries.append(self.norm(x))
        return queries

    def memory(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values [B, h * w, C] of each scale."""
        keys, values = [], []
        for level, project, embed in zip(
            levels, self.input_projections, self.level_embed.weight, strict=True
        ):
            x = project(level)
            channels, height, width = x.shape[1:]
            value = x.flatten(2).transpose(1, 2) + embed
            positions = sine_position_encoding(height, width, channels, device=x.device)
            keys.append(value + positions.to(value.dtype))
            values.append(value)
        return keys, values

    @torch.no_grad()
    def attention_mask(self, queries: Tensor, features: Tensor) -> Tensor:
        """Packed bits [B, Q, ceil(h * w / 64)]: where the queries' masks are foreground.

        Args:
            queries: [B, Q, C], normalised.
            features: [B, C_mask, h, w].
        """
        return ops.attention_mask(self.mask_embed(queries), features)


def resized(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resize of [B, C, H, W] to (height, width)."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
