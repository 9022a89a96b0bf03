"""RLE against pycocotools (stored results and live), its definition, and its own inverse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as peer
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from torch import Tensor

from fastseg import _C, reference
from fastseg.mask import area as mask_area
from fastseg.ops import rle, rle_decode, rle_encode

DATA = Path(__file__).parents[1] / "data"
EXPECTED = json.loads((DATA / "ops_rle.json").read_text())
TENSORS = load_file(DATA / "ops_rle.safetensors")
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMPY_INTEGERS = ("?", "b", "B", "h", "H", "i", "I", "l", "L")

needs_emulator = pytest.mark.skipif(
    not _C.build_info()["cuda_emulator"], reason="needs a build with the CUDA emulator"
)
Encoder = Callable[[Tensor], Any]


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.gpu),
        pytest.param("emulator", marks=needs_emulator),
    ]
)
def encode(request: pytest.FixtureRequest) -> Encoder:
    """Encodes a CPU tensor on each device that there is."""
    if request.param == "emulator":
        return rle._encode_on_device
    return lambda masks: rle_encode(masks.to(request.param))


def golden_mask(name: str) -> Tensor:
    height, width = TENSORS[f"in/{name}.shape"]
    bits = np.unpackbits(TENSORS[f"in/{name}.packed"], count=height * width)
    return torch.from_numpy(bits.reshape(height, width).astype(bool))


def peer_encode(masks: Tensor) -> list[dict[str, Any]]:
    pixels = (masks != 0).cpu().numpy().astype(np.uint8)
    return peer.encode(np.asfortranarray(pixels.transpose(1, 2, 0)))


def blobs(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth shapes that touch the borders, as real masks do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 1, 5, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[:, 0] > 0.2


def layouts(masks: Tensor) -> dict[str, Tensor]:
    """The same pixels in memory orders that the kernels treat differently."""
    wide = masks.new_ones(*(2 * size + 1 for size in masks.shape))
    wide[::2, 1::2, ::2][: masks.shape[0], : masks.shape[1], : masks.shape[2]] = masks
    strided = wide[::2, 1::2, ::2][: masks.shape[0], : masks.shape[1], : masks.shape[2]]
    gaps = masks.new_ones(masks.shape[0], masks.shape[2], masks.shape[1] + 5)
    gaps[:, :, 2:-3] = masks.transpose(1, 2)
    return {
        "rows": masks.contiguous(),
        "columns": masks.transpose(1, 2).contiguous().transpose(1, 2),
        "columns with gaps": gaps[:, :, 2:-3].transpose(1, 2),
        "masks innermost": masks.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "strided": strided,
    }


@pytest.mark.parametrize("name", sorted(EXPECTED["masks"]))
def test_golden_masks(name: str, encode: Encoder) -> None:
    mask, expected = golden_mask(name), EXPECTED["masks"][name]["rle"]
    encoded = encode(mask)
    assert encoded == {"size": expected["size"], "counts": expected["counts"].encode()}
    assert torch.equal(rle_decode(expected), mask)
    assert torch.equal(rle_decode(encoded), mask)
    assert torch.equal(reference.rle_decode(expected), mask)
    assert reference.rle_encode(mask) == encoded


@pytest.mark.parametrize("name", sorted(EXPECTED["huge"]))
def test_golden_huge_runs(name: str, encode: Encoder) -> None:
    case = EXPECTED["huge"][name]
    mask = rle_decode(case["uncompressed"])
    assert torch.equal(rle_decode(case["rle"]), mask)
    assert encode(mask)["counts"].decode() == case["rle"]["counts"]
    assert int(mask.sum()) == case["area"]


@pytest.mark.parametrize("index", range(len(EXPECTED["noncanonical"])))
def test_golden_runs_of_length_zero(index: int, encode: Encoder) -> None:
    case = EXPECTED["noncanonical"][index]
    expected = torch.tensor(case["decoded"]).reshape(case["rle"]["size"]) != 0
    for counts in (case["counts"], case["rle"]["counts"], case["rle"]["counts"].encode()):
        assert torch.equal(rle_decode({"size": case["rle"]["size"], "counts": counts}), expected)
    assert encode(expected)["counts"].decode() == case["re_encoded"]["counts"]


@pytest.mark.parametrize(
    "height,width", [(1, 1), (1, 333), (333, 1), (64, 64), (65, 63), (97, 130)]
)
def test_layouts(height: int, width: int, encode: Encoder) -> None:
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    for masks in (blobs(3, height, width), noise < 0.5, noise < 0.01, noise < 2):
        expected = peer_encode(masks)
        for layout, same in layouts(masks).items():
            assert torch.equal(same, masks)
            assert encode(same) == expected, layout
            assert encode(same[1]) == expected[1], layout
        assert torch.equal(rle_decode(expected), masks)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_torch_dtypes(dtype: torch.dtype, encode: Encoder) -> None:
    inside = blobs(2, 70, 75)
    values = torch.randint(1, 100, inside.shape, generator=torch.Generator().manual_seed(1))
    lowest = 0 if dtype in (torch.bool, torch.uint8) else -100
    values = (values * torch.where(values % 3 == 0, lowest // 100 or 1, 1) * inside).to(dtype)
    for layout, masks in layouts(values).items():
        assert encode(masks) == peer_encode(inside), layout


@pytest.mark.parametrize("dtype", NUMPY_INTEGERS)
def test_numpy_arrays(dtype: str) -> None:
    """Zero in the low bytes is not zero, strides may be negative, memory read-only."""
    inside = blobs(2, 70, 75)
    expected = peer_encode(inside)
    bits = 8 * np.dtype(dtype).itemsize
    masks = inside.numpy().astype(dtype) << (bits - 1 if bits > 8 else 0)
    masks.setflags(write=False)
    assert rle_encode(masks) == expected
    assert rle_encode(np.asfortranarray(masks)) == expected
    assert rle_encode(masks[0]) == expected[0]
    assert rle_encode(masks[:, ::-1, ::-1]) == peer_encode(inside.flip(1, 2))
    assert rle_encode(np.ascontiguousarray(masks[:, ::-1])[:, ::-1]) == expected
    backwards = np.ascontiguousarray(masks[:, ::-1].transpose(0, 2, 1)).transpose(0, 2, 1)[:, ::-1]
    assert rle_encode(backwards) == expected


def test_any_dlpack_producer() -> None:
    class Producer:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **arguments: Any) -> Any:
            return self.tensor.__dlpack__(**arguments)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.tensor.__dlpack_device__()

    masks = blobs(2, 20, 30)
    assert rle_encode(Producer(masks.to(torch.uint8))) == peer_encode(masks)


def test_broadcast_masks(encode: Encoder) -> None:
    mask, row, column = blobs(1, 70, 80)[0], blobs(1, 1, 80), blobs(1, 70, 1)
    assert encode(mask.expand(3, 70, 80)) == 3 * [encode(mask)]
    assert encode(row.expand(1, 70, 80)) == peer_encode(row.repeat(1, 70, 1))
    assert encode(column.expand(1, 70, 80)) == peer_encode(column.repeat(1, 1, 80))


def test_positions_up_to_the_limit() -> None:
    """2^32 - 1 pixels, of which memory holds one row or one column."""
    height, width = 65535, 65537
    row = torch.zeros(1, width, dtype=torch.bool)
    row[0, [3, 4, width - 1]] = True
    counts = [3 * height, 2 * height, (width - 6) * height, height]
    text = reference.rle.counts_to_text(counts)
    assert rle_encode(row.expand(height, width))["counts"] == text
    assert mask_area({"size": [height, width], "counts": text}) == 3 * height

    column = torch.zeros(height, 1, dtype=torch.bool)
    column[[0, 100, height - 1]] = True
    counts = [0, 1, *((width - 1) * [99, 1, height - 102, 2]), 99, 1, height - 102, 1]
    text = reference.rle.counts_to_text(counts)
    assert rle_encode(column.expand(height, width))["counts"] == text
    assert mask_area({"size": [height, width], "counts": text}) == 3 * width


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0), (0, 0, 0)])
def test_nothing_to_encode(shape: tuple[int, int, int], encode: Encoder) -> None:
    masks = torch.zeros(shape, dtype=torch.bool)
    expected = peer_encode(masks)
    assert encode(masks) == expected
    assert reference.rle_encode(masks) == expected
    assert rle_decode(expected).shape == (shape if shape[0] else (0, 0, 0))
    for one in expected:
        assert rle_decode(one).shape == shape[1:]


@pytest.mark.parametrize("shape", [(1, 2900, 3000), (2, 1500, 5700), (1, 40, 300_000)])
def test_few_large_masks_are_split_among_threads(shape: tuple[int, int, int]) -> None:
    for masks in (blobs(*shape), torch.ones(shape, dtype=torch.bool)):
        expected = peer_encode(masks)
        for layout, same in layouts(masks).items():
            assert rle_encode(same) == expected, layout
        assert torch.equal(rle_decode(expected), masks)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.gpu)])
def test_decode_on_a_device(device: str) -> None:
    for shape in ((3, 97, 130), (1, 1, 333), (1, 333, 1), (2, 0, 5)):
        masks = blobs(*shape) if min(shape) else torch.zeros(shape, dtype=torch.bool)
        decoded = rle_decode(rle_encode(masks), device=device)
        assert decoded.device.type == device and torch.equal(decoded.cpu(), masks)


def test_threads_do_not_change_the_result() -> None:
    masks = torch.cat([blobs(5, 300, 700), torch.rand(2, 300, 700) < 0.5])
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for part in (masks, masks[:1], masks[-1:]):
                assert rle_encode(part) == peer_encode(part)
                assert torch.equal(rle_decode(rle_encode(part)), part)
    finally:
        torch.set_num_threads(threads)


sizes = st.tuples(st.integers(0, 3), st.integers(0, 140), st.integers(0, 140))


@settings(deadline=None, max_examples=60)
@given(size=sizes, density=st.sampled_from([0, 0.03, 0.5, 0.97, 1]), seed=st.integers(0, 99))
def test_decode_inverts_encode(size: tuple[int, int, int], density: float, seed: int) -> None:
    masks = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < density
    encoded = rle_encode(masks)
    assert encoded == reference.rle_encode(masks)
    assert encoded == rle_encode(masks.transpose(1, 2).contiguous().transpose(1, 2))
    if size[0]:
        assert torch.equal(rle_decode(encoded), masks)
        assert torch.equal(reference.rle_decode(encoded), masks)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(st.integers(0, 40), st.integers(0, 300_000)), min_size=1, max_size=8))
def test_strings_of_any_counts(counts: list[int]) -> None:
    """Any alternation of runs, zeros included, reads as the definition says."""
    size = [1, sum(counts)]
    text = reference.rle.counts_to_text(counts)
    assert reference.rle.text_to_counts(text) == counts
    as_list = rle_decode({"size": size, "counts": counts})
    for form in (text, text.decode()):
        assert torch.equal(rle_decode({"size": size, "counts": form}), as_list)
    pixels = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    assert np.array_equal(as_list.numpy()[0], pixels)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(st.binary(max_size=12), st.text(max_size=9), st.text("0123456oOPQ1_", max_size=9)),
    st.integers(0, 9),
    st.integers(0, 9),
)
def test_malformed_strings_raise(counts: bytes | str, height: int, width: int) -> None:
    """Whatever comes in is an error or a mask that the definition gives too."""
    entry = {"size": [height, width], "counts": counts}
    try:
        mask = rle_decode(entry)
    except ValueError as error:
        assert "rles[0]: counts" in str(error)
    else:
        assert torch.equal(mask, reference.rle_decode(entry))


@pytest.mark.parametrize(
    "counts,message",
    [
        (b"", "counts sum to 0, but size [2, 3] has 6 pixels"),
        (b"13", "counts sum to 4, but size [2, 3] has 6 pixels"),
        (b"17", "counts sum to 8, but size [2, 3] has 6 pixels"),
        (b"o", "counts end in the middle of a number"),
        (b"1o", "counts end in the middle of a number"),
        (b"ooooooooo", "counts hold a number of more than 7 characters at 0"),
        (b"1\x005", "counts hold the byte 0 at 1"),
        (b"1p5", "counts hold the byte 112 at 1"),
        ("1\u00e9", "counts hold the byte 195 at 1"),
        (b"O7", "counts hold a negative run at 0"),
        (b"0120K", "counts hold a negative run at 4"),
        (b"oooooo4", "counts sum to 2^32 or more"),
        ([3, -1, 4], "counts[1] must be at least 0"),
        ([3, 2**40], "counts[1] must be at least 0 and the sum less than 2^32"),
        ([3, 2], "counts sum to 5, but size [2, 3] has 6 pixels"),
    ],
)
def test_errors_name_the_counts(counts: Any, message: str) -> None:
    good = {"size": [2, 3], "counts": b"6"}
    with pytest.raises(ValueError) as caught:
        rle_decode([good, {"size": [2, 3], "counts": counts}])
    assert message in str(caught.value) and "rles[1]" in str(caught.value)


@pytest.mark.parametrize("size", [[2], [2, 3, 1], [-2, -3], [2**16, 2**16], ["a", "b"], None, 6])
def test_errors_name_the_size(size: Any) -> None:
    with pytest.raises(ValueError, match=r"rles\[0\]: size"):
        rle_decode({"size": size, "counts": b"6"})


def test_other_errors() -> None:
    good = {"size": [2, 3], "counts": b"6"}
    with pytest.raises(
        ValueError, match=r"one size: rles\[0\] has \[2, 3\], rles\[1\] has \[3, 2\]"
    ):
        rle_decode([good, {"size": [3, 2], "counts": b"6"}])
    with pytest.raises(ValueError, match=r"rles\[1\] must have the keys 'size' and 'counts'"):
        rle_decode([good, {"size": [2, 3]}])
    with pytest.raises(TypeError, match=r"rles\[1\] must be a dict"):
        rle_decode([good, b"6"])
    for counts in (None, 6, [1.5, 4.5], ["6"]):
        with pytest.raises(TypeError, match=r"rles\[0\]: counts"):
            rle_decode({"size": [2, 3], "counts": counts})


def test_masks_that_cannot_be_encoded() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match="threshold first"):
            rle_encode(torch.zeros(1, 2, 2, dtype=dtype))
    with pytest.raises(TypeError, match="threshold first"):
        rle_encode(np.zeros((2, 2)))
    with pytest.raises(TypeError, match="masks must be a tensor"):
        rle_encode([[0, 1]])
    for shape in ((4,), (1, 1, 2, 2)):
        with pytest.raises(ValueError, match="masks must have shape"):
            rle_encode(torch.zeros(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"fewer than 2\^32 pixels"):
        rle_encode(torch.zeros(1, 1, 1, dtype=torch.bool).expand(1, 2**16, 2**16))


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    """Every instruction set gives the same strings and pixels."""
    run_on_cpu_variant(__file__, "layouts or dtypes or numpy or inverts")
