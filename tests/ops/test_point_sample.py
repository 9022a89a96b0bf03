"""Samples at points against torch's grid_sample, the definition and Mask2Former's stored points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from fastseg import reference
from fastseg.ops import point_sample, sample_uncertain_points

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "mask2former_points.safetensors")
# Relative to the largest value: rounding to the stored type; in float32, of positions, which the
# gradient of points multiplies by the map's side.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
SIZES = [(1, 1), (1, 7), (6, 1), (2, 2), (9, 13)]


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    assert actual.shape == expected.shape
    scale = max(float(expected.detach().abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double().cpu(), expected.double().cpu(), rtol=0, atol=TOLERANCE[dtype] * scale
    )


def random_case(
    channels: int = 3, size: tuple[int, int] = (9, 13), points: int = 70, batch: int = 2
) -> tuple[Tensor, Tensor]:
    """Maps and points, some outside, float64."""
    maps = torch.randn(batch, channels, *size, dtype=torch.float64)
    return maps, torch.rand(batch, points, 2, dtype=torch.float64) * 1.6 - 0.3


def grid_sample(input: Tensor, points: Tensor) -> Tensor:
    return F.grid_sample(input, 2 * points[:, :, None] - 1, align_corners=False)[..., 0]


def gradients(function: Callable, grad: Tensor, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = function(*leaves)
    return output.detach(), list(torch.autograd.grad(output, leaves, grad))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [1, 5, 33])
@pytest.mark.parametrize("size", SIZES)
def test_matches_reference(
    size: tuple[int, int], channels: int, dtype: torch.dtype, device: torch.device
) -> None:
    maps, points = random_case(channels, size)
    coordinates = torch.float64 if dtype == torch.float64 else torch.float32
    maps, points = maps.to(dtype).double(), points.to(coordinates).double()
    grad = torch.randn(2, channels, 70).to(dtype).double()
    expected, expected_grads = gradients(reference.point_sample, grad, maps, points)
    actual, grads = gradients(
        point_sample,
        grad.to(device, dtype),
        maps.to(device, dtype),
        points.to(device, coordinates),
    )
    assert actual.dtype == grads[0].dtype == dtype and grads[1].dtype == coordinates
    assert_near(actual, expected, dtype)
    assert_near(grads[0], expected_grads[0], dtype)
    assert_near(grads[1], expected_grads[1], coordinates)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [*SIZES, (64, 80)])
def test_matches_grid_sample(size: tuple[int, int], channels: int, device: torch.device) -> None:
    maps, points = (x.float().to(device) for x in random_case(channels, size, points=1100))
    grad = torch.randn(2, channels, 1100, device=device)
    expected, expected_grads = gradients(grid_sample, grad, maps, points)
    actual, grads = gradients(point_sample, grad, maps, points)
    for ours, theirs in zip([actual, *grads], [expected, *expected_grads], strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("size", SIZES)
def test_matches_zeros_and_ones(size: tuple[int, int], device: torch.device) -> None:
    """Masks, as if they had been converted; also where rows and columns are strided."""
    maps, points = (x.float().to(device) for x in random_case(3, size, points=1100))
    for masks in (maps > 0, (maps > 0).mT.contiguous().mT, (maps > 0)[..., ::2]):
        assert torch.equal(point_sample(masks, points), point_sample(masks.float(), points))
        assert torch.equal(
            reference.point_sample(masks, points), reference.point_sample(masks.float(), points)
        )
    grad = torch.randn(2, 3, 1100, device=device)
    expected, (_, expected_grad) = gradients(point_sample, grad, (maps > 0).float(), points)
    points.requires_grad_()
    output = point_sample(maps > 0, points)
    assert torch.equal(output, expected) and output.dtype == torch.float32
    assert torch.equal(torch.autograd.grad(output, points, grad)[0], expected_grad)


def test_half_precision_points(device: torch.device) -> None:
    maps, points = (x.half().to(device) for x in random_case())
    grad = torch.randn(2, 3, 70, device=device).half()
    actual, grads = gradients(point_sample, grad, maps, points)
    expected, expected_grads = gradients(point_sample, grad, maps, points.float())
    assert torch.equal(actual, expected)
    assert_near(grads[0], expected_grads[0], torch.float16)  # on CUDA summed in any order
    assert grads[1].dtype == torch.float16
    assert torch.equal(grads[1], expected_grads[1].half())


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    points=st.lists(st.tuples(st.integers(-8, 24), st.integers(-8, 24)), min_size=1, max_size=20),
    seed=st.integers(0, 99),
)
def test_on_borders_and_centres(
    size: tuple[int, int], points: list[tuple[int, int]], seed: int
) -> None:
    """At multiples of half a pixel, where the cells change and weights are 0 or 1."""
    maps = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(seed))
    height, width = size
    places = torch.tensor(points)[None] / 2 / torch.tensor([width, height])
    assert_near(point_sample(maps, places), grid_sample(maps, places))


@pytest.mark.parametrize("layout", ["channels last", "sliced", "expanded"])
def test_strides(layout: str, device: torch.device) -> None:
    maps, points = (x.float().to(device) for x in random_case(points=600))
    grad = torch.randn(2, 3, 600, device=device)
    if layout == "channels last":
        maps = maps.contiguous(memory_format=torch.channels_last)
        points, grad = points.mT.contiguous().mT, grad.mT.contiguous().mT
    elif layout == "sliced":
        maps = maps.repeat_interleave(2, 3)[..., ::2]
        points = points.repeat_interleave(3, 1)[:, ::3]
        grad = grad.repeat_interleave(2, 2)[..., ::2]
    else:
        maps, points = maps[:1, :1].expand(2, 3, -1, -1), points[:1].expand(2, -1, -1)
        grad = grad[:, :, :1].expand(-1, -1, 600)
    assert not (maps.is_contiguous() or points.is_contiguous() or grad.is_contiguous())
    actual, grads = gradients(point_sample, grad, maps, points)
    dense = [x.contiguous() for x in (grad, maps, points)]
    expected, expected_grads = gradients(point_sample, *dense)
    assert torch.equal(actual, expected)
    for ours, theirs in zip(grads, expected_grads, strict=True):
        assert_near(ours, theirs)


def test_only_the_gradients_wanted(device: torch.device) -> None:
    maps, points = (x.float().to(device) for x in random_case())
    grad = torch.randn(2, 3, 70, device=device)
    _, both = gradients(point_sample, grad, maps, points)
    for i, inputs in enumerate([(maps.clone().requires_grad_(), points), (maps, points.clone())]):
        inputs[i].requires_grad_()
        (alone,) = torch.autograd.grad(point_sample(*inputs), inputs[i], grad)
        assert_near(alone, both[i])


@pytest.mark.parametrize("wanted", ["both", "input", "points"])
def test_double_backward(wanted: str) -> None:
    maps, points = random_case(2, (3, 4), points=5)
    maps.requires_grad_(wanted != "points")
    points.requires_grad_(wanted != "input")
    assert torch.autograd.gradcheck(point_sample, (maps, points), eps=1e-7, atol=1e-5)
    assert torch.autograd.gradgradcheck(point_sample, (maps, points), eps=1e-7, atol=1e-5)


def test_deterministic_sums() -> None:
    """The fixed-point sums that CUDA takes for deterministic algorithms; the CPU needs none."""
    _, points = (x.float() for x in random_case())
    grad = torch.randn(2, 3, 70) * 1e-3
    input_grad = torch.ops.fastseg.point_sample_input_grad
    plain = input_grad(grad, points, 9, 13)
    torch.use_deterministic_algorithms(True)
    try:
        fixed = input_grad(grad, points, 9, 13)
        zeros = input_grad(0 * grad, points, 9, 13)
        grad[0, 0, 0] = float("inf")
        infinite = input_grad(grad, points, 9, 13)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(fixed, plain, rtol=1e-5, atol=1e-10)
    assert not zeros.any()
    assert not infinite.isfinite().all()


@pytest.mark.gpu
def test_deterministic_on_the_gpu() -> None:
    maps, points = (x.float().cuda() for x in random_case(points=30000))
    grad = torch.randn(2, 3, 30000, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(point_sample, grad, maps, points)[1][0] for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])
    assert_near(runs[0], gradients(point_sample, grad, maps, points)[1][0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_points_not_finite(bad: float, device: torch.device) -> None:
    maps, points = (x.float().to(device) for x in random_case())
    expected = point_sample(maps, points)
    points[0, 3, 0] = points[1, 5, 1] = bad
    grad = torch.ones_like(expected)
    actual, grads = gradients(point_sample, grad, maps, points)
    expected[0, :, 3] = expected[1, :, 5] = 0
    assert torch.equal(actual, expected)
    assert all(torch.isfinite(x).all() for x in grads)
    assert not grads[1][0, 3].any() and not grads[1][1, 5].any()


def test_maps_not_finite(device: torch.device) -> None:
    maps, points = (x.float().to(device) for x in random_case(1, points=500))
    maps[0, 0, 4, 5], maps[1, 0, 0, 0] = float("inf"), float("nan")
    torch.testing.assert_close(
        point_sample(maps, points), grid_sample(maps, points), equal_nan=True, rtol=0, atol=1e-4
    )
    centre = torch.tensor([[[3.5 / 8, 4.5 / 8]]], device=device)  # its neighbours have weight 0
    maps = torch.full((1, 1, 8, 8), float("nan"), device=device)
    maps[0, 0, 4, 3] = 2
    assert point_sample(maps, centre).item() == 2


@pytest.mark.parametrize("empty", ["batch", "channels", "points", "height", "width"])
def test_empty(empty: str, device: torch.device) -> None:
    sizes = {"batch": 2, "channels": 3, "points": 4, "height": 5, "width": 6}
    sizes[empty] = 0
    batch, channels, count, height, width = sizes.values()
    maps = torch.randn(batch, channels, height, width, device=device)
    points = torch.rand(batch, count, 2, device=device)
    grad = torch.randn(batch, channels, count, device=device)
    output, grads = gradients(point_sample, grad, maps, points)
    assert output.shape == grad.shape
    assert grads[0].shape == maps.shape and grads[1].shape == points.shape
    if empty in ("height", "width"):
        assert not output.any() and not grads[1].any()
    if empty in ("channels", "points"):
        assert not grads[0].any() and not grads[1].any()


def test_wrong_input() -> None:
    maps, points = (x.float() for x in random_case())
    with pytest.raises(ValueError, match=r"input must be floating point or bool.*\(2, 3, 117\)"):
        point_sample(maps.flatten(2), points)
    with pytest.raises(ValueError, match=r"input must be floating point or bool.*got torch.uint8"):
        point_sample(maps.byte(), points)
    with pytest.raises(ValueError, match=r"points must be floating point with.*got torch.bool"):
        point_sample(maps, points > 0)
    with pytest.raises(ValueError, match=r"points must be floating point with 3 dimensions"):
        point_sample(maps, points[0])
    with pytest.raises(ValueError, match="points must have shape"):
        point_sample(maps, points.repeat(1, 1, 2))
    with pytest.raises(ValueError, match="points must have shape"):
        point_sample(maps, points[:1])
    with pytest.raises(ValueError, match=r"input must have maps that span fewer than 2\^31"):
        point_sample(torch.zeros(1, 1, 1, 1).expand(1, 1, 2**31, 2), points[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_registered_with_torch(dtype: torch.dtype, device: torch.device) -> None:
    maps, points = (x.float().to(device) for x in random_case())
    maps, points = maps.to(dtype).requires_grad_(), points.requires_grad_()
    grad = torch.randn(2, 3, 70, device=device).to(dtype).requires_grad_()
    ops = torch.ops.fastseg
    torch.library.opcheck(ops.point_sample.default, (maps, points))
    torch.library.opcheck(ops.point_sample.default, (maps.detach() > 0, points))
    torch.library.opcheck(ops.point_sample_input_grad.default, (grad, points, 9, 13))
    torch.library.opcheck(ops.point_sample_points_grad.default, (grad, maps, points))


def test_compiles(device: torch.device) -> None:
    inputs = [x.float().to(device).requires_grad_() for x in random_case()]
    output = torch.compile(point_sample, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(output, point_sample(*inputs))
    grads = torch.autograd.grad(output.sum(), inputs)
    expected = torch.autograd.grad(point_sample(*inputs).sum(), inputs)
    for ours, eager in zip(grads, expected, strict=True):
        assert_near(ours, eager)


def sorted_points(points: Tensor) -> Tensor:
    """In the order in which the stored ones are."""
    order = (points[..., 1] * 16384 + points[..., 0]).argsort(dim=1)
    return torch.gather(points, 1, order[..., None].expand(-1, -1, 2))


@pytest.mark.parametrize("layer", ["final", "aux0"])
def test_stored_points_of_mask2former(layer: str, device: torch.device) -> None:
    case = {name: GOLDEN[f"{layer}.{name}"].to(device) for name in ("masks", "draws", "rest")}
    random = (case["draws"].double(), case["rest"])
    points = sample_uncertain_points(case["masks"], 256, random=random)
    assert torch.equal(sorted_points(points).cpu(), GOLDEN[f"{layer}.points"])


def peers_points(
    logits: Tensor, count: int, oversample: float, importance: float, generator: torch.Generator
) -> Tensor:
    """What PointRend does, step by step."""
    n = len(logits)
    candidates = torch.rand(n, int(count * oversample), 2, generator=generator)
    uncertainty = -grid_sample(logits, candidates)[:, 0].abs()
    uncertain = int(importance * count)
    index = uncertainty.topk(uncertain, dim=1).indices
    index += len(candidates[0]) * torch.arange(n)[:, None]
    chosen = candidates.view(-1, 2)[index.view(-1)].view(n, uncertain, 2)
    return torch.cat([chosen, torch.rand(n, count - uncertain, 2, generator=generator)], dim=1)


@pytest.mark.parametrize(
    ("count", "oversample", "importance"),
    [(112, 3.0, 0.75), (50, 1.0, 1.0), (33, 2.5, 0.0), (1, 3.0, 0.75), (0, 3.0, 0.75)],
)
def test_draws_in_the_order_of_pointrend(count: int, oversample: float, importance: float) -> None:
    logits = torch.randn(4, 1, 12, 17)
    generator = torch.Generator().manual_seed(7)
    expected = peers_points(logits, count, oversample, importance, generator)
    generator.manual_seed(7)
    actual = sample_uncertain_points(logits, count, oversample, importance, generator=generator)
    assert actual.shape == (4, count, 2)
    assert torch.equal(sorted_points(actual), sorted_points(expected))
    torch.manual_seed(7)
    assert torch.equal(sample_uncertain_points(logits, count, oversample, importance), actual)


def test_uncertain_points_lie_on_the_outline(device: torch.device) -> None:
    x = torch.linspace(-8, 8, 64, device=device).expand(2, 1, 64, 64).half().requires_grad_()
    points = sample_uncertain_points(x, 400)
    assert points.dtype == torch.float32 and not points.requires_grad
    assert points.min() >= 0 and points.max() < 1
    certainty = point_sample(x, points)[:, 0].abs()
    assert certainty[:, :300].max() < 3
    assert certainty[:, 300:].max() > 6


def test_uncertain_points_wrong_input() -> None:
    logits = torch.randn(2, 1, 5, 6)
    with pytest.raises(ValueError, match=r"logits must have shape \[N, 1, H, W\], got \(2, 5, 6\)"):
        sample_uncertain_points(logits[:, 0], 8)
    with pytest.raises(ValueError, match="num_points must not be negative, got -1"):
        sample_uncertain_points(logits, -1)
    with pytest.raises(ValueError, match="oversample_ratio must be at least 1, got nan"):
        sample_uncertain_points(logits, 8, float("nan"))
    with pytest.raises(ValueError, match=r"importance_sample_ratio must lie.*got 1.5"):
        sample_uncertain_points(logits, 8, 3.0, 1.5)
    with pytest.raises(ValueError, match=r"random\[1\] must have shape \(2, 2, 2\), got"):
        sample_uncertain_points(logits, 8, random=(torch.rand(2, 24, 2), torch.rand(2, 3, 2)))


def test_every_cpu_variant(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "matches or stored_points or strides or not_finite or borders")
