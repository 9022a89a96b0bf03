"""What CUDA does otherwise than the CPU: no columns in memory, sums in fixed point, graphs."""

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
from fastseg.ops import _deform_conv_call, _deform_conv_tiles, deform_conv2d


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def without_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def columns(tiles: _deform_conv_tiles.Tiles) -> None:
        raise AssertionError("columns in memory")

    monkeypatch.setattr(_deform_conv_tiles.Tiles, "__iter__", columns)


def skip_unless_on_device(device: torch.device) -> None:
    if device.type == "cpu" and not _C.build_info()["cuda_emulator"]:
        pytest.skip("the CPU multiplies columns in memory")


@pytest.mark.parametrize("switch", [True, False])
def test_tf32_obeys_the_switch_of_torch(switch: bool) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if switch else "highest")
    try:
        assert _deform_conv_call.allows_tf32() is switch
    finally:
        torch.set_float32_matmul_precision(before)


SHAPES = {  # layout, channels in and out, groups of offsets, kernel, size
    "one tile": ("contiguous", 32, 8, 1, (3, 3), (3, 4)),
    "two of pixels": ("channels_last", 64, 136, 2, (1, 2), (8, 8)),
    "two of channels": ("channels_last", 160, 264, 1, (1, 1), (2, 3)),
}


@pytest.mark.parametrize(
    ("case", "arithmetic"),
    [
        *(("one tile", each) for each in ("exact", "tf32", "float16", "bfloat16")),
        *(("two of pixels", each) for each in ("exact", "float16")),
        *(("two of channels", each) for each in ("exact", "bfloat16")),
    ],
)
def test_columns_in_shared_memory(
    case: str,
    arithmetic: str,
    without_columns: None,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
) -> None:
    layout, channels, out_channels, offset_groups, kernel, size = SHAPES[case]
    skip_unless_on_device(device)
    monkeypatch.setattr(_deform_conv_call, "allows_tf32", lambda: arithmetic == "tf32")
    dtype = getattr(torch, arithmetic, torch.float32)
    geometry = ((1, 1), (1, 1), (1, 1))
    arguments = random_arguments(
        channels=channels,
        out_channels=out_channels,
        kernel=kernel,
        size=size,
        offset_groups=offset_groups,
        geometry=geometry,
        dtype=dtype,
    )
    arguments["mask" if channels == 160 else "bias"] = None
    actual = copies(arguments, device=device)
    actual["input"] = LAYOUTS[layout](actual["input"].detach()).requires_grad_()
    expected = copies(arguments, dtype=torch.float64)
    y = convolve(deform_conv2d, actual, geometry)
    z = convolve(reference.deform_conv2d, expected, geometry)
    # TF32 rounds as float16 does; the emulator multiplies in float32.
    rounded = device.type == "cuda" and arithmetic == "tf32"
    assert_near(y, z, torch.float16 if rounded else dtype)
    grad = torch.randn_like(z).to(dtype)
    y.backward(grad.to(device))
    z.backward(grad.double())
    for name in NAMES:
        if expected[name] is not None:
            tolerance = torch.float16 if rounded else dtype
            assert_near(actual[name].grad, expected[name].grad, tolerance)


VIEWS = {  # of input and weight: sides of 1 may have any stride, weights may be dense otherwise
    "one pixel": lambda x, w: (x[:, :, :1, :1].contiguous(), w),
    "one image": lambda x, w: (x[:1].as_strided((1, 32, 3, 4), (385, 1, 128, 32)), w),
    "transposed": lambda x, w: (x, w[..., :1, :1].transpose(0, 1).contiguous().transpose(0, 1)),
}


@pytest.mark.parametrize("view", VIEWS)
def test_views_need_no_columns(view: str, without_columns: None, device: torch.device) -> None:
    skip_unless_on_device(device)
    arguments = random_arguments(channels=32, size=(3, 4), out_channels=8)
    x, w = VIEWS[view](arguments["input"].to(device), arguments["weight"].to(device))
    kernel = tuple(w.shape[2:])
    rest = random_arguments(x.shape[0], 32, tuple(x.shape[2:]), 8, kernel)
    leaves = copies(rest, device=device) | {
        "input": x.detach().requires_grad_(),
        "weight": w.detach().requires_grad_(),
    }
    expected = copies(leaves, device="cpu", dtype=torch.float64)
    geometry = ((1, 1), (1, 1), (1, 1))
    for function, inputs in ((deform_conv2d, leaves), (reference.deform_conv2d, expected)):
        (convolve(function, inputs, geometry) ** 2).sum().backward()
    for name in NAMES:
        assert_near(leaves[name].grad, expected[name].grad, torch.float32)


def test_shares_of_the_pixels(without_columns: None, device: torch.device) -> None:
    # Several shares, the last one short; fewer columns than a tile of the weights' gradient has.
    skip_unless_on_device(device)
    geometry = ((1, 1), (0, 1), (1, 1))
    arguments = random_arguments(
        batch=1,
        channels=32,
        size=(31, 35),
        out_channels=4,
        kernel=(1, 3),
        geometry=geometry,
        spread=9.0,
    )
    actual, expected = copies(arguments, device=device), copies(arguments, dtype=torch.float64)
    for function, leaves in ((deform_conv2d, actual), (reference.deform_conv2d, expected)):
        (convolve(function, leaves, geometry) ** 2).sum().backward()
    for name in NAMES:
        assert_near(actual[name].grad, expected[name].grad, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("channels", "offset_groups"), [(20, 5), (32, 1)])
def test_fixed_order(
    channels: int,
    offset_groups: int,
    dtype: torch.dtype,
    deterministic: None,
    device: torch.device,
) -> None:
    arguments = random_arguments(
        batch=1,
        channels=channels,
        size=(9, 8),
        out_channels=8,
        offset_groups=offset_groups,
        dtype=dtype,
    )
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


@pytest.mark.parametrize("channels", [4, 32])
def test_fixed_point_of_gradients_that_are_not_finite(
    channels: int, deterministic: None, device: torch.device
) -> None:
    arguments = copies(random_arguments(channels=channels, out_channels=8), device=device)
    y = convolve(deform_conv2d, arguments, ((1, 1), (1, 1), (1, 1)))
    (grad,) = torch.autograd.grad(y, arguments["input"], torch.zeros_like(y), retain_graph=True)
    assert (grad == 0).all()
    (grad,) = torch.autograd.grad(y, arguments["input"], torch.full_like(y, math.inf))
    assert not torch.isfinite(grad).any()


FUSED = {
    "input": torch.zeros(1, 32, 4, 4).contiguous(memory_format=torch.channels_last),
    "offset": torch.zeros(1, 2, 4, 4),
    "mask": None,
    "geometry": ((1, 1), (1, 1), (0, 0), (1, 1)),
    "offset_groups": 1,
    "exact": False,
}
PRODUCT = FUSED | {
    "weights": torch.zeros(5, 32),
    "bias": None,
    "output": torch.zeros(1, 5, 4, 4),
}
GRADIENTS = FUSED | {
    "weights": torch.zeros(32, 8),
    "grad_output": torch.zeros(16, 8),
    "grad_input": torch.zeros_like(FUSED["input"]),
    "grad_offset": torch.zeros(1, 2, 4, 4),
    "grad_mask": None,
    "units": None,
    "partials": torch.zeros(2, 8, 32),
}


WIDE = ("offset", "grad_input", "grad_offset")  # float64 with an input of float64
TWO_GROUPS = {"offset_groups": 2, "offset": (1, 4, 4, 4), "grad_offset": (1, 4, 4, 4)}


@pytest.mark.parametrize(
    ("name", "dtype", "change", "message"),
    [
        ("product", torch.float16, TWO_GROUPS, "a multiple of 32 channels per group of offsets"),
        ("product", torch.float64, {}, "input must be float32, float16 or bfloat16, got float64"),
        ("product", torch.bfloat16, {"exact": True}, "exact products must be of float32, got bf"),
        ("gradients", torch.float16, TWO_GROUPS, "a multiple of 32 channels per group of offsets"),
        ("gradients", torch.float32, {"grad_output": (15, 8)}, r"grad_output must have shape \[16"),
        ("gradients", torch.float32, {"partials": (2, 8, 31)}, r"must have shape \[\*, 8, 32\]"),
        ("gradients", torch.float32, {"partials": (0, 8, 32)}, "partials must be dense and of at"),
        (
            "gradients",
            torch.float16,
            {"weights": (32, 4), "grad_output": (16, 4), "partials": (1, 4, 32)},
            "grad_output's pixels must be aligned to 16 bytes",
        ),
    ],
)
def test_products_that_do_not_fit_are_named(
    name: str, dtype: torch.dtype, change: dict, message: str, device: torch.device
) -> None:
    skip_unless_on_device(device)
    arguments = dict(PRODUCT if name == "product" else GRADIENTS)
    for key, value in arguments.items():
        if isinstance(value, torch.Tensor):
            to = torch.promote_types(dtype, torch.float32) if key in WIDE else dtype
            value = value.to(device, torch.float32 if key == "partials" else to)
            change_of = change.get(key)
            arguments[key] = value if change_of is None else value.new_zeros(change_of)
        elif key in change:
            arguments[key] = change[key]
    with pytest.raises(ValueError, match=message):
        getattr(_C, f"deform_conv_{name}")(**arguments)


@pytest.mark.parametrize("name", ["product", "gradients"])
def test_the_cpu_multiplies_columns_in_memory(name: str) -> None:
    if _C.build_info()["cuda_emulator"]:
        pytest.skip("the emulator has CUDA's kernels alone")
    with pytest.raises(ValueError, match="input must be on CUDA; the CPU multiplies tiles"):
        getattr(_C, f"deform_conv_{name}")(**(PRODUCT if name == "product" else GRADIENTS))


@pytest.mark.gpu
def test_captures_in_a_cuda_graph() -> None:
    arguments = random_arguments(channels=64, out_channels=8, dtype=torch.float16)
    leaves = [copies(arguments, device="cuda")[name] for name in NAMES]

    def run() -> list[torch.Tensor]:
        y = convolve(deform_conv2d, dict(zip(NAMES, leaves, strict=True)), ((1, 1),) * 3)
        return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = run()
    with torch.no_grad():
        leaves[0].mul_(2)
    graph.replay()
    for actual, expected in zip(captured, run(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)
