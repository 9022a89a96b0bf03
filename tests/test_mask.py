"""fastseg.mask against pycocotools.mask: same values, same types."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as peer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from fastseg import mask

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "ops_rle.json").read_text())
IOUS = load_file(DATA / "ops_rle.safetensors")
REAL = json.loads((DATA / "real_masks.json").read_text())
CASES = [*EXPECTED["masks"].values(), *EXPECTED["huge"].values(), *EXPECTED["noncanonical"]]
RLES = [case["rle"] for case in EXPECTED["masks"].values() if case["rle"]["size"] == [37, 53]]


def same(ours: Any, theirs: Any) -> None:
    """Equal values, types, shapes and memory order."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.flags.f_contiguous == theirs.flags.f_contiguous
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("case", CASES)
def test_golden_area_and_bbox(case: dict[str, Any]) -> None:
    assert mask.area(case["rle"]) == case["area"]
    assert mask.toBbox(case["rle"]).tolist() == case["bbox"]
    uncompressed = {"size": case["rle"]["size"], "counts": case.get("counts", [])}
    if uncompressed["counts"]:
        assert mask.area(uncompressed) == case["area"]
        assert mask.toBbox(uncompressed).tolist() == case["bbox"]


@pytest.mark.parametrize("name", ["decode", "area", "toBbox"])
def test_types_are_the_peers(name: str) -> None:
    ours, theirs = getattr(mask, name), getattr(peer, name)
    same(ours(RLES), theirs(RLES))
    same(ours(RLES[:1]), theirs(RLES[:1]))
    same(ours(RLES[3]), theirs(RLES[3]))
    if name != "decode":  # the peer gives an array of random size here
        same(ours([]), theirs([]))


def test_area_of_more_masks_than_the_peer_takes() -> None:
    one_by_one = [peer.area(rle) for rle in RLES]
    same(mask.area(30 * RLES), np.array(30 * one_by_one))


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_encode_as_the_peer(dtype: type) -> None:
    masks = np.asfortranarray(peer.decode(RLES).astype(dtype))
    ours, theirs = mask.encode(masks), peer.encode(masks)
    same(ours, theirs)
    one = mask.encode(masks[:, :, 5])
    assert one == peer.encode(masks[:, :, 5]) == ours[5]
    assert [type(value) for value in one.values()] == [list, bytes]
    same(mask.encode(masks[:, :, :0]), peer.encode(masks[:, :, :0]))


def test_encode_takes_what_the_peer_refuses_or_gets_wrong() -> None:
    masks = peer.decode(RLES)
    expected = peer.encode(masks)
    assert mask.encode(np.ascontiguousarray(masks)) == expected
    assert mask.encode(masks.astype(np.int64)) == expected
    assert mask.encode(masks * np.uint8(255)) == expected
    assert mask.encode(masks[::-1, :, ::2])[1] == mask.encode(masks[::-1, :, 2].copy())
    assert mask.area(mask.encode(np.array([[0, 2], [255, 1]], np.uint8))) == 3


@pytest.mark.parametrize("size", [(0, 7), (5, 0), (1, 1), (1, 9), (9, 1)])
def test_small_masks(size: tuple[int, int]) -> None:
    for value in (0, 1):
        pixels = np.full(size, value, np.uint8, order="F")
        rle = peer.encode(pixels)
        assert mask.encode(pixels) == rle
        same(mask.decode(rle), pixels)
        same(mask.area(rle), peer.area(rle))
        same(mask.toBbox(rle), peer.toBbox(rle))


def test_counts_that_stop_early() -> None:
    """The peer leaves the rest of the mask uninitialised; area and box need no rest."""
    rle = {"size": [4, 5], "counts": b"34"}
    with pytest.raises(ValueError, match="counts sum to 7, but size"):
        mask.decode(rle)
    same(mask.area(rle), peer.area(rle))
    same(mask.toBbox(rle), peer.toBbox(rle))


def test_only_runs_of_length_zero_are_an_empty_mask() -> None:
    """The peer's box wraps around to 4294967293 pixels here."""
    assert mask.toBbox({"size": [4, 4], "counts": [2, 0, 14, 0]}).tolist() == [0, 0, 0, 0]


def named(names: list[str]) -> list[dict[str, Any]]:
    return [EXPECTED["masks"][name]["rle"] for name in names]


def as_bytes(rle: dict[str, Any]) -> dict[str, Any]:
    return {"size": rle["size"], "counts": rle["counts"].encode()}


@pytest.mark.parametrize(
    ("name", "crowd"), [("none", lambda i: 0), ("all", lambda i: 1), ("mixed", lambda i: i % 2)]
)
def test_golden_iou(name: str, crowd: Callable[[int], int]) -> None:
    rles = named(EXPECTED["iou_order"])
    ious = mask.iou(rles, rles, [crowd(i) for i in range(len(rles))])
    assert np.array_equal(ious, IOUS[f"out/iou_rle_{name}"])


def test_golden_iou_of_long_runs_and_of_runs_of_length_zero() -> None:
    rles = [EXPECTED["huge"][f"{name}_4000x3000"]["rle"] for name in ("zeros", "ones")]
    assert mask.iou(rles[1:], rles[1:], [0]).tolist() == [[1]]
    assert mask.iou(rles, rles[::-1], [0, 0]).tolist() == EXPECTED["huge_merge"]["iou"]
    for case in EXPECTED["noncanonical"]:
        other = {"size": case["rle"]["size"], "counts": [4, 9, 17]}
        assert mask.iou([case["rle"]], [other], [0]).tolist() == case["iou_with_4_9_17"]


@pytest.mark.parametrize(("name", "every"), [("none", 10**9), ("mixed", 3)])
def test_golden_iou_of_boxes(name: str, every: int) -> None:
    boxes = IOUS["in/boxes_xywh"]
    crowd = [i % every == 0 and name == "mixed" for i in range(len(boxes))]
    assert np.array_equal(mask.iou(boxes, boxes, crowd), IOUS[f"out/iou_box_{name}"])


@pytest.mark.parametrize("image", REAL["images"], ids=lambda image: str(image["size"]))
def test_real_masks(image: dict[str, Any]) -> None:
    dt, gt = (
        [{"size": image["size"], "counts": counts} for counts in image[side]]
        for side in ("dt", "gt")
    )
    crowd = [index % 3 == 0 for index in range(len(gt))]
    same(mask.iou(dt, gt, crowd), peer.iou(dt, gt, crowd))
    for name in ("area", "toBbox", "decode"):
        same(getattr(mask, name)(dt), getattr(peer, name)(dt))
    for intersect in (False, True):
        for some in (dt, dt[:2], dt[:1], [dt[0], gt[0]]):
            assert mask.merge(some, intersect) == peer.merge(some, intersect)
    assert mask.encode(mask.decode(dt)) == [as_bytes(rle) for rle in dt]


@st.composite
def lists_of_rles(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Masks of one size, a few runs each."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    toggles = st.sets(st.integers(0, height * width - 1), max_size=12)
    masks = []
    for changes in draw(st.lists(toggles, min_size=1, max_size=6)):
        counts = np.diff([0, *sorted(changes), height * width]).tolist()
        masks += mask.frPyObjects([{"size": [height, width], "counts": counts}], 0, 0)
    return masks


@settings(deadline=None, max_examples=300)
@given(dt=lists_of_rles(), gt=lists_of_rles(), crowd=st.integers(0, 63), data=st.data())
def test_iou_as_the_peer(
    dt: list[dict[str, Any]], gt: list[dict[str, Any]], crowd: int, data: st.DataObject
) -> None:
    """Lists of unlike sizes too: -1 where the boxes overlap."""
    more = data.draw(st.sampled_from([dt, dt + gt, gt]))
    flags = [crowd >> index & 1 for index in range(len(gt))]
    same(mask.iou(more, gt, flags), peer.iou(more, gt, flags))


numbers = st.one_of(st.floats(allow_subnormal=False), st.integers(-3, 9).map(float))
boxes = st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=5)


@settings(deadline=None, max_examples=300)
@given(dt=boxes, gt=boxes, crowd=st.integers(0, 31))
def test_iou_of_boxes_as_the_peer(dt: Any, gt: Any, crowd: int) -> None:
    """NaN and infinite sides too."""
    flags = [crowd >> index & 1 for index in range(len(gt))]
    expected = peer.iou(dt, gt, flags)
    for ours in (mask.iou(dt, gt, flags), mask.iou(np.array(dt), gt, np.array(flags, bool))):
        assert ours.flags.f_contiguous and np.array_equal(ours, expected, equal_nan=True)


def test_iou_types() -> None:
    boxes = [[0, 0, 4, 4], [1, 1, 4, 4]]
    same(mask.iou(boxes, boxes, [0, 1]), peer.iou(boxes, boxes, [0, 1]))
    same(mask.iou([np.array(boxes[0])], boxes, [0, 1]), peer.iou(boxes[:1], boxes, [0, 1]))
    assert np.array_equal(
        mask.iou(np.array(boxes, np.float32), boxes, (0, 0)), [[1, 9 / 23], [9 / 23, 1]]
    )
    uncompressed = [{"size": (4, 5), "counts": [2, 3, 15]}, {"size": [4, 5], "counts": "20120K4"}]
    assert mask.iou(uncompressed[:1], uncompressed[:1], [False]).tolist() == [[1]]
    for nothing in ([], np.zeros((0, 4))):
        for dt, gt in ((nothing, boxes), (boxes, nothing), (nothing, nothing), (RLES, nothing)):
            assert mask.iou(dt, gt, [0] * len(gt)) == peer.iou(dt, gt, [0] * len(gt)) == []


def test_iou_refuses() -> None:
    for crowd in ([0], [0, 0, 0], [[0, 0]], 0):
        with pytest.raises(ValueError, match="pyiscrowd must have 2 flags"):
            mask.iou(RLES[:1], RLES[:2], crowd)
    with pytest.raises(TypeError, match="dt and gt must both be RLEs or both be boxes"):
        mask.iou(RLES[:1], [[0, 0, 1, 1]], [0])
    with pytest.raises(TypeError, match="gt must be a list of RLEs or of boxes"):
        mask.iou(RLES[:1], [[0, 0, 1, 1], RLES[0]], [0, 0])
    with pytest.raises(TypeError, match="dt must be a list of RLEs or of boxes"):
        mask.iou(RLES[0], RLES[:1], [0])
    with pytest.raises(ValueError, match=r"dt must be boxes \[\*, 4\], got shape \[1, 5\]"):
        mask.iou(np.zeros((1, 5)), [[0, 0, 1, 1]], [0])
    with pytest.raises(ValueError, match=r"gt\[1\]: counts end in the middle"):
        mask.iou(RLES[:1], [RLES[0], {"size": [37, 53], "counts": "1o"}], [0, 0])


@pytest.mark.parametrize("case", EXPECTED["merge"], ids=lambda case: "-".join(case["of"]))
def test_golden_merge(case: dict[str, Any]) -> None:
    rles = named(case["of"])
    assert mask.merge(rles) == as_bytes(case["union"])
    assert mask.merge(rles, intersect=True) == as_bytes(case["inter"])


def test_golden_merge_of_long_runs() -> None:
    case = EXPECTED["huge_merge"]
    rles = [EXPECTED["huge"][f"{name}_4000x3000"]["rle"] for name in ("zeros", "ones")]
    assert mask.merge(rles) == as_bytes(case["union"])
    assert mask.merge(rles, intersect=True) == as_bytes(case["inter"])


@settings(deadline=None, max_examples=300)
@given(rles=lists_of_rles(), zeros=st.booleans(), intersect=st.booleans())
def test_merge_as_the_peer(rles: list[dict[str, Any]], zeros: bool, intersect: bool) -> None:
    expected = peer.merge(rles, intersect)
    assert mask.merge(rles, intersect) == expected
    pixels = peer.decode(rles)
    assert mask.encode(pixels.all(2) if intersect else pixels.any(2)) == expected


def test_merge_leaves_no_runs_of_length_zero() -> None:
    """The peer hands some on."""
    for case in EXPECTED["noncanonical"]:
        other = {"size": case["rle"]["size"], "counts": [4, 9, 17]}
        merged = mask.merge([case["rle"], other])
        assert merged == mask.encode(mask.decode([case["rle"], other]).any(2))
        assert mask.merge([case["rle"]])["counts"].decode() == case["re_encoded"]["counts"]


def test_merge_of_many_runs_in_parallel() -> None:
    noise = np.random.default_rng(0).random((300, 400, 9)) < 0.3
    rles = mask.encode(noise)
    assert mask.merge(rles) == peer.merge(rles) == mask.encode(noise.any(2))
    assert mask.merge(rles[:7], True) == peer.merge(rles[:7], True)


def test_merge_of_nothing_and_of_unlike_masks() -> None:
    assert mask.merge([]) == peer.merge([]) == {"size": [0, 0], "counts": b""}
    with pytest.raises(
        ValueError, match=r"one size: rles\[0\] has \[37, 53\], rles\[1\] has \[2, 2\]"
    ):
        mask.merge([RLES[0], {"size": [2, 2], "counts": b"4"}])
    with pytest.raises(ValueError, match=r"rles\[0\]: counts sum to 3, but size"):
        mask.merge([{"size": [2, 2], "counts": b"3"}, {"size": [2, 2], "counts": b"4"}])


def test_errors() -> None:
    for function in (mask.decode, mask.area, mask.toBbox):
        with pytest.raises(ValueError, match=r"rles\[1\]: counts"):
            function([RLES[0], {"size": [37, 53], "counts": b"\x01"}])
        with pytest.raises(ValueError, match=r"rles\[0\]: counts sum to 9"):
            function({"size": [2, 2], "counts": b"18"})
    with pytest.raises(ValueError, match="one size"):
        mask.decode([RLES[0], {"size": [2, 2], "counts": b"4"}])
    with pytest.raises(TypeError, match="threshold first"):
        mask.encode(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="masks must have shape"):
        mask.encode(np.zeros(4, bool))
    assert mask.decode([]).shape == (0, 0, 0)
