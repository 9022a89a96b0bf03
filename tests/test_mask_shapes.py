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


sides = st.integers(-50, 50)


@settings(deadline=None, max_examples=150)
@given(rle=rles(), left=sides, top=sides, width=st.integers(0, 60), height=st.integers(0, 60))
def test_crop(rle: dict[str, Any], left: int, top: int, width: int, height: int) -> None:
    box = [left, top, width, height]
    expected = reference.mask.crop(rle, box)
    assert mask.crop(rle, box) == expected
    assert mask.crop([rle, rle], np.array([box, [0, 0, *rle["size"][::-1]]], float)) == [
        expected,
        rle,
    ]


def test_crop_to_the_bounding_box() -> None:
    for rle in GOLDEN:
        box = mask.toBbox(rle).astype(int)
        cut = mask.crop(rle, box)
        assert cut["size"] == [box[3], box[2]]
        assert mask.area(cut) == mask.area(rle)
        back = mask.crop(cut, [-box[0], -box[1], rle["size"][1], rle["size"][0]])
        assert back["counts"].decode() == rle["counts"]


@pytest.mark.parametrize(
    ("boxes", "error", "message"),
    [
        ([0, 0, 2.5, 1], ValueError, "boxes must be whole numbers of pixels"),
        ([0, 0, float("nan"), 1], ValueError, "boxes must be whole numbers of pixels"),
        ([0, 0, float("inf"), 1], ValueError, "boxes must be whole numbers of pixels"),
        ([[0, 0, 1, 1]] * 3, ValueError, r"boxes must be \[4\] or \[1, 4\], got shape \[3, 4\]"),
        ([0, 0, 1], ValueError, r"boxes must be \[4\] or \[1, 4\], got shape \[3\]"),
        (["a", "b", "c", "d"], TypeError, "boxes must be numbers"),
        ([0, 0, -1, 5], ValueError, r"boxes\[0\] must be of fewer than 2\^32 pixels, got width -1"),
        ([0, 0, 2**16, 2**16], ValueError, r"boxes\[0\] must be of fewer than 2\^32 pixels"),
        ([-(2**40), 0, 1, 1], ValueError, r"boxes\[0\] must begin less than 2\^32 pixels"),
    ],
)
def test_crop_refuses(boxes: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        mask.crop(mask.encode(np.ones((4, 5), bool)), boxes)


@settings(deadline=None, max_examples=150)
@given(rle=rles(), height=st.integers(0, 90), width=st.integers(0, 90))
def test_resize(rle: dict[str, Any], height: int, width: int) -> None:
    expected = reference.mask.resize(rle, (height, width))
    assert mask.resize(rle, (height, width)) == expected
    assert mask.resize([rle], np.array([height, width])) == [expected]


def test_resize_by_whole_factors() -> None:
    for rle in GOLDEN:
        height, width = rle["size"]
        large = mask.resize(rle, (3 * height, 5 * width))
        assert mask.area(large) == 15 * mask.area(rle)
        assert mask.resize(large, rle["size"])["counts"].decode() == rle["counts"]


def test_resize_to_the_limits() -> None:
    rle = mask.encode(np.array([[0, 1, 0], [1, 1, 0]], np.uint8))
    tall = mask.resize(rle, (2**30, 3))
    assert mask.toBbox(tall).tolist() == [0, 0, 2, 2**30]
    assert mask.area(tall) == 3 * 2**29
    assert mask.resize(tall, (2, 3)) == rle
    assert mask.area(mask.resize(rle, (2, 3 * 2**22))) == 3 * 2**22
    for size in ((2**31, 1), (1, 2**24 + 1), (-1, 5), (2**20, 2**20)):
        with pytest.raises(ValueError, match="size must be of fewer than"):
            mask.resize(rle, size)
    with pytest.raises(TypeError):
        mask.resize(rle, (2.5, 3))


@settings(deadline=None, max_examples=100)
@given(rle=rles())
def test_flip(rle: dict[str, Any]) -> None:
    for direction in ("horizontal", "vertical"):
        flipped = mask.flip(rle, direction)
        assert flipped == reference.mask.flip(rle, direction)
        assert mask.flip([flipped], direction) == [rle]


@settings(deadline=None, max_examples=100)
@given(rle=rles(), other=rles())
def test_complement_and_subtract(rle: dict[str, Any], other: dict[str, Any]) -> None:
    assert mask.complement(rle) == reference.mask.complement(rle)
    assert mask.complement(mask.complement([rle])) == [rle]
    other = mask.resize(other, rle["size"])
    difference = mask.subtract(rle, other)
    assert difference == reference.mask.subtract(rle, other)
    assert mask.subtract([rle], [other]) == [difference]
    assert mask.merge([rle, mask.complement(other)], intersect=True) == difference


@settings(deadline=None, max_examples=100)
@given(rle=rles(), connectivity=st.sampled_from([4, 8]), min_area=st.integers(0, 9))
def test_connected_components(rle: dict[str, Any], connectivity: int, min_area: int) -> None:
    regions = mask.connected_components(rle, connectivity)
    assert regions == reference.mask.connected_components(rle, connectivity)
    assert sum(int(mask.area(region)) for region in regions) == mask.area(rle)
    if regions:
        assert mask.merge(regions) == rle
    large = [region for region in regions if mask.area(region) >= min_area]
    assert mask.connected_components([rle, rle], connectivity, min_area) == [large, large]


@settings(deadline=None, max_examples=100)
@given(rle=rles(), min_area=st.integers(0, 30))
def test_remove_small_regions(rle: dict[str, Any], min_area: int) -> None:
    for mode in ("holes", "islands"):
        cleaned = mask.remove_small_regions(rle, min_area, mode)
        assert cleaned == reference.mask.remove_small_regions(rle, min_area, mode)
        assert mask.remove_small_regions([cleaned], min_area, mode) == [cleaned]


@settings(deadline=None, max_examples=200)
@given(rle=rles())
def test_polygons_are_the_mask(rle: dict[str, Any]) -> None:
    height, width = rle["size"]
    polygons = mask.to_polygons(rle)
    if not polygons:
        assert mask.area(rle) == 0 and mask.to_polygons([rle], join_holes=False) == [[]]
        return
    parts = mask.frPyObjects(polygons, height, width)
    assert parts == mask.connected_components(rle, connectivity=4)
    assert mask.merge(parts) == rle
    assert reference.mask.fill(polygons, height, width) == rle
    regions = mask.to_polygons([rle], join_holes=False)[0]
    assert [reference.mask.fill(rings, height, width) for rings in regions] == parts
    for rings in regions:
        outer, *holes = (_signed_area(ring) for ring in rings)
        assert outer > 0 and all(hole < 0 for hole in holes)
        inside = reference.mask.fill(rings[:1], height, width)
        assert mask.area(inside) == outer
        for ring, hole in zip(rings[1:], holes, strict=True):
            assert mask.area(mask.frPyObjects(ring, height, width)) == -hole
            assert mask.merge([inside, mask.frPyObjects(ring, height, width)]) == inside


def _signed_area(ring: list[int]) -> float:
    """Of a polygon; positive when it is clockwise on screen, where y points down."""
    corners = np.array(ring).reshape(-1, 2)
    x, y = corners.T
    next_x, next_y = np.roll(corners, -1, axis=0).T
    return float((x * next_y - next_x * y).sum()) / 2


def test_polygons_of_a_frame() -> None:
    pixels = np.zeros((8, 9), bool)
    pixels[1:7, 2:8] = True
    pixels[3:5, 4:6] = False
    rle = mask.encode(pixels)
    outer, hole = [8, 1, 8, 7, 2, 7, 2, 1], [4, 3, 4, 5, 6, 5, 6, 3]
    assert mask.to_polygons(rle, join_holes=False) == [[outer, hole]]
    assert mask.to_polygons(rle) == [[4, 1, *hole, 4, 3, 4, 1, *outer]]


def test_polygons_at_a_corner_that_two_pixels_share() -> None:
    """Two regions, though one by eight neighbours."""
    rle = mask.encode(np.eye(2, dtype=bool))
    assert mask.to_polygons(rle) == [[1, 0, 1, 1, 0, 1, 0, 0], [2, 1, 2, 2, 1, 2, 1, 1]]
    assert len(mask.connected_components(rle)) == 1


def test_runs_of_length_zero_change_nothing() -> None:
    for case in EXPECTED["noncanonical"]:
        plain = {**case["rle"], "counts": case["re_encoded"]["counts"]}
        for function in FUNCTIONS:
            assert function(case["rle"]) == function(plain)


def test_refusals() -> None:
    rle = mask.encode(np.ones((4, 5), bool))
    short, wide = {"size": [4, 5], "counts": [5]}, {"size": [1, 2**24 + 1], "counts": [2**24 + 1]}
    for function in FUNCTIONS:
        with pytest.raises(ValueError, match="counts sum to 5, but size"):
            function(short)
        if function not in (mask.complement, _subtract_nothing):
            with pytest.raises(ValueError, match=r"rles\[0\] must have at most 2\^24 columns"):
                function(wide)
        with pytest.raises(TypeError, match="must be a dict"):
            function([b"1"])
        assert function([]) == []
    with pytest.raises(ValueError, match=r"direction must be .* got 'up'"):
        mask.flip(rle, "up")
    with pytest.raises(ValueError, match="connectivity must be 4 or 8, got 6"):
        mask.connected_components(rle, 6)
    with pytest.raises(ValueError, match=r"mode must be .* got 'dust'"):
        mask.remove_small_regions(rle, 5, "dust")
    with pytest.raises(ValueError, match="others must be as many as rles, 2, got 1"):
        mask.subtract([rle, rle], [rle])
    with pytest.raises(ValueError, match=r"others\[0\] must have the size of rles\[0\], \[4, 5\]"):
        mask.subtract(rle, mask.flip(mask.resize(rle, (5, 4)), "vertical"))


def _subtract_nothing(rles: Any) -> Any:
    return mask.subtract(rles, rles)


def _half(rles: Any) -> Any:
    return mask.resize(rles, (2, 2))


def _cut(rles: Any) -> Any:
    return mask.crop(rles, [1, 1, 2, 3])


def _mirror(rles: Any) -> Any:
    return mask.flip(rles, "horizontal")


def _fill(rles: Any) -> Any:
    return mask.remove_small_regions(rles, 3, "holes")


FUNCTIONS = (
    mask.boundary,
    mask.complement,
    mask.connected_components,
    mask.to_polygons,
    _subtract_nothing,
    _half,
    _cut,
    _mirror,
    _fill,
)


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
