"""Masked attention as its definition reads (Cheng et al., Mask2Former, 2022, Eq. 2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastseg.reference.attention_mask import pack_attention_mask, unpack_bits


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask_logits: Tensor | None = None,
    size: tuple[int, int] | None = None,
    packed_mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `fastseg.ops.masked_attention`."""
    if mask_logits is not None and size is not None:
        packed_mask = pack_attention_mask(mask_logits, size)
    scores = query @ key.mT * (1 / math.sqrt(query.shape[3]) if scale is None else scale)
    if packed_mask is not None:
        allowed = unpack_bits(packed_mask, key.shape[2])  # [B, Q, S]
        allowed = allowed | ~allowed.any(dim=2, keepdim=True)
        scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    return torch.softmax(scores, dim=3) @ value
