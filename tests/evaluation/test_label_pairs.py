"""Counting pairs of labels against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseg import _C

DTYPES = [np.bool_, np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.int32, np.int64]


def defined(first, second):
    pairs = np.stack([np.ravel(first), np.ravel(second)]).astype(np.int64)
    found, pixels = np.unique(pairs, axis=1, return_counts=True)
    return found[0].tolist(), found[1].tolist(), pixels.tolist()


def counted(first, second):
    result = _C.label_pairs(first, second)
    assert [one.dtype for one in result] == [np.int64] * 3
    return tuple(one.tolist() for one in result)


def label_map(seed: int, height: int, width: int, labels: int, run: int) -> np.ndarray:
    """Runs of about `run` equal labels."""
    random = np.random.default_rng(seed)
    columns = np.sort(random.integers(0, max(width // run, 1), (height, width)), axis=1)
    return random.integers(0, labels, (height, width))[np.arange(height)[:, None], columns]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 12),
    st.integers(0, 200),
    st.sampled_from([1, 2, 30, 3000]),
    st.sampled_from([1, 3, 100]),
)
def test_random_maps(seed, height, width, labels, run):
    first = label_map(seed, height, width, labels, run)
    second = label_map(seed + 1, height, width, labels, run)
    assert counted(first, second) == defined(first, second)


@pytest.mark.parametrize("first_type", DTYPES)
@pytest.mark.parametrize("second_type", DTYPES)
def test_all_types(first_type, second_type):
    maps = []
    for seed, dtype in enumerate((first_type, second_type)):
        low, high = (0, 1) if dtype == np.bool_ else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        ends = np.array([low, high, 0, 1], dtype=dtype)
        maps.append(ends[label_map(seed, 9, 150, 4, 5)])
    assert counted(*maps) == defined(*maps)


def test_uint64_up_to_2_63():
    labels = np.array([[0, 2**63 - 1]], dtype=np.uint64)
    assert counted(labels, labels) == ([0, 2**63 - 1],) * 2 + ([1, 1],)
    labels[0, 1] += 1
    with pytest.raises(ValueError, match=f"ground_truth must be below 2\\^63, got {2**63}"):
        _C.label_pairs(labels, np.zeros((1, 2), dtype=np.int8))


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 66, 128, 129, 200])
def test_colours_are_ids(width):
    random = np.random.default_rng(width)
    colours = random.choice([0, 1, 255], (7, width, 3), p=[0.9, 0.05, 0.05]).astype(np.uint8)
    ids = colours[..., 0] + 256 * colours[..., 1].astype(int) + 65536 * colours[..., 2].astype(int)
    other = label_map(0, 7, width, 3, 20)
    assert counted(colours, other) == defined(ids, other)
    assert counted(other, colours) == defined(other, ids)
    assert counted(colours, colours) == defined(ids, ids)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[::-1, ::-1],
        lambda a: a[::2, 3:-2],
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: np.broadcast_to(a[:, :1], a.shape),
    ],
)
def test_any_strides(view):
    first, second = view(label_map(0, 80, 80, 5, 9)), view(label_map(1, 80, 80, 5, 9))
    assert counted(first, second) == defined(first, second)
    colours = np.stack([first, second, first], axis=2).astype(np.uint8)
    ids = first + 256 * second + 65536 * first
    for order in (np.asfortranarray(colours), np.flip(np.flip(colours, 2).copy(), 2)):
        assert counted(order, second) == defined(ids, second)


def test_tensors_of_torch():
    first, second = label_map(0, 20, 100, 5, 9), label_map(1, 20, 100, 5, 9)
    assert counted(torch.from_numpy(first), torch.from_numpy(second)) == defined(first, second)


@pytest.mark.parametrize("size", [(2, 1 << 20), (1 << 20, 2), (2000, 3000)])
def test_large_maps_are_shared_by_threads(size):
    random = np.random.default_rng(0)
    first = random.integers(0, 40, size, dtype=np.uint8)
    second = random.integers(0, 50, size, dtype=np.uint16)
    pixels = np.bincount((first.astype(np.int64) * 50 + second).ravel(), minlength=2000)
    found = _C.label_pairs(first, second)
    assert np.array_equal(found[0] * 50 + found[1], np.arange(2000))
    assert np.array_equal(found[2], pixels)


def test_as_many_pairs_as_pixels():
    first = np.arange(300 * 300).reshape(300, 300)
    assert counted(first, -first) == defined(first, -first)


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_no_pixels(size):
    assert counted(np.zeros(size, dtype=int), np.zeros(size, dtype=int)) == ([], [], [])


@pytest.mark.parametrize(
    ("first", "second", "error", "text"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), int), TypeError, "ground_truth must be integer"),
        (np.zeros((2, 3), int), np.zeros((2, 3), np.float32), TypeError, "prediction .* float32"),
        (np.zeros((2, 3), int), np.zeros((3, 2), int), ValueError, r"\[2, 3\] and \[3, 2\]"),
        (np.zeros(3, int), np.zeros(3, int), ValueError, r"shape \[H, W\].* got \[3\]"),
        (np.zeros((2, 3, 3), int), np.zeros((2, 3), int), ValueError, r"\[H, W, 3\] uint8"),
        (np.zeros((2, 3, 4), np.uint8), np.zeros((2, 3), int), ValueError, r"\[2, 3, 4\] uint8"),
        ([[1]], np.zeros((1, 1), int), TypeError, "ground_truth must be a tensor"),
    ],
)
def test_bad_input(first, second, error, text):
    with pytest.raises(error, match=text):
        _C.label_pairs(first, second)


def test_every_cpu_variant(run_on_cpu_variant):
    run_on_cpu_variant(__file__, "all_types or colours or strides")
