"""What CUDA does otherwise than the CPU: products on tensor cores, sums in fixed point, graphs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from deform_conv_arguments import (
    LAYOUTS,
    NAMES,
    assert_near,
    convolve,
    copies,
    random_arguments,
)

from fastseg import _C, reference
from fastseg.ops import deform_conv, deform_conv2d


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deform_conv, "_allows_tf32", lambda: True)


@pytest.mark.parametrize("switch", [True, False])
def test_tf32_obeys_the_switch_of_torch(switch: bool) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if switch else "highest")
    try:
        assert deform_conv._allows_tf32() is switch
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("channels", "out_channels", "offset_groups", "kernel", "size"),
    [(32, 6, 1, (3, 3), (5, 4)), (64, 140, 2, (1, 2), (11, 9)), (96, 260, 1, (1, 1), (2, 3))],
)
def test_product_on_tensor_cores(
    channels: int,
    out_channels: int,
    offset_groups: int,
    kernel: tuple[int, int],
    size: tuple[int, int],
    layout: str,
    dtype: torch.dtype,
    tf32: None,
    device: torch.device,
) -> None:
    shapes = {"channels": channels, "out_channels": out_channels, "kernel": kernel, "size": size}
    geometry = ((1, 1), (1, 1), (1, 1))
    arguments = random_arguments(**shapes, offset_groups=offset_groups, dtype=dtype, batch=2)
    taps = kernel[0] * kernel[1] * offset_groups
    out = (size[0] + 3 - kernel[0], size[1] + 3 - kernel[1])
    arguments["offset"] = torch.randn(2, 2 * taps, *out)
    arguments["mask"] = torch.rand(2, taps, *out) if out_channels != 260 else None
    arguments["bias"] = None if out_channels == 140 else arguments["bias"]
    actual = copies(arguments, device=device)
    actual["input"] = LAYOUTS[layout](actual["input"].detach())
    with torch.no_grad():
        y = convolve(deform_conv2d, actual, geometry)
    expected = convolve(reference.deform_conv2d, copies(arguments, dtype=torch.float64), geometry)
    # TF32 rounds as float16 does; the emulator multiplies in float32.
    rounded = device.type == "cuda" and dtype == torch.float32
    assert_near(y, expected, torch.float16 if rounded else dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fixed_order(dtype: torch.dtype, deterministic: None, device: torch.device) -> None:
    arguments = random_arguments(channels=20, size=(9, 8), offset_groups=5, dtype=dtype)
    expected = copies(arguments, dtype=torch.float64)
    geometry = ((1, 1), (1, 1), (1, 1))
    runs = []
    for _ in range(2):
        actual = copies(arguments, device=device)
        convolve(deform_conv2d, actual, geometry).sum().backward()
        runs.append([actual[name].grad for name in NAMES])
    convolve(reference.deform_conv2d, expected, geometry).sum().backward()
    for first, second, name in zip(*runs, NAMES, strict=True):
        assert torch.equal(first, second)
        assert_near(first, expected[name].grad, dtype)


def test_fixed_point_of_gradients_that_are_not_finite(
    deterministic: None, device: torch.device
) -> None:
    arguments = copies(random_arguments(channels=4), device=device)
    y = convolve(deform_conv2d, arguments, ((1, 1), (1, 1), (1, 1)))
    (grad,) = torch.autograd.grad(y, arguments["input"], torch.zeros_like(y), retain_graph=True)
    assert (grad == 0).all()
    (grad,) = torch.autograd.grad(y, arguments["input"], torch.full_like(y, math.inf))
    assert not torch.isfinite(grad).any()


@pytest.mark.parametrize(
    ("channels", "dtype", "message"),
    [
        (48, torch.float16, "a multiple of 32 channels per group of offsets, got 48"),
        (32, torch.float64, "input must be float32, float16 or bfloat16, got float64"),
    ],
)
def test_products_that_do_not_fit_are_named(
    channels: int, dtype: torch.dtype, message: str, device: torch.device
) -> None:
    if device.type == "cpu" and not _C.build_info()["cuda_emulator"]:
        message = "input must be on CUDA"
    x = torch.zeros(1, channels, 4, 4, dtype=dtype, device=device)
    arguments = {
        "input": x.contiguous(memory_format=torch.channels_last),
        "offset": torch.zeros(1, 2, 4, 4, device=device).to(
            torch.promote_types(dtype, torch.float32)
        ),
        "mask": None,
        "weights": torch.zeros(5, channels, dtype=dtype, device=device),
        "bias": None,
        "output": torch.zeros(1, 5, 4, 4, dtype=dtype, device=device),
        "geometry": ((1, 1), (1, 1), (0, 0), (1, 1)),
        "offset_groups": 1,
    }
    with pytest.raises(ValueError, match=message):
        _C.deform_conv_product(**arguments)


@pytest.mark.gpu
def test_captures_in_a_cuda_graph() -> None:
    arguments = copies(random_arguments(channels=64, dtype=torch.float16), device="cuda")
    geometry = ((1, 1), (1, 1), (1, 1))
    with torch.no_grad():
        convolve(deform_conv2d, arguments, geometry)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = convolve(deform_conv2d, arguments, geometry)
        arguments["input"].mul_(2)
        graph.replay()
        torch.testing.assert_close(y, convolve(deform_conv2d, arguments, geometry))
