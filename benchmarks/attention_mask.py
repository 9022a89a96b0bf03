"""Attention masks of all heads against Mask2Former's way in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator

HEADS = 8


def cases(setting: Setting) -> Iterator[Case]:
    """From logits of 256x256, and from embeddings and features, to each level of Mask2Former."""
    queries, finest = (5, 16) if setting.quick else (100, 256)
    source = generator()
    logits = torch.randn(1, queries, finest, finest, generator=source)
    logits = logits.to(setting.device, setting.dtype)
    embed = torch.randn(1, queries, 256, generator=source).to(setting.device, setting.dtype)
    features = torch.randn(1, 256, finest, finest, generator=source)
    features = features.to(setting.device, setting.dtype)
    for stride in (8, 2):
        size = (finest // stride, finest // stride)
        yield _from_logits(logits, size)
        yield _from_embeddings(embed, features, size)


def _from_logits(logits: Tensor, size: tuple[int, int]) -> Case:
    def ours() -> Run:
        from fastseg.ops import pack_attention_mask

        return lambda: pack_attention_mask(logits, size)

    return Case(
        name=f"resize {logits.shape[1]} logits {logits.shape[2]}x{logits.shape[3]} to {size[0]}x"
        f"{size[1]}",
        providers={"fastseg": ours, "torch": lambda: lambda: _torch(logits, size)},
        bytes_moved=logits.numel() * logits.element_size(),
        agreement=_same_bits,
    )


def _from_embeddings(embed: Tensor, features: Tensor, size: tuple[int, int]) -> Case:
    """Ours gets the features at the level's size, which all of its layers share."""
    at_level = F.interpolate(features, size, mode="bilinear", align_corners=False)

    def ours() -> Run:
        from fastseg.ops import attention_mask

        return lambda: attention_mask(embed, at_level)

    def theirs() -> Tensor:
        return _torch(torch.einsum("bqc,bchw->bqhw", embed, features), size)

    return Case(
        name=f"predict {embed.shape[1]} masks at {size[0]}x{size[1]}",
        providers={"fastseg": ours, "torch": lambda: theirs},
        bytes_moved=at_level.numel() * at_level.element_size(),
        flops=2 * embed.numel() * size[0] * size[1],
        agreement=_nearly_same_bits,
    )


def _torch(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """[HEADS, Q, S] bool, True where blocked, as nn.MultiheadAttention takes it."""
    resized = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    blocked = (resized.sigmoid().flatten(2)[:, None].repeat(1, HEADS, 1, 1) < 0.5).detach()
    return blocked.flatten(0, 1)


def _same_bits(ours: Tensor, peers: Tensor) -> str | None:
    return _compare(ours, peers, 0.0)


def _nearly_same_bits(ours: Tensor, peers: Tensor) -> str | None:
    """Rounding decides where logits lie at the threshold."""
    return _compare(ours, peers, 1e-4)


def _compare(words: Tensor, blocked: Tensor, limit: float) -> str | None:
    from fastseg.reference.attention_mask import unpack_bits

    allowed = unpack_bits(words, blocked.shape[2])
    share = (allowed == blocked[:1]).double().mean().item()
    return None if share <= limit else f"{share:.2g} of the bits differ, allowed {limit:g}"
