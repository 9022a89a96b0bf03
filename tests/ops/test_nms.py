"""NMS against torchvision (stored results and live), its definition, and what must always hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fastseg import reference
from fastseg.ops import batched_nms, nms

DATA = Path(__file__).parents[1] / "data"
GOLDEN = load_file(DATA / "ops_nms.safetensors")
CASES = sorted({name.split("/")[1].split(".")[0] for name in GOLDEN if name.startswith("in/")})
THRESHOLDS = (0.0, 0.3, 0.5, 0.7)
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
INF, NAN = torch.inf, torch.nan


def random_boxes(n: int, seed: int, size: float = 300.0) -> tuple[Tensor, Tensor]:
    """Crowded boxes and distinct scores: torchvision's per-class loop leaves ties unordered."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, 2, generator=generator) * size
    half = torch.exp(torch.rand(n, 2, generator=generator) * 2.5 + 1.5) / 2
    scores = torch.randperm(n, generator=generator) / n
    return torch.cat([centre - half, centre + half], dim=1), scores


def random_classes(n: int, count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, count, (n,), generator=torch.Generator().manual_seed(seed))


def unpad(indices: Tensor, count: Tensor) -> Tensor:
    """The indices of one image, after a check of the padding."""
    kept = int(count)
    assert indices.dtype == count.dtype == torch.int64
    assert (indices[kept:] == -1).all() and (indices[:kept] >= 0).all()
    return indices[:kept]


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, threshold: float, device: torch.device) -> None:
    boxes, scores, idxs = (
        GOLDEN[f"in/{case}.{name}"].to(device) for name in ("boxes", "scores", "idxs")
    )
    plain, batched = (GOLDEN[f"out/{case}.{name}_{threshold}"] for name in ("nms", "batched_nms"))
    assert nms(boxes, scores, threshold).tolist() == plain.tolist()
    assert batched_nms(boxes, scores, idxs, threshold).tolist() == batched.tolist()
    for size in (0, 1, 7, len(scores) + 3):
        padded = unpad(*nms(boxes, scores, threshold, max_output=size))
        assert padded.tolist() == plain[:size].tolist()
        padded = unpad(*batched_nms(boxes, scores, idxs, threshold, max_output=size))
        assert padded.tolist() == batched[:size].tolist()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("n", [1, 63, 64, 65, 257, 3000])
def test_torchvision(n: int, threshold: float, device: torch.device) -> None:
    boxes, scores = random_boxes(n, seed=n)
    expected = torchvision.ops.nms(boxes, scores, threshold)
    assert torch.equal(nms(boxes.to(device), scores.to(device), threshold).cpu(), expected)
    double = nms(boxes.double().to(device), scores.to(device), threshold).cpu()
    assert torch.equal(double, torchvision.ops.nms(boxes.double(), scores.double(), threshold))


def test_many_boxes(device: torch.device) -> None:
    """More than one chunk of both walks, and outputs that end in any of them."""
    boxes, scores = random_boxes(9300, seed=1, size=1000)
    idxs = random_classes(9300, 2)
    plain = torchvision.ops.nms(boxes, scores, 0.6)
    batched = torchvision.ops.batched_nms(boxes, scores, idxs, 0.6)
    boxes, scores, idxs = boxes.to(device), scores.to(device), idxs.to(device)
    assert torch.equal(nms(boxes, scores, 0.6).cpu(), plain)
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.6).cpu(), batched)
    for size in (100, len(plain) - 1, len(plain), len(plain) + 1):
        padded = unpad(*nms(boxes, scores, 0.6, max_output=size))
        assert torch.equal(padded.cpu(), plain[:size])


@pytest.mark.parametrize("classes", [1, 2, 80, 5000])
def test_torchvision_batched(classes: int, device: torch.device) -> None:
    boxes, scores = random_boxes(2500, seed=classes)
    idxs = random_classes(2500, classes)
    expected = torchvision.ops.batched_nms(boxes, scores, idxs, 0.5)
    # Labels of any value: what matters is which are equal.
    for labels in (idxs, idxs - 40, idxs * (2**62 // 5000) * (-1) ** idxs, idxs.to(torch.int32)):
        kept = batched_nms(boxes.to(device), scores.to(device), labels.to(device), 0.5)
        assert torch.equal(kept.cpu(), expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("score_dtype", FLOATS)
def test_dtypes(dtype: torch.dtype, score_dtype: torch.dtype, device: torch.device) -> None:
    boxes, scores = random_boxes(400, seed=1)
    boxes, scores = boxes.to(device, dtype), scores.to(device, score_dtype)  # 16 bits: many ties
    idxs = random_classes(400, 3).to(device)
    assert torch.equal(nms(boxes, scores, 0.5), reference.nms(boxes, scores, 0.5))
    expected = reference.batched_nms(boxes, scores, idxs, 0.5)
    assert torch.equal(batched_nms(boxes, scores, idxs, 0.5), expected)


def test_padded_batch_is_each_image(device: torch.device) -> None:
    images = [random_boxes(1200, seed) for seed in range(5)]
    boxes = torch.stack([image[0] for image in images]).to(device)
    scores = torch.stack([image[1] for image in images]).to(device)
    idxs = torch.stack([random_classes(1200, 7, seed) for seed in range(5)]).to(device)
    absent = torch.rand(scores.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    scores[absent.to(device)] = -INF
    scores[3] = -INF
    for size in (1, 50, 1500):
        indices, count = batched_nms(boxes, scores, idxs, 0.5, max_output=size)
        assert indices.shape == (5, size) and count.shape == (5,)
        for i in range(5):
            present = torch.where(scores[i] > -INF)[0]
            expected = present[
                batched_nms(boxes[i][present], scores[i][present], idxs[i][present], 0.5)
            ]
            assert torch.equal(unpad(indices[i], count[i]), expected[:size])
        assert count[3] == 0


def test_absent_entries_only_in_the_padded_form(device: torch.device) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]], device=device)
    scores = torch.tensor([-INF, -3e38, -INF], device=device)
    assert nms(boxes, scores, 0.5).tolist() == [1, 2]
    indices, count = nms(boxes, scores, 0.5, max_output=3)
    assert (indices.tolist(), count.item()) == ([1, -1, -1], 1)


@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.5, 1.0, INF, NAN])
def test_special_boxes(threshold: float, device: torch.device) -> None:
    """Every pair of boxes with 0, negative, huge, infinite and NaN coordinates."""
    values = [0.0, 1.0, -1.0, 2.5, 1e-30, 1e20, 3e38, -3e38, INF, -INF, NAN]
    generator = torch.Generator().manual_seed(3)
    boxes = torch.tensor(values)[torch.randint(0, len(values), (600, 4), generator=generator)]
    scores = torch.rand(600, generator=generator)
    kept = nms(boxes.to(device), scores.to(device), threshold).cpu()
    assert torch.equal(kept, torchvision.ops.nms(boxes, scores, threshold))
    assert torch.equal(kept, reference.nms(boxes, scores, threshold))


def test_subnormal_areas(device: torch.device) -> None:
    """Where products underflow, the quick condition must still hold whenever the IoU is above."""
    steps = torch.randint(0, 5, (500, 4), generator=torch.Generator().manual_seed(0))
    boxes = steps.sort(dim=1).values.float() * 3e-23
    scores = torch.rand(500, generator=torch.Generator().manual_seed(1))
    for threshold in (0.0, 0.2, 0.4, 0.6, 0.9):
        kept = nms(boxes.to(device), scores.to(device), threshold).cpu()
        assert torch.equal(kept, torchvision.ops.nms(boxes, scores, threshold))


def test_order_of_scores(device: torch.device) -> None:
    """NaN first, then descending; equal scores, -0 and 0 among them, by index."""
    scores = torch.tensor([0.0, INF, NAN, -0.0, -INF, NAN, 1e-45, 0.0, -1.0], device=device)
    boxes = torch.arange(9.0, device=device)[:, None] * 10 + torch.tensor([0.0, 0, 5, 5]).to(device)
    expected = [2, 5, 1, 6, 0, 3, 7, 8, 4]
    for dtype in FLOATS[:2]:
        assert nms(boxes, scores.to(dtype), 0.5).tolist() == expected
        indices, count = nms(boxes, scores.to(dtype), 0.5, max_output=9)
        assert unpad(indices, count).tolist() == expected[:-1]


def test_many_equal_scores(device: torch.device) -> None:
    boxes, _ = random_boxes(1000, seed=5)
    scores = random_classes(1000, 4).float() - 1.5
    expected = torchvision.ops.nms(boxes, scores, 0.5)
    assert torch.equal(nms(boxes.to(device), scores.to(device), 0.5).cpu(), expected)


def test_iou_is_compared_with_the_exact_threshold(device: torch.device) -> None:
    """0.1 in float32 is above 0.1: an IoU of float32(0.1) exceeds the threshold 0.1."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 1, 10]], device=device)
    scores = torch.tensor([2.0, 1.0], device=device)
    assert nms(boxes, scores, 0.1).tolist() == [0]
    assert nms(boxes, scores, float(torch.tensor(0.1))).tolist() == [0, 1]
    assert nms(boxes.double(), scores, 0.1).tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (0, 5, 4), (0, 0, 4)])
def test_empty(shape: tuple[int, ...], device: torch.device) -> None:
    boxes, scores = torch.rand(shape, device=device), torch.rand(shape[:-1], device=device)
    idxs = torch.zeros(shape[:-1], dtype=torch.int64, device=device)
    if len(shape) == 2:
        assert nms(boxes, scores, 0.5).shape == (0,)
        assert batched_nms(boxes, scores, idxs, 0.5).dtype == torch.int64
    indices, count = batched_nms(boxes, scores, idxs, 0.5, max_output=6)
    assert indices.shape == (*shape[:-2], 6) and count.shape == shape[:-2]
    assert (indices == -1).all() and (count == 0).all()
    indices, _ = nms(boxes, scores, 0.5, max_output=0)
    assert indices.shape == (*shape[:-2], 0)


def test_strided_input(device: torch.device) -> None:
    boxes, scores = random_boxes(700, seed=9)
    idxs = random_classes(700, 5)
    expected = batched_nms(boxes, scores, idxs, 0.5).tolist()
    columns = boxes.to(device).t().contiguous().t()
    wide = torch.stack([scores, scores], dim=1).to(device)[:, 1]
    spread = torch.stack([idxs, idxs * 0], dim=1).to(device)[:, 0]
    assert batched_nms(columns, wide, spread, 0.5).tolist() == expected
    shared = columns.expand(3, 700, 4)
    indices, count = batched_nms(
        shared, wide.expand(3, 700), spread.expand(3, 700), 0.5, max_output=700
    )
    for i in range(3):
        assert unpad(indices[i], count[i]).tolist() == expected


def test_inputs_stay_and_need_no_gradient(device: torch.device) -> None:
    boxes, scores = (tensor.to(device) for tensor in random_boxes(100, seed=2))
    copies = boxes.clone(), scores.clone()
    kept = nms(boxes.requires_grad_(), scores.requires_grad_(), 0.5)
    assert not kept.requires_grad and kept.device == boxes.device
    assert torch.equal(boxes, copies[0]) and torch.equal(scores, copies[1])


coordinate = st.one_of(
    st.integers(-8, 8).map(float), st.floats(width=32), st.sampled_from([0.0, INF, -INF, NAN])
)
entry = st.tuples(*[coordinate] * 4, st.floats(width=32), st.integers(-2, 2))


@settings(deadline=None, max_examples=150)
@given(st.lists(entry, max_size=90), st.floats(-0.25, 1.0), st.integers(0, 100))
def test_invariants(entries: list[tuple[float, ...]], threshold: float, size: int) -> None:
    table = torch.tensor(entries, dtype=torch.float32).reshape(-1, 6)
    boxes, scores, idxs = table[:, :4], table[:, 4], table[:, 5].long()
    kept = batched_nms(boxes, scores, idxs, threshold)
    assert torch.equal(kept, reference.batched_nms(boxes, scores, idxs, threshold))
    # Kept boxes alone are all kept; each class alone gives its part.
    again = batched_nms(boxes[kept], scores[kept], idxs[kept], threshold)
    assert again.tolist() == list(range(len(kept)))
    for label in range(-2, 3):
        own = torch.where(idxs == label)[0]
        expected = [i for i in kept.tolist() if idxs[i] == label]
        assert own[nms(boxes[own], scores[own], threshold)].tolist() == expected
    padded = batched_nms(boxes, scores, idxs, threshold, max_output=size)
    expected = reference.batched_nms(boxes, scores, idxs, threshold, max_output=size)
    assert torch.equal(padded[0], expected[0]) and torch.equal(padded[1], expected[1])
    assert unpad(*padded).tolist() == [i for i in kept.tolist() if scores[i] != -INF][:size]


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    """Every instruction set gives the same boxes; the golden cases hold them to torchvision."""
    run_on_cpu_variant(__file__, "golden or special or subnormal or equal_scores")


def test_threads_do_not_change_the_result() -> None:
    boxes, scores = random_boxes(6000, seed=11, size=1500)
    idxs = random_classes(6000, 3)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 3):
            torch.set_num_threads(count)
            plain = nms(boxes, scores, 0.7), batched_nms(boxes, scores, idxs, 0.7)
            results.append((*plain, nms(boxes, scores, 0.7, max_output=2222)[0]))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_errors() -> None:
    boxes, scores = random_boxes(5, seed=0)
    idxs = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"boxes must have shape \[N, 4\], got \(5, 5\)"):
        nms(torch.rand(5, 5), scores, 0.5)
    with pytest.raises(ValueError, match=r"boxes must have shape \[N, 4\], got \(1, 5, 4\)"):
        nms(boxes[None], scores[None], 0.5)
    with pytest.raises(ValueError, match=r"scores must have shape \(5,\), got \(4,\)"):
        nms(boxes, scores[:4], 0.5)
    with pytest.raises(ValueError, match=r"idxs must have shape \(5,\), got \(1,\)"):
        batched_nms(boxes, scores, idxs[:1], 0.5)
    with pytest.raises(ValueError, match=r"idxs must be integers, got torch.float32"):
        batched_nms(boxes, scores, scores, 0.5)
    with pytest.raises(ValueError, match=r"boxes must be floating point, got torch.int64"):
        nms(boxes.long(), scores, 0.5)
    with pytest.raises(ValueError, match=r"max_output must be at least 0, got -2"):
        nms(boxes, scores, 0.5, max_output=-2)


def test_opcheck(device: torch.device) -> None:
    boxes, scores = (tensor.to(device) for tensor in random_boxes(50, seed=0))
    idxs = random_classes(50, 3).to(device)
    for classes in (None, idxs):
        torch.library.opcheck(torch.ops.fastseg.nms.default, (boxes, scores, classes, 0.5))
    for arguments in ((boxes, scores, None), (boxes[None], scores[None], idxs[None])):
        torch.library.opcheck(torch.ops.fastseg.nms_padded.default, (*arguments, 0.5, 20))


def test_compile(device: torch.device) -> None:
    @torch.compile(fullgraph=True, dynamic=True)
    def best(boxes: Tensor, scores: Tensor, idxs: Tensor) -> tuple[Tensor, Tensor]:
        indices, count = batched_nms(boxes, scores, idxs, 0.5, max_output=40)
        return torch.gather(scores, 1, indices.clamp(min=0)), count

    for n in (30, 75):
        boxes, scores = (tensor.to(device)[None] for tensor in random_boxes(n, seed=n))
        idxs = random_classes(n, 3).to(device)[None]
        values, count = best(boxes, scores, idxs)
        kept = batched_nms(boxes[0], scores[0], idxs[0], 0.5)[:40]
        assert torch.equal(values[0, : int(count)], scores[0, kept])


def test_meta() -> None:
    boxes, scores = torch.rand(2, 9, 4, device="meta"), torch.rand(2, 9, device="meta")
    indices, count = nms(boxes, scores, 0.5, max_output=6)
    assert indices.shape == (2, 6) and count.shape == (2,) and indices.is_meta


@pytest.mark.gpu
def test_cuda_graph() -> None:
    boxes, scores = (tensor.cuda() for tensor in random_boxes(4000, seed=4))
    idxs = random_classes(4000, 5).cuda()
    batched_nms(boxes, scores, idxs, 0.5, max_output=100)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices, count = batched_nms(boxes, scores, idxs, 0.5, max_output=100)
    for seed in (4, 5):
        scores.copy_(random_boxes(4000, seed)[1])
        graph.replay()
        expected = batched_nms(boxes, scores, idxs, 0.5)[:100]
        assert torch.equal(unpad(indices, count), expected)
