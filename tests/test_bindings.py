"""fastseg._C itself: what it takes as a tensor, what it refuses, threads and processes."""

from __future__ import annotations

import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch

from fastseg import _C
from fastseg.ops import roi_align

ARGUMENTS = ([0.5], 2, False, "torchvision", 224.0, 4)


def pool(features: Any, boxes: Any, output: Any) -> None:
    _C.roi_align_forward([features], boxes, output, *ARGUMENTS)


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    features = np.random.rand(2, 3, 8, 9).astype(np.float32)
    boxes = np.array([[0, 1, 1, 9, 7], [1, 0, 2, 12, 14]], np.float32)
    return features, boxes, np.full((2, 3, 4, 4), np.nan, np.float32)


class OnlyDLPack:
    """A tensor of a framework that has nothing but `__dlpack__`."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("wrap", [lambda x: x, torch.from_numpy, OnlyDLPack])
def test_any_framework_gives_the_same_result(arrays: tuple, wrap: Any) -> None:
    features, boxes, output = arrays
    pool(wrap(features), wrap(boxes), wrap(output))
    expected = roi_align(torch.from_numpy(features), torch.from_numpy(boxes), 4, 0.5, 2)
    np.testing.assert_array_equal(output, expected.numpy())


def test_views_are_read_in_place(arrays: tuple) -> None:
    features, boxes, output = arrays
    whole = np.zeros((2, 3, 16, 18), np.float32)
    whole[:, :, ::2, ::-2] = features
    fortran = np.asfortranarray(output)
    pool(whole[:, :, ::2, ::-2], boxes, fortran)
    pool(features, boxes, output)
    np.testing.assert_array_equal(fortran, output)


def test_parameters_and_tensors_that_require_grad_are_read(arrays: tuple) -> None:
    features, boxes, output = arrays
    pool(torch.nn.Parameter(torch.from_numpy(features)), boxes, output)
    assert np.isfinite(output).all()


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("features", lambda x: x.tolist(), TypeError, "features must be a tensor .* got list"),
        ("features", lambda x: None, TypeError, "features must be a tensor .* got NoneType"),
        ("features", lambda x: x.astype(">f4"), TypeError, "unsupported NumPy dtype: >f4"),
        ("features", lambda x: x.astype(complex), TypeError, "unsupported NumPy dtype: complex128"),
        (
            "features",
            lambda x: x[0],
            ValueError,
            r"features must have 4 dim.* got shape \[3, 8, 9\]",
        ),
        (
            "features",
            lambda x: x.astype(np.float64),
            ValueError,
            "features must be float32, got flo",
        ),
        ("boxes", lambda x: x[:, :4], ValueError, r"boxes must have shape \[\*, 5\], got \[2, 4\]"),
        ("boxes", lambda x: x.astype(int), ValueError, "boxes must be float32, got int64"),
        (
            "output",
            lambda x: x[:1],
            ValueError,
            r"output must have shape \[2, 3, \*, \*\], got \[1,",
        ),
    ],
)
def test_bad_arrays_are_named(
    arrays: tuple, name: str, change: Any, error: type[Exception], message: str
) -> None:
    named = dict(zip(("features", "boxes", "output"), arrays, strict=True))
    named[name] = change(named[name])
    with pytest.raises(error, match=message):
        pool(*named.values())


def _pool_in_child(queue: Any, features: torch.Tensor, boxes: torch.Tensor) -> None:
    queue.put(roi_align(features, boxes, 4, 0.5, 2).sum().item())


def test_a_forked_child_does_not_hang(arrays: tuple) -> None:
    # Large enough to run on several threads in the parent, whose pool does not survive fork().
    features = torch.from_numpy(arrays[0])
    boxes = torch.from_numpy(arrays[1]).repeat(200, 1)
    expected = roi_align(features, boxes, 4, 0.5, 2).sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_pool_in_child, args=(queue, features, boxes), daemon=True)
    child.start()
    assert queue.get(timeout=60) == pytest.approx(expected)
    child.join(timeout=60)
    assert child.exitcode == 0


def test_the_number_of_threads_does_not_change_results() -> None:
    features = torch.randn(1, 70, 30, 30)
    boxes = torch.rand(300, 5) * torch.tensor([0, 20, 20, 10, 10])
    boxes[:, 3:] += boxes[:, 1:3]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 4):
        torch.set_num_threads(threads)
        results.append(roi_align(features, boxes, 7, 1.0, 2))
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_build_info() -> None:
    info = _C.build_info()
    assert info["cpu_active"] in info["cpu_variants"].split(";")
    assert info["threads"] >= 1


@pytest.mark.parametrize("value", ["avx9000", "sse"])
def test_an_unknown_instruction_set_is_an_error(value: str, run_python: Any) -> None:
    run = run_python("-c", "from fastseg import _C; _C.build_info()", FASTSEG_CPU=value)
    assert f"FASTSEG_CPU={value} is not available" in run.stderr
