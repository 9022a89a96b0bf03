"""Mask IoU against pycocotools (stored results and live), its definition, and between forms."""

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
from fastseg.ops import PackedMasks, mask_iou, pack_masks, rle_encode

DATA = Path(__file__).parents[1] / "data"
EXPECTED = json.loads((DATA / "ops_rle.json").read_text())
TENSORS = load_file(DATA / "ops_rle.safetensors")
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
SHAPES = ((3, 4, 97, 130), (20, 35, 64, 64), (2, 1, 1, 333), (1, 2, 333, 1), (40, 17, 50, 200))
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "pixels": lambda masks: masks,
    "packed": pack_masks,
    "runs": rle_encode,
}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def objects(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Ellipses of all sizes, some outside, some full, some empty."""
    random = torch.Generator().manual_seed(seed)
    centre, radius = (
        torch.rand(2, count, 1, 1, generator=random),
        torch.rand(2, count, 1, 1, generator=random),
    )
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    inside = ((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 < 0.3
    inside[::11] = True
    inside[5::11] = False
    return inside


def on(device: torch.device, masks: Any) -> Any:
    return masks.to(device) if isinstance(masks, (Tensor, PackedMasks)) else masks


def peer_iou(a: Tensor, b: Tensor, iscrowd: list[int]) -> Tensor:
    return torch.from_numpy(np.array(peer.iou(rle_encode(a), rle_encode(b), iscrowd)))


@pytest.mark.parametrize("crowd", ["none", "all", "mixed"])
@pytest.mark.parametrize("form", FORMS)
def test_golden(form: str, crowd: str, device: torch.device) -> None:
    names = EXPECTED["iou_order"]
    rles = [EXPECTED["masks"][name]["rle"] for name in names]
    pixels = [
        np.unpackbits(TENSORS[f"in/{name}.packed"], count=int(np.prod(rles[0]["size"])))
        for name in names
    ]
    shape = (len(names), *rles[0]["size"])
    masks = torch.from_numpy(np.stack(pixels)).reshape(shape)
    a = rles if form == "runs" else on(device, FORMS[form](masks))
    iscrowd = [{"none": 0, "all": 1, "mixed": i % 2}[crowd] for i in range(len(names))]
    ious = mask_iou(a, iscrowd=iscrowd).cpu().numpy()
    assert np.array_equal(ious, TENSORS[f"out/iou_rle_{crowd}"])
    assert np.array_equal(mask_iou(a, a, iscrowd).cpu().numpy(), ious)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("above", [-9.0, 0.0, 2.5, 9.0])
def test_matches_peer(shape: tuple[int, ...], above: float, device: torch.device) -> None:
    """Full, dense, sparse and empty masks in each pair of forms."""
    num_a, num_b, height, width = shape
    a, b = noise(num_a, height, width) > above, noise(num_b, height, width, seed=1) > above
    iscrowd = [i % 3 == 1 for i in range(num_b)]
    expected = peer_iou(a, b, [int(flag) for flag in iscrowd])
    assert torch.equal(reference.mask_iou(a, b, iscrowd), expected)
    for form_a, make_a in FORMS.items():
        for form_b, make_b in FORMS.items():
            ious = mask_iou(on(device, make_a(a)), on(device, make_b(b)), iscrowd)
            assert torch.equal(ious.cpu(), expected), (form_a, form_b)
            assert ious.device.type == ("cpu" if form_a == form_b == "runs" else device.type)


@pytest.mark.parametrize("form", FORMS)
def test_objects(form: str, device: torch.device) -> None:
    """Masks whose boxes overlap in part or not at all; tables and walks along runs."""
    masks = objects(45, 211, 187)
    for count in (1, 2, 5, 45):
        part = masks[:count]
        expected = peer_iou(part, masks, [0] * 45)
        a, b = on(device, FORMS[form](part)), on(device, FORMS[form](masks))
        assert torch.equal(mask_iou(a, b).cpu(), expected)
        assert torch.equal(mask_iou(b, a).cpu(), expected.T)
        assert torch.equal(mask_iou(a).cpu(), expected[:, :count])


@pytest.mark.parametrize("counts", [(128, 128), (130, 150), (1, 129)])
def test_tiles(counts: tuple[int, int], device: torch.device) -> None:
    """More masks than CUDA's tiles have: full tiles by products, the rest by pairs."""
    a, b = noise(counts[0], 23, 100) > 0, noise(counts[1], 23, 100, seed=1) > 0
    for top in (0, 9):  # rows that no mask of a has
        a[:, :top] = False
        first, second = pack_masks(a.to(device)), pack_masks(b.to(device))
        assert torch.equal(mask_iou(first, second).cpu(), reference.mask_iou(a, b))
        assert torch.equal(mask_iou(first).cpu(), reference.mask_iou(a))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_dtypes_and_layouts(dtype: torch.dtype, device: torch.device) -> None:
    masks = (objects(7, 61, 70) * 2).to(dtype).to(device)
    expected = peer_iou(masks.cpu(), masks.cpu(), [0] * 7)
    columns = masks.transpose(1, 2).contiguous().transpose(1, 2)
    for a, b in ((masks, columns), (columns, masks)):
        assert torch.equal(mask_iou(a, b).cpu(), expected)


@pytest.mark.parametrize("form", FORMS)
def test_modes(form: str, device: torch.device) -> None:
    a, b = objects(6, 61, 70), objects(9, 61, 70, seed=1)
    first, second = on(device, FORMS[form](a)), on(device, FORMS[form](b))
    share = mask_iou(first, second, mode="iof").cpu()
    assert torch.equal(share, reference.mask_iou(a, b, mode="iof"))
    assert torch.equal(share, mask_iou(first, second, [True] * 9).cpu())
    crowd = torch.arange(9, device=device) % 2
    ious = mask_iou(first, second, crowd).cpu()
    assert torch.equal(ious[:, 1::2], share[:, 1::2])
    assert torch.equal(ious[:, ::2], mask_iou(first, second).cpu()[:, ::2])


def test_packed_subsets(device: torch.device) -> None:
    masks = objects(30, 61, 130)
    packed = pack_masks(masks.to(device))
    expected = reference.mask_iou(masks)
    index = torch.tensor([3, 0, 29, 3], device=device)
    for choice in (slice(2, 20, 3), slice(4, 9), index):
        rows = expected[choice.cpu() if isinstance(choice, Tensor) else choice]
        assert torch.equal(mask_iou(packed[choice], packed).cpu(), rows)
        assert torch.equal(mask_iou(packed, packed[choice]).cpu(), rows.T)


@pytest.mark.parametrize(
    "shape", [(0, 3, 5, 7), (3, 0, 5, 7), (0, 0, 5, 7), (2, 3, 0, 7), (2, 3, 5, 0), (2, 3, 0, 0)]
)
def test_nothing_to_compare(shape: tuple[int, ...], device: torch.device) -> None:
    a = torch.zeros(shape[0], *shape[2:], dtype=torch.bool)
    b = torch.zeros(shape[1], *shape[2:], dtype=torch.bool)
    for make_a in FORMS.values():
        for make_b in FORMS.values():
            ious = mask_iou(on(device, make_a(a)), on(device, make_b(b)))
            assert ious.shape == shape[:2] and ious.dtype == torch.float64
            assert not ious.any()
    for same in (a.to(device), pack_masks(a.to(device)), rle_encode(a)):
        assert mask_iou(same).shape == mask_iou(same, same).shape == (shape[0], shape[0])


def test_huge_runs() -> None:
    """Positions up to 2^32 - 1, and areas whose sum passes 2^32."""
    height, width = 65535, 65537
    area = height * width
    runs = [
        [0, area],
        [0, area - 1, 1],
        [1, area - 1],
        [area - 5, 5],
        [area],
        [area // 2, 3, area - area // 2 - 3],
        [0, 1, area - 2, 1],
    ]
    rles = [{"size": [height, width], "counts": counts} for counts in runs]
    # Not pycocotools' own strings: it reserves 6 characters a run, and these take 7.
    text = [{**rle, "counts": reference.rle.counts_to_text(rle["counts"])} for rle in rles]
    expected = torch.from_numpy(np.array(peer.iou(text, text, [0] * len(runs))))
    intersections = mask_iou(rles, mode="iof") * torch.tensor([sum(c[1::2]) for c in runs])[:, None]
    assert intersections[0, 1] == area - 1 and intersections[1, 6] == 1
    # pycocotools adds areas in 32 bits, which overflows for pairs that fill more than half.
    areas = torch.tensor([sum(counts[1::2]) for counts in runs])
    fits = areas[:, None] + areas[None] < 2**32
    ious = mask_iou(rles)
    assert torch.equal(ious[fits], expected[fits])
    assert torch.equal(ious, ious.T) and ious[0, 0] == 1 and ious[0, 1] == (area - 1) / area
    assert torch.equal(mask_iou(rles, rles[:3]), ious[:, :3])


def test_runs_that_stop_short_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a\[0\]: counts sum to 3"):
        mask_iou([{"size": [2, 2], "counts": [1, 2]}])


def test_runs_of_length_zero() -> None:
    counts = [[0, 0, 3, 0, 0, 2, 1], [2, 0, 0, 4], [6], [0, 6], [0, 3, 3], [1, 0, 1, 0, 0, 1, 3, 0]]
    rles = [{"size": [2, 3], "counts": runs} for runs in counts]
    assert torch.equal(mask_iou(rles), reference.mask_iou(rles))
    assert torch.equal(mask_iou(rles), mask_iou(pack_masks(rles)))


def test_threads_do_not_change_the_result() -> None:
    masks = objects(60, 400, 300)
    forms = [make(masks) for make in FORMS.values()]
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results += [mask_iou(form) for form in forms]
            results += [mask_iou(form, form[:]) for form in forms]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


sizes = st.tuples(*(st.integers(0, limit) for limit in (12, 12, 70, 140)))


@settings(deadline=None, max_examples=40)
@given(size=sizes, above=st.sampled_from([-9, 0, 1, 2, 3, 9]), seed=st.integers(0, 99))
def test_invariants(size: tuple[int, ...], above: float, seed: int) -> None:
    num_a, num_b, height, width = size
    a, b = noise(num_a, height, width, seed=seed) > above, objects(num_b, height, width, seed)
    ious = mask_iou(a, b)
    assert torch.equal(ious, mask_iou(b, a).T)
    assert torch.equal(ious, reference.mask_iou(a, b))
    itself = mask_iou(b)
    assert torch.equal(itself, itself.T)
    assert torch.equal(itself.diagonal() == 1, b.flatten(1).any(1))
    for make_a in FORMS.values():
        for make_b in FORMS.values():
            assert torch.equal(mask_iou(make_a(a), make_b(b)), ious)
    assert (ious <= mask_iou(a, b, mode="iof")).all()


def test_intersections(device: torch.device) -> None:
    masks = pack_masks(objects(21, 50, 200).to(device))
    common = torch.ops.fastseg.mask_intersections(
        masks.words, masks.words[3:], masks.boxes, masks.boxes[3:]
    )
    pixels = objects(21, 50, 200).flatten(1).double()
    assert torch.equal(common.cpu(), (pixels @ pixels[3:].T).long())


@pytest.mark.parametrize("count", [6, 130])
def test_boxes_that_lie(count: int, device: torch.device) -> None:
    """Nothing is read outside the masks, and what a box leaves out is not counted."""
    packed = pack_masks((noise(count, 24, 100) > 0).to(device))
    wide = torch.tensor([-(2**40), -5, 2**40, 99], device=device).expand(count, 4)
    words = packed.words
    common = torch.ops.fastseg.mask_intersections(words, words[1:], wide, wide[1:])
    boxes = packed.boxes
    expected = torch.ops.fastseg.mask_intersections(words, words[1:], boxes, boxes[1:])
    assert torch.equal(common, expected)
    far = torch.tensor([2**33, 2**33, 2**34, 2**34], device=device).expand(count, 4)
    assert not torch.ops.fastseg.mask_intersections(words, words[1:], far, boxes[1:]).any()


def test_errors() -> None:
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    rles = rle_encode(masks)
    with pytest.raises(ValueError, match="mode must be 'iou' or 'iof', got 'giou'"):
        mask_iou(masks, mode="giou")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="threshold is required for floating masks"):
        mask_iou(masks.float())
    other = torch.zeros(2, 4, 3, dtype=torch.bool)
    for a, b in ((masks, other), (pack_masks(masks), other), (rles, other)):
        with pytest.raises(ValueError, match=r"one size, got \(3, 4\) for a and \(4, 3\) for b"):
            mask_iou(a, b)
    with pytest.raises(ValueError, match=r"one size: a\[0\] has \[3, 4\], b\[1\] has \[4, 3\]"):
        mask_iou(rles, [rles[0], rle_encode(other)[0]])
    with pytest.raises(ValueError, match=r"one size: a\[0\] has \[3, 4\], a\[1\] has \[4, 3\]"):
        mask_iou([rles[0], rle_encode(other)[0]])
    for iscrowd in ([True], torch.zeros(2, 2), [0, 1, 0]):
        for form in (masks, rles):
            with pytest.raises(ValueError, match=r"iscrowd must have shape \[2\], got \("):
                mask_iou(form, form, iscrowd)


@pytest.mark.gpu
def test_devices_differ() -> None:
    masks = objects(3, 20, 30)
    with pytest.raises(ValueError, match="masks must lie on one device, got cuda:0 for a and cpu"):
        mask_iou(masks.cuda(), masks)


def test_raw_function_checks_its_arguments() -> None:
    words, boxes = torch.zeros(2, 3, 2, dtype=torch.int64), torch.zeros(2, 4, dtype=torch.int64)
    common = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="words_a must be contiguous"):
        strided = words.transpose(0, 1).contiguous().transpose(0, 1)
        _C.mask_intersections(strided, words, boxes, boxes, common)
    with pytest.raises(ValueError, match=r"words_b must have shape \[\*, 3, 2\], got \[2, 2, 2\]"):
        _C.mask_intersections(words, words[:, :2], boxes, boxes, common)
    with pytest.raises(ValueError, match=r"boxes_b must have shape \[2, 4\], got \[1, 4\]"):
        _C.mask_intersections(words, words, boxes, boxes[:1], common)
    for sides in ((2**31, 1), (1, 2**24 + 1)):
        with pytest.raises(ValueError, match="at most 2147483647 words, and 16777216 a row, got"):
            none = words[:0, :1, :1].expand(0, *sides)
            _C.mask_intersections(none, none, boxes[:0], boxes[:0], common[:0, :0])
    with pytest.raises(ValueError, match="intersections must be int64, got int32"):
        _C.mask_intersections(words, words, boxes, boxes, common.int())


def test_opcheck(device: torch.device) -> None:
    packed = pack_masks(objects(5, 20, 70).to(device))
    words, boxes, areas = packed.words, packed.boxes, packed.areas
    common = torch.ops.fastseg.mask_intersections(words, words, boxes, boxes)
    torch.library.opcheck(
        torch.ops.fastseg.mask_intersections.default, (words, words[1:], boxes, boxes[1:])
    )
    for crowd in (None, torch.ones(5, dtype=torch.bool, device=device)):
        torch.library.opcheck(
            torch.ops.fastseg.mask_iou.default, (common, areas, areas, crowd, "iou")
        )


@pytest.mark.gpu
def test_cuda_graph() -> None:
    """From logits to IoU without waiting for the device."""
    logits = noise(150, 60, 200).cuda()
    warm_up = mask_iou(pack_masks(logits, 0.0))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ious = mask_iou(pack_masks(logits, 0.0))
    graph.replay()
    assert torch.equal(ious, warm_up)
    logits.copy_(noise(150, 60, 200, seed=1))
    graph.replay()
    assert torch.equal(ious, mask_iou(logits > 0))


def test_compile(device: torch.device) -> None:
    @torch.compile(fullgraph=True, dynamic=True)
    def best(a: Tensor, b: Tensor, iscrowd: Tensor) -> Tensor:
        return mask_iou(a, b, iscrowd).max(0).values

    for count in (5, 9):
        a, b = objects(count, 20, 70).to(device), objects(4, 20, 70, seed=1).to(device)
        iscrowd = torch.tensor([0, 1, 0, 1], device=device)
        assert torch.equal(best(a, b, iscrowd), mask_iou(a, b, iscrowd).max(0).values)


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "golden or peer or objects or huge or invariants")
