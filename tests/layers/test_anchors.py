"""Anchors against torchvision's, bit by bit."""

from __future__ import annotations

import pytest
import torch

from fastseg.layers.anchors import AnchorGenerator

SIZES = ((16, 23), (32, 45), (64, 90), (128, 181), (256, 362))
RATIOS = (0.5, 1.0, 2.0)


@pytest.mark.parametrize("size", [(800, 1344), (224, 96), (32, 32)])
def test_anchors_are_bit_equal(size):
    pytest.importorskip("torchvision", reason="torchvision is the peer that is compared with")
    from torchvision.models.detection.anchor_utils import AnchorGenerator as Peer
    from torchvision.models.detection.image_list import ImageList

    # P6 takes every second position of P5.
    grids = [(size[0] >> level, size[1] >> level) for level in (2, 3, 4, 5)]
    grids.append(((grids[-1][0] + 1) // 2, (grids[-1][1] + 1) // 2))
    peer = Peer(SIZES, (RATIOS,) * 5)
    maps = [torch.empty(1, 1, *grid) for grid in grids]
    expected = peer(ImageList(torch.empty(1, 3, *size), [size]), maps)[0]

    anchors = AnchorGenerator(sizes=SIZES, aspect_ratios=RATIOS)
    ours = [
        anchors(level, torch.arange(6 * h * w), w, (size[0] // h, size[1] // w))
        for level, (h, w) in enumerate(grids)
    ]
    assert torch.equal(torch.cat(ours), expected)


def test_any_selection_of_anchors():
    anchors = AnchorGenerator(sizes=SIZES, aspect_ratios=RATIOS)
    every = anchors(1, torch.arange(6 * 4 * 5), 5, (8, 8))
    index = torch.tensor([[3, 0], [119, 55]])
    assert torch.equal(anchors(1, index, 5, (8, 8)), every[index])


def test_half_precision_leaves_anchors_exact():
    anchors = AnchorGenerator(sizes=((700,),), aspect_ratios=((0.5, 1.0),))
    index = torch.arange(2)
    exact = anchors(0, index, 1, (4, 4))
    assert torch.equal(anchors.bfloat16()(0, index, 1, (4, 4)), exact)


def test_levels_must_agree():
    with pytest.raises(ValueError, match="2 levels but anchor_sizes has 5"):
        AnchorGenerator(sizes=SIZES, aspect_ratios=(RATIOS, RATIOS))
