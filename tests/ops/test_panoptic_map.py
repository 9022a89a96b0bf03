"""Winners of pixels against the definition in torch, and where rounding decides."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastseg import _C, reference
from fastseg.ops import panoptic_map
from fastseg.reference.resize_masks import resize_logits

INF, NAN = torch.inf, torch.nan
Size = tuple[int, int]

EMULATED = _C.build_info()["cuda_emulator"]
# See test_resize_masks.py. Where rounding is the same, exponentials alone differ in the last bit.
SAME_ROUNDING = not EMULATED and (
    torch.__version__.startswith("2.14.")
    and (torch.backends.cpu.get_cpu_capability() == "DEFAULT")
    == (_C.build_info()["cpu_active"] == "baseline")
)
TOLERANCE = 5e-7 if SAME_ROUNDING else 1e-4

# masks, size, via, crop
CASES = {
    "one resize": ((20, 25), (80, 140), None, None),
    "to few pixels": ((20, 25), (47, 41), None, None),
    "the same size": ((66, 70), (66, 70), None, None),
    "to a smaller size": ((70, 90), (60, 50), None, None),
    "Mask2Former": ((16, 24), (75, 133), (64, 96), (50, 90)),
    "few pixels both times": ((10, 15), (33, 44), (20, 30), (19, 27)),
    "crop of one pixel": ((10, 15), (70, 20), (40, 60), (1, 1)),
    "one cell": ((1, 1), (3, 150), None, None),
    "one row": ((1, 30), (1, 120), None, None),
}


def blobs(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth masks, each surely inside somewhere and surely outside elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 1, 4, 5, generator=generator)
    return 9 * F.interpolate(coarse, (height, width), mode="bicubic")[:, 0]


def some_scores(n: int, seed: int = 0) -> Tensor:
    """One in four is zero."""
    scores = torch.rand(n, generator=torch.Generator().manual_seed(seed))
    return scores.where(scores > 0.25, 0)


def check(
    masks: Tensor, scores: Tensor, size: Size, via: Size | None = None, crop: Size | None = None
) -> tuple[Tensor, Tensor]:
    """The result, after holding it against torch's: it may differ where products nearly tie."""
    winners, areas = panoptic_map(masks, scores, size, via=via, crop=crop)
    assert winners.dtype == torch.int32 and winners.shape == size
    assert areas.dtype == torch.int64 and areas.shape == (3, len(masks))
    expected, expected_areas = reference.panoptic_map(masks, scores, size, via=via, crop=crop)
    probabilities = resize_logits(masks, size, via, crop).sigmoid()
    values = (scores[:, None, None] * probabilities).nan_to_num(INF)
    values[~(scores > 0)] = -1
    best, second = values.topk(min(2, len(values)), dim=0).values[[0, -1]]
    tied = best - second <= TOLERANCE * best.clamp(min=1e-30)
    tied |= ((probabilities - 0.5).abs() <= TOLERANCE).any(0)
    assert not ((winners != expected) & ~tied).any()
    assert ((areas - expected_areas).abs() <= tied.sum()).all()
    assert torch.equal(winners[winners >= 0].long().bincount(minlength=len(masks)), areas[2])
    everywhere, same = panoptic_map(masks, scores, size, via=via, crop=crop, inside_only=False)
    assert torch.equal(same, areas) and torch.equal(everywhere[winners >= 0], winners[winners >= 0])
    counts = everywhere[everywhere >= 0].long().bincount(minlength=len(masks))
    assert torch.equal(counts, areas[0])
    return winners, areas


@pytest.mark.parametrize("kind", ["blobs", "noise"])
@pytest.mark.parametrize("case", CASES)
def test_reference(case: str, kind: str, device: torch.device) -> None:
    cells, size, via, crop = CASES[case]
    masks = blobs(9, *cells) if kind == "blobs" else torch.randn(9, *cells)
    scores = some_scores(9).to(device)
    winners, areas = check(masks.to(device), scores, size, via, crop)
    if min(cells) > 1 and crop != (1, 1):
        assert len(winners.unique()) > 2
        assert (areas[0] < areas[1]).any()
    assert areas[0].sum() == winners.numel()
    assert not areas[:, scores == 0].any()


def test_more_masks_than_fit_a_round(device: torch.device) -> None:
    masks, scores = blobs(300, 7, 9).to(device), some_scores(300).to(device)
    masks[256:] += 4
    winners, _ = check(masks, scores, (25, 40))
    assert (winners >= 256).any() and ((winners >= 0) & (winners < 256)).any()


sides = st.tuples(st.integers(1, 20), st.integers(1, 20))
larger = st.tuples(st.integers(1, 90), st.integers(1, 90))
# At, next to and far from the edges of masks; where sigmoid is 0, 0.5 and 1 after rounding, and
# where sums overflow.
usual = (0.0, -0.0, 1e-8, -1e-8, -1e-7, -2e-7, 0.5, -3.0, 16.0, 17.0, 18.0, -87.0, -104.0, -200.0)
extremes = st.sampled_from([*usual, 1e31, -1e31, 3e38, INF, -INF, NAN])


@settings(deadline=None, max_examples=20 if EMULATED else 100)
@given(
    cells=sides,
    size=larger,
    via=st.one_of(st.none(), larger),
    values=st.lists(extremes, min_size=1, max_size=5),
    scores=st.lists(st.sampled_from([0.0, -1.0, 0.5, 0.5, 1.0, 1e-20, NAN]), min_size=5),
    seed=st.integers(0, 99),
)
def test_any_sizes_and_values(
    cells: Size, size: Size, via: Size | None, values: list[float], scores: list[float], seed: int
) -> None:
    """Areas of one value with another here and there."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.tensor(values)[:, None, None].repeat(1, *cells)
    other = torch.rand(masks.shape, generator=generator) < 0.05
    masks[other] = torch.tensor(values).flip(0)[0]
    if not SAME_ROUNDING:  # sums may overflow, or not, by their order
        masks = masks.clamp(-300, 300).nan_to_num(1.0)
    check(masks, torch.tensor(scores[: len(values)]), size, via)


def test_ties_go_to_the_lower_index(device: torch.device) -> None:
    masks = torch.full((3, 4, 5), 2.0, device=device)
    scores = torch.tensor([0.5, 0.75, 0.75], device=device)
    winners, areas = panoptic_map(masks, scores, (20, 99))
    assert (winners == 1).all()
    assert areas.tolist() == [[0, 1980, 0], [1980, 1980, 1980], [0, 1980, 0]]
    masks[0, 0, 0] = 1  # no longer sure from the cells
    masks[2, :, 1] = -1
    winners, _ = panoptic_map(masks, torch.full((3,), 0.7, device=device), (20, 99))
    assert set(winners.unique().tolist()) == {0, 1} and winners[0, 0] == 1 and winners[-1, -1] == 0


def test_nan_wins_and_is_outside(device: torch.device) -> None:
    masks = torch.full((3, 4, 4), 9.0, device=device)
    masks[1:, 2, 2] = NAN
    winners, areas = panoptic_map(masks, torch.tensor([0.9, 0.1, 0.2], device=device), (4, 4))
    assert winners[2, 2] == -1 and (winners == 0).sum() == 15
    assert areas.tolist() == [[15, 1, 0], [16, 15, 15], [15, 0, 0]]


def test_a_winner_may_be_outside_of_its_mask(device: torch.device) -> None:
    masks = torch.tensor([-0.1, -5.0], device=device)[:, None, None].expand(2, 3, 3)
    for height in (3, 64):
        winners, areas = panoptic_map(masks, torch.ones(2, device=device), (height, 3))
        assert (winners == -1).all()
        assert areas.tolist() == [[3 * height, 0], [0, 0], [0, 0]]
        options = {"scores": torch.ones(2, device=device), "inside_only": False}
        assert (panoptic_map(masks, size=(height, 3), **options)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    masks, scores = blobs(5, 11, 23).to(device, dtype), some_scores(5).to(device)
    found = panoptic_map(masks, scores.to(dtype), (50, 111))
    expected = panoptic_map(masks.float(), scores.to(dtype).float(), (50, 111))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(dtype: torch.dtype, device: torch.device) -> None:
    masks, scores = blobs(4, 13, 13).to(device, dtype), some_scores(4, seed=3).to(device)
    options = {"via": (49, 50), "crop": (48, 40)}
    expected = panoptic_map(masks.mT.contiguous(), scores, (60, 75), **options)
    spaced = torch.full((4, 1, 30, 39), NAN, device=device, dtype=dtype)
    spaced[:, :, 1:27:2, ::3] = masks.mT[:, None]
    last = masks.mT.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for strided in (masks.mT, spaced[:, :, 1:27:2, ::3], last):
        columns = torch.stack([scores, scores], dim=1)[:, 1]
        found = panoptic_map(strided, columns, (60, 75), **options)
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_no_masks(device: torch.device) -> None:
    for masks in (torch.empty(0, 4, 5, device=device), torch.ones(2, 4, 5, device=device)):
        for inside_only in (True, False):
            scores = torch.zeros(len(masks), device=device)
            winners, areas = panoptic_map(masks, scores, (10, 70), inside_only=inside_only)
            assert (winners == -1).all() and winners.shape == (10, 70)
            assert areas.tolist() == [[0] * len(masks)] * 3


def test_arguments_that_are_wrong(device: torch.device) -> None:
    masks, scores = torch.ones(2, 8, 9, device=device), torch.ones(2, device=device)
    for shape in ((8, 9), (2, 3, 8, 9)):
        with pytest.raises(ValueError, match=r"mask_logits must have shape .* got \("):
            panoptic_map(masks.new_ones(shape), scores, (9, 9))
    for wrong in (scores[:1], scores[:, None]):
        with pytest.raises(ValueError, match=r"scores must have shape \[2\] .* got \["):
            panoptic_map(masks, wrong, (9, 9))
    with pytest.raises(ValueError, match=r"rows and columns, got shape \[2, 0, 9\]"):
        panoptic_map(masks[:, :0], scores, (9, 9))
    with pytest.raises(ValueError, match=r"size must be .* got \(9, 0\)"):
        panoptic_map(masks, scores, (9, 0))
    with pytest.raises(ValueError, match=r"crop must lie within via \(16, 18\), got \(17, 1\)"):
        panoptic_map(masks, scores, (9, 9), via=(16, 18), crop=(17, 1))
    with pytest.raises(ValueError, match=r"crop needs via.* got crop \(4, 4\)"):
        panoptic_map(masks, scores, (9, 9), crop=(4, 4))


def test_not_differentiable(device: torch.device) -> None:
    masks = torch.rand(2, 8, 9, device=device, requires_grad=True)
    scores = torch.rand(2, device=device, requires_grad=True)
    assert not any(result.requires_grad for result in panoptic_map(masks, scores, (9, 9)))


def test_opcheck(device: torch.device) -> None:
    masks, scores = blobs(3, 7, 9).to(device), torch.tensor([0.5, 0.0, 0.9], device=device)
    for via, crop in (([], []), ([14, 18], [13, 18])):
        arguments = (masks, scores, [20, 30], via, crop, True)
        torch.library.opcheck(torch.ops.fastseg.panoptic_map.default, arguments)


def test_compile(device: torch.device) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def winners_and_areas(masks: Tensor, scores: Tensor, height: int, width: int) -> Tensor:
        winners, areas = panoptic_map(masks, scores, (height, width), via=(30, 40))
        return winners.sum() + areas.sum(1)

    for n, size in ((3, (20, 30)), (5, (31, 17))):
        masks, scores = blobs(n, 8, 9).to(device), some_scores(n).to(device)
        winners, areas = panoptic_map(masks, scores, size, via=(30, 40))
        assert torch.equal(winners_and_areas(masks, scores, *size), winners.sum() + areas.sum(1))


def test_threads() -> None:
    masks, scores = blobs(20, 64, 64), some_scores(20)
    expected = panoptic_map(masks, scores, (600, 333))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = panoptic_map(masks, scores, (600, 333))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "reference or any_sizes or ties or dtypes or strides")
