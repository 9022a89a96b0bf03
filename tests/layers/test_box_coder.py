"""Box arithmetic against torchvision's, bit by bit."""

from __future__ import annotations

import pytest
import torch

from fastseg.layers.box_coder import clip_boxes, decode_boxes, has_sides

tv = pytest.importorskip("torchvision", reason="torchvision is the peer that is compared with")
from torchvision.models.detection._utils import BoxCoder  # noqa: E402


@pytest.fixture
def boxes():
    torch.manual_seed(0)
    corners = torch.rand(500, 2) * 300 - 50
    return torch.cat((corners, corners + torch.rand(500, 2) * 200 - 1), dim=1)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)])
def test_decode_is_bit_equal(boxes, weights):
    deltas = torch.randn(500, 4) * 10
    expected = BoxCoder(weights).decode_single(deltas, boxes)
    assert torch.equal(decode_boxes(deltas, boxes, weights), expected)


def test_decode_broadcasts_references_over_classes(boxes):
    deltas = torch.randn(500, 7, 4)
    weights = (10.0, 10.0, 5.0, 5.0)
    expected = BoxCoder(weights).decode_single(deltas.flatten(1), boxes).view(500, 7, 4)
    assert torch.equal(decode_boxes(deltas, boxes[:, None], weights), expected)


def test_decode_of_half_precision_is_float32(boxes):
    deltas = torch.randn(500, 4).half()
    decoded = decode_boxes(deltas, boxes, (1.0, 1.0, 1.0, 1.0))
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, decode_boxes(deltas.float(), boxes, (1.0, 1.0, 1.0, 1.0)))


def test_clip_uses_each_images_size(boxes):
    batch = boxes.view(2, 250, 4)
    sizes = torch.tensor([[100, 200], [150, 80]])
    clipped = clip_boxes(batch, sizes)
    for i, (height, width) in enumerate(sizes.tolist()):
        assert torch.equal(clipped[i], tv.ops.clip_boxes_to_image(batch[i], (height, width)))
    nested = clip_boxes(batch.view(2, 50, 5, 4), sizes)
    assert torch.equal(nested.view(2, 250, 4), clipped)


def test_sides_at_the_limit_and_nan():
    boxes = torch.tensor(
        [
            [0.0, 0.0, 0.5, 0.5],
            [0.0, 0.0, 0.4, 0.5],
            [0.0, 0.0, -3.0, 0.5],
            [0.0, float("nan"), 1.0, 1.0],
        ]
    )
    assert has_sides(boxes, 0.5).tolist() == [True, False, False, False]
