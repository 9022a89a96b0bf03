"""RoIAlign against torchvision (stored results and live), its definition, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fastseg import reference
from fastseg.ops import multi_scale_roi_align, roi_align

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "ops_roi_align.safetensors")
CASES = {  # spatial scale, output size
    "c0": (1.0, (7, 7)),
    "c1": (0.25, (14, 14)),
    "c2": (0.0625, (3, 5)),
    "c3": (0.5, (1, 1)),
    "c4": (0.125, (7, 7)),
    "empty": (1.0, (4, 4)),
}
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
# Relative to the largest value: rounding to the stored type; in float32 and float64, of sums of
# hundreds of terms in another order (a gradient at the border collects many samples).
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 5e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: x.repeat_interleave(2, 1).repeat(1, 1, 1, 2)[:, ::2, :, : x.shape[3]],
}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    scale = max(float(expected.detach().abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(
        actual.double().cpu(),
        expected.double().cpu(),
        rtol=0,
        atol=TOLERANCE[dtype] * scale,
    )


def random_boxes(count: int, images: int, width: float, height: float) -> Tensor:
    """Boxes of every size from a pixel to the image, some beyond its border."""
    side = torch.exp(torch.rand(count, 2) * math.log(max(width, height)))
    centre = torch.rand(count, 2) * torch.tensor([width, height]) * 1.2 - 0.1
    image = torch.arange(count) % images
    return torch.cat([image[:, None], centre - side / 2, centre + side / 2], dim=1)


def pyramid(channels: int, images: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(images, channels, 96 >> i, 128 >> i, dtype=dtype) for i in range(4)]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_stored_results_of_torchvision(
    case: str, aligned: bool, sampling_ratio: int, layout: str, device: torch.device
) -> None:
    scale, size = CASES[case]
    x = LAYOUTS[layout](GOLDEN[f"in/{case}.x"].to(device)).requires_grad_()
    rois = GOLDEN[f"in/{case}.rois"].to(device)
    key = f"out/{case}.aligned{int(aligned)}.sr{sampling_ratio}"
    y = roi_align(x, rois, size, scale, sampling_ratio, aligned)
    assert_near(y, GOLDEN[f"{key}.y"], torch.float32)
    (grad,) = torch.autograd.grad(y, x, GOLDEN[f"in/{case}.grad_y"].to(device))
    assert_near(grad, GOLDEN[f"{key}.grad_x"], torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 5, 16, 70])
def test_matches_reference(
    channels: int, layout: str, dtype: torch.dtype, device: torch.device
) -> None:
    x = torch.randn(2, channels, 23, 37).to(dtype)
    boxes = random_boxes(12, 2, 37 * 8, 23 * 8)
    expected_input = x.double().clone().requires_grad_()
    expected = reference.roi_align(expected_input, boxes.double(), (3, 5), 1 / 8, 2, True)
    actual_input = LAYOUTS[layout](x.to(device)).detach().requires_grad_()
    actual = roi_align(actual_input, boxes.to(device), (3, 5), 1 / 8, 2, True)
    assert actual.dtype == dtype
    assert_near(actual, expected, dtype)
    grad = torch.randn_like(expected).to(dtype)
    expected.backward(grad.double())
    actual.backward(grad.to(device))
    assert_near(actual_input.grad, expected_input.grad, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [16, 21, 70])
def test_more_boxes_than_the_map_has_cells(
    channels: int, dtype: torch.dtype, device: torch.device
) -> None:
    features = [
        torch.randn(2, channels, 13, 37, dtype=dtype),
        torch.randn(2, channels, 7, 19).to(dtype),
    ]
    boxes = random_boxes(40, 2, 37 * 4, 13 * 4)
    arguments = (boxes.to(device), 3, SCALES[:2])
    planes = multi_scale_roi_align([f.to(device) for f in features], *arguments)
    last = [LAYOUTS["channels_last"](f.to(device)) for f in features]
    assert_near(planes, multi_scale_roi_align(last, *arguments), dtype)
    one_by_one = [
        multi_scale_roi_align(
            [f.to(device) for f in features], box[None].to(device), *arguments[1:]
        )
        for box in boxes
    ]
    assert_near(planes, torch.cat(one_by_one), dtype)


def test_output_keeps_the_memory_format(device: torch.device) -> None:
    x = torch.randn(1, 8, 9, 9, device=device)
    boxes = torch.tensor([[0.0, 1, 1, 7, 7]], device=device)
    assert roi_align(x, boxes, 7).is_contiguous()
    channels_last = roi_align(x.contiguous(memory_format=torch.channels_last), boxes, 7)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last, roi_align(x, boxes, 7))


@pytest.mark.parametrize("rule", ["torchvision", "detectron2", "mmdet"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_multi_scale_matches_reference(rule: str, layout: str, device: torch.device) -> None:
    features = pyramid(20)
    boxes = random_boxes(30, 2, 512, 384)
    # Boxes whose side is a canonical power of two, where the rules' epsilons matter.
    exact = [[0.0, 0, 0, side, side] for side in (56, 112, 224, 448)]
    boxes = torch.cat([boxes, torch.tensor(exact)])
    expected_inputs = [feature.clone().requires_grad_() for feature in features]
    arguments = (7, SCALES, 2, rule == "detectron2", rule)
    expected = reference.multi_scale_roi_align(expected_inputs, boxes, *arguments)
    inputs = [LAYOUTS[layout](feature.to(device)).requires_grad_() for feature in features]
    actual = multi_scale_roi_align(inputs, boxes.to(device), *arguments)
    assert_near(actual, expected, torch.float32)
    grad = torch.randn_like(expected)
    expected.backward(grad)
    actual.backward(grad.to(device))
    for actual_input, expected_input in zip(inputs, expected_inputs, strict=True):
        assert_near(actual_input.grad, expected_input.grad, torch.float32)


@pytest.mark.parametrize("sampling_ratio", [-1, 2])
def test_multi_scale_matches_torchvision(sampling_ratio: int, device: torch.device) -> None:
    features = pyramid(6)
    boxes = [random_boxes(40, 1, 512, 384)[:, 1:], random_boxes(25, 1, 512, 384)[:, 1:]]
    boxes = [torch.cat([b[:, :2], torch.maximum(b[:, 2:], b[:, :2])], 1) for b in boxes]
    pooler = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio)
    maps = {str(i): feature for i, feature in enumerate(features)}
    expected = pooler(maps, boxes, [(384, 512), (384, 512)])
    actual = multi_scale_roi_align(
        [feature.to(device) for feature in features],
        [b.to(device) for b in boxes],
        7,
        SCALES,
        sampling_ratio,
    )
    assert_near(actual, expected, torch.float32)


@settings(max_examples=60, deadline=None)
@given(
    box=st.lists(st.floats(-200, 300, width=32), min_size=4, max_size=4),
    sampling_ratio=st.sampled_from([-1, 1, 2, 5]),
    aligned=st.booleans(),
    scale=st.sampled_from([1.0, 0.25, 0.1]),
)
def test_any_box_matches_torchvision(
    box: list[float], sampling_ratio: int, aligned: bool, scale: float
) -> None:
    x = torch.randn(1, 2, 14, 11, dtype=torch.float64)
    rois = torch.tensor([[0.0, *box]], dtype=torch.float64)
    actual = roi_align(x, rois, (3, 2), scale, sampling_ratio, aligned)
    inverted = box[2] < box[0] or box[3] < box[1]
    if inverted and aligned and sampling_ratio < 0:
        assert (actual == 0).all()  # no samples; torchvision fails to allocate a negative number
        return
    expected = torchvision.ops.roi_align(x, rois, (3, 2), scale, sampling_ratio, aligned)
    assert_near(actual, expected, x.dtype)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_pooling_is_linear_and_keeps_constants(seed: int) -> None:
    torch.manual_seed(seed)
    boxes = random_boxes(6, 1, 60, 40)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, 59)
    boxes[:, 2::2] = boxes[:, 2::2].clamp(0, 39)
    a, b = torch.randn(2, 1, 3, 40, 60, dtype=torch.float64)
    pool = lambda x: roi_align(x, boxes, 5, 1.0, 2)  # noqa: E731
    torch.testing.assert_close(pool(2 * a - b), 2 * pool(a) - pool(b))
    torch.testing.assert_close(pool(torch.ones_like(a)), torch.ones(6, 3, 5, 5).double())


def test_gradients() -> None:
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.0, 1, 1, 9, 7], [1, -3, 2, 5, 14], [1, 4, 4, 4, 4]])
    pool = lambda *maps: multi_scale_roi_align(maps, boxes, 2, (0.5, 0.25), 2, True)  # noqa: E731
    assert torch.autograd.gradcheck(pool, (x, y))
    assert torch.autograd.gradgradcheck(pool, (x, y))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_boxes_that_are_not_finite_pool_to_zero(layout: str, device: torch.device) -> None:
    x = LAYOUTS[layout](torch.randn(1, 4, 8, 8, device=device)).requires_grad_()
    rows = [[0, math.nan, 0, 4, 4], [0, 0, 0, math.inf, 4], [0, -math.inf, 0, 4, 4]]
    for sampling_ratio in (-1, 2):
        y = roi_align(x, torch.tensor(rows, device=device), 3, 1.0, sampling_ratio)
        assert (y == 0).all()
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert (grad == 0).all()


def test_huge_boxes_are_cheap_and_finite(device: torch.device) -> None:
    x = torch.randn(1, 4, 8, 8, device=device)
    rows = [[0, -1e9, -1e9, 1e9, 1e9], [0, 0, 0, 1e25, 3], [0, -1e25, 5, -1e24, 9]]
    for aligned in (False, True):
        y = roi_align(x, torch.tensor(rows, device=device), 7, 1.0, -1, aligned)
        assert torch.isfinite(y).all()


@pytest.mark.parametrize("image", [2.0, -1.0, math.nan, 1e9])
def test_an_image_index_outside_the_batch(image: float, device: torch.device) -> None:
    from fastseg import _C

    x = torch.randn(2, 4, 8, 8, device=device)
    boxes = torch.tensor([[0.0, 0, 0, 4, 4], [image, 0, 0, 4, 4]], device=device)
    if device.type == "cuda" or _C.build_info()["cuda_emulator"]:
        y = roi_align(x, boxes, 2)
        assert torch.isfinite(y[0]).all() and torch.isnan(y[1]).all()
        return
    with pytest.raises(ValueError, match=r"boxes\[1\] names image .* of a batch of 2"):
        roi_align(x, boxes, 2)


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (1, 0, 8, 8), (1, 3, 0, 8), (1, 3, 8, 0)])
def test_empty_maps(shape: tuple[int, ...], device: torch.device) -> None:
    x = torch.randn(shape, device=device, requires_grad=True)
    rois = 0 if shape[0] == 0 else 2
    y = roi_align(x, torch.zeros(rois, 5, device=device), 4)
    assert y.shape == (rois, shape[1], 4, 4) and (y == 0).all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.shape == x.shape


def test_box_lists_and_mixed_types(device: torch.device) -> None:
    x = torch.randn(2, 4, 8, 8, device=device, dtype=torch.float16)
    boxes = [torch.rand(3, 4), torch.zeros(0, 4, dtype=torch.int64)]
    boxes[0][:, 2:] += 4
    rows = torch.cat([torch.zeros(3, 1), boxes[0]], 1).to(device)
    from_list = roi_align(x, [b.to(device) for b in boxes], 2)
    torch.testing.assert_close(from_list, roi_align(x, rows, 2), rtol=0, atol=0)
    assert from_list.dtype == torch.float16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(3, 4)}, r"boxes must have shape \[K, 5\], got \(3, 4\)"),
        ({"boxes": [torch.zeros(3, 4)]}, r"boxes must list one tensor per image \(2\)"),
        ({"boxes": [torch.zeros(3, 5)] * 2}, r"boxes\[0\] must have shape \[L, 4\]"),
        ({"output_size": 0}, "output_size must be one or two positive ints, got 0"),
        ({"spatial_scale": -1.0}, r"spatial_scales must be positive, got \[-1.0\]"),
        ({"input": torch.zeros(4, 8, 8)}, r"features must be maps \[B, C, H, W\]"),
        ({"input": torch.zeros(2, 4, 8, 8, dtype=torch.int32)}, "floating point, got int32"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    arguments = {"input": torch.zeros(2, 4, 8, 8), "boxes": torch.zeros(1, 5), "output_size": 2}
    with pytest.raises(ValueError, match=message):
        roi_align(**(arguments | change))


def test_bad_levels_are_named() -> None:
    features, boxes = pyramid(3), torch.zeros(1, 5)
    with pytest.raises(ValueError, match="spatial_scales must have one entry per level"):
        multi_scale_roi_align(features, boxes, 7, SCALES[:2])
    with pytest.raises(ValueError, match=r"level_rule must be .*, got 'fpn'"):
        multi_scale_roi_align(features, boxes, 7, SCALES, level_rule="fpn")
    with pytest.raises(ValueError, match=r"features must have shape \[2, 3"):
        multi_scale_roi_align([*features[:3], torch.zeros(2, 5, 8, 8)], boxes, 7, SCALES)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last: bool, device: torch.device) -> None:
    layout = LAYOUTS["channels_last" if channels_last else "contiguous"]
    x = layout(torch.randn(2, 3, 12, 10, device=device)).requires_grad_()
    boxes = random_boxes(4, 2, 40, 48).to(device)
    arguments = ([x], boxes, (3, 3), [0.25], 2, False, "torchvision", 224.0, 4)
    torch.library.opcheck(torch.ops.fastseg.roi_align.default, arguments)


def test_compiles_with_dynamic_shapes(device: torch.device) -> None:
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(
        lambda x, boxes: roi_align(x * 2, boxes, 3, 0.25, 2).sum(),
        fullgraph=True,
        dynamic=True,
        backend=backend,
    )
    for count, height in ((4, 12), (9, 17)):
        x = torch.randn(2, 3, height, 10, device=device, requires_grad=True)
        boxes = random_boxes(count, 2, 40, 48).to(device)
        loss = compiled(x, boxes)
        (grad,) = torch.autograd.grad(loss, x)
        eager = roi_align(x * 2, boxes, 3, 0.25, 2).sum()
        torch.testing.assert_close(loss, eager)
        torch.testing.assert_close(grad, torch.autograd.grad(eager, x)[0])


def test_autocast_keeps_the_input_type(device: torch.device) -> None:
    x, boxes = torch.randn(1, 3, 8, 8, device=device), torch.zeros(1, 5, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert roi_align(x, boxes, 2).dtype == torch.float32
        assert roi_align(x.bfloat16(), boxes, 2).dtype == torch.bfloat16


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "c4 or matches_reference or more_boxes")


@pytest.mark.gpu
def test_captures_in_a_cuda_graph() -> None:
    features = [feature.cuda() for feature in pyramid(8)]
    boxes = random_boxes(10, 2, 512, 384).cuda()
    multi_scale_roi_align(features, boxes, 7, SCALES)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        pooled = multi_scale_roi_align(features, boxes, 7, SCALES)
    features[0].mul_(2)
    graph.replay()
    torch.testing.assert_close(pooled, multi_scale_roi_align(features, boxes, 7, SCALES))
