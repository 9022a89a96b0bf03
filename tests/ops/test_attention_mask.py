"""Attention masks against stored masks of Mask2Former, torch's interpolation and the definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fastseg import _C, reference
from fastseg.ops import attention_mask, pack_attention_mask
from fastseg.reference.attention_mask import pack_bits, unpack_bits

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "ops_attention_mask.safetensors")
LEVELS = [(5, 6), (10, 12), (20, 24)]
EMULATED = _C.build_info()["cuda_emulator"]
# See test_resize_masks.py: other versions of torch round positions and weights differently.
SAME_ROUNDING = torch.__version__.startswith("2.14.") and (
    (torch.backends.cpu.get_cpu_capability() == "DEFAULT")
    == (_C.build_info()["cpu_active"] == "baseline")
)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_stored_masks_of_mask2former(layer: int, device: torch.device) -> None:
    """They are as its cross-attention gets them: rows that were wholly blocked are opened."""
    logits = GOLDEN[f"in/{layer}.pred_masks"].to(device)
    size = LEVELS[layer]
    words = pack_attention_mask(logits, size)
    allowed = unpack_bits(words, size[0] * size[1]).cpu()
    blocked = ~(allowed | ~allowed.any(2, keepdim=True))
    assert torch.equal(blocked, GOLDEN[f"out/{layer}.blocked"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("cells", "size"),
    [
        ((16, 20), (8, 10)),
        ((16, 20), (2, 5)),
        ((16, 20), (16, 20)),
        ((16, 20), (70, 75)),  # large enough for torch to sum in another order
        ((9, 7), (13, 5)),
        ((1, 1), (3, 3)),
        ((5, 1), (1, 64)),
    ],
)
def test_matches_interpolation(
    cells: tuple[int, int], size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    logits = torch.randn(2, 3, *cells).to(device, dtype)
    words = pack_attention_mask(logits, size)
    assert words.shape == (2, 3, -(-size[0] * size[1] // 64)) and words.dtype == torch.int64
    resized = F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
    expected = pack_bits((resized >= 0).flatten(2))
    if SAME_ROUNDING and not EMULATED:
        assert torch.equal(words, expected)
        assert torch.equal(words, reference.pack_attention_mask(logits, size))
        return
    clear = (resized.abs() > 1e-5).flatten(2)
    ours, theirs = (unpack_bits(x, size[0] * size[1]) for x in (words, expected))
    assert torch.equal(ours & clear, theirs & clear)


def test_at_the_threshold(device: torch.device) -> None:
    values = torch.tensor(
        [0.0, -0.0, 1e-40, -1e-30, torch.inf, -torch.inf, torch.nan, -1.0], device=device
    )
    allowed = unpack_bits(pack_attention_mask(values.view(1, 1, 2, 4), (2, 4)), 8)
    assert allowed.flatten().tolist() == [True, True, True, False, True, False, True, False]
    # A cell of NaN reaches the pixels that it is blended into, and no other.
    logits = torch.full((1, 1, 4, 8), -1.0, device=device)
    logits[..., 0, 0] = torch.nan
    allowed = unpack_bits(pack_attention_mask(logits, (2, 4)), 8)
    assert allowed.flatten().tolist() == [True] + [False] * 7


def test_strides(device: torch.device) -> None:
    logits = torch.randn(2, 3, 12, 14, device=device)
    for strided in (
        logits.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        logits.repeat_interleave(2, 3)[..., ::2],
        logits[:, :1].expand(2, 3, 12, 14),
    ):
        assert not strided.is_contiguous()
        for size in ((12, 14), (6, 7)):
            words = pack_attention_mask(strided, size)
            assert torch.equal(words, pack_attention_mask(strided.contiguous(), size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_from_embeddings(dtype: torch.dtype, device: torch.device) -> None:
    embed = torch.randn(2, 5, 16).to(device, dtype).requires_grad_()
    features = torch.randn(2, 16, 7, 11).to(device, dtype)
    words = attention_mask(embed, features)
    logits = torch.einsum("bqc,bchw->bqhw", embed, features).flatten(2)
    clear = logits.abs() > (1e-5 if dtype != torch.bfloat16 else 0.1)
    assert torch.equal(unpack_bits(words, 77) & clear, (logits >= 0) & clear)
    assert not words.requires_grad
    expected = reference.attention_mask(embed.float(), features.float())
    assert torch.equal(unpack_bits(words, 77) & clear, unpack_bits(expected, 77) & clear)


def test_resized_features_give_the_resized_mask(device: torch.device) -> None:
    """Interpolation commutes with the product: what Mask2Former does at the finest size."""
    embed = torch.randn(1, 6, 8, device=device)
    features = torch.randn(1, 8, 24, 32, device=device)
    logits = torch.einsum("bqc,bchw->bqhw", embed, features)
    at_level = F.interpolate(features, (6, 8), mode="bilinear", align_corners=False)
    clear = F.interpolate(logits, (6, 8), mode="bilinear").abs().flatten(2) > 1e-4
    ours = unpack_bits(attention_mask(embed, at_level), 48)
    theirs = unpack_bits(pack_attention_mask(logits, (6, 8)), 48)
    assert clear.sum() > 200 and torch.equal(ours & clear, theirs & clear)


@pytest.mark.parametrize("empty", ["batch", "queries"])
def test_empty(empty: str, device: torch.device) -> None:
    batch, queries = int(empty != "batch"), 3 * int(empty != "queries")
    words = pack_attention_mask(torch.randn(batch, queries, 4, 5, device=device), (8, 9))
    assert words.shape == (batch, queries, 2)
    embed = torch.randn(batch, queries, 6, device=device)
    features = torch.randn(batch, 6, 8, 9, device=device)
    assert attention_mask(embed, features).shape == (batch, queries, 2)


def test_wrong_input() -> None:
    logits = torch.randn(1, 2, 4, 5)
    with pytest.raises(ValueError, match=r"mask_logits must be floating point.*\(2, 4, 5\)"):
        pack_attention_mask(logits[0], (4, 5))
    with pytest.raises(ValueError, match=r"mask_logits must be floating point.*int64"):
        pack_attention_mask(logits.long(), (4, 5))
    with pytest.raises(ValueError, match=r"size must be \(height, width\) of at least 1.*\(0, 5\)"):
        pack_attention_mask(logits, (0, 5))
    with pytest.raises(ValueError, match=r"of one floating point type, got .*float16"):
        attention_mask(torch.rand(1, 2, 3), torch.rand(1, 3, 4, 5).half())
    with pytest.raises(ValueError, match=r"sides of 1 to .*\[1, 2, 0, 5\]"):
        pack_attention_mask(logits[:, :, :0], (4, 5))
    with pytest.raises(
        ValueError, match=r"mask_embed must have shape.*\(1, 2, 3\).*\(1, 4, 5, 5\)"
    ):
        attention_mask(torch.randn(1, 2, 3), torch.randn(1, 4, 5, 5))


def test_registered_with_torch(device: torch.device) -> None:
    logits = torch.randn(2, 3, 9, 10, device=device)
    torch.library.opcheck(torch.ops.fastseg.pack_attention_mask.default, (logits, 5, 14))
    inputs = torch.randn(2, 3, 8, device=device), torch.randn(2, 8, 6, 10, device=device)
    torch.library.opcheck(torch.ops.fastseg.attention_mask.default, inputs)


def test_autocast(device: torch.device) -> None:
    embed = torch.randn(2, 5, 16, device=device)
    features = torch.randn(2, 16, 7, 11, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        words = attention_mask(embed, features.bfloat16())
    assert torch.equal(words, attention_mask(embed.bfloat16(), features.bfloat16()))


def test_compiles(device: torch.device) -> None:
    def both(embed: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.einsum("bqc,bchw->bqhw", embed, features)
        return attention_mask(embed, features), pack_attention_mask(logits, (3, 5))

    inputs = torch.randn(2, 3, 8, device=device), torch.randn(2, 8, 6, 10, device=device)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(*inputs), both(*inputs), strict=True):
        assert torch.equal(ours, expected)


def test_every_cpu_variant(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "matches or stored or threshold or strides")
