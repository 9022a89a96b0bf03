"""The three steps of a layer in which queries look at an image (Carion et al., DETR, 2020)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.attention import MultiHeadAttention
from fastseg.layers.linear import Linear


class DecoderLayer(nn.Module):
    """Cross-attention, self-attention and a feed-forward network, each around a shortcut.

    A norm follows each. In which order they come, the decoder says.

    Args:
        channels: C, of the queries.
        num_heads: heads of the attentions.
        ffn_channels: between the two linear layers.
        dropout: in training, share of values that are set to zero.
    """

    def __init__(
        self, *, channels: int, num_heads: int, ffn_channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        attention = {"channels": channels, "num_heads": num_heads}
        self.cross_attn = MultiHeadAttention(**attention, dropout=dropout)
        self.cross_norm = nn.LayerNorm(channels)
        self.self_attn = MultiHeadAttention(**attention, dropout=dropout)
        self.self_norm = nn.LayerNorm(channels)
        self.linear1 = Linear(channels, ffn_channels)
        self.linear2 = Linear(ffn_channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def attend_pixels(
        self,
        x: Tensor,
        query_embed: Tensor,
        key: Tensor,
        value: Tensor,
        packed_mask: Tensor | None = None,
    ) -> Tensor:
        """Cross-attention.

        Args:
            x: [B, Q, C], the queries' features.
            query_embed: [Q, C], their positional embedding.
            key: [B, S, C], pixels with their positions.
            value: [B, S, C], pixels.
            packed_mask: which pixels a query attends to, see ``fastseg.ops.masked_attention``.

        Returns:
            [B, Q, C].
        """
        attended = self.cross_attn(x + query_embed, key, value, packed_mask)
        y: Tensor = self.cross_norm(x + self.dropout(attended))
        return y

    def attend_queries(self, x: Tensor, query_embed: Tensor) -> Tensor:
        """Self-attention; arguments and result as of ``attend_pixels``."""
        place = x + query_embed
        y: Tensor = self.self_norm(x + self.dropout(self.self_attn(place, place, x)))
        return y

    def feed_forward(self, x: Tensor) -> Tensor:
        """[B, Q, C] -> [B, Q, C], each query by itself."""
        hidden = self.dropout(F.relu_(self.linear1(x)))
        y: Tensor = self.norm(x + self.dropout(self.linear2(hidden)))
        return y
