"""Attention with several heads between the transformer's queries, and from them to an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg import ops
from fastseg.layers.linear import Linear, linear


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017, section 3.2.2).

    Parameters are named as in ``nn.MultiheadAttention``, which would make a mask of every head.

    Args:
        channels: C, of queries, keys, values and output.
        num_heads: a divisor of C.
        dropout: in training, share of the attention weights that are set to zero where there is
            no mask.
    """

    def __init__(self, *, channels: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels={channels} do not divide into num_heads={num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, packed_mask: Tensor | None = None
    ) -> Tensor:
        """Attends from every query.

        Args:
            query: [B, Q, C].
            key: [B, S, C].
            value: [B, S, C].
            packed_mask: which keys a query attends to, the same for all heads; see
                ``fastseg.ops.masked_attention``.

        Returns:
            [B, Q, C].
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            linear(x, weight, bias).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )  # [B, heads, Q or S, C / heads]
        if packed_mask is None:
            dropout = self.dropout if self.training else 0.0
            attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        else:
            attended = ops.masked_attention(q, k, v, packed_mask=packed_mask)
        y: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return y
