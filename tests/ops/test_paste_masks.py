"""Mask pasting against torchvision and detectron2, their definitions, and at the edges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from fastseg import _C, reference
from fastseg.ops import paste_masks

GOLDEN = load_file(Path(__file__).parents[1] / "data" / "ops_paste_masks.safetensors")
MODES = ("torchvision", "detectron2")
PEER = {"torchvision": "torchvision", "detectron2": "d2"}
INF, NAN = torch.inf, torch.nan

EMULATED = _C.build_info()["cuda_emulator"]
# torch 2.14's CPU kernels fuse multiplication and addition where they use AVX2 or AVX-512; so do
# ours. Other versions of torch round positions and weights differently, and so move values by up to
# 4e-6 (a position near 300 has steps of 3e-5).
SAME_TORCH = torch.__version__.startswith("2.14.")
SAME_INSTRUCTIONS = (torch.backends.cpu.get_cpu_capability() == "DEFAULT") == (
    _C.build_info()["cpu_active"] == "baseline"
)
OTHER_ROUNDING = 1e-5


def equal_bits(device: torch.device) -> bool:
    """Whether results equal the peer's of the same device. The emulator rounds as a GPU does, but
    is compared with torch's CPU kernels."""
    return SAME_TORCH and not EMULATED and (device.type == "cuda" or SAME_INSTRUCTIONS)


def assert_same(ours: Tensor, peer: Tensor) -> None:
    if equal_bits(ours.device):
        assert torch.equal(ours, peer)
    else:
        torch.testing.assert_close(ours, peer, rtol=0, atol=OTHER_ROUNDING)


def assert_same_mask(ours: Tensor, peer_values: Tensor, threshold: float, mode: str) -> None:
    assert ours.dtype == torch.bool
    differs = ours != above(peer_values, threshold, mode)
    if not equal_bits(ours.device):  # values that lie at the threshold may fall on either side
        differs &= (peer_values - threshold).abs() > OTHER_ROUNDING
    assert not differs.any()


def instances(n: int, size: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Blobs with noise, so that many pixels lie near the threshold, and boxes within the image."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1)
    radius = (grid[:, None] ** 2 + grid**2).sqrt()
    masks = torch.sigmoid(4 * (0.8 - radius + torch.randn(n, 1, size, size, generator=generator)))
    limit = torch.tensor([width, height])
    centre = torch.rand(n, 2, generator=generator) * limit
    half = torch.exp(torch.rand(n, 2, generator=generator) * limit.log()) / 2
    corners = [(centre - half).clamp(min=0), torch.minimum(centre + half, limit)]
    return masks, torch.cat(corners, dim=1)


def detectron2_pixels(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """detectron2's definition for a batch of masks [N, 1, M, M], written with grid_sample."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    rows, columns = (torch.arange(pixels, device=boxes.device) + 0.5 for pixels in size)
    y = (rows - y1) / (y2 - y1) * 2 - 1
    x = (columns - x1) / (x2 - x1) * 2 - 1
    n = len(masks)
    grid = torch.stack([x[:, None].expand(n, *size), y[:, :, None].expand(n, *size)], dim=3)
    values = torch.nn.functional.grid_sample(masks, grid, align_corners=False)[:, 0]
    return values.nan_to_num(0.0)  # a box without width or height


def peer_pixels(masks: Tensor, boxes: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if mode == "detectron2":
        return detectron2_pixels(masks, boxes, size)
    return paste_masks_in_image(masks, boxes, size)[:, 0]


def above(values: Tensor, threshold: float, mode: str) -> Tensor:
    return values > threshold if mode == "torchvision" else values >= threshold


def encode(masks: Tensor) -> list[dict]:
    return [pycocotools.mask.encode(np.asfortranarray(mask.cpu().numpy())) for mask in masks]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", ["m14", "m28"])
def test_golden(case: str, mode: str, device: torch.device) -> None:
    masks, boxes = (GOLDEN[f"in/{case}.{name}"].to(device) for name in ("masks", "boxes"))
    size = tuple(GOLDEN["in/image_size"].tolist())
    values = paste_masks(masks, boxes, size, mode=mode).cpu()
    stored = GOLDEN[f"out/{case}.{PEER[mode]}_soft@flat::13"]
    # Stored on a processor with fused operations, which this one may lack.
    torch.testing.assert_close(values.flatten()[::13], stored, rtol=0, atol=1e-6)

    packed = GOLDEN[f"out/{case}.{PEER[mode]}_{'gt' if mode == 'torchvision' else 'ge'}05_packed"]
    bits = torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=size[0] * size[1]))
    ours = paste_masks(masks, boxes, size, mode=mode, output="bool")
    at_threshold = (values - 0.5).abs() < 1e-5
    assert ((ours.cpu() == bits.view(-1, *size)) | at_threshold).all()
    assert paste_masks(masks, boxes, size, mode=mode, output="rle") == encode(ours)


@pytest.mark.parametrize("mode", MODES)
def test_golden_odd_boxes(mode: str, device: torch.device) -> None:
    masks, boxes = (GOLDEN[f"in/odd.{name}"].to(device) for name in ("masks", "boxes"))
    values = paste_masks(masks, boxes, tuple(GOLDEN["in/image_size"].tolist()), mode=mode)
    # NaN is stored where the peer raises or divides by zero: those boxes paste nothing here.
    stored = GOLDEN[f"out/odd.{PEER[mode]}_soft@flat::13"].nan_to_num(0.0)
    torch.testing.assert_close(values.flatten()[::13].cpu(), stored, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 2, 14, 28, 112])
@pytest.mark.parametrize("image_size", [(211, 307), (480, 33), (7, 64), (1, 1)])
def test_peer(image_size: tuple[int, int], size: int, mode: str, device: torch.device) -> None:
    masks, boxes = (data.to(device) for data in instances(12, size, *image_size, seed=size))
    boxes[::3] = boxes[::3].round()
    expected = peer_pixels(masks, boxes, image_size, mode)
    assert_same(paste_masks(masks, boxes, image_size, mode=mode), expected)
    for threshold in (0.5, 0.3):
        options = {"mode": mode, "threshold": threshold}
        bits = paste_masks(masks, boxes, image_size, output="bool", **options)
        assert_same_mask(bits, expected, threshold, mode)
        assert paste_masks(masks, boxes, image_size, output="rle", **options) == encode(bits)


@pytest.mark.parametrize("mode", MODES)
def test_size_of_the_box_equal_to_the_masks(mode: str, device: torch.device) -> None:
    masks, _ = instances(1, 28, 60, 60)
    box = torch.tensor([[10.5, 12.5, 38.5, 40.5]])  # torchvision: 30 pixels, the bordered mask
    masks, box = masks.to(device), box.to(device)
    expected = peer_pixels(masks, box, (60, 60), mode)
    assert_same(paste_masks(masks, box, (60, 60), mode=mode), expected)


coordinates = st.floats(-150, 250, width=32)


@settings(deadline=None, max_examples=60)
@given(
    box=st.tuples(coordinates, coordinates, coordinates, coordinates),
    image_size=st.tuples(st.integers(1, 90), st.integers(1, 140)),
    size=st.integers(1, 30),
    threshold=st.sampled_from([-0.1, 0.0, 0.2, 0.5, 0.9]),
    mode=st.sampled_from(MODES),
)
def test_any_box(
    box: tuple[float, ...], image_size: tuple[int, int], size: int, threshold: float, mode: str
) -> None:
    masks, _ = instances(1, size, 10, 10, seed=size)
    boxes = torch.tensor([box])
    expected = reference.paste_masks(masks, boxes, image_size, mode=mode)
    assert_same(paste_masks(masks, boxes, image_size, mode=mode), expected)
    options = {"mode": mode, "threshold": threshold}
    bits = paste_masks(masks, boxes, image_size, output="bool", **options)
    assert_same_mask(bits, expected, threshold, mode)
    assert paste_masks(masks, boxes, image_size, output="rle", **options) == encode(bits)
    if equal_bits(boxes.device):
        rles = reference.paste_masks(masks, boxes, image_size, output="rle", **options)
        assert rles == encode(bits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_boxes_that_are_not_finite(value: float, mode: str, device: torch.device) -> None:
    masks = torch.ones(4, 28, 28, device=device)
    boxes = torch.tensor([[5.0, 5.0, 20.0, 20.0]], device=device).repeat(4, 1)
    boxes[range(4), range(4)] = value
    bits = paste_masks(masks, boxes, (30, 40), mode=mode, output="bool")
    assert not bits.any()
    assert paste_masks(masks, boxes, (30, 40), mode=mode, output="rle") == encode(bits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("far", [1e5, 1e9, 1e20, 1e38])
def test_huge_boxes(far: float, mode: str, device: torch.device) -> None:
    masks = torch.ones(3, 28, 28, device=device)
    boxes = torch.tensor(
        [[-far, -far, far, far], [10.0, -far, 20.0, far], [far, far, 2 * far, 2 * far]]
    ).to(device)
    values = paste_masks(masks, boxes, (40, 50), mode=mode)
    assert values.isfinite().all()
    assert not values[2].any()
    if far <= 1e20:  # twice 1e38 is infinite
        assert (values[0] == 1).all()
        assert (values[1, :, 12:18] == 1).all() and not values[1, :, :8].any()
    bits = paste_masks(masks, boxes, (40, 50), mode=mode, output="bool")
    assert paste_masks(masks, boxes, (40, 50), mode=mode, output="rle") == encode(bits)


@pytest.mark.parametrize("mode", MODES)
def test_masks_that_fill_the_image(mode: str, device: torch.device) -> None:
    """Runs that go on over the ends of columns, or over the whole image."""
    masks = torch.ones(3, 28, 28, device=device)
    boxes = torch.tensor([[-90.0, -90, 190, 140], [20, -90, 60, 140], [-90, 20, 50, 140]])
    boxes = boxes.to(device)
    bits = paste_masks(masks, boxes, (50, 100), mode=mode, output="bool")
    assert bits[0].all() and bits[1, :, 30:50].all()
    assert paste_masks(masks, boxes, (50, 100), mode=mode, output="rle") == encode(bits)


@pytest.mark.parametrize("mode", MODES)
def test_wide_and_tall_images(mode: str, device: torch.device) -> None:
    """More columns and rows than the kernels take at a time."""
    masks, _ = instances(2, 28, 10, 10)
    masks = masks.to(device)
    for image_size in ((9, 5000), (1100, 70)):
        height, width = image_size
        boxes = torch.tensor([[3.0, 1, width - 5, height - 1], [0, 0, width, height]])
        boxes = boxes.to(device)
        expected = peer_pixels(masks, boxes, image_size, mode)
        assert_same(paste_masks(masks, boxes, image_size, mode=mode), expected)
        bits = paste_masks(masks, boxes, image_size, mode=mode, output="bool")
        assert_same_mask(bits, expected, 0.5, mode)
        assert paste_masks(masks, boxes, image_size, mode=mode, output="rle") == encode(bits)


@pytest.mark.parametrize("output", ["prob", "bool", "rle"])
def test_nothing_to_do(output: str, device: torch.device) -> None:
    result = paste_masks(
        torch.ones(0, 1, 28, 28, device=device),
        torch.ones(0, 4, device=device),
        (20, 30),
        output=output,
    )
    assert result == [] if output == "rle" else result.shape == (0, 20, 30)
    masks = torch.ones(2, 28, 28, device=device)
    boxes = torch.tensor([[1.0, 2, 3, 4]], device=device).repeat(2, 1)
    for height, width in ((0, 5), (5, 0), (0, 0)):
        result = paste_masks(masks, boxes, (height, width), output=output, threshold=-1)
        if output == "rle":
            assert result == [{"size": [height, width], "counts": b"0"}] * 2
        else:
            assert result.shape == (2, height, width)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.bool]
)
def test_dtypes_are_computed_in_float32(
    dtype: torch.dtype, mode: str, device: torch.device
) -> None:
    masks, boxes = (data.to(device) for data in instances(5, 28, 90, 160))
    masks = masks.round().to(dtype) if not dtype.is_floating_point else masks.to(dtype)
    expected = paste_masks(masks.float(), boxes, (90, 160), mode=mode)
    assert expected.dtype == torch.float32
    assert torch.equal(paste_masks(masks, boxes.double(), (90, 160), mode=mode), expected)


@pytest.mark.parametrize("output", ["bool", "rle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(dtype: torch.dtype, output: str, device: torch.device) -> None:
    masks, boxes = (data.to(device) for data in instances(6, 28, 90, 160))
    masks = masks.to(dtype)
    expected = paste_masks(masks.mT.contiguous(), boxes, (90, 160), output=output)
    spread = torch.zeros(6, 9, device=device)
    spread[:, 1::2] = boxes
    spaced = torch.zeros(6, 1, 28, 84, device=device, dtype=dtype)
    spaced[..., ::3] = masks.mT
    for strided in (masks.mT, spaced[..., ::3], spaced[:, 0, :, ::3]):
        ours = paste_masks(strided, spread[:, 1::2], (90, 160), output=output)
        assert ours == expected if output == "rle" else torch.equal(ours, expected)
    shared = paste_masks(masks[0].expand(6, 1, 28, 28), boxes, (90, 160), output=output)
    repeated = paste_masks(masks[0].repeat(6, 1, 1, 1), boxes, (90, 160), output=output)
    assert shared == repeated if output == "rle" else torch.equal(shared, repeated)


def test_arguments_that_are_wrong(device: torch.device) -> None:
    masks, boxes = torch.ones(2, 28, 28, device=device), torch.ones(2, 4, device=device)
    with pytest.raises(ValueError, match=r"masks must have shape .* got \(2, 28, 27\)"):
        paste_masks(masks[:, :, :27], boxes, (9, 9))
    with pytest.raises(ValueError, match="masks must have shape"):
        paste_masks(masks[None], boxes, (9, 9))
    with pytest.raises(ValueError, match="masks must have 1 to"):
        paste_masks(masks[:, :0, :0], boxes, (9, 9))
    with pytest.raises(ValueError, match=r"boxes must have shape \[2, 4\], got \(1, 4\)"):
        paste_masks(masks, boxes[:1], (9, 9))
    with pytest.raises(ValueError, match=r"image_size .* got \(-1, 9\)"):
        paste_masks(masks, boxes, (-1, 9))
    with pytest.raises(ValueError, match=r"mode must be .* got 'coco'"):
        paste_masks(masks, boxes, (9, 9), mode="coco")
    with pytest.raises(ValueError, match=r"output must be .* got 'bits'"):
        paste_masks(masks, boxes, (9, 9), output="bits")
    with pytest.raises(ValueError, match=r"2\^32 pixels"):
        paste_masks(masks, boxes, (1 << 16, 1 << 16), output="rle")


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0, NAN, INF])
@pytest.mark.parametrize("mode", MODES)
def test_thresholds(threshold: float, mode: str, device: torch.device) -> None:
    """A threshold that 0 passes sets the pixels that the masks do not reach."""
    masks, boxes = (data.to(device) for data in instances(8, 28, 60, 80))
    masks[0] = 1
    options = {"mode": mode, "threshold": threshold}
    bits = paste_masks(masks, boxes, (60, 80), output="bool", **options)
    assert torch.equal(bits, above(paste_masks(masks, boxes, (60, 80), mode=mode), threshold, mode))
    assert paste_masks(masks, boxes, (60, 80), output="rle", **options) == encode(bits)


def test_not_differentiable(device: torch.device) -> None:
    masks = torch.rand(2, 28, 28, device=device, requires_grad=True)
    boxes = torch.tensor([[1.0, 2, 13, 14]], device=device).repeat(2, 1).requires_grad_()
    assert not paste_masks(masks, boxes, (20, 20)).requires_grad


def test_opcheck(device: torch.device) -> None:
    masks, boxes = instances(3, 7, 20, 30)
    for binary in (False, True):
        arguments = (masks[:, 0].to(device), boxes.to(device), 20, 30, "detectron2", 0.5, binary)
        torch.library.opcheck(torch.ops.fastseg.paste_masks.default, arguments)


def test_compile(device: torch.device) -> None:
    @torch.compile(fullgraph=True, dynamic=True, backend="aot_eager")
    def area(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
        pasted = paste_masks(masks, boxes, (height, width), output="bool")
        return pasted.sum((1, 2)) + paste_masks(masks, boxes, (height, width)).sum((1, 2))

    for n, size in ((3, (20, 30)), (5, (31, 17)), (1, (40, 40))):
        masks, boxes = (data.to(device) for data in instances(n, 7, *size))
        bits = paste_masks(masks, boxes, size, output="bool")
        expected = bits.sum((1, 2)) + paste_masks(masks, boxes, size).sum((1, 2))
        torch.testing.assert_close(area(masks, boxes, *size), expected)


def test_threads() -> None:
    masks, boxes = instances(40, 28, 600, 333)
    expected = paste_masks(masks, boxes, (600, 333), output="rle")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert paste_masks(masks, boxes, (600, 333), output="rle") == expected
    finally:
        torch.set_num_threads(threads)


def test_cpu_variants(run_on_cpu_variant: Callable[..., None]) -> None:
    run_on_cpu_variant(__file__, "(test_peer and 28) or test_any_box")
