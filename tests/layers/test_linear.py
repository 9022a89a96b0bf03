"""The linear layer against torch's, and when it goes to oneDNN."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastseg.layers.linear import Linear, batched_product, linear

ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch lacks oneDNN")


class Convolutions(TorchDispatchMode):
    """Counts convolutions."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def convolutions(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> int:
    with Convolutions() as mode, torch.no_grad():
        linear(x, weight, bias)
    return mode.count


def check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    actual, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert actual.is_contiguous()
    # Sums of up to hundreds of products of order 1, in another order.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@ONEDNN
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("shape", [(700, 96), (2, 350, 96), (3, 7, 50, 96), (1, 1, 700, 96)])
def test_equals_torch_by_onednn(shape: tuple[int, ...], with_bias: bool) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(40, 96), torch.randn(40)
    assert convolutions(x, weight, bias) == 1
    check(x, weight, bias if with_bias else None)


@ONEDNN
@pytest.mark.usefixtures("one_thread")
def test_single_thread_uses_onednn() -> None:
    x, weight, bias = torch.randn(700, 96), torch.randn(40, 96), torch.randn(40)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear(x, weight, bias)
    assert "aten::mkldnn_convolution" in {event.key for event in profile.key_averages()}
    check(x, weight, bias)


@ONEDNN
def test_takes_any_strides() -> None:
    weight, bias = torch.randn(40, 64), torch.randn(40)
    maps = torch.randn(2, 64, 30, 20)
    images = torch.randn(2, 40, 60, 128)
    for x in (
        maps.flatten(2).transpose(1, 2),
        torch.randn(1, 64, 1200).transpose(1, 2),
        maps.permute(0, 3, 2, 1),
        images[:, 5:35, ::2, ::2],
        torch.randn(64).expand(2, 600, 64),
        maps.to(memory_format=torch.channels_last).permute(0, 2, 3, 1),
    ):
        assert convolutions(x, weight) == 1
        check(x, weight, bias)
        check(x, weight[::2], bias[::2])
    check(torch.randn(1200, 40), weight.T, None)


@ONEDNN
@pytest.mark.parametrize("shape", [(70000, 1), (1, 70000), (65536, 2)])
def test_few_channels_or_rows(shape: tuple[int, int]) -> None:
    x = torch.randn(shape) / shape[1] ** 0.5
    for channels in (1, 3):
        assert convolutions(x, torch.randn(channels, shape[1])) == 1
        check(x, torch.randn(channels, shape[1]), torch.randn(channels))


@pytest.mark.parametrize("shape", [(8,), (0, 8), (3, 0, 8), (1, 8), (4, 5, 8)])
def test_small_inputs_are_left_to_torch(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(5, 8), torch.randn(5)
    assert convolutions(x, weight, bias) == 0
    assert linear(x, weight, bias).equal(F.linear(x, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype: torch.dtype) -> None:
    x, weight = torch.randn(700, 96, dtype=dtype), torch.randn(40, 96, dtype=dtype)
    assert convolutions(x, weight) == 0
    assert linear(x, weight).equal(F.linear(x, weight))


def test_without_output_channels() -> None:
    assert linear(torch.randn(700, 96), torch.randn(0, 96)).shape == (700, 0)


def test_onednn_can_be_switched_off() -> None:
    x, weight = torch.randn(700, 96), torch.randn(40, 96)
    with torch.backends.mkldnn.flags(enabled=False):
        assert convolutions(x, weight) == 0


def test_autocast_computes_in_its_type() -> None:
    x, weight, bias = torch.randn(700, 96), torch.randn(40, 96), torch.randn(40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert actual.dtype == torch.bfloat16
    assert actual.equal(expected)


def test_bad_input_raises_as_in_torch() -> None:
    x, weight = torch.randn(700, 96), torch.randn(40, 95)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(x, weight)
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x, torch.randn(40, 96, dtype=torch.float64))
    with pytest.raises(RuntimeError):
        linear(x, torch.randn(40, 96), torch.randn(41))


@ONEDNN
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_equal_those_of_torch(one_thread: None, threads: int) -> None:
    torch.set_num_threads(threads)
    layer = Linear(96, 40)
    peer = nn.Linear(96, 40)
    peer.load_state_dict(layer.state_dict())
    x = torch.randn(3, 300, 96, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    seed = torch.randn(3, 300, 40)
    with Convolutions() as mode:
        F.relu_(layer(x)).backward(seed)
    assert mode.count == 1
    F.relu_(peer(y)).backward(seed)
    actual, expected = ([v.grad for v in (a, *b.parameters())] for a, b in ((x, layer), (y, peer)))
    assert [a.shape for a in actual] == [e.shape for e in expected]
    # The weights' gradients are sums over 900 rows, in another order.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@ONEDNN
def test_has_second_and_forward_derivatives() -> None:
    x, weight, tangent = torch.randn(700, 96), torch.randn(4, 96), torch.randn(700, 96)
    _, actual = torch.func.jvp(lambda z: linear(z, weight).square(), (x,), (tangent,))
    _, expected = torch.func.jvp(lambda z: F.linear(z, weight).square(), (x,), (tangent,))
    # Products of two sums of 96 terms each, hundreds in size, in another order.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-3)

    def second(function, w: Tensor) -> Tensor:
        w = w.clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(x, w).square().mean(), w, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), w)[0]

    torch.testing.assert_close(second(linear, weight), second(F.linear, weight))


@pytest.mark.parametrize("rows", [3, 700])
def test_compiles_and_exports_to_a_linear_layer(rows: int) -> None:
    layer, x = Linear(96, 40), torch.randn(2, rows, 96)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x), expected)
    free = {"input": {1: torch.export.Dim("rows")}}
    program = torch.export.export(layer, (x,), dynamic_shapes=free)
    assert [n.target for n in program.graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.linear.default
    ]
    x = torch.randn(2, 1000, 96)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_meta_and_fake_tensors_have_the_shape() -> None:
    layer = Linear(96, 40, device="meta")
    assert layer(torch.empty(2, 700, 96, device="meta")).shape == (2, 700, 40)
    with torch._subclasses.FakeTensorMode():
        y = Linear(96, 40)(torch.empty(2, 700, 96))
        with torch.no_grad():
            product = batched_product(torch.empty(2, 5, 8), torch.empty(2, 8, 9))
    assert y.shape == (2, 700, 40)
    assert y.is_contiguous()
    assert product.shape == (2, 5, 9)


def test_layer_is_torchs_layer() -> None:
    layer = Linear(96, 40, bias=False)
    assert isinstance(layer, nn.Linear)
    assert list(layer.state_dict()) == ["weight"]
    x = torch.randn(700, 96)
    torch.testing.assert_close(copy.deepcopy(layer)(x), F.linear(x, layer.weight))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batched_product_equals_torch(batch: int, dtype: torch.dtype) -> None:
    a = torch.randn(batch, 20, 33, dtype=dtype)
    maps = torch.randn(batch, 33, 10, 14, dtype=dtype)
    for b in (maps, maps.to(memory_format=torch.channels_last)):
        with torch.no_grad():
            actual = batched_product(a, b.flatten(2))
            assert batched_product(a[:, :0], b.flatten(2)).shape == (batch, 0, 140)
        torch.testing.assert_close(actual, torch.bmm(a, b.flatten(2)), rtol=1e-5, atol=1e-5)
        assert actual.is_contiguous()


def test_batched_product_has_gradients_and_autocast() -> None:
    a, b = torch.randn(2, 5, 8), torch.randn(2, 8, 9)
    torch.autograd.gradcheck(batched_product, (a.double().requires_grad_(), b.double()))
    a.requires_grad_()
    batched_product(a, b).sum().backward()
    torch.testing.assert_close(a.grad, b.sum(2)[:, None].expand(-1, 5, -1))
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert batched_product(a, b).dtype == torch.bfloat16
        compiled = torch.compile(batched_product, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(a, b), torch.bmm(a, b))
        assert batched_product(a.to("meta"), b.to("meta")).shape == (2, 5, 9)
