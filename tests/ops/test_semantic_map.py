"""Classes of pixels against the definition in torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg import reference
from fastseg.ops import semantic_map
from fastseg.reference.semantic_map import semantic_scores

# The module, which the function of the same name hides.
MODULE = importlib.import_module("fastseg.ops.semantic_map")
NAN = torch.nan
Size = tuple[int, int]

# masks, size, via, crop
CASES = {
    "one resize": ((10, 12), (80, 75), None, None),
    "ADE20K": ((16, 24), (75, 133), (64, 96), (50, 90)),
    "Cityscapes": ((16, 24), (64, 96), (64, 96), None),
    "to fewer pixels": ((16, 24), (23, 31), (64, 96), (63, 95)),
    "few pixels both times": ((10, 15), (33, 44), (20, 30), (19, 27)),
    "crop of one pixel": ((10, 15), (70, 20), (40, 60), (1, 1)),
    "one cell": ((1, 1), (3, 150), None, None),
    "tall": ((40, 3), (300, 7), (160, 12), (150, 9)),
}


@pytest.fixture(params=[1, 1 << 24], ids=["strips", "at once"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As few rows at a time as possible, or all of them."""
    monkeypatch.setattr(MODULE, "_CPU_BYTES", request.param)
    monkeypatch.setattr(MODULE, "_CUDA_BYTES", request.param)


def made_up(
    num_queries: int, num_classes: int, cells: Size, device: torch.device, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(num_queries, num_classes + 1, generator=generator)
    coarse = torch.randn(num_queries, 1, 4, 5, generator=generator)
    masks = 9 * F.interpolate(coarse, cells, mode="bicubic")[:, 0]
    return (4 * classes).softmax(1)[:, :-1].to(device), masks.to(device)


def check(classes: Tensor, masks: Tensor, size: Size, **options) -> Tensor:
    """The labels, after holding their scores against the best ones."""
    labels = semantic_map(classes, masks, size, **options)
    assert labels.dtype == torch.int32 and labels.shape == size
    scores = semantic_scores(classes, masks, size, **options)
    found = scores.gather(0, labels[None].long())[0]
    assert (found >= scores.amax(0) - 2e-5).all()
    return labels


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("resize_scores", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_reference(case: str, resize_scores: bool, device: torch.device) -> None:
    cells, size, via, crop = CASES[case]
    classes, masks = made_up(11, 6, cells, device)
    options = {"via": via, "crop": crop, "resize_scores": resize_scores}
    labels = check(classes, masks, size, **options)
    expected = reference.semantic_map(classes, masks, size, **options)
    assert (labels != expected).sum() <= 0.002 * labels.numel()
    if min(cells) > 3 and crop != (1, 1):
        assert len(labels.unique()) > 2


def test_orders_of_resizing_differ(device: torch.device) -> None:
    classes, masks = made_up(11, 6, (16, 24), device)
    both = [
        semantic_map(classes, masks, (75, 133), via=(64, 96), resize_scores=first)
        for first in (True, False)
    ]
    share = (both[0] != both[1]).float().mean()
    assert 0 < share < 0.05


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("via", [None, (40, 50)])
def test_ties_and_nan(via: Size | None, device: torch.device) -> None:
    """As argmax: the first of equal scores, and the first NaN before all numbers."""
    classes = torch.tensor([[0.25, 0.5, 0.5, 0.125]], device=device)
    masks = torch.zeros(1, 8, 10, device=device)
    assert (semantic_map(classes, masks, (90, 80), via=via) == 1).all()
    masks[0, 0, 0] = NAN
    labels = semantic_map(classes, masks, (90, 80), via=via)
    assert labels[0, 0] == 0 and labels[-1, -1] == 1


def test_no_queries(device: torch.device) -> None:
    classes, masks = torch.empty(0, 3, device=device), torch.empty(0, 4, 5, device=device)
    assert not semantic_map(classes, masks, (20, 30), via=(16, 20)).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_computed_in_float32(dtype: torch.dtype, device: torch.device) -> None:
    classes, masks = (x.to(dtype) for x in made_up(5, 4, (11, 23), device))
    found = semantic_map(classes, masks, (50, 111), via=(44, 92))
    expected = semantic_map(classes.float(), masks.float(), (50, 111), via=(44, 92))
    assert torch.equal(found, expected)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(semantic_map(classes, masks, (50, 111), via=(44, 92)), expected)


def test_strides(device: torch.device) -> None:
    classes, masks = made_up(4, 3, (13, 13), device)
    expected = semantic_map(classes, masks.mT.contiguous(), (60, 75), via=(49, 50))
    spaced = torch.full((4, 1, 30, 39), NAN, device=device)
    spaced[:, :, 1:27:2, ::3] = masks.mT[:, None]
    for strided in (masks.mT, spaced[:, :, 1:27:2, ::3]):
        found = semantic_map(classes.t().contiguous().t(), strided, (60, 75), via=(49, 50))
        assert torch.equal(found, expected)


def test_arguments_that_are_wrong(device: torch.device) -> None:
    classes, masks = made_up(2, 3, (8, 9), device)
    with pytest.raises(ValueError, match=r"mask_logits must have shape .* got \("):
        semantic_map(classes, masks[0], (9, 9))
    for wrong in (classes[:1], classes[0], classes[:, :0]):
        with pytest.raises(ValueError, match=r"class_probabilities must have shape \[2, K\] .* \["):
            semantic_map(wrong, masks, (9, 9))
    with pytest.raises(ValueError, match=r"rows and columns, got shape \[2, 0, 9\]"):
        semantic_map(classes, masks[:, :0], (9, 9))
    with pytest.raises(ValueError, match=r"size must be .* got \(9, 0\)"):
        semantic_map(classes, masks, (9, 0))
    for resize_scores in (True, False):
        with pytest.raises(ValueError, match=r"crop must lie within via \(16, 18\), got \(17, 1\)"):
            semantic_map(
                classes, masks, (9, 9), via=(16, 18), crop=(17, 1), resize_scores=resize_scores
            )
    with pytest.raises(ValueError, match=r"crop needs via.* got crop \(4, 4\)"):
        semantic_map(classes, masks, (9, 9), crop=(4, 4))


def test_not_differentiable(device: torch.device) -> None:
    classes, masks = (x.requires_grad_() for x in made_up(2, 3, (8, 9), device))
    assert not semantic_map(classes, masks, (9, 9)).requires_grad


def test_opcheck(device: torch.device) -> None:
    classes, masks = made_up(3, 4, (7, 9), device)
    for via, crop, first in (
        ([], [], True),
        ([14, 18], [13, 18], True),
        ([14, 18], [14, 9], False),
    ):
        arguments = (classes, masks, [20, 30], via, crop, first)
        torch.library.opcheck(torch.ops.fastseg.semantic_map.default, arguments)


def test_compile(device: torch.device) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def shifted(classes: Tensor, masks: Tensor, height: int, width: int) -> Tensor:
        return semantic_map(classes, masks, (height, width), via=(30, 40)) + 1

    for n, size in ((3, (20, 30)), (5, (31, 17))):
        classes, masks = made_up(n, 4, (8, 9), device)
        expected = semantic_map(classes, masks, size, via=(30, 40)) + 1
        assert torch.equal(shifted(classes, masks, *size), expected)


def test_export_with_any_number_of_queries() -> None:
    class Map(torch.nn.Module):
        def forward(self, classes: Tensor, masks: Tensor) -> Tensor:
            return semantic_map(classes, masks, (20, 30))

    queries = torch.export.Dim("queries", min=2, max=100)
    arguments = made_up(3, 4, (8, 9), torch.device("cpu"))
    exported = torch.export.export(Map(), arguments, dynamic_shapes=({0: queries}, {0: queries}))
    other = made_up(5, 4, (8, 9), torch.device("cpu"))
    assert torch.equal(exported.module()(*other), semantic_map(*other, (20, 30)))


def test_threads() -> None:
    classes, masks = made_up(9, 5, (64, 64), torch.device("cpu"))
    expected = semantic_map(classes, masks, (300, 222), via=(256, 256))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = semantic_map(classes, masks, (300, 222), via=(256, 256))
    finally:
        torch.set_num_threads(threads)
    assert (found != expected).sum() <= 5  # torch's matrix product may sum in another order


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "reference or ties or dtypes or strides")
