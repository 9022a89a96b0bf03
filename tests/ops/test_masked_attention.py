"""Masked attention against torch's attention, nn.MultiheadAttention as Mask2Former calls it, and
the definition; bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastseg import _C, reference
from fastseg.ops import masked_attention, pack_attention_mask
from fastseg.reference.attention_mask import pack_bits, unpack_bits

EMULATED = _C.build_info()["cuda_emulator"]
# Relative to the largest value: sums in another order; in half precision rounding to the stored
# type, for gradients of the output that backward reads.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 5e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}
WIDTHS = {
    torch.float64: (3, 40),
    torch.float32: (1, 5, 32, 40, 128),
    torch.float16: (5, 16, 72),
    torch.bfloat16: (8, 33, 128),
}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert actual.shape == expected.shape
    scale = max(float(expected.detach().abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double().cpu(), expected.double().cpu(), rtol=0, atol=TOLERANCE[dtype] * scale
    )


def random_case(
    width: int, *, batch: int = 2, heads: int = 2, queries: int = 21, keys: int = 150
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key and value, float64, and a packed mask of dense, sparse and empty rows."""
    query = torch.randn(batch, heads, queries, width, dtype=torch.float64)
    key, value = torch.randn(2, batch, heads, keys, width, dtype=torch.float64)
    density = torch.rand(batch, queries, 1) ** 3
    allowed = torch.rand(batch, queries, keys) < density
    allowed[:, ::5] = False
    return query, key, value, pack_bits(allowed)


def gradients(function: Callable, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return output.detach(), list(torch.autograd.grad(output, leaves, grad))


def check(
    inputs: tuple[Tensor, Tensor, Tensor],
    words: Tensor | None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    scale: float | None = None,
) -> None:
    """Output and gradients against the definition in float64."""
    inputs = tuple(x.to(dtype) for x in inputs)
    grad = torch.randn(inputs[0].shape, dtype=torch.float64).to(dtype)
    expected, expected_grads = gradients(
        lambda q, k, v: reference.masked_attention(q, k, v, packed_mask=words, scale=scale),
        grad.double(),
        *(x.double() for x in inputs),
    )
    mask = None if words is None else words.to(device)
    actual, grads = gradients(
        lambda q, k, v: masked_attention(q, k, v, packed_mask=mask, scale=scale),
        grad.to(device),
        *(x.to(device) for x in inputs),
    )
    assert actual.dtype == dtype
    assert_near(actual, expected, dtype)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert ours.dtype == dtype
        assert_near(ours, theirs, dtype)


@pytest.mark.parametrize(
    ("dtype", "width"), [(dtype, width) for dtype, widths in WIDTHS.items() for width in widths]
)
def test_matches_reference(dtype: torch.dtype, width: int, device: torch.device) -> None:
    *inputs, words = random_case(width, batch=1 if dtype.itemsize == 2 else 2)
    check(tuple(inputs), words, device, dtype)


@pytest.mark.parametrize("width", [8, 128])
def test_tf32(width: int, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels of float32 for tensor cores; the CPU and the emulator do not round."""
    module = sys.modules["fastseg.ops.masked_attention"]
    monkeypatch.setattr(module, "allows_tf32", lambda: True)
    monkeypatch.setitem(TOLERANCE, torch.float32, 5e-3 if device.type == "cuda" else 5e-6)
    *inputs, words = random_case(width, batch=1, heads=1)
    check(tuple(inputs), words, device)


SHAPES = {
    "many keys": {"batch": 1, "heads": 1, "queries": 6, "keys": 8300},
    "many queries": {"batch": 1, "heads": 1, "queries": 150, "keys": 70},
    "no mask": {"batch": 1, "heads": 1},
    "one key": {"keys": 1},
    "scale": {},
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in SHAPES]
    + [("many queries", torch.float16), ("no mask", torch.float16)],
)
def test_matches_reference_in_other_shapes(
    case: str, dtype: torch.dtype, device: torch.device
) -> None:
    *inputs, words = random_case(8, **SHAPES[case])
    mask = None if case == "no mask" else words
    check(tuple(inputs), mask, device, dtype, 0.9 if case == "scale" else None)


@settings(max_examples=25, deadline=None)
@given(
    queries=st.integers(1, 40),
    keys=st.integers(1, 200),
    width=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.01, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape(queries: int, keys: int, width: int, density: float, seed: int) -> None:
    torch.manual_seed(seed)
    query = torch.randn(1, 2, queries, width)
    key, value = torch.randn(2, 1, 2, keys, width)
    words = pack_bits(torch.rand(1, queries, keys) < density)
    output = masked_attention(query, key, value, packed_mask=words)
    assert_near(output, reference.masked_attention(query, key, value, packed_mask=words))
    # A weighted mean lies between the least and the greatest value.
    assert bool((output <= value.amax(2, keepdim=True) + 1e-5).all())
    assert bool((output >= value.amin(2, keepdim=True) - 1e-5).all())


def test_matches_scaled_dot_product_attention(device: torch.device) -> None:
    *inputs, words = random_case(32, heads=4)
    inputs = [x.float().to(device) for x in inputs]
    words = words.to(device)
    allowed = unpack_bits(words, 150)
    allowed |= ~allowed.any(2, keepdim=True)
    grad = torch.randn(2, 4, 21, 32, device=device)
    with sdpa_kernel(SDPBackend.MATH):  # the others need not compute in float32
        expected = gradients(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None]),
            grad,
            *inputs,
        )
    actual = gradients(lambda q, k, v: masked_attention(q, k, v, packed_mask=words), grad, *inputs)
    assert_near(actual[0], expected[0])
    for ours, theirs in zip(actual[1], expected[1], strict=True):
        assert_near(ours, theirs)


def test_is_the_core_of_multihead_attention(device: torch.device) -> None:
    """The cross-attention of Mask2Former, mask included, from logits to outputs and gradients."""
    heads, channels, size = 4, 64, (10, 12)
    attention = nn.MultiheadAttention(channels, heads, batch_first=True).to(device)
    target = torch.randn(2, 9, channels, device=device)
    memory, position = torch.randn(2, 2, 120, channels, device=device)
    logits = torch.randn(2, 9, 40, 48, device=device)
    logits[:, 3] = -1  # a wholly blocked row
    blocked = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    blocked = (blocked.sigmoid() < 0.5).flatten(2)
    blocked[blocked.all(2)] = False
    repeated = blocked[:, None].repeat(1, heads, 1, 1).flatten(0, 1)
    weights = list(attention.parameters())
    grad = torch.randn(2, 9, channels, device=device)
    expected = attention(target, memory + position, memory, attn_mask=repeated)[0]
    expected_grads = torch.autograd.grad(expected, weights, grad)

    def project(x: Tensor, part: int) -> Tensor:
        rows = slice(part * channels, (part + 1) * channels)
        x = F.linear(x, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        return x.unflatten(2, (heads, -1)).transpose(1, 2)

    query, key, value = project(target, 0), project(memory + position, 1), project(memory, 2)
    output = masked_attention(query, key, value, mask_logits=logits, size=size)
    output = attention.out_proj(output.transpose(1, 2).flatten(2))
    assert_near(output, expected)
    grads = torch.autograd.grad(output, weights, grad)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert_near(ours, theirs)


def test_logits_or_bits(device: torch.device) -> None:
    query, key, value, _ = (x.float().to(device) for x in random_case(16, keys=48))
    logits = torch.randn(2, 21, 12, 16, device=device, requires_grad=True)
    from_logits = masked_attention(query, key, value, mask_logits=logits, size=(6, 8))
    words = pack_attention_mask(logits, (6, 8))
    assert torch.equal(from_logits, masked_attention(query, key, value, packed_mask=words))
    assert not from_logits.requires_grad  # the mask is a constant
    everything = masked_attention(query, key, value)
    for same in (0.0, -3.0, torch.nan):  # at the threshold, wholly blocked, not below 0
        logits = torch.full((2, 21, 6, 8), same, device=device)
        output = masked_attention(query, key, value, mask_logits=logits, size=(6, 8))
        assert torch.equal(output, everything)


def test_bits_past_the_keys_do_not_count(device: torch.device) -> None:
    query, key, value, words = (x.to(device) for x in random_case(8, keys=70))
    beyond = words | torch.tensor([0, ~0 << 6], device=device)
    inputs = [x.float() for x in (query, key, value)]
    assert torch.equal(
        masked_attention(*inputs, packed_mask=beyond), masked_attention(*inputs, packed_mask=words)
    )


@pytest.mark.parametrize("width", [8, 5])
def test_strides(width: int, device: torch.device) -> None:
    """Views of one packed projection, as a model has them, and other layouts."""
    packed = torch.randn(2, 150, 3, 4, width, device=device)
    views = [packed[:, :, i].transpose(1, 2) for i in range(3)]
    views[0] = views[0][:, :, :21]
    words = random_case(1)[3].to(device)
    dense = [x.contiguous() for x in views]
    sparse = [x.repeat_interleave(2, 3)[..., ::2] for x in views]
    grad = torch.randn(2, 4, 21, width, device=device)
    strided_words = words.repeat_interleave(2, 2)[..., ::2]
    expected = gradients(lambda q, k, v: masked_attention(q, k, v, packed_mask=words), grad, *dense)
    for inputs in (views, sparse):
        actual = gradients(
            lambda q, k, v: masked_attention(q, k, v, packed_mask=strided_words),
            grad.transpose(1, 2).contiguous().transpose(1, 2),
            *inputs,
        )
        assert torch.equal(actual[0], expected[0])
        for ours, theirs in zip(actual[1], expected[1], strict=True):
            assert torch.equal(ours, theirs)
    assert actual[0].transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("empty", ["batch", "heads", "queries", "keys"])
def test_empty(empty: str, device: torch.device) -> None:
    sizes = {"batch": 2, "heads": 3, "queries": 4, "keys": 5, empty: 0}
    *inputs, words = random_case(8, **sizes)
    inputs = [x.float().to(device) for x in inputs]
    grad = torch.randn(inputs[0].shape, device=device)
    output, grads = gradients(
        lambda q, k, v: masked_attention(q, k, v, packed_mask=words.to(device)), grad, *inputs
    )
    assert output.shape == inputs[0].shape and not output.any()
    assert [x.shape for x in grads] == [x.shape for x in inputs]
    assert not any(x.any() for x in grads)


def test_large_scores(device: torch.device) -> None:
    *inputs, words = random_case(16)
    inputs = (inputs[0] * 300, inputs[1] * 300, inputs[2])
    expected = reference.masked_attention(*inputs, packed_mask=words)
    actual = masked_attention(*(x.float().to(device) for x in inputs), packed_mask=words.to(device))
    # Scores of 1e5 are known to 1e-2, so weights to 1 %.
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=0, atol=0.05)


def test_not_finite(device: torch.device) -> None:
    query, key, value, _ = (x.float() for x in random_case(8, queries=6, keys=100))
    words = pack_bits(torch.ones(2, 6, 100, dtype=torch.bool))
    query[0, 0, 1, 2] = torch.nan
    query[0, 1, 2, 0] = torch.inf
    key[1, 0, 70] = torch.nan
    value[1, 1, 3, 4] = torch.inf
    key[1, 1] = 0
    key[1, 1, :, 0] = torch.arange(100) % 2 * -1e30 * 1e30  # scores of -inf or NaN
    expected = reference.masked_attention(query, key, value, packed_mask=words)
    actual = masked_attention(
        *(
            x.to(device)
            for x in (
                query,
                key,
                value,
            )
        ),
        packed_mask=words.to(device),
    )
    torch.testing.assert_close(actual.cpu(), expected, equal_nan=True)
    assert expected.isnan().any() and not expected.isnan().all()


@pytest.mark.parametrize("score", ["all", "first tile"])
def test_scores_of_minus_infinity(score: str, device: torch.device) -> None:
    query = torch.ones(1, 1, 3, 4)
    key, value = torch.randn(2, 1, 1, 200, 4)
    key[:, :, : 200 if score == "all" else 70] = -torch.inf
    expected = reference.masked_attention(query, key, value)
    actual = masked_attention(*(x.to(device) for x in (query, key, value)))
    torch.testing.assert_close(actual.cpu(), expected, equal_nan=True)
    assert bool(actual.isnan().all()) == (score == "all")


def test_gradients_of_gradients() -> None:
    *inputs, words = random_case(3, batch=1, heads=1, queries=6, keys=7)
    inputs = [x.requires_grad_() for x in inputs]
    attend = lambda q, k, v: masked_attention(q, k, v, packed_mask=words)  # noqa: E731
    assert torch.autograd.gradcheck(attend, inputs)
    assert torch.autograd.gradgradcheck(attend, inputs)


def test_same_on_any_number_of_threads() -> None:
    *inputs, words = random_case(16, queries=100, keys=4500, batch=1)
    inputs = [x.float() for x in inputs]
    grad = torch.randn(inputs[0].shape)
    runs, threads = [], torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        output, grads = gradients(
            lambda q, k, v: masked_attention(q, k, v, packed_mask=words), grad, *inputs
        )
        runs.append([output, *grads])
    torch.set_num_threads(threads)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.gpu
def test_same_in_every_run_on_the_gpu() -> None:
    *inputs, words = random_case(32, heads=8, queries=100, keys=4096)
    grad = torch.randn(inputs[0].shape).cuda()
    runs = [
        gradients(
            lambda q, k, v: masked_attention(q, k, v, packed_mask=words.cuda()),
            grad,
            *(x.float().cuda() for x in inputs),
        )
        for _ in range(3)
    ]
    for output, grads in runs[1:]:
        assert torch.equal(output, runs[0][0])
        assert all(torch.equal(a, b) for a, b in zip(grads, runs[0][1], strict=True))


def test_wrong_input() -> None:
    query, key, value, words = random_case(4)
    with pytest.raises(ValueError, match=r"query must be floating point with 4 dim.*\(2, 21, 4\)"):
        masked_attention(query[0], key, value)
    with pytest.raises(ValueError, match=r"key must be floating point.*int64"):
        masked_attention(query, key.long(), value)
    with pytest.raises(ValueError, match=r"key must have shape \[2, 2, S, 4\].*\(2, 1, 150, 4\)"):
        masked_attention(query, key[:, :1], value)
    with pytest.raises(ValueError, match=r"value must have key's shape \(2, 2, 150, 4\)"):
        masked_attention(query, key, value[..., :3])
    with pytest.raises(ValueError, match="value must be float64, got float32"):
        masked_attention(query, key, value.float())
    with pytest.raises(ValueError, match=r"query must have channels, got shape \(2, 2, 21, 0\)"):
        masked_attention(query[..., :0], key[..., :0], value[..., :0])
    with pytest.raises(ValueError, match=r"heads of 1 to 128 channels.*129"):
        masked_attention(*(torch.randn(1, 1, 2, 129) for _ in range(3)))
    with pytest.raises(ValueError, match="packed_mask must have shape"):
        masked_attention(query, key, value, packed_mask=words[..., :2])
    with pytest.raises(ValueError, match="packed_mask must be int64, got int32"):
        masked_attention(query, key, value, packed_mask=words.int())
    logits = torch.randn(2, 21, 5, 6)
    with pytest.raises(ValueError, match="mask_logits and size go together"):
        masked_attention(query, key, value, mask_logits=logits)
    with pytest.raises(ValueError, match="mask_logits and size go together, got size"):
        masked_attention(query, key, value, size=(10, 15))
    with pytest.raises(ValueError, match=r"size must be that of 150 keys, got \(10, 16\)"):
        masked_attention(query, key, value, mask_logits=logits, size=(10, 16))
    with pytest.raises(ValueError, match=r"mask_logits must have shape \[2, 21, h, w\]"):
        masked_attention(query, key, value, mask_logits=logits[:1], size=(10, 15))
    with pytest.raises(ValueError, match="either mask_logits or packed_mask"):
        masked_attention(query, key, value, mask_logits=logits, size=(10, 15), packed_mask=words)


@pytest.mark.skipif(not EMULATED, reason="the CPU takes all widths in float64")
def test_wide_heads_of_doubles_on_cuda() -> None:
    with pytest.raises(ValueError, match="at most 64 channels in float64 on CUDA, got 65"):
        masked_attention(*(torch.randn(1, 1, 2, 65, dtype=torch.float64) for _ in range(3)))


def test_autocast(device: torch.device) -> None:
    *inputs, words = random_case(16)
    query, key, value, words = (x.to(device) for x in (*(x.float() for x in inputs), words))
    leaves = [x.requires_grad_() for x in (query, key.bfloat16(), value)]
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = masked_attention(*leaves, packed_mask=words)
    assert output.dtype == torch.bfloat16
    expected = reference.masked_attention(*leaves[:1], leaves[1].float(), value, packed_mask=words)
    assert_near(output, expected, torch.bfloat16)
    grads = torch.autograd.grad(output.sum(), leaves)
    assert [x.dtype for x in grads] == [torch.float32, torch.bfloat16, torch.float32]


def test_registered_with_torch(device: torch.device) -> None:
    *inputs, words = random_case(8)
    leaves = [x.float().to(device).requires_grad_() for x in inputs]
    arguments = (*leaves, words.to(device), 0.3)
    torch.library.opcheck(torch.ops.fastseg.masked_attention.default, arguments)


def test_compiles(device: torch.device) -> None:
    *inputs, _ = random_case(8)
    leaves = [x.float().to(device).requires_grad_() for x in inputs]
    logits = torch.randn(2, 21, 20, 30, device=device)

    def attend(query: Tensor, key: Tensor, value: Tensor, logits: Tensor) -> Tensor:
        output = masked_attention(query, key, value, mask_logits=logits, size=(10, 15))
        return output.transpose(1, 2).flatten(2)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    output = compiled(*leaves, logits)
    assert torch.equal(output, attend(*leaves, logits))
    output.sum().backward()
    assert leaves[1].grad is not None


def test_every_cpu_variant(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "matches_reference or infinity or not_finite or strides or empty")
