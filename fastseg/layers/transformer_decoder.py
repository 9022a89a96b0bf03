"""MaskFormer's transformer decoder (Cheng et al., 2021), which is DETR's (Carion et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastseg.layers.decoder_layer import DecoderLayer
from fastseg.layers.mask_classification import MaskClassifier
from fastseg.layers.position_encoding import sine_position_encoding


class TransformerDecoderLayer(DecoderLayer):
    """First attention among the queries, then to the image."""

    def forward(self, x: Tensor, query_embed: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, Q, C] -> [B, Q, C]; arguments as of ``attend_pixels``."""
        x = self.attend_queries(x, query_embed)
        return self.feed_forward(self.attend_pixels(x, query_embed, key, value))


class TransformerDecoder(MaskClassifier):
    """Queries, which begin as zeros, look at all of the coarsest features in every layer.

    Args:
        num_classes: K; "no object" is one more.
        in_channels: channels of the coarsest features.
        num_queries: Q.
        channels: C, of the queries.
        mask_channels: of the mask features.
        num_heads: heads of the attentions.
        num_layers: number of layers.
        ffn_channels: between the linear layers of the feed-forward networks.
        dropout: in training, share of values that are set to zero.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        num_queries: int = 100,
        channels: int = 256,
        mask_channels: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        ffn_channels: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(channels=channels, mask_channels=mask_channels, num_classes=num_classes)
        self.num_queries = num_queries
        self.query_embed = nn.Embedding(num_queries, channels)
        self.input_projection = (
            nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)
        )
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(
                channels=channels, num_heads=num_heads, ffn_channels=ffn_channels, dropout=dropout
            )
            for _ in range(num_layers)
        )

    def decode(self, levels: Sequence[Tensor], mask_features: Tensor) -> list[Tensor]:
        """The queries after each layer, [B, Q, C], normalised; see ``MaskClassifier.forward``."""
        x = self.input_projection(levels[0])
        channels, height, width = x.shape[1:]
        value = x.flatten(2).transpose(1, 2)
        positions = sine_position_encoding(height, width, channels, device=x.device)
        key = value + positions.to(value.dtype)
        place = self.query_embed.weight
        x = torch.zeros_like(place).expand(len(value), -1, -1)
        queries = []
        for layer in self.layers:
            x = layer(x, place, key, value)
            queries.append(self.norm(x))
        return queries
