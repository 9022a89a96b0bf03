"""Preprocessing against torchvision's GeneralizedRCNNTransform, bit by bit."""

from __future__ import annotations

import pytest
import torch

from fastseg.models import ImageTransform

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_size": 100, "max_size": 120},
        {"min_size": 333, "max_size": 1000, "size_divisible": 64},
        {"fixed_size": (130, 70)},
        {"image_mean": (0.1, 0.2, 0.3), "image_std": (1.0, 0.5, 0.25)},
    ],
)
def test_pixels_and_sizes_are_bit_equal(options):
    pytest.importorskip("torchvision", reason="torchvision is the peer that is compared with")
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    torch.manual_seed(0)
    images = [torch.rand(3, h, w) for h, w in ((100, 150), (33, 300), (77, 50), (256, 256))]
    transform = ImageTransform(**options)
    peer = GeneralizedRCNNTransform(
        transform.min_size,
        transform.max_size,
        transform.image_mean,
        transform.image_std,
        size_divisible=transform.size_divisible,
        fixed_size=transform.fixed_size,
    ).eval()
    expected, _ = peer(images)
    batch = transform(images, **CPU)
    assert torch.equal(batch.pixels, expected.tensors)
    assert batch.sizes.tolist() == [list(size) for size in expected.image_sizes]
    assert batch.original_sizes == [(100, 150), (33, 300), (77, 50), (256, 256)]


def test_resized_size_of_many_sizes_equals_torch():
    transform = ImageTransform()
    for height in range(7, 2000, 61):
        for width in range(11, 2000, 83):
            scale = min(800 / min(height, width), 1333 / max(height, width))
            meta = torch.empty(1, 1, height, width, device="meta")
            expected = torch.nn.functional.interpolate(
                meta, scale_factor=scale, mode="bilinear", recompute_scale_factor=True
            )
            assert transform.resized_size(height, width) == tuple(expected.shape[2:])


def test_pixels_have_the_asked_type():
    batch = ImageTransform(min_size=32)(
        [torch.rand(3, 32, 40)], device=torch.device("cpu"), dtype=torch.bfloat16
    )
    assert batch.pixels.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([], ValueError, "images is empty"),
        ([torch.rand(3, 9, 9), torch.zeros(3, 9, 9, dtype=torch.uint8)], TypeError, r"images\[1\]"),
        ([torch.rand(1, 3, 9, 9)], ValueError, r"\[1, 3, 9, 9\]"),
        ([torch.rand(4, 9, 9)], ValueError, r"\[4, 9, 9\]"),
        ([torch.rand(3, 0, 9)], ValueError, r"\[3, 0, 9\]"),
        (["cat.png"], TypeError, "str"),
        ([torch.rand(3, 1, 3000)], ValueError, "1x3000 pixels would be resized to 0x1333"),
    ],
)
def test_bad_images_are_named(images, error, message):
    with pytest.raises(error, match=message):
        ImageTransform()(images, **CPU)
