"""NMS of masks: greedy against NMS of boxes, all methods against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseg import _C, ops, reference

# Emulated kernels take milliseconds a mask: masks are packed once a test, and there are few.
EMULATED = _C.build_info()["cuda_emulator"]
BACKEND = "aot_eager" if EMULATED else "inductor"
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INF, NAN = torch.inf, torch.nan
SOFT: list[dict[str, Any]] = [
    {"method": "linear"},
    {"method": "linear", "iou_threshold": 0.0, "min_score": 0.2},
    {"method": "gaussian"},
    {"method": "gaussian", "sigma": 0.1, "min_score": 0.0},
]


def random_masks(
    n: int, seed: int, size: tuple[int, int] = (10, 40), classes: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Filled rectangles around few centres, distinct scores, and labels."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    limit = torch.tensor([width, height])
    centres = torch.rand(max(n // 8, 1), 2, generator=generator).repeat(16, 1)[:n] * limit
    centres = centres + 0.08 * limit * torch.randn(n, 2, generator=generator)
    half = (0.05 + 0.2 * torch.rand(n, 2, generator=generator)) * limit
    boxes = torch.cat([centres - half, centres + half], 1).round()
    boxes = boxes.clamp(min=0).minimum(limit.repeat(2))
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None]
    x1, y1, x2, y2 = boxes.t()[..., None, None]
    masks = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    scores = (torch.randperm(n, generator=generator) + 1.0) / (n + 1)
    return masks, scores, torch.randint(classes, (n,), generator=generator)


def to(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device) for tensor in tensors)


def assert_same(ours: Any, expected: Any) -> None:
    """Equal indices and counts; scores to the rounding of exp."""
    ours, expected = (x if isinstance(x, tuple) else (x,) for x in (ours, expected))
    assert len(ours) == len(expected)
    for our, other in zip(ours, expected, strict=True):
        if our.is_floating_point():
            torch.testing.assert_close(our, other, rtol=2e-6, atol=1e-7, equal_nan=True)
        else:
            assert torch.equal(our, other)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9])
def test_greedy_is_nms_of_boxes_for_rectangles(threshold: float, device: torch.device) -> None:
    masks, scores, labels = random_masks(80, seed=0)
    real = masks.flatten(1).any(1)  # torchvision's boxes without extent have no IoU
    masks, scores, labels = masks[real], scores[real], labels[real]
    boxes = torchvision.ops.masks_to_boxes(masks).double()
    boxes[:, 2:] += 1
    plain = torchvision.ops.nms(boxes, scores.double(), threshold)
    batched = ops.batched_nms(boxes, scores, labels, threshold)
    masks, scores, labels = to(device, masks, scores, labels)
    packed = ops.pack_masks(masks)
    assert ops.mask_nms(packed, scores, None, threshold).tolist() == plain.tolist()
    assert ops.mask_nms(packed, scores, labels, threshold).tolist() == batched.tolist()


@pytest.mark.parametrize("method", ["greedy", "fast"])
@pytest.mark.parametrize("n", [1, 2, 33, 50])
def test_definition(n: int, method: Any, device: torch.device) -> None:
    masks, scores, labels = to(device, *random_masks(n, seed=n))
    packed = ops.pack_masks(masks)
    for classes, threshold in ((None, 0.5), (labels, 0.0)):
        arguments = (scores, classes, threshold)
        expected = reference.mask_nms(masks, *arguments, method=method)
        assert_same(ops.mask_nms(packed, *arguments, method=method), expected)
        for size in (0, n // 3, n + 40):
            padded = ops.mask_nms(packed, *arguments, method=method, max_output=size)
            expected = reference.mask_nms(masks, *arguments, method=method, max_output=size)
            assert_same(padded, expected)


@pytest.mark.parametrize("options", SOFT, ids=str)
@pytest.mark.parametrize("n", [1, 2, 50])
def test_soft_definition(n: int, options: dict[str, Any], device: torch.device) -> None:
    masks, scores, labels = to(device, *random_masks(n, seed=n))
    packed = ops.pack_masks(masks)
    for classes in (None, labels):
        arguments = (scores, classes)
        ours = ops.soft_mask_nms(packed, *arguments, **options)
        assert_same(ours, reference.soft_mask_nms(masks, *arguments, **options))
        assert (ours[0].diff() <= 0).all()
        for size in (0, n // 3, n + 5):
            padded = ops.soft_mask_nms(packed, *arguments, max_output=size, **options)
            expected = reference.soft_mask_nms(masks, *arguments, max_output=size, **options)
            assert_same(padded, expected)


def test_a_chain_of_masks(device: torch.device) -> None:
    """A chain in which each overlaps the next: greedy keeps every other one, fast the first."""
    masks = torch.zeros(3, 1, 8, dtype=torch.bool, device=device)
    for i, mask in enumerate(masks):
        mask[0, i : i + 4] = True
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    assert ops.mask_nms(masks, scores).tolist() == [0, 2]
    assert ops.mask_nms(masks, scores, method="fast").tolist() == [0]
    # An IoU equal to the threshold, 3 / 5, keeps; soft NMS lowers the score from there on.
    assert ops.mask_nms(masks, scores, iou_threshold=3 / 5).tolist() == [0, 1, 2]
    lowered, _ = ops.soft_mask_nms(masks, scores, iou_threshold=3 / 5)
    torch.testing.assert_close(lowered, torch.tensor([0.9, 0.7, 0.128], device=device))


@pytest.mark.parametrize("dtype", FLOATS)
def test_score_dtypes_and_ties(dtype: torch.dtype, device: torch.device) -> None:
    masks, scores, labels = to(device, *random_masks(80, seed=1, size=(12, 30)))
    packed = ops.pack_masks(masks)
    scores = scores.to(dtype)  # bfloat16: many ties
    for method in ("greedy", "fast"):
        ours = ops.mask_nms(packed, scores, labels, method=method)
        assert_same(ours, reference.mask_nms(masks, scores, labels, method=method))
    soft = ops.soft_mask_nms(packed, scores, labels)
    assert soft[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_same(soft, reference.soft_mask_nms(masks, scores, labels))
    strided = torch.stack([scores, -scores], 1)[:, 0]
    assert_same(ops.soft_mask_nms(packed, strided, labels), soft)


def test_every_form_of_masks(device: torch.device) -> None:
    masks, scores, labels = to(device, *random_masks(40, seed=0))
    expected = ops.mask_nms(masks, scores, labels)
    logits = torch.where(masks, 0.75, -3.0)
    assert torch.equal(ops.mask_nms(logits, scores, labels, threshold=0.5), expected)
    assert torch.equal(ops.mask_nms(ops.rle_encode(masks), scores, labels), expected)
    packed = ops.pack_masks(masks)
    assert torch.equal(ops.mask_nms(packed, scores, labels.to(torch.int32)), expected)
    assert torch.equal(ops.mask_nms(packed, scores, labels * 2**60 - 2**61), expected)


def test_equal_and_empty_masks(device: torch.device) -> None:
    masks = torch.zeros(4, 3, 5, dtype=torch.bool, device=device)
    masks[0, 1:, 2:] = masks[2, 1:, 2:] = True
    scores = torch.full((4,), 0.5, device=device)
    for method in ("greedy", "fast"):
        assert ops.mask_nms(masks, scores, iou_threshold=0, method=method).tolist() == [0, 1, 3]
    kept_scores, indices = ops.soft_mask_nms(masks, scores, min_score=0)
    assert indices.tolist() == [0, 1, 3, 2] and kept_scores.tolist() == [0.5, 0.5, 0.5, 0]


def test_special_scores(device: torch.device) -> None:
    masks, scores, labels = to(device, *random_masks(40, seed=2, classes=1))
    scores[5:12] = torch.tensor([INF, -1.0, NAN, 0.0, -0.0, NAN, -INF], device=device)
    packed = ops.pack_masks(masks)
    options: dict[str, Any]
    for options in ({}, {"max_output": 70}):
        for method in ("greedy", "fast"):
            ours = ops.mask_nms(packed, scores, labels, method=method, **options)
            assert_same(ours, reference.mask_nms(masks, scores, labels, method=method, **options))
        for soft in SOFT:
            ours = ops.soft_mask_nms(packed, scores, labels, **soft, **options)
            expected = reference.soft_mask_nms(masks, scores, labels, **soft, **options)
            assert_same(ours, expected)


def test_batch_is_each_image(device: torch.device) -> None:
    images = [to(device, *random_masks(30, seed)) for seed in range(3)]
    masks, scores, labels = (torch.stack(parts) for parts in zip(*images, strict=True))
    scores[1, ::2] = -INF
    scores[2] = -INF
    for form in (masks, ops.pack_masks(masks.flatten(0, 1))):
        for method in ("greedy", "fast"):
            indices, count = ops.mask_nms(form, scores, labels, method=method, max_output=20)
            for i in range(3):
                image = (masks[i], scores[i], labels[i])
                expected = reference.mask_nms(*image, method=method, max_output=20)
                assert_same((indices[i], count[i]), expected)
        soft = ops.soft_mask_nms(form, scores, labels, max_output=20)
        for i in range(3):
            expected = reference.soft_mask_nms(masks[i], scores[i], labels[i], max_output=20)
            assert_same(tuple(x[i] for x in soft), expected)


@pytest.mark.parametrize("shape", [(0, 5, 7), (0, 0, 0), (3, 0, 7), (3, 5, 0)])
def test_empty(shape: tuple[int, ...], device: torch.device) -> None:
    masks = torch.zeros(shape, dtype=torch.bool, device=device)
    scores = torch.linspace(1, 0.5, shape[0], device=device)
    for method in ("greedy", "fast"):
        assert ops.mask_nms(masks, scores, method=method).tolist() == list(range(shape[0]))
    assert torch.equal(ops.soft_mask_nms(masks, scores)[0], scores)
    indices, count = ops.mask_nms(masks[None], scores[None], max_output=4)
    assert indices.shape == (1, 4) and count.tolist() == [shape[0]]
    indices, count = ops.mask_nms(masks[None][:0], scores[None][:0], max_output=4)
    assert indices.shape == (0, 4) and count.shape == (0,)


mask_bits = st.integers(0, 2**12 - 1)
entry = st.tuples(mask_bits, st.integers(0, 20), st.integers(0, 2))


@settings(deadline=None, max_examples=12 if EMULATED else 40)
@given(st.lists(entry, max_size=20), st.floats(0, 1))
def test_invariants(entries: list[tuple[int, int, int]], threshold: float) -> None:
    table = torch.tensor(entries, dtype=torch.int64).reshape(-1, 3)
    masks = ((table[:, :1] >> torch.arange(12)) & 1).reshape(-1, 3, 4).bool()
    scores, labels = table[:, 1] / 20, table[:, 2]
    packed = ops.pack_masks(masks)
    greedy = ops.mask_nms(packed, scores, labels, threshold)
    assert_same(greedy, reference.mask_nms(masks, scores, labels, threshold))
    fast = ops.mask_nms(packed, scores, labels, threshold, method="fast")
    assert_same(fast, reference.mask_nms(masks, scores, labels, threshold, method="fast"))
    assert set(fast.tolist()) <= set(greedy.tolist())
    # Masks kept alone are all kept; each class alone gives its part.
    again = ops.mask_nms(packed[greedy], scores[greedy], labels[greedy], threshold)
    assert again.tolist() == list(range(len(greedy)))
    for label in range(3):
        own = torch.where(labels == label)[0]
        kept = own[ops.mask_nms(packed[own], scores[own], None, threshold)].tolist()
        assert kept == [i for i in greedy.tolist() if labels[i] == label]
    soft = ops.soft_mask_nms(packed, scores, labels, threshold, min_score=0)
    assert sorted(soft[1].tolist()) == list(range(len(entries)))
    assert (soft[0] <= scores[soft[1]]).all() and (soft[0].diff() <= 0).all()


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "special or boxes or chain")


def test_errors() -> None:
    masks, scores, labels = random_masks(5, seed=0)
    with pytest.raises(ValueError, match=r"method must be 'greedy' or 'fast', got 'linear'"):
        ops.mask_nms(masks, scores, method="linear")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match=r"method must be 'linear' or 'gaussian', got 'fast'"):
        ops.soft_mask_nms(masks, scores, method="fast")  # type: ignore[call-overload]
    for sigma in (0.0, NAN):
        with pytest.raises(ValueError, match=f"sigma must be above 0, got {sigma}"):
            ops.soft_mask_nms(masks, scores, sigma=sigma)
    with pytest.raises(ValueError, match=r"max_output must be at least 0, got -1"):
        ops.mask_nms(masks, scores, max_output=-1)
    with pytest.raises(ValueError, match=r"scores must have shape \[N\], got"):
        ops.mask_nms(masks[None], scores[None])
    with pytest.raises(ValueError, match=r"scores must have shape \[N\] or \[B, N\], got \(\)"):
        ops.mask_nms(masks, scores[0], max_output=3)
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), got \(3,\)"):
        ops.soft_mask_nms(masks, scores, labels[:3])
    with pytest.raises(ValueError, match=r"masks must have shape \[5, H, W\], got \(37, 70\)"):
        ops.mask_nms(torch.ones(37, 70), scores)


def test_opcheck(device: torch.device) -> None:
    masks, scores, labels = to(device, *random_masks(20, seed=0))
    flat = masks.flatten(1).double()
    shared, areas = (flat @ flat.T).long()[None], masks.sum((1, 2))[None]
    for method in ("greedy", "gaussian"):
        options = (method, 0.5, 0.5, 0.01, True, 7)
        arguments = (shared, areas, labels[None], scores[None], *options)
        torch.library.opcheck(torch.ops.fastseg.mask_nms.default, arguments)


def test_compile(device: torch.device) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend=BACKEND)
    def best(masks: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        kept = ops.mask_nms(masks, scores, labels, max_output=9)
        return *kept, *ops.soft_mask_nms(masks, scores, labels, max_output=9)

    for n in (60, 75):
        masks, scores, labels = to(device, *random_masks(n, seed=n))
        outputs = best(masks[None], scores[None], labels[None])
        expected = reference.mask_nms(masks, scores, labels, max_output=9)
        soft = reference.soft_mask_nms(masks, scores, labels, max_output=9)
        assert_same(tuple(x[0] for x in outputs), (*expected, *soft))


@pytest.mark.gpu
def test_cuda_graph() -> None:
    arguments = to(torch.device("cuda"), *random_masks(300, seed=4, size=(100, 152)))

    def best() -> tuple[Tensor, ...]:
        kept = ops.mask_nms(*arguments, max_output=100)
        return *kept, *ops.soft_mask_nms(*arguments, max_output=100)

    best()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = best()
    for seed in (4, 5):
        for static, fresh in zip(arguments, random_masks(300, seed, (100, 152)), strict=True):
            static.copy_(fresh)
        arguments[1][seed::7] = -INF
        graph.replay()
        expected = reference.mask_nms(*arguments, max_output=100)
        soft = reference.soft_mask_nms(*arguments, max_output=100)
        assert_same(outputs, (*expected, *soft))
