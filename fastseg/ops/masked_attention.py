"""Masked attention: each query attends to the pixels of its own mask (Mask2Former)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastseg import _C
from fastseg.ops._registry import LIBRARY, allows_tf32, kernel_capability, stream_of
from fastseg.ops.attention_mask import pack_attention_mask
from fastseg.reference.masked_attention import masked_attention as _reference

_EMULATES_CUDA = _C.build_info()["cuda_emulator"]

_INPUTS = "Tensor query, Tensor key, Tensor value, Tensor? packed_mask, float scale"
LIBRARY.define(f"masked_attention({_INPUTS}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"masked_attention_backward(Tensor grad_output, {_INPUTS}, Tensor output, Tensor log_sums) "
    "-> (Tensor, Tensor, Tensor)"
)


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
    """Attends to the keys that each query's mask allows; all heads share the mask.

    Source: Cheng et al., Mask2Former, 2022, Eq. 2, between the projections: what
    `nn.MultiheadAttention` computes there with `attn_mask = sigmoid(resized logits) < 0.5`,
    repeated for each head and opened where a row is wholly blocked. The mask stays at one bit a
    pixel, and no scores or weights are kept in memory.

    Args:
        query: [B, M, Q, D] float32/float64/float16/bfloat16, M heads of D <= 128 channels (on
            CUDA 64 for float64), any strides: slices of packed projections need no copy. On CUDA
            multiples of 8 are the fast widths.
        key: [B, M, S, D] of the same type, any strides.
        value: [B, M, S, D] of the same type, any strides.
        mask_logits: [B, Q, h, w] floating point. They are resized bilinearly to `size`
            (`align_corners=False`); a pixel may be attended unless its logit is then below 0, so
            0 and NaN are attended. No gradient flows back to them.
        size: (H, W) of the map whose pixels the keys are, row after row; H * W = S.
        packed_mask: [B, Q, ceil(S / 64)] int64 in place of logits, as
            `fastseg.ops.attention_mask` gives it: bit b of word i tells whether key 64 * i + b
            may be attended; bits past S do not count. With neither, all keys are attended.
        scale: factor of query times key, 1 / sqrt(D) by default.

    Returns:
        [B, M, Q, D] of query's dtype; in memory the heads of a query lie side by side, so that
        `.transpose(1, 2).flatten(2)` copies nothing. A query that no key is allowed attends all
        keys; with S = 0 it gives zeros. Sums are float32 (float64); in float32 on CUDA, products
        obey torch's switch for TF32. Under autocast it is computed in the autocast type.
        Differentiable twice in query, key and value; gradients are the same in every run.
        Where a key or value that is not finite is blocked, results may be NaN.

    Raises:
        ValueError: shapes or types do not fit each other, D is too large, logits come without
            `size`, `size` without logits, or logits with a packed mask.
    """
    _check(query, key, value)
    if (mask_logits is None) != (size is None):
        raise ValueError(f"mask_logits and size go together, got size {size}")
    if mask_logits is not None and size is not None:
        if packed_mask is not None:
            raise ValueError("either mask_logits or packed_mask may be given, got both")
        if mask_logits.dim() != 4 or mask_logits.shape[:2] != (query.shape[0], query.shape[2]):
            raise ValueError(
                f"mask_logits must have shape [{query.shape[0]}, {query.shape[2]}, h, w], got "
                f"{tuple(mask_logits.shape)}"
            )
        if len(size) != 2 or size[0] * size[1] != key.shape[2]:
            raise ValueError(f"size must be that of {key.shape[2]} keys, got {tuple(size)}")
        packed_mask = pack_attention_mask(mask_logits, size)
    if scale is None:
        scale = 1 / math.sqrt(query.shape[3])
    return torch.ops.fastseg.masked_attention(query, key, value, packed_mask, scale)[0]


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() != 4 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be floating point with 4 dimensions, got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)}"
            )
    # Here and not in the kernel alone, so that tracing does not go on with wrong shapes.
    batch, heads, _, width = query.shape
    if width == 0:
        raise ValueError(f"query must have channels, got shape {tuple(query.shape)}")
    if key.shape != (batch, heads, key.shape[2], width):
        raise ValueError(
            f"key must have shape [{batch}, {heads}, S, {width}] as query, got {tuple(key.shape)}"
        )
    if value.shape != key.shape:
        raise ValueError(
            f"value must have key's shape {tuple(key.shape)}, got {tuple(value.shape)}"
        )


def _workspace(query: Tensor, keys: int) -> Tensor | None:
    if not (query.is_cuda or _EMULATES_CUDA):
        return None
    batch, heads, rows, width = query.shape
    elements = _C.masked_attention_workspace(batch * heads, rows, keys, width)
    return torch.empty(elements, dtype=_accumulation(query), device=query.device)


def _uses_tensor_cores(query: Tensor) -> bool:
    """Whether the kernels and torch's settings let products run on tensor cores."""
    if query.dtype == torch.float64 or (query.dtype == torch.float32 and not allows_tf32()):
        return False
    return kernel_capability(query) >= ((7, 5) if query.dtype == torch.float16 else (8, 0))


def _accumulation(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@torch.library.register_fake("fastseg::masked_attention")
def _empty_outputs(
    query: Tensor, key: Tensor, value: Tensor, packed_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    batch, heads, rows, width = query.shape
    output = query.new_empty((batch, rows, heads, width)).transpose(1, 2)
    return output, query.new_empty((batch, heads, rows), dtype=_accumulation(query))


@torch.library.impl(LIBRARY, "masked_attention", "CPU")
@torch.library.impl(LIBRARY, "masked_attention", "CUDA")
def _forward(
    query: Tensor, key: Tensor, value: Tensor, packed_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    inputs = (query, key, value, packed_mask, scale)
    outputs = _empty_outputs(*inputs)
    workspace = _workspace(query, key.shape[2])
    _C.masked_attention(*inputs, *outputs, workspace, _uses_tensor_cores(query), stream_of(query))
    return outputs


@torch.library.register_fake("fastseg::masked_attention_backward")
def _empty_grads(
    grad_output: Tensor, query: Tensor, key: Tensor, value: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


@torch.library.impl(LIBRARY, "masked_attention_backward", "CPU")
@torch.library.impl(LIBRARY, "masked_attention_backward", "CUDA")
def _backward(grad_output: Tensor, query: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    grads = _empty_grads(grad_output, query, *arguments)
    workspace = _workspace(query, arguments[0].shape[2])
    _C.masked_attention_backward(
        grad_output,
        query,
        *arguments,
        *grads,
        workspace,
        _uses_tensor_cores(query),
        stream_of(query),
    )
    return grads


@torch.library.impl(LIBRARY, "masked_attention", "AutocastCPU")
@torch.library.impl(LIBRARY, "masked_attention", "AutocastCUDA")
def _autocast(
    query: Tensor, key: Tensor, value: Tensor, packed_mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    device = query.device.type
    dtype = torch.get_autocast_dtype(device)
    if query.dtype != torch.float64:
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    with torch.autocast(device, enabled=False):
        return torch.ops.fastseg.masked_attention(query, key, value, packed_mask, scale)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, *output)


def _autograd(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Any, ...]:
    query, key, value, packed_mask, output, log_sums = ctx.saved_tensors
    grads = torch.ops.fastseg.masked_attention_backward(
        grad_output, query, key, value, packed_mask, ctx.scale, output, log_sums
    )
    return *grads, None, None


def _setup_double_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, _, _ = inputs
    ctx.save_for_backward(*tensors)


def _double_autograd(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    """Through the definition, whose gradients torch can differentiate again."""
    *inputs, packed_mask = ctx.saved_tensors
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        grad_output, *own = (leaf.to(_accumulation(leaf)) for leaf in leaves)
        output = _reference(*own, packed_mask=packed_mask, scale=ctx.scale)
        first = torch.autograd.grad(output, own, grad_output, create_graph=True)
        second = torch.autograd.grad(first, leaves, grads, allow_unused=True)
    # The output and its log sums are functions of the inputs and have been counted with them.
    return *second, None, None, None, None


torch.library.register_autograd(
    "fastseg::masked_attention", _autograd, setup_context=_setup_context, lib=LIBRARY
)
torch.library.register_autograd(
    "fastseg::masked_attention_backward",
    _double_autograd,
    setup_context=_setup_double_context,
    lib=LIBRARY,
)
