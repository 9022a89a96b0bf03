"""Matrix NMS against stored results of SOLO, AdelaiDet and mmdetection, and its definition."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fastseg import _C, ops, reference

DATA = Path(__file__).parents[1] / "data"
GOLDEN = load_file(DATA / "ops_matrix_nms.safetensors")
CASES = sorted({name.split("/")[1].split(".")[0] for name in GOLDEN if name.startswith("in/")})
GOLDEN_SIZE = (40, 56)
# Emulated kernels take milliseconds a mask: masks are packed once a test, and there are few.
EMULATED = _C.build_info()["cuda_emulator"]
BACKEND = "aot_eager" if EMULATED else "inductor"
KERNELS = [("gaussian", 2.0), ("gaussian", 0.5), ("linear", 2.0)]
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INF, NAN = torch.inf, torch.nan


def random_masks(
    n: int, seed: int, size: tuple[int, int] = (10, 40), classes: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Ellipses around few centres, labels and distinct scores, unsorted."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    centres = torch.rand(max(n // 6, 1), 2, generator=generator).repeat(12, 1)[:n]
    centres = centres + 0.04 * torch.randn(n, 2, generator=generator)
    radii = 0.05 + 0.3 * torch.rand(n, 2, generator=generator)
    y = (torch.arange(height) + 0.5)[None, :, None] / height
    x = (torch.arange(width) + 0.5)[None, None] / width
    cy, cx = centres.t()[..., None, None]
    ry, rx = radii.t()[..., None, None]
    masks = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    labels = torch.randint(classes, (n,), generator=generator)
    scores = (torch.randperm(n, generator=generator) + 1.0) / (n + 1)
    return masks, labels, scores


def to(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device) for tensor in tensors)


def assert_same(ours: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Equal indices, labels and counts; scores to the rounding of exp."""
    assert len(ours) == len(expected)
    torch.testing.assert_close(ours[0], expected[0], rtol=2e-6, atol=1e-7, equal_nan=True)
    for our, other in zip(ours[1:], expected[1:], strict=True):
        assert torch.equal(our, other)


@functools.cache
def golden_input(case: str, device: torch.device) -> tuple[ops.PackedMasks, Tensor, Tensor, Tensor]:
    bytes_of_bits, labels, scores, areas = (
        GOLDEN[f"in/{case}.{name}"] for name in ("masks_packed", "labels", "scores", "sum_masks")
    )
    bits = (bytes_of_bits[:, :, None] >> torch.arange(7, -1, -1)) & 1
    masks, *others = to(device, bits.reshape(-1, *GOLDEN_SIZE).bool(), labels, scores, areas)
    return ops.pack_masks(masks), *others


@pytest.mark.parametrize(("kernel", "sigma"), KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, kernel: str, sigma: float, device: torch.device) -> None:
    packed, labels, scores, areas = golden_input(case, device)
    options: dict[str, Any] = {"kernel": kernel, "sigma": sigma}
    decayed = ops.matrix_nms_scores(packed, labels, scores, mask_areas=areas, **options)
    name = f"out/{case}.{kernel}_{sigma}"
    for peer in ("solo", "adelaidet"):
        expected = GOLDEN[f"{name}.{peer}_decayed"].to(device)
        # The third of equal masks is NaN there, by the linear kernel's 0 / 0; the first takes it.
        defined = ~expected.isnan()
        assert defined.all() or (case, kernel) == ("identical_masks", "linear")
        torch.testing.assert_close(decayed[defined], expected[defined], rtol=2e-6, atol=1e-7)
        assert (decayed == 0)[~defined].all()


# Not those where equal scores are in any order, and where scores are NaN.
MMDETECTION = [
    (case, *kernel)
    for case in CASES
    for kernel in KERNELS
    if case != "tied_scores" and (case, kernel[0]) != ("identical_masks", "linear")
]


@pytest.mark.parametrize(("case", "kernel", "sigma"), MMDETECTION)
def test_golden_mmdetection(case: str, kernel: str, sigma: float, device: torch.device) -> None:
    packed, labels, scores, areas = golden_input(case, device)
    n = len(scores)
    cut = {"filter_threshold": 0.05, "pre_top_k": max(2 * n // 3, 1)}
    for name, options, limit in (("all", {}, n), ("cut", cut, max(n // 3, 1))):
        results = f"out/{case}.{kernel}_{sigma}.mmdet_{name}"
        expected = {
            key: GOLDEN[f"{results}.{key}"].to(device) for key in ("scores", "labels", "keep")
        }
        options = {"kernel": kernel, "sigma": sigma, "mask_areas": areas, **options}
        ours = ops.matrix_nms(packed, labels, scores, max_output=limit, **options)
        torch.testing.assert_close(ours[0], expected["scores"], rtol=2e-6, atol=1e-7)
        assert torch.equal(ours[1], expected["labels"])
        assert torch.equal(ours[2].words, packed.words[ours[3]])
        # Scores that decay to the same number are in any order there.
        tied = torch.isclose(ours[0][:, None], ours[0], rtol=1e-5).sum(1) > 1
        assert torch.equal(ours[3][~tied], expected["keep"][~tied])


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize("n", [1, 2, 33, 50])
def test_definition(n: int, kernel: str, device: torch.device) -> None:
    masks, labels, scores = to(device, *random_masks(n, seed=n))
    packed = ops.pack_masks(masks)
    options: dict[str, Any]
    for options in ({}, {"filter_threshold": 0.1}, {"pre_top_k": n // 2 + 1}, {"sigma": 0.3}):
        options["kernel"] = kernel
        ours = ops.matrix_nms(masks, labels, scores, **options)
        assert_same(ours, reference.matrix_nms(masks, labels, scores, **options))
        for size in (0, n // 3, n + 40):
            padded = ops.matrix_nms_padded(packed, labels, scores, size, **options)
            expected = reference.matrix_nms_padded(masks, labels, scores, size, **options)
            assert_same(padded, expected)


def test_every_form_of_masks(device: torch.device) -> None:
    masks, labels, scores = to(device, *random_masks(40, seed=0))
    expected = ops.matrix_nms_scores(masks, labels, scores)
    logits = torch.where(masks, 0.75, -3.0)
    columns = masks.transpose(1, 2).contiguous().transpose(1, 2)
    for same in (masks.to(torch.uint8) * 3, columns, ops.pack_masks(masks), ops.rle_encode(masks)):
        assert torch.equal(ops.matrix_nms_scores(same, labels, scores), expected)
    for dtype in FLOATS:
        decayed = ops.matrix_nms_scores(logits.to(dtype), labels, scores, threshold=0.5)
        assert torch.equal(decayed, expected)
    for dtype in (torch.int32, torch.uint8):
        assert torch.equal(ops.matrix_nms_scores(masks, labels.to(dtype), scores), expected)
    far = labels * 2**60 - 2**61
    assert torch.equal(ops.matrix_nms_scores(masks, far, scores), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_score_dtypes(dtype: torch.dtype, device: torch.device) -> None:
    masks, labels, scores = to(device, *random_masks(90, seed=1, size=(9, 12)))
    scores = scores.to(dtype)  # bfloat16: many ties
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ours = ops.matrix_nms(masks, labels, scores)
    assert ours[0].dtype == wide
    assert_same(ours, reference.matrix_nms(masks, labels, scores))
    strided = torch.stack([scores, -scores], 1)[:, 0]
    assert_same(ops.matrix_nms(masks, labels, strided), ours)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_equal_and_empty_masks(kernel: str, device: torch.device) -> None:
    """Nothing is NaN: an empty mask overlaps none, 0 / 0 counts as 1, equal scores go by index."""
    box = torch.zeros(6, 8, dtype=torch.bool)
    box[1:4, 2:7] = True
    masks = torch.stack([box, box & False, box, box, box & False, ~box]).to(device)
    labels = torch.zeros(6, dtype=torch.int64, device=device)
    scores = torch.tensor([0.9, 0.8, 0.9, 0.7, 0.8, 0.1], device=device)
    least = 0.0 if kernel == "linear" else math.exp(-2)
    expected = torch.tensor([0.9, 0.8, 0.9 * least, 0.7 * least, 0.8, 0.1], device=device)
    decayed = ops.matrix_nms_scores(masks, labels, scores, kernel=kernel)
    torch.testing.assert_close(decayed, expected)
    assert torch.equal(decayed[[0, 1, 4, 5]], scores[[0, 1, 4, 5]])
    assert ops.matrix_nms(masks, labels, scores, kernel=kernel)[3][:3].tolist() == [0, 1, 4]
    # exp underflows: 0 / 0 again.
    decayed = ops.matrix_nms_scores(masks, labels, scores, sigma=1e4)
    assert decayed.tolist() == (scores * torch.tensor([1, 1, 0, 0, 1, 1], device=device)).tolist()


def test_masks_come_back_in_their_form() -> None:
    masks, labels, scores = random_masks(30, seed=6)
    _, _, kept, indices = ops.matrix_nms(masks, labels, scores, max_output=5)
    assert torch.equal(kept, masks[indices]) and len(indices) == 5
    rles = ops.rle_encode(masks)
    _, _, kept_rles, same = ops.matrix_nms(rles, labels, scores, max_output=5)
    assert kept_rles == [rles[i] for i in indices.tolist()] and torch.equal(same, indices)
    _, _, packed, same = ops.matrix_nms(ops.pack_masks(masks), labels, scores, max_output=5)
    assert torch.equal(ops.unpack_masks(packed), kept) and torch.equal(same, indices)


def test_equal_scores_go_by_index(device: torch.device) -> None:
    masks, labels, _ = to(device, *random_masks(80, seed=4))
    scores = (torch.arange(80, device=device) % 3).float() / 2
    assert_same(ops.matrix_nms(masks, labels, scores), reference.matrix_nms(masks, labels, scores))


def test_special_scores(device: torch.device) -> None:
    masks, labels, scores = to(device, *random_masks(60, seed=2, classes=1))
    special = torch.tensor([INF, -1.0, NAN, 0.0, -0.0, NAN, -INF], device=device)
    scores[5:12] = special
    for options in ({}, {"filter_threshold": 0.2}, {"max_output": 7}, {"pre_top_k": 4}):
        ours = ops.matrix_nms(masks, labels, scores, **options)
        assert_same(ours, reference.matrix_nms(masks, labels, scores, **options))
    padded = ops.matrix_nms_padded(masks, labels, scores, 70)
    assert_same(padded, reference.matrix_nms_padded(masks, labels, scores, 70))


def test_areas_of_the_caller(device: torch.device) -> None:
    masks, labels, scores = to(device, *random_masks(50, seed=3))
    areas = masks.sum((1, 2))
    packed = ops.pack_masks(masks)
    expected = ops.matrix_nms_scores(packed, labels, scores)
    for dtype in (torch.int64, torch.int32, torch.float32, torch.float64):
        given_areas = ops.matrix_nms_scores(packed, labels, scores, mask_areas=areas.to(dtype))
        assert torch.equal(given_areas, expected)
    # Too small for the intersections, negative and NaN: IoUs stay within 0 and 1.
    for wrong in (areas * 1.5, areas * 0.7, areas * 0.2, -areas.float(), areas * NAN):
        for kernel in ("gaussian", "linear"):
            options = {"kernel": kernel, "mask_areas": wrong}
            decayed = ops.matrix_nms_scores(packed, labels, scores, **options)
            expected = reference.matrix_nms_scores(masks, labels, scores, **options)
            torch.testing.assert_close(decayed, expected, rtol=2e-6, atol=1e-7)
            assert (decayed >= 0).all() and (decayed <= scores).all()


def test_batch_is_each_image(device: torch.device) -> None:
    images = [to(device, *random_masks(20, seed)) for seed in range(3)]
    masks, labels, scores = (torch.stack(parts) for parts in zip(*images, strict=True))
    scores[1, ::2] = -INF
    scores[2] = -INF
    packed = ops.pack_masks(masks.flatten(0, 1))
    options: dict[str, Any]
    for options in ({}, {"filter_threshold": 0.15}, {"pre_top_k": 12}):
        for form in (masks, packed):
            batch = ops.matrix_nms_padded(form, labels, scores, 15, **options)
            assert [x.shape for x in batch] == [(3, 15)] * 3 + [(3,)]
            for i in range(3):
                expected = reference.matrix_nms_padded(
                    masks[i], labels[i], scores[i], 15, **options
                )
                assert_same(tuple(x[i] for x in batch), expected)
    assert batch[3][2] == 0
    decayed = ops.matrix_nms_scores(masks, labels, scores)
    for i in range(2):
        single = ops.matrix_nms_scores(masks[i], labels[i], scores[i])
        assert torch.equal(decayed[i], single)


def test_absent_masks_change_nothing(device: torch.device) -> None:
    """Candidates of a fixed number of which some are real, as a captured model has them."""
    masks, labels, scores = to(device, *random_masks(60, seed=8))
    present = torch.rand(60, generator=torch.Generator().manual_seed(1)).to(device) < 0.3
    real = torch.where(present)[0]
    expected = ops.matrix_nms(masks[real], labels[real], scores[real], filter_threshold=0.05)
    # With a filter, a score of 0 or less does it as well as -inf.
    packed = ops.pack_masks(masks)
    for absent in (-INF, 0.0, -1.0):
        padded = ops.matrix_nms_padded(
            packed, labels, torch.where(present, scores, absent), 60, filter_threshold=0.05
        )
        count = int(padded[3])
        assert count == len(expected[0])
        assert torch.equal(padded[0][:count], expected[0])
        assert torch.equal(padded[2][:count], real[expected[3]])
        assert (padded[2][count:] == -1).all()
        assert not padded[0][count:].any() and not padded[1][count:].any()


@pytest.mark.parametrize("shape", [(0, 5, 7), (0, 0, 0), (3, 0, 7), (3, 5, 0)])
def test_empty(shape: tuple[int, ...], device: torch.device) -> None:
    masks = torch.zeros(shape, dtype=torch.bool, device=device)
    labels = torch.zeros(shape[0], dtype=torch.int64, device=device)
    scores = torch.rand(shape[0], device=device)
    assert torch.equal(ops.matrix_nms_scores(masks, labels, scores), scores)
    kept_scores, _, kept, indices = ops.matrix_nms(masks, labels, scores)
    assert torch.equal(scores[indices], kept_scores) and kept.shape == shape
    batch = (masks[None], labels[None], scores[None])
    outputs = ops.matrix_nms_padded(*batch, 2, pre_top_k=1)
    assert [x.shape for x in outputs] == [(1, 2), (1, 2), (1, 2), (1,)]
    assert outputs[3].tolist() == [min(shape[0], 1)]
    outputs = ops.matrix_nms_padded(*(x[:0] for x in batch), 2)
    assert [x.shape for x in outputs] == [(0, 2), (0, 2), (0, 2), (0,)]


mask_bits = st.integers(0, 2**12 - 1)
entry = st.tuples(mask_bits, st.integers(0, 2), st.integers(0, 40))


def masks_of(entries: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor(entries, dtype=torch.int64).reshape(-1, 3)
    masks = (table[:, :1] >> torch.arange(12)) & 1
    return masks.reshape(-1, 3, 4).bool(), table[:, 1], table[:, 2] / 40


@settings(deadline=None, max_examples=12 if EMULATED else 40)
@given(st.lists(entry, max_size=20), st.sampled_from(["gaussian", "linear"]), st.floats(0.1, 8))
def test_invariants(entries: list[tuple[int, int, int]], kernel: str, sigma: float) -> None:
    masks, labels, scores = masks_of(entries)
    options: dict[str, Any] = {"kernel": kernel, "sigma": sigma}
    decayed = ops.matrix_nms_scores(masks, labels, scores, **options)
    expected = reference.matrix_nms_scores(masks, labels, scores, **options)
    torch.testing.assert_close(decayed, expected, rtol=2e-6, atol=1e-7)
    # Coefficients lie in [0, 1]; a mask alone in its class, or better than all of it, keeps 1.
    assert (decayed >= 0).all() and (decayed <= scores).all()
    for label in labels.unique():
        own = torch.where(labels == label)[0]
        best = own[scores[own].argmax()]
        assert decayed[best] == scores[best]
        alone = ops.matrix_nms_scores(masks[own], labels[own], scores[own], **options)
        assert torch.equal(alone, decayed[own])


@settings(deadline=None, max_examples=12 if EMULATED else 40)
@given(st.lists(entry, max_size=20, unique_by=lambda one: one[2]), st.randoms())
def test_order_of_the_input_does_not_matter(entries: list[tuple[int, int, int]], random) -> None:
    masks, labels, scores = masks_of(entries)
    order = list(range(len(entries)))
    random.shuffle(order)
    shuffled = ops.matrix_nms_scores(masks[order], labels[order], scores[order])
    assert torch.equal(shuffled, ops.matrix_nms_scores(masks, labels, scores)[order])


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "golden or special")


def test_threads_do_not_change_the_result() -> None:
    arguments = random_masks(300, seed=11, size=(6, 9), classes=1)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(ops.matrix_nms(*arguments))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_errors() -> None:
    masks, labels, scores = random_masks(5, seed=0)
    with pytest.raises(ValueError, match=r"kernel must be 'gaussian' or 'linear', got 'cubic'"):
        ops.matrix_nms(masks, labels, scores, kernel="cubic")
    for sigma in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match=f"sigma must be above 0, got {sigma}"):
            ops.matrix_nms(masks, labels, scores, sigma=sigma)
    with pytest.raises(ValueError, match=r"max_output must be at least 0, got -1"):
        ops.matrix_nms_padded(masks, labels, scores, -1)
    with pytest.raises(ValueError, match=r"scores must have shape \[N\], got"):
        ops.matrix_nms(masks[None], labels[None], scores[None])
    with pytest.raises(ValueError, match=r"masks must have shape \[5, H, W\], got \(4, 10, 40\)"):
        ops.matrix_nms(masks[:4], labels, scores)
    with pytest.raises(ValueError, match=r"masks must be 5, one for each score, got 4"):
        ops.matrix_nms(ops.pack_masks(masks[:4]), labels, scores)
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), got \(3,\)"):
        ops.matrix_nms_scores(masks, labels[:3], scores)
    with pytest.raises(ValueError, match=r"mask_areas must have shape \(5,\), got \(1,\)"):
        ops.matrix_nms_scores(masks, labels, scores, mask_areas=scores[:1])
    with pytest.raises(ValueError, match=r"labels must be integers, got torch.float32"):
        ops.matrix_nms_scores(masks, scores, scores)
    with pytest.raises(ValueError, match=r"scores must be floating point, got torch.int64"):
        ops.matrix_nms_scores(masks, labels, labels)
    with pytest.raises(TypeError, match=r"threshold is required for floating masks"):
        ops.matrix_nms_scores(masks.float(), labels, scores)
    with pytest.raises(TypeError, match=r"threshold is for floating masks alone, got 0.5"):
        ops.matrix_nms_scores(ops.pack_masks(masks), labels, scores, threshold=0.5)


def test_opcheck(device: torch.device) -> None:
    n = 20
    masks, labels, scores = to(device, *random_masks(n, seed=0))
    flat = masks.flatten(1).double()
    shared, areas = (flat @ flat.T).long()[None], masks.sum((1, 2))[None]
    rows = (labels[None], scores[None])
    torch.library.opcheck(
        torch.ops.fastseg.matrix_nms.default, (shared, areas, *rows, "linear", 2.0)
    )
    torch.library.opcheck(
        torch.ops.fastseg.matrix_nms_select.default,
        (scores[None], scores[None] / 2, labels[None], 0.1, True, 7),
    )


def test_compile(device: torch.device) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend=BACKEND)
    def best(logits: Tensor, labels: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
        return ops.matrix_nms_padded(
            logits, labels, scores, 9, threshold=0.0, filter_threshold=0.05, pre_top_k=50
        )

    for n in (60, 75):
        masks, labels, scores = to(device, *random_masks(n, seed=n))
        logits = masks.float() - 0.5
        outputs = best(logits[None], labels[None], scores[None])
        expected = reference.matrix_nms_padded(
            masks, labels, scores, 9, filter_threshold=0.05, pre_top_k=50
        )
        assert_same(tuple(x[0] for x in outputs), expected)


@pytest.mark.gpu
def test_cuda_graph() -> None:
    masks, labels, scores = to(torch.device("cuda"), *random_masks(500, seed=4, size=(200, 304)))
    options: dict[str, Any] = {"filter_threshold": 0.05, "pre_top_k": 400}
    ops.matrix_nms_padded(masks, labels, scores, 100, **options)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = ops.matrix_nms_padded(masks, labels, scores, 100, **options)
    for seed in (4, 5):
        for static, fresh in zip(
            (masks, labels, scores), random_masks(500, seed, (200, 304)), strict=True
        ):
            static.copy_(fresh)
        scores[seed::7] = -INF
        graph.replay()
        assert_same(outputs, reference.matrix_nms_padded(masks, labels, scores, 100, **options))
