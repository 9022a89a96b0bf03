"""Deformable attention of offsets and logits against its definition; what torch needs to know of
the op in either form.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ms_deform_attn_cases import SHAPES, TOLERANCE, assert_near, gradients, random_case
from torch import Tensor

from fastseg import reference
from fastseg.ops import ms_deform_attn, ms_deform_attn_fused


def fused_case(channels: int, coordinates: int, *, queries: int = 76) -> list[Tensor]:
    """Value, reference points, offsets and logits, float64; 76 queries are one per cell."""
    value, locations, weights = random_case(channels, queries=queries)
    references = torch.rand(2, queries, len(SHAPES), coordinates, dtype=torch.float64)
    return [value, references, 2 * torch.randn_like(locations), 3 * torch.randn_like(weights)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("channels", "coordinates", "as_list"), [(5, 2, True), (32, 4, True), (40, 2, False)]
)
def test_fused_matches_reference(
    channels: int, coordinates: int, as_list: bool, dtype: torch.dtype, device: torch.device
) -> None:
    inputs = fused_case(channels, coordinates)
    if dtype != torch.float64:
        inputs = [inputs[0].to(dtype).double(), *(x.float().double() for x in inputs[1:])]
    grad = torch.randn(2, 76, 3 * channels).to(dtype).double()
    expected, expected_grads = gradients(
        lambda v, *points: reference.ms_deform_attn_fused(v, SHAPES, None, *points), grad, *inputs
    )
    levels = SHAPES if as_list else torch.tensor(SHAPES, device=device)
    coordinate_type = torch.float64 if dtype == torch.float64 else torch.float32
    actual, grads = gradients(
        lambda v, *points: ms_deform_attn_fused(v, levels, None, *points),
        grad.to(device, dtype),
        inputs[0].to(device, dtype),
        *(x.to(device, coordinate_type) for x in inputs[1:]),
    )
    assert actual.dtype == dtype
    assert [x.dtype for x in grads] == [dtype, *[coordinate_type] * 3]
    assert_near(actual, expected, dtype)
    assert_near(grads[0], expected_grads[0], dtype)
    for ours, theirs in zip(grads[1:], expected_grads[1:], strict=True):
        assert_near(ours, theirs, coordinate_type)


@settings(max_examples=15, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    sizes=st.tuples(*[st.integers(1, 3)] * 4),
    coordinates=st.sampled_from([2, 4]),
    seed=st.integers(0, 1000),
)
def test_any_sizes(
    shapes: list[tuple[int, int]], sizes: tuple[int, ...], coordinates: int, seed: int
) -> None:
    """Levels of any shapes; queries are the cells of the levels, as in an encoder."""
    source = torch.Generator().manual_seed(seed)
    batch, heads, points, channels = sizes
    rows = sum(height * width for height, width in shapes)
    inputs = [
        torch.randn(*size, generator=source)
        for size in (
            (batch, rows, heads, channels),
            (batch, rows, len(shapes), coordinates),
            (batch, rows, heads, len(shapes), points, 2),
            (batch, rows, heads, len(shapes), points),
        )
    ]
    expected = reference.ms_deform_attn_fused(inputs[0], shapes, None, *inputs[1:])
    assert_near(ms_deform_attn_fused(inputs[0], shapes, None, *inputs[1:]), expected)


def test_fused_strides(device: torch.device) -> None:
    value, references, offsets, logits = (x.float().to(device) for x in fused_case(8, 2))
    shared = references[:1, :, :1].expand(2, -1, 3, -1)
    attend = lambda v, *points: ms_deform_attn_fused(v, SHAPES, None, *points)  # noqa: E731
    grad = torch.randn(2, 76, 24, device=device)
    expected = gradients(attend, grad, value, shared.contiguous(), offsets, logits)
    output, grads = gradients(
        attend,
        grad,
        value,
        shared,
        offsets.movedim(1, 4).contiguous().movedim(4, 1),
        logits.repeat_interleave(2, 4)[..., ::2],
    )
    assert torch.equal(output, expected[0])
    for strided, contiguous in zip(grads, expected[1], strict=True):
        assert_near(strided, contiguous)


def test_fused_takes_half_precision_points(device: torch.device) -> None:
    inputs = [x.to(device, torch.bfloat16) for x in fused_case(8, 2)]
    expected = ms_deform_attn_fused(inputs[0], SHAPES, None, *(x.float() for x in inputs[1:]))
    assert torch.equal(ms_deform_attn_fused(inputs[0], SHAPES, None, *inputs[1:]), expected)


def test_logits_of_any_size(device: torch.device) -> None:
    inputs = [x.float() for x in fused_case(8, 2, queries=5)]
    inputs[3][0, 0] = 1e4
    inputs[3][0, 1, :, 1] = float("-inf")
    inputs[3][0, 2, :, 0, 0] = 1e30
    inputs[3][0, 3] *= 30
    expected = reference.ms_deform_attn_fused(inputs[0], SHAPES, None, *inputs[1:])
    inputs = [x.to(device) for x in inputs]
    assert_near(ms_deform_attn_fused(inputs[0], SHAPES, None, *inputs[1:]), expected)
    inputs[3][1, 0, 0, 0, 0] = float("nan")
    actual = ms_deform_attn_fused(inputs[0], SHAPES, None, *inputs[1:])
    assert actual[1, 0, :8].isnan().all()
    assert actual[1, 0, 8:].isfinite().all() and actual[1, 1:].isfinite().all()


@pytest.mark.parametrize("coordinates", [2, 4])
def test_fused_double_backward(coordinates: int) -> None:
    value, references, offsets, logits = fused_case(1, coordinates, queries=2)
    shapes = [(2, 3), (2, 2), (1, 1)]
    inputs = [
        value[:1, :11, :1],
        references[:1],
        offsets[:1, :, :1, :, :1],
        logits[:1, :, :1, :, :1],
    ]
    inputs = [x.detach().requires_grad_() for x in inputs]
    attend = lambda v, *points: ms_deform_attn_fused(v, shapes, None, *points)  # noqa: E731
    assert torch.autograd.gradgradcheck(attend, inputs, eps=1e-7, atol=1e-5)
    inputs[1].requires_grad_(False)
    assert torch.autograd.gradgradcheck(attend, inputs, eps=1e-7, atol=1e-5)


def test_wrong_input_of_the_fused_form() -> None:
    value, references, offsets, logits = (x.float() for x in fused_case(4, 2, queries=5))
    with pytest.raises(ValueError, match="reference_points must be floating point with 4 dim"):
        ms_deform_attn_fused(value, SHAPES, None, references[:, :, 0], offsets, logits)
    with pytest.raises(ValueError, match=r"reference_points must have 2 or 4 numbers .* got 3"):
        ms_deform_attn_fused(
            value, SHAPES, None, torch.cat([references, references], -1)[..., :3], offsets, logits
        )
    with pytest.raises(ValueError, match="reference_points must have shape"):
        ms_deform_attn_fused(value, SHAPES, None, references[:, :4], offsets, logits)
    with pytest.raises(ValueError, match="sampling_offsets must have shape"):
        ms_deform_attn_fused(value, SHAPES, None, references, offsets[:, :, :2], logits)
    with pytest.raises(ValueError, match="attention_logits must have shape"):
        ms_deform_attn_fused(value, SHAPES, None, references, offsets, logits[..., :2])


def test_registered_with_torch(device: torch.device) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in fused_case(8, 2)]
    flat, starts = [side for shape in SHAPES for side in shape], [0, 63, 75]
    shapes = torch.tensor(SHAPES, device=device)
    for levels, references in (
        ((None, None, flat, starts), None),
        ((shapes, torch.tensor(starts, device=device), [], []), inputs[1]),
    ):
        torch.library.opcheck(
            torch.ops.fastseg.ms_deform_attn.default,
            (inputs[0], *levels, references, *inputs[2:]),
        )


@pytest.mark.parametrize("as_list", [False, True])
def test_compiles(as_list: bool, device: torch.device) -> None:
    value, references, offsets, logits = (
        x.float().to(device).requires_grad_() for x in fused_case(8, 2)
    )
    levels = SHAPES if as_list else torch.tensor(SHAPES, device=device)
    for attend, points in (
        (ms_deform_attn, (offsets, logits)),
        (ms_deform_attn_fused, (references, offsets, logits)),
    ):
        compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
        output = compiled(value, levels, None, *points)
        assert torch.equal(output, attend(value, levels, None, *points))
        output.sum().backward()


def test_every_cpu_variant(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "matches or strides or logits")
