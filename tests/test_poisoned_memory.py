"""The poison of conftest.py reaches fastseg's allocations."""

import types

import numpy as np
import pytest
import torch


def called_from(module_name: str, source: str):
    """Evaluates an expression as code of the module named."""
    namespace = {"__name__": module_name, "torch": torch, "np": np, "x": torch.ones(4)}
    return types.FunctionType(compile(source, module_name, "eval"), namespace)()


ALLOCATIONS = [
    "torch.empty(4)",
    "torch.empty_like(x, dtype=torch.bfloat16)",
    "torch.empty_strided((4,), (1,))",
    "x.new_empty(4)",
    "np.empty(4)",
    "np.empty_like(x.numpy())",
]


@pytest.mark.parametrize("source", ALLOCATIONS)
def test_floats_of_fastseg_are_nan(source):
    memory = torch.as_tensor(called_from("fastseg.ops.anything", source))
    assert memory.isnan().all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_integers_of_fastseg_are_the_largest(dtype):
    memory = called_from("fastseg", f"torch.empty(4, dtype={dtype})")
    assert (memory == torch.iinfo(dtype).max).all()


def test_fake_tensors_are_left_alone():
    with torch._subclasses.FakeTensorMode():
        assert called_from("fastseg.ops", "torch.empty(4)").shape == (4,)


def test_code_that_allocates_still_compiles():
    namespace = {"__name__": "fastseg.ops.anything", "torch": torch}
    exec("def double(x):\n    y = torch.empty_like(x)\n    y.copy_(x * 2)\n    return y", namespace)
    compiled = torch.compile(namespace["double"], fullgraph=True, backend="eager")
    assert (compiled(torch.ones(3)) == 2).all()
