"""Multi-scale deformable attention against stored results of mmcv, torch's grid_sample, and its
definition; bad input.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ms_deform_attn_cases import SHAPES, TOLERANCE, assert_near, gradients, random_case
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fastseg import reference
from fastseg.ops import ms_deform_attn

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "ops_ms_deform_attn.safetensors")


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("case", ["c0", "c1", "c2", "c3", "c4"])
def test_stored_results_of_mmcv(case: str, as_list: bool, device: torch.device) -> None:
    names = ("value", "sampling_locations", "attention_weights")
    inputs = [GOLDEN[f"in/{case}.{name}"].to(device) for name in names]
    shapes = GOLDEN[f"in/{case}.spatial_shapes"].to(device)
    levels = [tuple(shape) for shape in shapes.tolist()] if as_list else shapes

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, levels, None, locations, weights)

    grad = GOLDEN[f"in/{case}.grad_out"].to(device)
    output, grads = gradients(attend, grad, *inputs)
    assert_near(output, GOLDEN[f"out/{case}.out"])
    kink = GOLDEN[f"in/{case}.kink"]
    for name, actual in zip(names, grads, strict=True):
        expected = GOLDEN[f"out/{case}.grad_{name}"]
        if name == "sampling_locations":  # at cell centres rounding decides
            actual, expected = actual.cpu().masked_fill(kink, 0), expected.masked_fill(kink, 0)
        assert_near(actual, expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [1, 5, 8, 32, 40, 136])
def test_matches_reference(channels: int, dtype: torch.dtype, device: torch.device) -> None:
    value, locations, weights = random_case(channels)
    value = value.to(dtype).double()
    if dtype != torch.float64:
        locations, weights = locations.float().double(), weights.float().double()
    grad = torch.randn(2, 11, 3 * channels).to(dtype).double()
    expected, expected_grads = gradients(
        lambda v, x, w: reference.ms_deform_attn(v, SHAPES, None, x, w),
        grad,
        value,
        locations,
        weights,
    )
    coordinates = torch.float64 if dtype == torch.float64 else torch.float32
    actual, grads = gradients(
        lambda v, x, w: ms_deform_attn(v, SHAPES, None, x, w),
        grad.to(device, dtype),
        value.to(device, dtype),
        locations.to(device, coordinates),
        weights.to(device, coordinates),
    )
    assert actual.dtype == dtype and grads[0].dtype == dtype and grads[1].dtype == coordinates
    assert_near(actual, expected, dtype)
    assert_near(grads[0], expected_grads[0], dtype)
    for i in (1, 2):  # sums over channels of products of what is stored exactly
        assert_near(grads[i], expected_grads[i], coordinates)


@pytest.mark.parametrize("layout", ["heads first", "sliced"])
def test_strides(layout: str, device: torch.device) -> None:
    value, locations, weights = (x.float().to(device) for x in random_case(8))
    expected = ms_deform_attn(value, SHAPES, None, locations, weights)
    if layout == "heads first":
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
        locations = locations.movedim(1, 4).contiguous().movedim(4, 1)
        weights = weights.movedim(2, 0).contiguous().movedim(0, 2)
    else:
        value = value.repeat_interleave(2, 3)[..., ::2]
        locations = locations.repeat_interleave(2, 5)[..., ::2]
        weights = weights.repeat_interleave(3, 4)[..., ::3]
    assert not value.is_contiguous() and not locations.is_contiguous()
    grad = torch.randn_like(expected)
    attend = lambda v, x, w: ms_deform_attn(v, SHAPES, None, x, w)  # noqa: E731
    output, grads = gradients(attend, grad, value, locations, weights)
    assert torch.equal(output, expected)
    dense = [x.contiguous() for x in (value, locations, weights)]
    for strided, contiguous in zip(grads, gradients(attend, grad, *dense)[1], strict=True):
        assert_near(strided, contiguous)


def grid_sample_way(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """The way of Deformable DETR's and transformers' plain PyTorch functions."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    maps = value.split([height * width for height, width in SHAPES], dim=1)
    samples = []
    for level, (height, width) in enumerate(SHAPES):
        planes = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = 2 * locations[:, :, :, level].transpose(1, 2).flatten(0, 1) - 1
        samples.append(F.grid_sample(planes, grid, align_corners=False))
    shares = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.stack(samples, dim=-2).flatten(-2) * shares).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2)


def test_matches_grid_sample(device: torch.device) -> None:
    inputs = [x.float().to(device) for x in random_case(32, heads=8, queries=50)]
    grad = torch.randn(2, 50, 256, device=device)
    expected = gradients(grid_sample_way, grad, *inputs)
    actual = gradients(
        lambda v, x, w: ms_deform_attn(v, torch.tensor(SHAPES, device=device), None, x, w),
        grad,
        *inputs,
    )
    assert_near(actual[0], expected[0])
    for ours, theirs in zip(actual[1], expected[1], strict=True):
        assert_near(ours, theirs)


def test_double_backward() -> None:
    value, locations, weights = random_case(1, heads=1, queries=2, points=1, batch=1)
    inputs = [x.requires_grad_() for x in (value[:, :11].clone(), locations, weights)]
    shapes = [(2, 3), (2, 2), (1, 1)]
    attend = lambda v, x, w: ms_deform_attn(v, shapes, None, x, w)  # noqa: E731
    assert torch.autograd.gradgradcheck(attend, inputs, eps=1e-7, atol=1e-5)


def test_deterministic_sums() -> None:
    """The fixed-point sums that CUDA takes for deterministic algorithms; the CPU needs none."""
    inputs = [x.float() for x in random_case(8)]
    grad = torch.randn(2, 11, 24) * 1e-3
    attend = lambda v, x, w: ms_deform_attn(v, SHAPES, None, x, w)  # noqa: E731
    plain = gradients(attend, grad, *inputs)[1]
    torch.use_deterministic_algorithms(True)
    try:
        fixed = gradients(attend, grad, *inputs)[1]
        zeros = gradients(attend, 0 * grad, *inputs)[1]
        grad[0, 0, 0] = float("inf")
        infinite = gradients(attend, grad, *inputs)[1]
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(fixed[0], plain[0], rtol=1e-5, atol=1e-10)
    assert torch.equal(fixed[1], plain[1]) and torch.equal(fixed[2], plain[2])
    assert not any(x.any() for x in zeros)
    assert not infinite[0].isfinite().all()


@pytest.mark.gpu
def test_deterministic_on_the_gpu() -> None:
    value, locations, weights = (
        x.float().cuda() for x in random_case(32, heads=8, queries=3000, batch=1)
    )
    attend = lambda v, x, w: ms_deform_attn(v, SHAPES, None, x, w)  # noqa: E731
    grad = torch.randn(1, 3000, 256, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(attend, grad, value, locations, weights)[1][0] for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert_near(runs[0], gradients(attend, grad, value, locations, weights)[1][0])


def test_not_finite(device: torch.device) -> None:
    value, locations, weights = (x.float().to(device) for x in random_case(8, batch=1, queries=3))
    expected = ms_deform_attn(value, SHAPES, None, locations, weights)
    for k, bad in enumerate((float("nan"), float("inf"), -float("inf"), 1e30)):
        locations[0, 0, 0, 0, k] = bad
    locations[0, 0, 0, 0, 3, 0] = 0.5
    actual = ms_deform_attn(value, SHAPES, None, locations, weights)
    weights[0, 0, 0, 0] = 0
    assert_near(actual, ms_deform_attn(value, SHAPES, None, locations.nan_to_num(), weights))
    assert torch.equal(actual[0, 1:], expected[0, 1:])

    attend = lambda v, x, w: ms_deform_attn(v, SHAPES, None, x, w)  # noqa: E731
    define = lambda v, x, w: reference.ms_deform_attn(v, SHAPES, None, x, w)  # noqa: E731
    locations[0, 1, 0, 0, 0] = -5
    for bad in (float("nan"), float("inf")):  # of a sample outside the map
        weights[0, 1, 0, 0, 0] = bad
        inputs = (torch.ones_like(expected), value, locations.nan_to_num(), weights)
        actual, grads = gradients(attend, *inputs)
        assert actual[0, 1, :8].isnan().all() and actual.isnan().sum() == 8
        for ours, theirs in zip(grads, gradients(define, *inputs)[1], strict=True):
            assert torch.equal(ours.isfinite(), theirs.isfinite())
    weights[0, 1, 0, 0, 0] = 0

    value[0, 0, 0] = float("inf")  # a cell that nobody samples does not matter
    locations[...] = 0.9
    assert torch.isfinite(
        ms_deform_attn(value, SHAPES[:1], None, locations[:, :, :, :1], weights[:, :, :, :1])
    ).all()


@pytest.mark.parametrize("empty", ["batch", "queries", "heads", "channels", "points", "rows"])
def test_empty(empty: str, device: torch.device) -> None:
    sizes = {"batch": 1, "queries": 2, "heads": 3, "channels": 4, "points": 2, "rows": 5}
    sizes[empty] = 0
    batch, queries, heads, channels, points, rows = sizes.values()
    value = torch.randn(batch, rows, heads, channels, device=device)
    size = (batch, queries, heads, 1, points)
    locations = torch.rand(*size, 2, device=device)
    inputs = (value, locations, torch.rand(size, device=device))
    grad = torch.randn(batch, queries, heads * channels, device=device)
    attend = lambda v, x, w: ms_deform_attn(v, [(1, rows)], None, x, w)  # noqa: E731
    output, grads = gradients(attend, grad, *inputs)
    assert output.shape == (batch, queries, heads * channels)
    assert [x.shape for x in grads] == [x.shape for x in inputs]
    if empty in ("points", "rows"):
        assert not output.any() and not grads[0].any()


def test_gaps_between_levels(device: torch.device) -> None:
    value, locations, weights = (x.float().to(device) for x in random_case(8))
    expected = ms_deform_attn(value, SHAPES, None, locations, weights)
    apart = torch.full((2, 100, 3, 8), float("nan"), device=device)
    starts = [20, 2, 0]
    for (height, width), start, level in zip(SHAPES, starts, (0, 63, 75), strict=True):
        apart[:, start : start + height * width] = value[:, level : level + height * width]
    for given in (starts, torch.tensor(starts, device=device)):
        assert torch.equal(ms_deform_attn(apart, SHAPES, given, locations, weights), expected)


def test_wrong_input() -> None:
    value, locations, weights = (x.float() for x in random_case(4))
    with pytest.raises(ValueError, match=r"value must be floating point with 4 dim.*\(2, 76, 12\)"):
        ms_deform_attn(value.flatten(2), SHAPES, None, locations, weights)
    with pytest.raises(ValueError, match=r"sampling_locations must be floating point.*int64"):
        ms_deform_attn(value, SHAPES, None, locations.long(), weights)
    with pytest.raises(ValueError, match="attention_weights must have shape"):
        ms_deform_attn(value, SHAPES, None, locations, weights[:, :, :, :2])
    with pytest.raises(ValueError, match="spatial_shapes must have one entry per level"):
        ms_deform_attn(value, SHAPES[:2], None, locations, weights)
    with pytest.raises(ValueError, match=r"spatial_shapes must be integers \[L, 2\], got"):
        ms_deform_attn(value, torch.tensor([7, 9]), None, locations, weights)
    with pytest.raises(ValueError, match="spatial_shapes must be pairs"):
        ms_deform_attn(value, [7, 9], None, locations, weights)
    with pytest.raises(ValueError, match=r"spatial_shapes must be integers, got 7\.5"):
        ms_deform_attn(value, [(7.5, 9), (4, 3), (1, 1)], None, locations, weights)
    with pytest.raises(ValueError, match=r"level_start_index must be integers, got 63\.0"):
        ms_deform_attn(value, SHAPES, [0, 63.0, 75], locations, weights)
    with pytest.raises(ValueError, match=r"level_start_index must be integers.*float32"):
        ms_deform_attn(value, SHAPES, torch.tensor([0.0, 63, 75]), locations, weights)
    with pytest.raises(ValueError, match=r"value has 76 rows, too few for spatial_shapes\[0\]"):
        ms_deform_attn(value, [(70, 9), (4, 3), (1, 1)], None, locations, weights)
    with pytest.raises(ValueError, match=r"spatial_shapes\[1\] = \(-4, 3\)"):
        ms_deform_attn(value, [(7, 9), (-4, 3), (1, 1)], None, locations, weights)
    with pytest.raises(ValueError, match="level_start_index must have one entry per level"):
        ms_deform_attn(value, SHAPES, [0, 63], locations, weights)
    with pytest.raises(ValueError, match="there must be 1 to 8 levels, got 9"):
        many = [(1, 1)] * 9
        ms_deform_attn(
            value, many, None, locations.repeat(1, 1, 1, 3, 1, 1), weights.repeat(1, 1, 1, 3, 1)
        )


@pytest.mark.gpu
def test_levels_on_the_gpu_that_do_not_fit() -> None:
    value, locations, weights = (x.float().cuda() for x in random_case(8))
    shapes = torch.tensor([(70, 9), (4, 3), (1, 1)], device="cuda")
    assert ms_deform_attn(value, shapes, None, locations, weights).isnan().any(dim=-1).all()


def test_every_cpu_variant(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "matches or stored or strides or not_finite")
