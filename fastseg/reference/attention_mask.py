"""Which pixels each query may attend to, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention_mask(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """See `fastseg.ops.attention_mask`."""
    logits = torch.einsum("bqc,bchw->bqhw", mask_embed, mask_features)
    return pack_bits(~(logits < 0).flatten(2))


def pack_attention_mask(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """See `fastseg.ops.attention_mask.pack_attention_mask`."""
    logits = mask_logits.float()
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return pack_bits(~(logits < 0).flatten(2))


def pack_bits(allowed: Tensor) -> Tensor:
    """[B, Q, S] bool as words of 64 bits, [B, Q, ceil(S / 64)] int64."""
    words = allowed.new_zeros(*allowed.shape[:2], (allowed.shape[2] + 63) // 64, dtype=torch.int64)
    for i in range(allowed.shape[2]):
        words[..., i // 64] |= allowed[..., i].long() << i % 64
    return words


def unpack_bits(words: Tensor, keys: int) -> Tensor:
    """The reverse of `pack_bits`: [B, Q, keys] bool."""
    index = torch.arange(keys, device=words.device)
    return (words[..., index // 64] >> index % 64 & 1).bool()
