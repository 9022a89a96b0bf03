"""Which pixels each query may attend to, at one bit a pixel (Mask2Former's masked attention)."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._matrix_product import batched_product
from fastseg.ops._registry import LIBRARY, stream_of

WORD_KEYS = 64

LIBRARY.define("attention_mask(Tensor mask_embed, Tensor mask_features) -> Tensor")
LIBRARY.define("pack_attention_mask(Tensor mask_logits, SymInt height, SymInt width) -> Tensor")


def attention_mask(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Predicts masks and packs where each query may attend: wherever its logit is not below 0.

    Source: Cheng et al., Mask2Former, 2022, Eq. 3. It predicts masks of the size of the finest
    features and resizes the logits to the level that is attended. Resizing is linear, so that
    logits of resized features are the same up to rounding: resize the features once per level
    (`F.interpolate(features, size, mode="bilinear")`), and each mask costs one small product.

    Args:
        mask_embed: [B, Q, C] float32/float64/float16/bfloat16, an embedding per query.
        mask_features: [B, C, h, w] of the same type, the features at the level's size.

    Returns:
        [B, Q, ceil(h * w / 64)] int64 for `masked_attention(packed_mask=...)`: bit b of word i is
        pixel 64 * i + b, row after row; bits past the last pixel are 0. A NaN logit may be
        attended, as in Mask2Former. Under autocast the product is computed in the autocast type.
        Not differentiable.

    Raises:
        ValueError: shapes do not fit each other.
    """
    if (
        mask_embed.dim() != 3
        or mask_features.dim() != 4
        or (mask_embed.shape[0], mask_embed.shape[2]) != mask_features.shape[:2]
    ):
        raise ValueError(
            "mask_embed must have shape [B, Q, C] and mask_features [B, C, h, w], got "
            f"{tuple(mask_embed.shape)} and {tuple(mask_features.shape)}"
        )
    return torch.ops.fastseg.attention_mask(mask_embed.detach(), mask_features.detach())


def pack_attention_mask(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes mask logits bilinearly and packs where each query may attend: where not below 0.

    Equals `F.interpolate(mask_logits, size, mode="bilinear", align_corners=False) >= 0` of float32
    logits on the same kind of device (torch 2.14; others differ in the last bits), but that a pixel
    of NaN may be attended, as in Mask2Former, where `sigmoid(logit) < 0.5` blocks. Logits of the
    size wanted are taken as they are.

    Args:
        mask_logits: [B, Q, h, w] floating point, any strides; computed in float32.
        size: (H, W) of the level that is attended.

    Returns:
        [B, Q, ceil(H * W / 64)] int64 as `attention_mask` gives. Not differentiable.

    Raises:
        ValueError: mask_logits have another number of dimensions or type, or a side is below 1.
    """
    if mask_logits.dim() != 4 or not mask_logits.is_floating_point():
        raise ValueError(
            f"mask_logits must be floating point [B, Q, h, w], got {mask_logits.dtype} of shape "
            f"{tuple(mask_logits.shape)}"
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (height, width) of at least 1, got {tuple(size)}")
    if mask_logits.dtype == torch.float64:
        mask_logits = mask_logits.float()
    return torch.ops.fastseg.pack_attention_mask(mask_logits.detach(), size[0], size[1])


@torch.library.impl(LIBRARY, "pack_attention_mask", "CPU")
@torch.library.impl(LIBRARY, "pack_attention_mask", "CUDA")
def _pack(mask_logits: Tensor, height: int, width: int) -> Tensor:
    words = _empty_words(mask_logits, height, width)
    _C.attention_mask(mask_logits, words, height, width, stream_of(mask_logits))
    return words


@torch.library.register_fake("fastseg::pack_attention_mask")
def _empty_words(mask_logits: Tensor, height: int, width: int) -> Tensor:
    words = (height * width + WORD_KEYS - 1) // WORD_KEYS
    return mask_logits.new_empty((*mask_logits.shape[:2], words), dtype=torch.int64)


@torch.library.impl(LIBRARY, "attention_mask", "CPU")
@torch.library.impl(LIBRARY, "attention_mask", "CUDA")
def _attention_mask(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    if mask_embed.dtype != mask_features.dtype or not mask_embed.is_floating_point():
        raise ValueError(
            "mask_embed and mask_features must be of one floating point type, got "
            f"{mask_embed.dtype} and {mask_features.dtype}"
        )
    height, width = mask_features.shape[2:]
    logits = batched_product(mask_embed, mask_features.flatten(2))
    if logits.dtype == torch.float64:
        logits = logits.float()
    return _pack(logits.unflatten(2, (height, width)), height, width)


@torch.library.register_fake("fastseg::attention_mask")
def _attention_mask_fake(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    return _empty_words(mask_embed, *mask_features.shape[2:])


@torch.library.impl(LIBRARY, "attention_mask", "AutocastCPU")
@torch.library.impl(LIBRARY, "attention_mask", "AutocastCUDA")
def _autocast(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    device = mask_embed.device.type
    dtype = torch.get_autocast_dtype(device)
    if mask_embed.dtype != torch.float64:
        mask_embed, mask_features = mask_embed.to(dtype), mask_features.to(dtype)
    with torch.autocast(device, enabled=False):
        return torch.ops.fastseg.attention_mask(mask_embed, mask_features)
