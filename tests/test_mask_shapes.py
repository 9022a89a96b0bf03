"""What fastseg.mask does with shapes against the same on pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseg import mask, reference

EXPECTED = json.loads((Path(__file__).parent / "data" / "ops_rle.json").read_text())
GOLDEN = [case["rle"] for case in EXPECTED["masks"].values()]


@st.composite
def rles(draw: st.DrawFn) -> dict[str, Any]:
    """A mask of up to 40 x 40: noise, or coarse squares, some of whose edges meet at corners."""
    height, width = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    square = draw(st.sampled_from([1, 3, 8, 20]))
    coarse = generator.random((height // square + 1, width // square + 1))
    pixels = coarse < draw(st.sampled_from([0.05, 0.5, 0.9, 1]))
    return mask.encode(np.kron(pixels, np.ones((square, square), bool))[:height, :width])


def test_golden_boundary() -> None:
    for dilation in (1, 2, 9):
        expected = [reference.mask.boundary(rle, dilation=dilation) for rle in GOLDEN]
        assert mask.boundary(GOLDEN, dilation=dilation) == expected
    assert mask.boundary(GOLDEN) == [reference.mask.boundary(rle) for rle in GOLDEN]


@settings(deadline=None, max_examples=150)
@given(rle=rles(), dilation=st.integers(1, 24), ratio=st.sampled_from([0, 0.02, 0.1, 0.5]))
def test_boundary(rle: dict[str, Any], dilation: int, ratio: float) -> None:
    expected = reference.mask.boundary(rle, dilation=dilation)
    assert mask.boundary(rle, dilation=dilation) == expected
    assert mask.boundary(rle, ratio) == reference.mask.boundary(rle, ratio)


def test_boundary_of_a_square() -> None:
    pixels = np.zeros((20, 30), np.uint8)
    pixels[2:13, 5:20] = 1
    expected = pixels.copy()
    expected[5:10, 8:17] = 0
    rle = mask.encode(pixels)
    assert mask.boundary(rle, dilation=3) == mask.encode(expected)
    assert mask.boundary([rle], dilation_ratio=3 / np.hypot(20, 30)) == [mask.encode(expected)]
    assert mask.boundary(rle, dilation=6) == rle
    assert mask.boundary(rle, dilation=2**32 - 1) == rle
    assert mask.boundary([]) == []


@pytest.mark.parametrize(
    ("ratio", "dilation"), [(0.0249, 2), (0.025, 2), (0.0251, 3), (0.015, 2), (0.004, 1), (0, 1)]
)
def test_dilation_of_a_ratio(ratio: float, dilation: int) -> None:
    """Half a pixel goes to the even number, as Python's round does."""
    rle = mask.encode(np.ones((60, 80), bool))  # the diagonal is 100
    assert mask.boundary(rle, ratio) == mask.boundary(rle, dilation=dilation)


def test_boundary_refuses() -> None:
    rle = mask.encode(np.ones((4, 5), bool))
    for dilation in (0, -3, 2**32):
        with pytest.raises(ValueError, match=f"dilation must be .* got {dilation}"):
            mask.boundary(rle, dilation=dilation)
    for ratio in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="dilation_ratio must be from 0 to 1"):
            mask.boundary(rle, ratio)
    with pytest.raises(ValueError, match=r"rles\[1\]: counts sum to 5, but size"):
        mask.boundary([rle, {"size": [4, 5], "counts": [5]}])
