"""fastseg.mask.frPyObjects against pycocotools, byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as peer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastseg import mask

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "ops_rle.json").read_text())
REAL = json.loads((DATA / "real_masks.json").read_text())
SIZE = EXPECTED["polygons_size"]
SQUARE = [1.0, 1.0, 5.0, 1.0, 5.0, 4.0, 1.0, 4.0]


def text(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.mark.parametrize("name", sorted(EXPECTED["polygons"]))
def test_golden_polygons(name: str) -> None:
    case = EXPECTED["polygons"][name]
    parts = mask.frPyObjects(case["poly"], *SIZE)
    assert [text(part) for part in parts] == case["parts"]
    merged = mask.merge(parts)
    assert text(merged) == case["merged"]
    assert mask.area(merged) == case["area"] and mask.toBbox(merged).tolist() == case["bbox"]


def test_golden_boxes() -> None:
    boxes = np.array([case["xywh"] for case in EXPECTED["boxes"]])
    rles = mask.frPyObjects(boxes, *SIZE)
    assert [text(rle) for rle in rles] == [case["rle"] for case in EXPECTED["boxes"]]
    assert mask.area(rles).tolist() == [case["area"] for case in EXPECTED["boxes"]]


def test_real_annotations() -> None:
    """Polygons of COCO, and crowds as uncompressed RLEs."""
    for item in REAL["objects"]:
        ours = mask.frPyObjects(item["segmentation"], *item["size"])
        assert ours == peer.frPyObjects(item["segmentation"], *item["size"])
        if isinstance(ours, list):
            assert mask.merge(ours) == peer.merge(ours)


def test_many_polygons_in_parallel() -> None:
    polygons = [
        polygon
        for item in REAL["objects"]
        if isinstance(item["segmentation"], list)
        for polygon in item["segmentation"]
    ]
    for height, width in ((480, 640), (33, 1000), (1, 1)):
        ours = mask.frPyObjects(polygons, height, width)
        assert ours == peer.frPyObjects(polygons, height, width)


coordinates = st.one_of(
    st.floats(-60, 90),
    st.integers(-15, 60).map(float),
    st.integers(-60, 240).map(lambda x: x / 5 + 0.1),  # halfway between two points of the grid
    st.sampled_from([0.0, -0.0, 1e-300, -1e-9, 0.3999999999999999, 2.5, 1e4, -1e4]),
)
points = st.tuples(coordinates, coordinates)


@st.composite
def polygons(draw: st.DrawFn) -> list[float]:
    """Any, some with corners that repeat or lie on one line."""
    corners = draw(st.lists(points, min_size=3, max_size=9))
    order = draw(st.lists(st.integers(0, len(corners) - 1), min_size=3, max_size=12))
    if draw(st.booleans()):
        corners = [corners[index] for index in order]
    if draw(st.integers(0, 7)) == 0:
        corners = [(corners[0][0], y) for _, y in corners]
    return [float(side) for corner in corners for side in corner]


@settings(deadline=None, max_examples=2000)
@given(polygon=polygons(), height=st.integers(1, 70), width=st.integers(1, 70))
def test_polygons_as_the_peer(polygon: list[float], height: int, width: int) -> None:
    expected = peer.frPyObjects([polygon], height, width)
    assert mask.frPyObjects([polygon], height, width) == expected
    assert mask.frPyObjects(polygon, height, width) == expected[0]
    assert mask.frPyObjects([np.array(polygon)], height, width) == expected


@settings(deadline=None, max_examples=500)
@given(
    boxes=st.lists(st.lists(coordinates, min_size=4, max_size=4), min_size=1, max_size=3),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
)
def test_boxes_as_the_peer(boxes: list[list[float]], height: int, width: int) -> None:
    expected = peer.frPyObjects(np.array(boxes), height, width)
    assert mask.frPyObjects(np.array(boxes), height, width) == expected
    assert mask.frPyObjects(boxes, height, width) == expected
    assert mask.frPyObjects(boxes[0], height, width) == expected[0]


@settings(deadline=None, max_examples=200)
@given(counts=st.lists(st.integers(0, 300), min_size=1, max_size=12), more=st.integers(0, 50))
def test_uncompressed_as_the_peer(counts: list[int], more: int) -> None:
    """Runs of length 0 stay, and counts may stop early."""
    rle = {"size": [1, sum(counts) + more], "counts": counts}
    expected = peer.frPyObjects(rle, 3, 3)
    assert mask.frPyObjects(rle, 3, 3) == expected
    assert mask.frPyObjects([rle], 3, 3) == [expected]
    assert mask.frPyObjects([{**rle, "counts": np.array(counts), "id": 1, "score": 2}], 3, 3) == [
        expected
    ]
    assert mask.frPyObjects(expected, 3, 3) == expected  # the peer takes no compressed ones


def test_polygons_far_outside_cost_nothing() -> None:
    """Where 32 bits end, so does what the peer can do; it walks there point by point."""
    far = 429_496_728.0
    everything = [-far, -far, far, -far, far, far, -far, far]
    assert mask.frPyObjects(everything, 30, 40) == mask.encode(np.ones((30, 40), bool))
    upper_left = mask.decode(mask.frPyObjects([-far, -far, far, -far, -far, far], 30, 40))
    y, x = np.mgrid[:30, :40]
    assert upper_left[x + y < -2].all() and not upper_left[x + y > 2].any()
    assert mask.area(mask.frPyObjects([[far, 0, far, 9, far - 1, 9, 0, far]], 30, 40)) == [0]


def test_large_images() -> None:
    """Positions from 2^31 on."""
    height, width = 65535, 65537
    corner = [width - 4.0, height - 3.0, width, height - 3.0, width, height, width - 4.0, height]
    rle = mask.frPyObjects(corner, height, width)
    assert mask.area(rle) == 12
    assert mask.toBbox(rle).tolist() == [width - 4, height - 3, 4, 3]


def test_shapes_of_the_argument() -> None:
    one = mask.frPyObjects([SQUARE], 6, 8)[0]
    assert mask.decode(one)[1:4, 1:5].all() and mask.area(one) == 12
    for same in (SQUARE, [1, 1, 5, 1, 5, 4, 1, 4], tuple(SQUARE)):
        assert mask.frPyObjects(same, 6, 8) == one
        assert mask.frPyObjects((same, same), 6, 8) == [one, one]
    box = [1, 1, 4, 3]
    for boxes in ([box], np.array([box]), np.array([box], np.float32), [tuple(box)]):
        assert mask.frPyObjects(boxes, 6, 8) == [one]
    assert mask.frPyObjects(box, 6.0, np.int32(8)) == one
    assert mask.frPyObjects([], 6, 8) == mask.frPyObjects(np.zeros((0, 4)), 6, 8) == []
    empty = {"size": [6, 8], "counts": b"`1"}
    assert mask.frPyObjects([SQUARE, [1, 1, 5, 1], [1, 1], []], 6, 8) == [one, *3 * [empty]]
    for size in ((0, 8), (6, 0), (0, 0)):
        assert mask.frPyObjects(SQUARE, *size) == {"size": list(size), "counts": b"0"}


@pytest.mark.parametrize(
    ("pyobj", "error", "message"),
    [
        ([[*SQUARE, 2.0]], ValueError, r"polygons\[0\] must have an even number of coordinates"),
        ([SQUARE, [1.0, float("nan")]], ValueError, r"polygons\[1\] .* 429496728 of 0, got nan"),
        ([SQUARE, [float("-inf"), 1.0]], ValueError, r"polygons\[1\] .* 429496728 of 0, got -inf"),
        ([SQUARE, [1.0, 429496729.0]], ValueError, r"polygons\[1\] .* 429496728 of 0, got 4.29"),
        ([SQUARE, [1.0, 10**400]], ValueError, r"polygons\[1\] .* 429496728 of 0, got inf"),
        ([SQUARE, ["a", 1.0]], TypeError, r"polygons\[1\] must hold numbers, got str at 0"),
        ([SQUARE, np.array(["a", "b"])], TypeError, r"polygons\[1\] must hold numbers"),
        ([SQUARE, np.zeros((3, 2))], ValueError, r"polygons\[1\] must be .* in one dimension"),
        ([SQUARE, 5], TypeError, r"polygons\[1\] must be a list of numbers .* got int"),
        ([[1, 2]], ValueError, r"pyobj\[0\] must have four numbers or more, got 2"),
        ([[0, 0, 1, 1], SQUARE], ValueError, "inhomogeneous"),
        (np.zeros((2, 5)), ValueError, r"pyobj must be boxes \[\*, 4\], got shape \[2, 5\]"),
        (np.zeros(4), ValueError, r"pyobj must be boxes \[\*, 4\], got shape \[4\]"),
        (np.full((1, 4), np.nan), ValueError, r"boxes\[0\] must have its sides within"),
        (np.full((1, 4), 3e8), ValueError, r"boxes\[0\] must have its sides .* got one at 6e"),
        ([{"size": [2, 2], "counts": [5]}], ValueError, r"rles\[0\]: counts sum to 5"),
        ([{"size": [2, 2]}], ValueError, r"rles\[0\] must have the keys"),
        ("SQUARE", TypeError, "pyobj must be a list, an array or a dict, got str"),
        (None, TypeError, "pyobj must be a list, an array or a dict, got NoneType"),
    ],
)
def test_refuses(pyobj: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        mask.frPyObjects(pyobj, 6, 8)


@pytest.mark.parametrize("size", [(-1, 4), (4, -1), (2**16, 2**16), (2**62, 2**62)])
def test_refuses_sizes(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"masks must be of fewer than 2\^32 pixels"):
        mask.frPyObjects([SQUARE], *size)
    with pytest.raises(ValueError, match=r"masks must have at most 2\^24 columns"):
        mask.frPyObjects([SQUARE], 1, 2**24 + 1)
