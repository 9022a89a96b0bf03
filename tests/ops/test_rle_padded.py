"""Strings of run lengths made on the device, in memory of a fixed size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseg import _C, reference
from fastseg.ops import (
    PackedMasks,
    PaddedRles,
    pack_masks,
    rle,
    rle_encode,
    rle_encode_padded,
)

on_device = pytest.mark.parametrize(
    "device",
    [
        pytest.param(
            "cpu",
            marks=pytest.mark.skipif(
                not _C.build_info()["cuda_emulator"], reason="needs a build with the CUDA emulator"
            ),
        ),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ],
)


def noise(n: int, height: int, width: int, density: float = 0.5) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, height, width, generator=generator) < density


def changes_of(masks: Tensor) -> int:
    in_columns = masks.transpose(1, 2).flatten(1).int()
    return int(in_columns.diff(dim=1, prepend=torch.zeros_like(in_columns[:, :1])).abs().sum())


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 70), (3, 70, 1), (5, 64, 96), (70, 33, 31)])
def test_padded(shape: tuple[int, int, int], density: float, device: torch.device) -> None:
    masks = noise(*shape, density)
    changes = changes_of(masks)
    for room in (changes, changes + 1, 3 * changes + 1000):
        padded = rle_encode_padded(masks.to(device), room)
        assert padded.data.device.type == device.type
        assert padded.to_list() == rle_encode(masks)
        assert padded.ends[-1] == changes
        assert (padded.count, padded.height, padded.width) == shape
        strings = [entry["counts"] for entry in rle_encode(masks)]
        ends = padded.ends.tolist()
        assert bytes(padded.text[: ends[-2]].tolist()) == b"".join(strings)


def test_more_changes_than_there_is_room_for(device: torch.device) -> None:
    masks = noise(3, 40, 50)
    changes = changes_of(masks)
    for room in (0, 1, changes // 2, changes - 1):
        padded = rle_encode_padded(masks.to(device), room)
        with pytest.raises(ValueError, match=f"must be at least {changes} .* got {room}"):
            padded.to_list()


def test_strings_longer_than_usual(device: torch.device) -> None:
    """More than the first copy to the host takes, and more changes than are expected."""
    masks = noise(2, 300, 111)
    text = reference.rle_encode(masks)
    assert len(text[0]["counts"]) > 2 * rle._USUAL_BYTES
    assert changes_of(masks) > rle._USUAL_CHANGES * 2 * 111
    assert rle_encode(masks.to(device)) == text
    assert rle_encode_padded(masks.to(device), 40_000).to_list() == text


def test_all_types(device: torch.device) -> None:
    masks = noise(2, 30, 40)
    for dtype in (torch.bool, torch.uint8, torch.int16, torch.int64):
        padded = rle_encode_padded(masks.to(device, dtype), 3000)
        assert padded.to_list() == rle_encode(masks)


def test_arguments_that_are_wrong(device: torch.device) -> None:
    with pytest.raises(TypeError, match=r"must be boolean or integer, got torch\.float32"):
        rle_encode_padded(torch.ones(1, 2, 3, device=device), 5)
    for shape in ((2, 3), (0, 2, 3), (1, 0, 3), (1, 2, 0)):
        with pytest.raises(ValueError, match=r"masks must have shape \[N, H, W\] without zeros"):
            rle_encode_padded(torch.ones(shape, dtype=torch.bool, device=device), 5)
    with pytest.raises(ValueError, match="max_changes must be at least 0, got -1"):
        rle_encode_padded(torch.ones(1, 2, 3, dtype=torch.bool, device=device), -1)


def encode_toggles(toggles: list[list[int]], height: int, width: int, device: str) -> PaddedRles:
    """Run lengths of masks that are given by the positions of their changes."""
    positions = torch.tensor([position for mask in toggles for position in mask])
    changes = torch.stack(
        [torch.bincount(torch.tensor(mask).long() // height, minlength=width) for mask in toggles]
    ).int()

    def emit(_: Tensor, out: Tensor) -> None:
        out.copy_((positions.long() + 2**31) % 2**32 - 2**31)

    changes = changes.to(device)
    ends = changes.flatten().cumsum(0)
    return rle._encode_changes(changes, ends, height, emit, len(positions))


def text_of(toggles: list[int], area: int) -> bytes:
    ends = [*toggles, area]
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return reference.rle.counts_to_text(counts)


@on_device
@settings(deadline=None, max_examples=80)
@given(
    masks=st.lists(
        st.lists(
            st.one_of(
                st.integers(0, 100), st.integers(0, 2**32 - 2**17), st.integers(2**29, 2**30)
            ),
            max_size=9,
            unique=True,
        ).map(sorted),
        min_size=1,
        max_size=4,
    )
)
def test_runs_of_up_to_seven_characters(device: str, masks: list[list[int]]) -> None:
    height, width = 65535, 65537
    padded = encode_toggles(masks, height, width, device)
    assert [entry["counts"] for entry in padded.to_list()] == [
        text_of(mask, height * width) for mask in masks
    ]


@on_device
def test_every_length_of_character_string(device: str) -> None:
    """Differences on both sides of each power of 2 at which a number takes one character more."""
    height, width = 65535, 65537
    for bits in (4, 9, 14, 19, 24, 29):
        for run in (2**bits - 1, 2**bits, 2**bits + 1):
            for toggles in ([run], [5, 6, 7, 7 + run], [5, 5 + run, 6 + run, 7 + run]):
                padded = encode_toggles([toggles, [0], toggles], height, width, device)
                expected = [text_of(mask, height * width) for mask in (toggles, [0], toggles)]
                assert [entry["counts"] for entry in padded.to_list()] == expected


@pytest.mark.gpu
def test_cuda_graph() -> None:
    """Nothing waits for the device, and new masks go through the same memory."""
    masks = noise(4, 90, 120).cuda()
    rle_encode_padded(masks, 30_000)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        padded = rle_encode_padded(masks, 30_000)
    for density in (0.5, 0.01, 1.0):
        new = noise(4, 90, 120, density)
        masks.copy_(new)
        graph.replay()
        assert padded.to_list() == rle_encode(new)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 65, 63), (2, 32, 64), (2, 31, 129), (1, 3, 5000)])
def test_packed_masks(shape: tuple[int, int, int], density: float, device: torch.device) -> None:
    masks = noise(*shape, density)
    packed = pack_masks(masks.to(device))
    expected = rle_encode(masks)
    assert rle_encode(packed) == expected
    assert rle_encode(packed[1:]) == expected[1:]
    assert rle_encode_padded(packed, masks.numel()).to_list() == expected
    spread = PackedMasks(packed.words.mT.contiguous().mT, packed.areas, packed.boxes, packed.width)
    assert rle_encode(spread) == expected
    assert torch.equal(pack_masks(rle_encode(packed)).words, packed.words.cpu())


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (2, 4, 0), (0, 0, 0)])
def test_packed_masks_without_pixels(shape: tuple[int, int, int], device: torch.device) -> None:
    masks = torch.zeros(shape, dtype=torch.bool)
    assert rle_encode(pack_masks(masks.to(device))) == rle_encode(masks)


def test_packed_masks_that_are_wrong(device: torch.device) -> None:
    packed = pack_masks(noise(2, 30, 70).to(device))
    wrong = PackedMasks(packed.words, packed.areas, packed.boxes, width=129)
    with pytest.raises(ValueError, match=r"words must have 3 a row for width 129, got shape"):
        rle_encode(wrong)
