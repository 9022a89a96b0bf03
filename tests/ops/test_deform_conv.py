"""Deformable convolution against torchvision (stored and live), its definition, and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from deform_conv_arguments import (
    LAYOUTS,
    NAMES,
    TOLERANCE,
    Arguments,
    assert_near,
    convolve,
    copies,
    random_arguments,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from live_tensors import LiveTensors
from safetensors.torch import load_file
from torch import Tensor

from fastseg import _C, reference
from fastseg.ops import _deform_conv_tiles, deform_conv, deform_conv2d

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "ops_deform_conv2d.safetensors")
GEOMETRY = {  # stride, padding, dilation
    "c0": ((1, 1), (1, 1), (1, 1)),
    "c1": ((1, 1), (1, 1), (1, 1)),
    "c2": ((2, 2), (1, 1), (1, 1)),
    "c3": ((2, 1), (2, 0), (1, 3)),
    "c4": ((1, 1), (0, 0), (1, 1)),
    "c5": ((1, 2), (2, 1), (2, 1)),
    "c6": ((1, 1), (2, 2), (2, 2)),
    "c7": ((3, 3), (3, 2), (1, 1)),
}


def compare(
    actual: Arguments, expected: Arguments, geometry: tuple, dtype: torch.dtype, peer: Callable
) -> None:
    """Output and all gradients of the op against the peer's."""
    output = convolve(deform_conv2d, actual, geometry)
    assert output.dtype == dtype
    expected_output = convolve(peer, expected, geometry)
    assert_near(output, expected_output, dtype)
    grad = torch.randn_like(expected_output).to(dtype)
    output.backward(grad.to(output.device))
    expected_output.backward(grad.to(expected_output.dtype))
    for name in NAMES:
        if expected[name] is not None:
            assert actual[name].grad.dtype == actual[name].dtype
            assert_near(actual[name].grad, expected[name].grad, dtype)


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many tiles":
        for device in ("CUDA", "CPU", "CPU_BACKWARD", "IN_LANES"):
            monkeypatch.setattr(_deform_conv_tiles, f"TILE_BYTES_{device}", 1)


def golden_arguments(case: str) -> Arguments:
    keys = dict(zip(NAMES, ("x", "offset", "weight", "bias", "mask"), strict=True))
    return {name: GOLDEN.get(f"in/{case}.{key}") for name, key in keys.items()}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("case", GEOMETRY)
def test_stored_results_of_torchvision(
    case: str, layout: str, tiles: None, device: torch.device
) -> None:
    arguments = copies(golden_arguments(case), device=device)
    arguments["input"] = LAYOUTS[layout](arguments["input"].detach()).requires_grad_()
    y = convolve(deform_conv2d, arguments, GEOMETRY[case])
    assert_near(y, GOLDEN[f"out/{case}.y"], torch.float32)
    y.backward(GOLDEN[f"in/{case}.grad_y"].to(device))
    for name, tensor in arguments.items():
        if tensor is not None:
            key = "x" if name == "input" else name
            assert_near(tensor.grad, GOLDEN[f"out/{case}.grad_{key}"], torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "groups", "offset_groups"), [(1, 1, 1), (21, 1, 3), (32, 2, 1), (48, 3, 2)]
)
def test_matches_reference(
    channels: int,
    groups: int,
    offset_groups: int,
    layout: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    geometry = ((2, 1), (1, 2), (1, 2))
    arguments = random_arguments(
        channels=channels,
        size=(11, 13),
        kernel=(3, 2),
        groups=groups,
        offset_groups=offset_groups,
        geometry=geometry,
        dtype=dtype,
    )
    actual = copies(arguments, device=device)
    actual = {
        name: LAYOUTS[layout](tensor.detach()).requires_grad_() if tensor.dim() == 4 else tensor
        for name, tensor in actual.items()
    }
    expected = copies(arguments, dtype=torch.float64)
    compare(actual, expected, geometry, dtype, reference.deform_conv2d)


@pytest.mark.skipif(_C.build_info()["cuda_emulator"], reason="CUDA has no kernel of its own for it")
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [
        (torch.float32, "contiguous"),
        (torch.float64, "channels_last"),
        (torch.bfloat16, "contiguous"),
    ],
)
@pytest.mark.parametrize(
    ("channels", "groups", "out_channels", "offset_groups"),
    [(24, 24, 24, 3), (21, 21, 105, 1), (80, 20, 100, 1), (64, 8, 32, 1), (36, 9, 18, 3)],
)
def test_many_groups_match_reference(
    channels: int,
    groups: int,
    out_channels: int,
    offset_groups: int,
    dtype: torch.dtype,
    layout: str,
    tiles: None,
    device: torch.device,
) -> None:
    geometry = ((1, 1), (1, 1), (1, 1))
    arguments = random_arguments(
        channels=channels,
        out_channels=out_channels,
        size=(9, 11),
        groups=groups,
        offset_groups=offset_groups,
        dtype=dtype,
    )
    actual = copies(arguments, device=device)
    actual["input"] = LAYOUTS[layout](actual["input"].detach()).requires_grad_()
    expected = copies(arguments, dtype=torch.float64)
    compare(actual, expected, geometry, dtype, reference.deform_conv2d)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_geometry_matches_torchvision(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    geometry = (data.draw(pair), data.draw(st.tuples(*[st.integers(0, 3)] * 2)), data.draw(pair))
    groups, offset_groups = data.draw(st.sampled_from([(1, 1), (2, 1), (1, 2), (3, 2), (6, 6)]))
    size = tuple(
        data.draw(
            st.integers(max(1, geometry[2][i] * (kernel[i] - 1) + 1 - 2 * geometry[1][i]), 11)
        )
        for i in range(2)
    )
    torch.manual_seed(data.draw(st.integers(0, 2**32 - 1)))
    arguments = random_arguments(
        batch=data.draw(st.integers(1, 3)),
        channels=6,
        size=size,
        kernel=kernel,
        groups=groups,
        offset_groups=offset_groups,
        geometry=geometry,
        dtype=torch.float64,
        spread=data.draw(st.sampled_from([0.0, 0.5, 5.0])),
    )
    if data.draw(st.booleans()):
        arguments["offset"] = arguments["offset"].round()
    for name in ("mask", "bias"):
        if data.draw(st.booleans()):
            arguments[name] = None
    compare(
        copies(arguments),
        copies(arguments),
        geometry,
        torch.float64,
        torchvision.ops.deform_conv2d,
    )


def test_without_offsets_it_is_a_convolution(device: torch.device) -> None:
    arguments = random_arguments(channels=20, spread=0.0)
    x, weight, bias = (arguments[name] for name in ("input", "weight", "bias"))
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=1)  # on CUDA it would be of TF32
    x, offset, weight, bias = (t.to(device) for t in (x, arguments["offset"], weight, bias))
    assert_near(deform_conv2d(x, offset, weight, bias, padding=1), expected, torch.float32)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("batch", "groups"), [(1, 1), (37, 1), (37, 2), (37, 16)])
def test_any_batch(
    batch: int,
    groups: int,
    layout: str,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of the tiles of many images the last one has fewer.
    for kind in ("CUDA", "CPU", "CPU_BACKWARD", "IN_LANES"):
        monkeypatch.setattr(_deform_conv_tiles, f"TILE_BYTES_{kind}", 150 * 9 * 16 * 4)
    geometry = ((1, 1), (1, 1), (1, 1))
    arguments = random_arguments(
        batch=batch, channels=16, size=(3, 4), out_channels=16, groups=groups
    )
    actual = copies(arguments, device=device)
    actual["input"] = LAYOUTS[layout](actual["input"].detach()).requires_grad_()
    compare(actual, copies(arguments), geometry, torch.float32, reference.deform_conv2d)


def test_gradients(device: torch.device) -> None:
    arguments = random_arguments(
        channels=4, size=(4, 5), out_channels=2, offset_groups=2, groups=2, dtype=torch.float64
    )
    # Away from the lines where the blend has no derivative.
    arguments["offset"] = arguments["offset"].floor() + 0.2 + 0.6 * arguments["offset"].frac().abs()
    leaves = [copies(arguments, device=device)[name] for name in NAMES]

    def function(x: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight, bias, padding=1, mask=mask)

    # CUDA adds up the gradient of the input in any order.
    options = {"fast_mode": True, "nondet_tol": 1e-12 if device.type == "cuda" else 0.0}
    assert torch.autograd.gradcheck(function, leaves, **options)
    assert torch.autograd.gradgradcheck(function, leaves, **options)
    assert torch.autograd.gradgradcheck(
        lambda x, offset, weight: deform_conv2d(x, offset, weight, padding=1),
        leaves[:3],
        **options,
    )


def test_infinite_and_nan_offsets(device: torch.device) -> None:
    arguments = copies(random_arguments(channels=20), device=device)
    with torch.no_grad():
        arguments["offset"][0, 0, 2, 3] = math.inf
        arguments["offset"][0, 5, 2, 3] = -math.inf
        arguments["offset"][1, 0, 4, 5] = math.nan
        arguments["offset"][1, 2, 4, 5] = 1e30
    y = convolve(deform_conv2d, arguments, ((1, 1), (1, 1), (1, 1)))
    nan = torch.zeros(2, 9, 7, dtype=torch.bool)
    nan[1, 4, 5] = True
    assert torch.equal(y.isnan().all(1).cpu(), nan)
    assert torch.equal(y.isnan().any(1).cpu(), nan)
    y.nansum().backward()
    assert torch.isfinite(arguments["input"].grad).all()
    expected = copies(arguments, device="cpu")
    z = convolve(reference.deform_conv2d, expected, ((1, 1), (1, 1), (1, 1)))
    assert_near(y.nan_to_num(), z.nan_to_num(), torch.float32)
    z.nansum().backward()
    assert_near(arguments["input"].grad, expected["input"].grad, torch.float32)


def test_cells_beyond_the_border_are_not_read(device: torch.device) -> None:
    # A NaN in the map reaches the pixels that read it and no other, whatever the offsets.
    x = torch.zeros(1, 4, 5, 5, device=device)
    x[:, :, 0, 0] = math.nan
    offset = torch.full((1, 2, 5, 5), -0.5, device=device)
    y = deform_conv2d(x, offset, torch.ones(1, 4, 1, 1, device=device))
    expected = torch.zeros(5, 5, dtype=torch.bool)
    expected[:2, :2] = True
    assert torch.equal(y[0, 0].isnan().cpu(), expected)
    far = torch.full((1, 2, 5, 5), -100.0, device=device)
    assert (deform_conv2d(x, far, torch.ones(1, 4, 1, 1, device=device)) == 0).all()


def test_the_number_of_threads_does_not_change_gradients() -> None:
    arguments = random_arguments(channels=70, size=(20, 21))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        actual = copies(arguments)
        convolve(deform_conv2d, actual, ((1, 1), (1, 1), (1, 1))).sum().backward()
        results.append([actual["offset"].grad, actual["mask"].grad, actual["input"].grad])
    torch.set_num_threads(before)
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(_C.build_info()["cuda_emulator"], reason="CUDA holds columns in shared memory")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_memory_is_less_than_a_fifth_of_the_columns(layout: str) -> None:
    arguments = random_arguments(channels=256, size=(100, 168), out_channels=256)
    x = LAYOUTS[layout](arguments["input"])
    operands = [x, arguments["offset"], arguments["weight"], None]
    with torch.no_grad(), LiveTensors([t for t in operands if t is not None]) as live:
        deform_conv._forward(*operands, (1, 1), (1, 1), (1, 1), None)
    columns = 9 * x.numel() * x.itemsize
    assert 0.1 * columns < live.peak < 0.2 * columns  # the output alone is a ninth


def test_output_and_gradient_keep_the_memory_format(device: torch.device) -> None:
    arguments = copies(random_arguments(), device=device)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = arguments["input"].detach().contiguous(memory_format=layout).requires_grad_()
        y = deform_conv2d(x, arguments["offset"], arguments["weight"], padding=1)
        assert y.is_contiguous(memory_format=layout)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert grad.is_contiguous(memory_format=layout)


def test_offset_and_mask_of_other_types(device: torch.device) -> None:
    arguments = copies(random_arguments(dtype=torch.float16), device=device)
    half = convolve(deform_conv2d, arguments, ((1, 1), (1, 1), (1, 1)))
    wide = dict(arguments)
    wide |= {name: arguments[name].detach().float().requires_grad_() for name in ("offset", "mask")}
    mixed = convolve(deform_conv2d, wide, ((1, 1), (1, 1), (1, 1)))
    assert mixed.dtype == torch.float16 and torch.equal(half, mixed)
    mixed.sum().backward()
    assert wide["offset"].grad.dtype == torch.float32
    assert wide["input"].grad.dtype == torch.float16


@pytest.mark.parametrize("shape", [(0, 8, 9, 7), (2, 8, 0, 7), (2, 8, 9, 0)])
def test_empty_inputs(shape: tuple[int, ...], device: torch.device) -> None:
    geometry = ((1, 1), (1, 1), (1, 1))
    arguments = random_arguments(batch=shape[0], size=shape[2:], geometry=((1, 1), (2, 2), (1, 1)))
    arguments = copies(arguments, device=device)
    y = convolve(deform_conv2d, arguments, (geometry[0], (2, 2), geometry[2]))
    assert y.shape == (shape[0], 6, shape[2] + 2, shape[3] + 2)
    assert torch.equal(y, arguments["bias"][:, None, None].expand_as(y))
    y.sum().backward()
    assert arguments["input"].grad.shape == shape
    assert (arguments["weight"].grad == 0).all()


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_opcheck(with_mask: bool, layout: str, device: torch.device) -> None:
    arguments = copies(random_arguments(channels=4, size=(4, 5)), device=device)
    x = LAYOUTS[layout](arguments["input"].detach()).requires_grad_()
    mask = arguments["mask"] if with_mask else None
    bias = arguments["bias"] if with_mask else None
    operands = (x, arguments["offset"], arguments["weight"])
    geometry = ((1, 1), (1, 1), (1, 1))
    torch.library.opcheck(
        torch.ops.fastseg.deform_conv2d.default, (*operands, bias, *geometry, mask)
    )
    grad = torch.randn(2, 6, 4, 5, device=device)
    torch.library.opcheck(
        torch.ops.fastseg.deform_conv2d_backward.default,
        tuple(None if t is None else t.detach() for t in (grad, *operands, mask)) + geometry,
    )


def test_compiles_with_dynamic_shapes(device: torch.device) -> None:
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    compiled = torch.compile(
        lambda x, offset, weight, mask: deform_conv2d(x * 2, offset, weight, padding=1, mask=mask),
        fullgraph=True,
        dynamic=True,
        backend=backend,
    )
    for size in ((9, 7), (12, 5)):
        arguments = copies(random_arguments(size=size), device=device)
        leaves = [arguments[name] for name in ("input", "offset", "weight", "mask")]
        x, offset, weight, mask = leaves
        y = compiled(x, offset, weight, mask)
        eager = deform_conv2d(x * 2, offset, weight, padding=1, mask=mask)
        torch.testing.assert_close(y, eager)
        grads = torch.autograd.grad(y.sum(), leaves)
        expected = torch.autograd.grad(eager.sum(), leaves)
        for grad, other in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_computes_like_a_convolution(compiled: bool, device: torch.device) -> None:
    arguments = copies(random_arguments(), device=device)
    function = deform_conv2d
    if compiled:
        function = torch.compile(deform_conv2d, fullgraph=True, backend="aot_eager")
    with torch.autocast(device.type, dtype=torch.bfloat16):
        y = convolve(function, arguments, ((1, 1), (1, 1), (1, 1)))
        double = convolve(deform_conv2d, copies(arguments, dtype=torch.float64), ((1, 1),) * 3)
    assert y.dtype == torch.bfloat16 and double.dtype == torch.float64
    assert_near(y, double, torch.bfloat16)
    y.sum().backward()
    assert all(arguments[name].grad.dtype == torch.float32 for name in NAMES)
    with torch.autocast(device.type, dtype=torch.bfloat16):  # after a layer that was cast
        arguments["input"] = arguments["input"].detach().bfloat16()
        assert torch.equal(convolve(function, arguments, ((1, 1), (1, 1), (1, 1))), y)
        with pytest.raises((ValueError, RuntimeError), match=r"weight must be torch.float64"):
            arguments["input"] = arguments["input"].double()
            convolve(function, arguments, ((1, 1), (1, 1), (1, 1)))


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "stored or matches_reference or many_groups or infinite")
