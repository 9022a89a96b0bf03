"""fastseg.mask against pycocotools.mask: same values, same types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as peer
import pytest

from fastseg import mask

EXPECTED = json.loads((Path(__file__).parent / "data" / "ops_rle.json").read_text())
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
