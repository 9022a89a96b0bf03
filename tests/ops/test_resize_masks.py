"""Resizing of mask logits against torch's interpolation, and where values lie at the threshold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastseg import _C, reference
from fastseg.ops import PackedMasks, mask_scores, pack_masks, resize_masks

INF, NAN = torch.inf, torch.nan
Size = tuple[int, int]

EMULATED = _C.build_info()["cuda_emulator"]
# torch 2.14's CPU kernels fuse multiplication and addition where they use AVX2 or AVX-512; so do
# ours. Other versions of torch round positions and weights differently.
SAME_ROUNDING = torch.__version__.startswith("2.14.") and (
    (torch.backends.cpu.get_cpu_capability() == "DEFAULT")
    == (_C.build_info()["cpu_active"] == "baseline")
)
OTHER_ROUNDING = 1e-4  # of values of some units
COUNT = 2 if EMULATED else 5  # of masks: emulated kernels are slow

# masks, size, via, crop
CASES = {
    "one resize": ((40, 50), (160, 200), None, None),
    "one resize to a smaller size": ((90, 110), (70, 62), None, None),
    "one resize to few pixels": ((40, 50), (60, 61), None, None),
    "the same size": ((120, 130), (120, 130), None, None),
    "SAM": ((64, 64), (200, 300), (256, 256), (171, 256)),
    "SOLOv2": ((50, 76), (120, 160), (200, 304), (200, 300)),
    "to few pixels": ((50, 76), (50, 60), (200, 304), (190, 301)),
    "from few pixels": ((20, 30), (222, 333), (40, 60), (39, 57)),
    "few pixels both times": ((20, 30), (33, 44), (40, 60), (39, 57)),
    "crop of one pixel": ((20, 30), (150, 20), (80, 120), (1, 1)),
    "no crop": ((20, 30), (150, 200), (80, 120), None),
    "one cell": ((1, 1), (5, 500), None, None),
    "one column": ((33, 1), (200, 60), (70, 90), (66, 77)),
    "wide": ((9, 160), (17, 1100 if EMULATED else 4400), (18, 320), (17, 319)),
    "tall": ((300, 5), (400 if EMULATED else 1500, 40), None, None),
}


def blobs(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth shapes: most cells are far from 0, some lie near."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 1, 4, 5, generator=generator)
    return 3 * F.interpolate(coarse, (height, width), mode="bicubic")[:, 0]


def peer_values(masks: Tensor, size: Size, via: Size | None, crop: Size | None) -> Tensor:
    values = masks.float()[:, None]
    if via is not None:
        height, width = via if crop is None else crop
        values = F.interpolate(values, via, mode="bilinear", align_corners=False)
        values = values[..., :height, :width]
    return F.interpolate(values, size, mode="bilinear", align_corners=False)[:, 0]


def encode(masks: Tensor) -> list[dict]:
    return [pycocotools.mask.encode(np.asfortranarray(mask.cpu().numpy())) for mask in masks]


def assert_same_packed(ours: PackedMasks, expected: PackedMasks) -> None:
    assert ours.width == expected.width
    for name in ("words", "areas", "boxes"):
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name


def check(
    masks: Tensor,
    size: Size,
    via: Size | None = None,
    crop: Size | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """The masks, after holding them against torch's, and their run lengths against pycocotools'."""
    arguments = {"threshold": threshold, "via": via, "crop": crop}
    ours = resize_masks(masks, size, output="bool", **arguments)
    assert ours.dtype == torch.bool and ours.shape == (len(masks), *size)
    values = peer_values(masks, size, via, crop)
    differs = ours != (values > threshold)
    if not SAME_ROUNDING or EMULATED:  # values at the threshold may fall on either side
        differs &= (values - threshold).abs() > OTHER_ROUNDING
    assert not differs.any()
    assert resize_masks(masks, size, **arguments) == encode(ours)
    assert_same_packed(resize_masks(masks, size, output="packed", **arguments), pack_masks(ours))
    return ours


@pytest.mark.parametrize("kind", ["blobs", "noise"])
@pytest.mark.parametrize("case", CASES)
def test_peer(case: str, kind: str, device: torch.device) -> None:
    cells, size, via, crop = CASES[case]
    masks = blobs(COUNT, *cells) if kind == "blobs" else torch.randn(COUNT, *cells)
    masks = masks.to(device)
    for threshold in (0.0, -0.7) if EMULATED else (0.0, 0.5, -0.7):
        found = check(masks, size, via, crop, threshold)
        assert min(size) * min(cells) < 100 or (found.any() and not found.all())
    probabilities = masks.sigmoid()
    found = check(probabilities, size, via, crop, 0.5)
    assert resize_masks(probabilities[:, None], size, threshold=0.5, via=via, crop=crop) == encode(
        found
    )


@pytest.mark.parametrize("case", CASES)
def test_mask_scores(case: str, device: torch.device) -> None:
    """The mean probability of the pixels that resize_masks finds inside."""
    cells, size, via, crop = CASES[case]
    logits = torch.cat(
        [4 * blobs(COUNT - 1, *cells), torch.randn(1, *cells), torch.full((1, *cells), 30.0)]
    )
    logits = torch.cat([logits, -logits[:1].abs() - 1]).to(device)
    probabilities = peer_values(logits, size, via, crop).double().sigmoid()
    for threshold in (0.7,) if EMULATED else (0.0, 0.7):
        arguments = {"threshold": threshold, "via": via, "crop": crop}
        scores = mask_scores(logits, size, **arguments)
        inside = resize_masks(logits, size, output="bool", **arguments)
        expected = (probabilities * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, expected.float(), rtol=2e-6, atol=0)
        assert scores[-1] == 0 and scores[-2] == 1
    expected = reference.mask_scores(logits, size, via=via, crop=crop)
    few_pixels = inside.flatten(1).sum(1).clamp(min=1)  # one at the threshold moves the mean
    error = (mask_scores(logits[:, None], size, via=via, crop=crop) - expected).abs()
    assert (error <= 2e-6 + OTHER_ROUNDING / few_pixels).all()


def test_mask_scores_of_extreme_values(device: torch.device) -> None:
    logits = torch.tensor([NAN, 3e38, 88.0, -88.0, -3e38, 0.0], device=device)
    logits = logits[:, None, None].expand(-1, 9, 70)
    few = mask_scores(logits[1:, :1, :1], (1, 1), threshold=-INF)
    assert torch.allclose(few, torch.tensor([1, 1, 0, 0, 0.5], device=device), rtol=2e-6)
    many = mask_scores(logits, (9, 70))
    assert many.tolist() == [0, 1, 1, 0, 0, 0]
    assert mask_scores(logits[:0], (5, 6)).shape == (0,)


sides = st.tuples(st.integers(1, 40), st.integers(1, 40))
larger = st.tuples(st.integers(1, 150), st.integers(1, 150))
# At, next to and around the usual thresholds; where products underflow and sums overflow.
tiny, huge = (1e-45, -1e-45, 1e-38, 1e-31, 1e-29), (1e29, -1e29, 1e31, -1e31, 3e38, -3e38)
near = (0.0, -0.0, 0.5, 0.5000001, 0.49999997, 0.500004, 0.499996, 1.0, -1.0)
extremes = st.sampled_from([*near, *tiny, *huge, INF, -INF, NAN])


@settings(deadline=None, max_examples=40 if EMULATED else 150)
@given(
    cells=sides,
    size=larger,
    via=st.one_of(st.none(), larger),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    values=st.lists(extremes, min_size=1, max_size=4),
    threshold=st.sampled_from([0.0, 0.5, -0.5, 1e-40, 1e31, INF, -INF, NAN]),
    seed=st.integers(0, 99),
)
def test_any_sizes_and_values(
    cells: Size,
    size: Size,
    via: Size | None,
    cut: tuple[float, float],
    values: list[float],
    threshold: float,
    seed: int,
) -> None:
    """Areas of one value with another here and there."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.tensor(values)[:, None, None].repeat(1, *cells)
    other = torch.rand(masks.shape, generator=generator) < 0.02
    masks[other] = torch.tensor(values).flip(0)[0]
    crop = via and tuple(max(int(part * side), 1) for part, side in zip(cut, via, strict=True))
    if SAME_ROUNDING and not EMULATED:
        check(masks, size, via, crop, threshold)
    else:  # unlike the ops, the peers may overflow, or not, by their order of summing
        check(masks.clamp(-9, 9).nan_to_num(1.0), size, via, crop, threshold)


@pytest.mark.parametrize("value", [0.0, 0.5, -0.3, 0.1])
def test_masks_at_the_threshold(value: float, device: torch.device) -> None:
    """Of a constant, rounding makes values on both sides of it; none may be guessed."""
    masks = torch.full((1, 30, 40), value, device=device)
    for size, via, crop in (((80, 100), None, None), ((60, 99), (101, 77), (100, 75))):
        near = torch.tensor(value).nextafter(torch.tensor(1.0)).item()
        for threshold in (value, near):
            check(masks, size, via, crop, threshold)


def test_reference(device: torch.device) -> None:
    masks = blobs(3, 14, 20).to(device)
    arguments = {"via": (56, 80), "crop": (50, 80), "threshold": 0.2}
    for output in ("bool", "rle"):
        ours = resize_masks(masks, (100, 170), output=output, **arguments)
        expected = reference.resize_masks(masks, (100, 170), output=output, **arguments)
        assert torch.equal(ours, expected) if output == "bool" else ours == expected
    packed = resize_masks(masks, (100, 170), output="packed", **arguments).to("cpu")
    expected = reference.resize_masks(masks.cpu(), (100, 170), output="packed", **arguments)
    assert_same_packed(packed, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_dtypes_are_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    masks = blobs(2, 33, 70).to(device).to(dtype)
    ours = resize_masks(masks, (75, 133), threshold=0.3, output="bool")
    expected = resize_masks(masks.float(), (75, 133), threshold=0.3, output="bool")
    assert torch.equal(ours, expected)
    assert resize_masks(masks, (75, 133), threshold=0.3) == encode(expected)
    scores = mask_scores(masks, (75, 133), via=(99, 150))
    assert torch.equal(scores, mask_scores(masks.float(), (75, 133), via=(99, 150)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(dtype: torch.dtype, device: torch.device) -> None:
    masks = blobs(2, 33, 33).to(device, dtype)
    options = {"via": (99, 130), "crop": (98, 120), "output": "bool"}
    expected = resize_masks(masks.mT.contiguous(), (75, 111), **options)
    spaced = torch.full((2, 1, 70, 99), NAN, device=device, dtype=dtype)
    spaced[:, :, 1:67:2, ::3] = masks.mT[:, None]
    last = masks.mT.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for strided in (masks.mT, spaced[:, :, 1:67:2, ::3], spaced[:, 0, 1:67:2, ::3], last):
        assert torch.equal(resize_masks(strided, (75, 111), **options), expected)
    shared = resize_masks(masks.mT[:1].expand(3, 33, 33), (75, 111), **options)
    assert torch.equal(shared, expected[:1].expand(3, 75, 111))


def test_no_masks(device: torch.device) -> None:
    masks = torch.empty(0, 8, 9, device=device)
    assert resize_masks(masks, (20, 30), via=(16, 18)) == []
    assert resize_masks(masks, (20, 30), output="bool").shape == (0, 20, 30)
    assert resize_masks(masks, (20, 70), output="packed").words.shape == (0, 20, 2)


def test_arguments_that_are_wrong(device: torch.device) -> None:
    masks = torch.ones(2, 8, 9, device=device)
    for shape in ((8, 9), (2, 3, 8, 9), (1, 2, 1, 8, 9)):
        with pytest.raises(ValueError, match=r"masks must have shape .* got \("):
            resize_masks(masks.new_ones(shape), (9, 9))
    for output in ("bool", "rle", "packed"):
        with pytest.raises(ValueError, match=r"rows and columns, got shape \[2, 0, 9\]"):
            resize_masks(masks[:, :0], (9, 9), output=output)
        with pytest.raises(ValueError, match=r"size must be .* got \(9, 0\)"):
            resize_masks(masks, (9, 0), output=output)
        with pytest.raises(ValueError, match=r"size must be .* got \(9,\)"):
            resize_masks(masks, (9,), output=output)
        with pytest.raises(ValueError, match=r"via must be .* got \(-1, 9\)"):
            resize_masks(masks, (9, 9), via=(-1, 9), output=output)
        with pytest.raises(ValueError, match=r"crop must be .* got \(0, 9\)"):
            resize_masks(masks, (9, 9), via=(10, 10), crop=(0, 9), output=output)
        with pytest.raises(
            ValueError, match=r"crop must lie within via \(16, 18\), got \(16, 19\)"
        ):
            resize_masks(masks, (9, 9), via=(16, 18), crop=(16, 19), output=output)
        with pytest.raises(ValueError, match=r"crop needs via.* got crop \(4, 4\)"):
            resize_masks(masks, (9, 9), crop=(4, 4), output=output)
    with pytest.raises(ValueError, match=r"output must be .*, got 'float'"):
        resize_masks(masks, (9, 9), output="float")
    with pytest.raises(ValueError, match=r"2\^32 pixels"):
        resize_masks(masks[:0], (1 << 16, 1 << 16))


def test_not_differentiable(device: torch.device) -> None:
    masks = torch.rand(2, 8, 9, device=device, requires_grad=True)
    assert not resize_masks(masks, (20, 20), output="bool").requires_grad


def test_opcheck(device: torch.device) -> None:
    masks = blobs(3, 7, 9).to(device)
    for via, crop in (([], []), ([14, 18], [13, 18])):
        arguments = (masks, [20, 30], via, crop, 0.1)
        torch.library.opcheck(torch.ops.fastseg.resize_masks.default, arguments)
        torch.library.opcheck(torch.ops.fastseg.resize_masks_packed.default, arguments)
        torch.library.opcheck(torch.ops.fastseg.mask_scores.default, arguments)


def test_compile(device: torch.device) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def area(masks: Tensor, height: int, width: int) -> Tensor:
        via = (2 * masks.shape[1], 2 * masks.shape[2])
        resized = resize_masks(masks, (height, width), via=via, output="bool")
        packed = resize_masks(masks, (height, width), via=via, output="packed")
        return resized.sum((1, 2)) + packed.areas

    for n, size in ((3, (20, 30)), (5, (31, 17)), (1, (40, 40))):
        masks = blobs(n, 8, 9).to(device)
        expected = resize_masks(masks, size, via=(16, 18), output="bool").sum((1, 2))
        assert torch.equal(area(masks, *size), 2 * expected)


def test_threads() -> None:
    masks = blobs(40, 64, 64)
    expected, expected_scores = resize_masks(masks, (600, 333)), mask_scores(masks, (600, 333))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert resize_masks(masks, (600, 333)) == expected
        assert torch.equal(mask_scores(masks, (600, 333)), expected_scores)
    finally:
        torch.set_num_threads(threads)


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "test_peer or scores or any_sizes or at_the_threshold or dtypes")
