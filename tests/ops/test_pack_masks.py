"""Packed masks against their definition, NumPy's packbits, and their own inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pycocotools.mask as peer
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseg import _C, reference
from fastseg.ops import PackedMasks, pack_masks, rle_encode, unpack_masks

INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NUMPY_INTEGERS = ("?", "b", "B", "h", "H", "i", "I", "l", "L")
SHAPES = ((3, 97, 130), (2, 64, 64), (1, 65, 63), (2, 1, 333), (2, 333, 1), (1, 200, 40))
INF = float("inf")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layouts(masks: Tensor) -> dict[str, Tensor]:
    """The same pixels in memory orders that the kernels treat differently."""
    wide = masks.new_ones(*(2 * size + 1 for size in masks.shape))
    wide[1::2, 1::2, 1::2] = masks
    gaps = masks.new_ones(masks.shape[0], masks.shape[2], masks.shape[1] + 5)
    gaps[:, :, 2:-3] = masks.transpose(1, 2)
    return {
        "rows": masks.contiguous(),
        "columns": masks.transpose(1, 2).contiguous().transpose(1, 2),
        "columns with gaps": gaps[:, :, 2:-3].transpose(1, 2),
        "masks innermost": masks.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "strided": wide[1::2, 1::2, 1::2],
    }


def same(one: PackedMasks, other: PackedMasks) -> bool:
    return (
        one.width == other.width
        and torch.equal(one.words.cpu(), other.words)
        and torch.equal(one.areas.cpu(), other.areas)
        and torch.equal(one.boxes.cpu(), other.boxes)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("above", [-9.0, 0.0, 2.0, 9.0])
def test_matches_definition(shape: tuple[int, ...], above: float, device: torch.device) -> None:
    """Full, dense, sparse and empty masks in all memory orders."""
    masks = noise(*shape) > above
    expected = reference.pack_masks(masks)
    for layout, pixels in layouts(masks).items():
        packed = pack_masks(pixels.to(device))
        assert same(packed, expected), layout
        assert packed.device.type == device.type
        assert torch.equal(unpack_masks(packed).cpu(), masks), layout
    assert torch.equal(reference.unpack_masks(expected), masks)


@pytest.mark.parametrize("shape", SHAPES)
def test_matches_numpy(shape: tuple[int, ...], device: torch.device) -> None:
    masks = noise(*shape) > 0.5
    packed = pack_masks(masks.to(device))
    bytes_of_rows = np.packbits(masks.numpy(), axis=2, bitorder="little")
    words = packed.words.cpu().numpy().view(np.uint8)
    assert np.array_equal(words[:, :, : bytes_of_rows.shape[2]], bytes_of_rows)
    assert not words[:, :, bytes_of_rows.shape[2] :].any()
    assert packed.areas.tolist() == masks.sum((1, 2)).tolist()


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers(dtype: torch.dtype, device: torch.device) -> None:
    """Zero in the low bytes is not zero, and negative values are inside."""
    inside = noise(2, 70, 75) > 0.3
    values = torch.full(inside.shape, -100 if dtype.is_signed else 1).to(dtype)
    if dtype.itemsize > 1:
        values[:, ::3] = 1 << (8 * dtype.itemsize - 2)
    expected = reference.pack_masks(inside)
    for layout, masks in layouts(values * inside).items():
        assert masks.dtype == dtype
        assert same(pack_masks(masks.to(device)), expected), layout


@pytest.mark.parametrize("dtype", NUMPY_INTEGERS)
def test_numpy_arrays(dtype: str) -> None:
    """Strides may be negative, memory read-only."""
    inside = noise(2, 70, 75) > 0.3
    expected = reference.pack_masks(inside)
    bits = 8 * np.dtype(dtype).itemsize
    masks = inside.numpy().astype(dtype) << (bits - 1 if bits > 8 else 0)
    masks.setflags(write=False)
    assert same(pack_masks(masks), expected)
    assert same(pack_masks(np.asfortranarray(masks)), expected)
    assert same(pack_masks(np.ascontiguousarray(masks[:, ::-1, ::-1])[:, ::-1, ::-1]), expected)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_numpy_floats(dtype: str) -> None:
    masks = noise(2, 70, 75).numpy().astype(dtype)
    assert same(pack_masks(masks, 0.3), reference.pack_masks(torch.from_numpy(masks), 0.3))


def test_any_dlpack_producer(device: torch.device) -> None:
    class Producer:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **arguments: Any) -> Any:
            return self.tensor.__dlpack__(**arguments)

        def __dlpack_device__(self) -> tuple[int, int]:
            return self.tensor.__dlpack_device__()

    masks = noise(2, 20, 70)
    packed = pack_masks(Producer(masks.to(device)), 0.3)
    assert same(packed, reference.pack_masks(masks, 0.3))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("threshold", [0.0, -0.0, 0.1, -0.7, 65504.0, -INF, INF])
def test_thresholds(dtype: torch.dtype, threshold: float, device: torch.device) -> None:
    """Values at and beside the threshold, both zeros, infinities, NaN of both signs, subnormals."""
    near = torch.tensor(threshold, dtype=dtype)
    up, down = (torch.nextafter(near.double(), torch.tensor(s * INF).double()) for s in (1, -1))
    special = [0.0, -0.0, INF, -INF, float("nan"), -float("nan"), 6e-8, -6e-8, 1e-40, -1e-40]
    if dtype not in (torch.float16, torch.bfloat16):
        up, down = torch.nextafter(near, near * 0 + INF), torch.nextafter(near, near * 0 - INF)
    values = torch.tensor([*special, threshold, float(up), float(down), float(near)]).to(dtype)
    masks = torch.cat([values, noise(2 * 65 * 90 - len(values)).to(dtype)]).reshape(2, 65, 90)
    expected = reference.pack_masks(masks, threshold)
    for layout, pixels in layouts(masks).items():
        assert same(pack_masks(pixels.to(device), threshold), expected), layout


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half(dtype: torch.dtype, device: torch.device) -> None:
    masks = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, 256, 256)
    for threshold in (0.0, -0.0, 0.3, -0.3, 1e-7, -1e-7, -1e4):
        packed = pack_masks(masks.to(device), threshold)
        assert torch.equal(unpack_masks(packed).cpu(), masks > threshold), threshold


def test_run_lengths() -> None:
    for seed, above in enumerate((-9.0, -2.0, 0.0, 1.0, 3.0, 9.0)):
        for shape in SHAPES:
            masks = noise(*shape, seed=seed) > above
            assert same(pack_masks(rle_encode(masks)), reference.pack_masks(masks))
            columns = masks[:, :1].expand(shape)  # runs that go on from column to column
            assert same(pack_masks(rle_encode(columns)), reference.pack_masks(columns))


@pytest.mark.parametrize("counts", [[0, 0, 3, 0, 0, 2, 1], [2, 0, 0, 4], [6], [0, 6], [0, 3, 3]])
def test_run_lengths_of_zero(counts: list[int]) -> None:
    rle = {"size": [2, 3], "counts": counts}
    masks = torch.from_numpy(peer.decode(peer.frPyObjects(rle, 2, 3)))[None]
    assert same(pack_masks([rle]), reference.pack_masks(masks))


@pytest.mark.parametrize("size", [(1, 1 << 24), (3, 1 << 20), (1 << 20, 30)])
def test_long_run_lengths(size: tuple[int, int]) -> None:
    """Few toggles in very many columns, and a run over all of them."""
    height, width = size
    area = height * width
    counts = [area - 7 * height, 2 * height, 4 * height, 1, height - 1]
    packed = pack_masks([{"size": [height, width], "counts": counts}])
    assert packed.areas.tolist() == [2 * height + 1]
    assert packed.boxes.tolist() == [[width - 7, 0, width, height]]
    packed = pack_masks([{"size": [height, width], "counts": [3, area - 5, 2]}])
    assert packed.areas.tolist() == [area - 5]
    assert packed.boxes.tolist() == [[3 // height, 0, width - 2 // height, height]]


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (2, 0, 0), (0, 0, 0)])
def test_nothing_to_pack(shape: tuple[int, int, int], device: torch.device) -> None:
    masks = torch.zeros(shape, dtype=torch.bool)
    expected = reference.pack_masks(masks)
    packed = pack_masks(masks.to(device))
    assert same(packed, expected) and same(pack_masks(masks.numpy()), expected)
    assert packed.height == shape[1] and len(packed) == shape[0]
    assert torch.equal(unpack_masks(packed).cpu(), masks)
    if shape[0]:
        assert same(pack_masks(rle_encode(masks)), expected)


@pytest.mark.parametrize("shape", [(1, 2900, 3000), (1, 70, 70_000), (2, 40_000, 100)])
def test_few_large_masks_are_split_among_threads(shape: tuple[int, int, int]) -> None:
    masks = torch.zeros(shape, dtype=torch.bool)
    masks[:, shape[1] // 3 : -5, 9 : shape[2] // 2] = True
    for layout in (masks, masks.transpose(1, 2).contiguous().transpose(1, 2)):
        packed = pack_masks(layout)
        assert torch.equal(unpack_masks(packed), masks)
        box = [9, shape[1] // 3, shape[2] // 2, shape[1] - 5]
        assert packed.boxes.tolist() == shape[0] * [box]
        assert packed.areas.tolist() == shape[0] * [(box[2] - box[0]) * (box[3] - box[1])]


def test_many_small_masks(device: torch.device) -> None:
    """More masks than a CUDA grid has rows; the emulator would take minutes for these."""
    count = 300 if _C.build_info()["cuda_emulator"] else 70_000
    masks = noise(count, 1, 3) > 0
    packed = pack_masks(masks.to(device))
    assert torch.equal(packed.words.cpu()[:, 0, 0], (masks[:, 0] * torch.tensor([1, 2, 4])).sum(1))
    assert torch.equal(unpack_masks(packed).cpu(), masks)


def test_broadcast_masks(device: torch.device) -> None:
    mask = (noise(1, 70, 80) > 0).to(device)
    for masks in (mask.expand(3, 70, 80), mask[:, :1].expand(2, 70, 80), mask[:, :, :1]):
        assert same(pack_masks(masks), reference.pack_masks(masks.cpu()))


def test_packed_masks(device: torch.device) -> None:
    masks = noise(5, 30, 70) > 1
    packed = pack_masks(masks.to(device))
    assert (len(packed), packed.height, packed.width) == (5, 30, 70)
    for index in (
        slice(1, 4),
        slice(None, None, 2),
        torch.tensor([3, 0, 3]),
        [4, 1],
        masks[:, 0, 0],
    ):
        on_device = index.to(device) if isinstance(index, Tensor) else index
        assert same(packed[on_device], reference.pack_masks(masks[index])), index
        assert torch.equal(unpack_masks(packed[on_device]).cpu(), masks[index])
    moved = packed.to("cpu")
    assert same(moved, reference.pack_masks(masks)) and moved.device.type == "cpu"


def test_gradients_are_left_out() -> None:
    masks = noise(2, 5, 70).requires_grad_()
    assert same(pack_masks(masks, 0.0), reference.pack_masks(masks.detach(), 0.0))


def test_threads_do_not_change_the_result() -> None:
    masks = noise(3, 2000, 1500) > 1.5
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            packed = pack_masks(masks)
            results.append((packed, pack_masks(rle_encode(masks)), unpack_masks(packed)))
    finally:
        torch.set_num_threads(threads)
    assert same(results[0][0], results[1][0]) and same(results[0][1], results[1][1])
    assert same(results[0][0], results[0][1])
    assert torch.equal(results[0][2], masks) and torch.equal(results[1][2], masks)


sizes = st.tuples(st.integers(0, 3), st.integers(0, 140), st.integers(0, 140))


@settings(deadline=None, max_examples=60)
@given(size=sizes, density=st.sampled_from([0, 0.001, 0.03, 0.5, 1]), seed=st.integers(0, 99))
def test_unpack_inverts_pack(size: tuple[int, int, int], density: float, seed: int) -> None:
    masks = torch.rand(size, generator=torch.Generator().manual_seed(seed)) < density
    packed = pack_masks(masks)
    assert same(packed, reference.pack_masks(masks))
    assert same(pack_masks(masks.transpose(1, 2).contiguous().transpose(1, 2)), packed)
    assert torch.equal(unpack_masks(packed), masks)
    if size[0]:
        assert same(pack_masks(rle_encode(masks)), packed)


def test_errors() -> None:
    masks = torch.zeros(2, 3, 4)
    for wrong in (masks, masks.numpy(), masks.half()):
        with pytest.raises(TypeError, match="threshold is required for floating masks"):
            pack_masks(wrong)
        with pytest.raises(ValueError, match="threshold must be a number, got nan"):
            pack_masks(wrong, float("nan"))
    for wrong in (masks.bool(), masks.numpy().astype(int), [{"size": [1, 1], "counts": [1]}]):
        with pytest.raises(TypeError, match="threshold is for floating masks alone, got"):
            pack_masks(wrong, 0.5)
    for shape in ((4,), (2, 2), (1, 1, 2, 2)):
        for wrong in (torch.zeros(shape, dtype=torch.bool), np.zeros(shape, dtype=bool)):
            with pytest.raises(ValueError, match=r"masks must have shape \[N, H, W\], got \("):
                pack_masks(wrong)
    with pytest.raises(TypeError, match="masks must be a tensor or a list of RLEs, got int"):
        pack_masks(3)
    with pytest.raises(TypeError, match="unsupported"):
        pack_masks(masks.to(torch.complex64))
    with pytest.raises(ValueError, match=r"rles must be of one size"):
        pack_masks([{"size": [1, 1], "counts": [1]}, {"size": [1, 2], "counts": [2]}])
    with pytest.raises(ValueError, match=r"sides below 2\^31"):
        pack_masks(torch.zeros(1, 1, 1, dtype=torch.bool).expand(0, 2**31, 1))


def test_raw_function_checks_its_outputs() -> None:
    masks = torch.zeros(2, 3, 70, dtype=torch.uint8)
    words = torch.zeros(2, 3, 2, dtype=torch.int64)
    areas, boxes = torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"words must have shape \[2, 3, 2\], got \[2, 3, 1\]"):
        _C.pack_masks(masks, words[:, :, :1], areas, boxes, 0.0)
    with pytest.raises(ValueError, match="words must be contiguous"):
        _C.pack_masks(masks, words.transpose(0, 1).contiguous().transpose(0, 1), areas, boxes, 0.0)
    with pytest.raises(ValueError, match="words must be int64, got int32"):
        _C.pack_masks(masks, words.int(), areas, boxes, 0.0)
    with pytest.raises(ValueError, match=r"boxes must have shape \[2, 4\]"):
        _C.pack_masks(masks, words, areas, boxes[:1], 0.0)
    with pytest.raises(ValueError, match="areas and boxes must be contiguous"):
        _C.pack_masks(masks, words, areas, boxes.T.contiguous().T, 0.0)
    with pytest.raises(ValueError, match=r"words must have shape \[2, 3, 1\]"):
        _C.unpack_masks(words, masks[:, :, :64].contiguous())
    with pytest.raises(ValueError, match="masks must be contiguous"):
        _C.unpack_masks(words, masks[:, :, ::1].transpose(0, 1).contiguous().transpose(0, 1))


def test_opcheck(device: torch.device) -> None:
    for masks, threshold in ((noise(2, 5, 70) > 0, None), (noise(2, 5, 70), 0.5)):
        torch.library.opcheck(torch.ops.fastseg.pack_masks.default, (masks.to(device), threshold))
    words = pack_masks((noise(2, 5, 70) > 0).to(device)).words
    torch.library.opcheck(torch.ops.fastseg.unpack_masks.default, (words, 70))


def test_compile(device: torch.device) -> None:
    @torch.compile(fullgraph=True, dynamic=True)
    def clean(logits: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_masks(logits, 0.0)
        return unpack_masks(packed), packed.boxes.float() * 2

    for width in (70, 129):
        logits = noise(2, 9, width).to(device)
        masks, boxes = clean(logits)
        assert torch.equal(masks, logits > 0)
        assert torch.equal(boxes, pack_masks(logits, 0.0).boxes * 2.0)


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "definition or integers or thresholds or half or run_lengths")
