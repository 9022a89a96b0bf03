"""A layer of a transformer encoder, whatever its attention (Vaswani et al., 2017, section 3.1)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.linear import Linear


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each around a shortcut with a norm behind it.

    How tokens attend, the subclasses say.

    Args:
        self_attn: the attention.
        channels: C, of the tokens.
        ffn_channels: between the two linear layers.
        dropout: in training, share of values that are set to zero.
    """

    def __init__(
        self, self_attn: nn.Module, *, channels: int, ffn_channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.norm1 = nn.LayerNorm(channels)
        self.linear1 = Linear(channels, ffn_channels)
        self.linear2 = Linear(ffn_channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def with_attended(self, x: Tensor, attended: Tensor) -> Tensor:
        """Tokens [B, S, C] and what they attended to, [B, S, C] -> the layer's result [B, S, C]."""
        x = self.norm1(x + self.dropout(attended))
        hidden = self.dropout(F.relu_(self.linear1(x)))
        y: Tensor = self.norm2(x + self.dropout(self.linear2(hidden)))
        return y
