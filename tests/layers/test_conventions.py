"""The rules in which torchvision, detectron2 and mmdetection differ, one by one.

Those that make a difference to nearly every image are held by the models' tests.
"""

from __future__ import annotations

import math

import pytest
import torch
from mmdetection_peer import import_mmdet
from torch import Tensor, nn

from fastseg import models
from fastseg.layers.anchors import AnchorGenerator
from fastseg.layers.box_coder import decode_boxes
from fastseg.layers.conventions import CONVENTIONS, DETECTRON2, MMDETECTION
from fastseg.layers.region_proposal_network import (
    LevelPredictions,
    Proposals,
    RegionProposalNetwork,
    RPNHead,
)
from fastseg.layers.roi_heads import Detections, RoIHeads
from fastseg.models import ImageBatch

RATIOS = (0.5, 1.0, 2.0)


def test_order_of_anchors_of_detectron2():
    """Size by size, each in all ratios, of the same area and not rounded."""
    sizes = (32.0, 50.0)
    expected = []
    for size in sizes:
        for ratio in RATIOS:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            expected.append([-width / 2, -height / 2, width / 2, height / 2])
    anchors = AnchorGenerator(
        sizes=(sizes,),
        aspect_ratios=RATIOS,
        rounded=DETECTRON2.round_anchors,
        ratio_major=DETECTRON2.ratio_major_anchors,
    )
    ours = anchors(0, torch.arange(6), 1, (4, 4))
    torch.testing.assert_close(ours, torch.tensor(expected), rtol=0, atol=1e-5)
    assert torch.equal(anchors.half()(0, torch.arange(6), 1, (4, 4)), ours)


def test_anchors_equal_mmdetections():
    import_mmdet()
    from mmdet.models.task_modules.prior_generators import AnchorGenerator as Peer

    peer = Peer(strides=[4, 8], ratios=list(RATIOS), scales=[8, 12])
    expected = peer.grid_priors([(6, 5), (3, 3)], device="cpu")
    anchors = AnchorGenerator(
        sizes=((32, 48), (64, 96)),
        aspect_ratios=RATIOS,
        rounded=MMDETECTION.round_anchors,
        ratio_major=MMDETECTION.ratio_major_anchors,
    )
    for level, (theirs, width) in enumerate(zip(expected, (5, 3), strict=True)):
        stride = (4 << level, 4 << level)
        assert torch.equal(anchors(level, torch.arange(len(theirs)), width, stride), theirs)


def test_large_offsets_equal_mmdetections():
    import_mmdet()
    from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder

    generator = torch.Generator().manual_seed(0)
    corner, size = torch.rand(2, 500, 2, generator=generator) * 60
    references = torch.cat((corner, corner + size + 1), dim=1)
    deltas = 40 * torch.randn(500, 4, generator=generator)
    expected = DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2)).decode(references, deltas)
    weights = (10.0, 10.0, 5.0, 5.0)
    ours = decode_boxes(deltas, references, weights, limit_shrinking=MMDETECTION.limit_shrinking)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-3)
    unlimited = decode_boxes(deltas, references, weights)
    assert (unlimited - ours).abs().max() > 0.1


def proposed(logits: list[float], widths: list[float], library: str) -> Tensor:
    """Boxes that one anchor on each of two levels is turned into; deltas set the widths."""
    conventions = CONVENTIONS[library]
    sizes = tuple((float(16 << i),) for i in range(len(logits)))
    rpn = RegionProposalNetwork(
        head=RPNHead(in_channels=1, num_anchors=1),
        anchors=AnchorGenerator(sizes=sizes, aspect_ratios=(1.0,)),
        conventions=conventions,
    )
    levels = []
    for i, (logit, width) in enumerate(zip(logits, widths, strict=True)):
        deltas = torch.tensor([[[1.0, 1.0, math.log(width / (16 << i)) if width else -200.0, 0.0]]])
        levels.append(LevelPredictions(torch.tensor([[logit]]), deltas, 1, (4 << i, 4 << i)))
    found = rpn.propose(levels, torch.tensor([[100, 100]]), pre_nms_top_n=9, post_nms_top_n=9)
    return found.boxes[0, : found.counts[0]]


@pytest.mark.parametrize(("library", "first"), [("detectron2", 32), ("mmdetection", 16)])
def test_which_of_two_certain_proposals_comes_first(library, first):
    """Both are 1 as a probability; by logits that of the second level is better."""
    boxes = proposed([20.0, 30.0], [16.0, 32.0], library)
    assert len(boxes) == 2
    assert boxes[0, 2] - boxes[0, 0] == first


@pytest.mark.parametrize(
    ("library", "count"), [("torchvision", 1), ("detectron2", 2), ("mmdetection", 2)]
)
def test_least_size_of_proposals(library, count):
    assert len(proposed([1.0, 2.0], [8e-4, 32.0], library)) == count


def test_proposals_without_width_are_dropped():
    assert len(proposed([1.0, 2.0], [0.0, 32.0], "detectron2")) == 1


class Fixed(nn.Module):
    """A box predictor that says the same of every region."""

    def __init__(self, logits: list[float], deltas: list[list[float]]) -> None:
        super().__init__()
        self.logits, self.deltas = torch.tensor(logits), torch.tensor(deltas)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits.expand(len(x), -1), self.deltas.expand(len(x), -1, -1)


@pytest.mark.parametrize(
    ("library", "labels"),
    [("torchvision", [2]), ("detectron2", [0, 1]), ("mmdetection", [0, 1])],
)
def test_boxes_beyond_the_image_and_labels(library, labels):
    """The likelier class moves its box out of the image, where clipping leaves it no width."""
    conventions = CONVENTIONS[library]
    logits, deltas = [1.0, 0.5], [[500.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    if conventions.background_first:
        logits, deltas = [-1.0, *logits], [[0.0] * 4, *deltas]
    else:
        logits = [*logits, -1.0]
    heads = RoIHeads(
        box_head=nn.Identity(),
        box_predictor=Fixed(logits, deltas),
        mask_head=nn.Identity(),
        mask_predictor=nn.Identity(),
        conventions=conventions,
    )
    pyramid = [torch.zeros(1, 1, 32 >> i, 32 >> i) for i in range(4)]
    proposals = Proposals(torch.tensor([[[8.0, 8.0, 40.0, 40.0]]]), torch.tensor([1]))
    boxes, _, found, counts = heads.detect_boxes(pyramid, proposals, torch.tensor([[100, 100]]))
    assert found[0, : counts[0]].tolist() == labels
    assert boxes[0, counts[0] - 1].tolist() == [8, 8, 40, 40]


@pytest.mark.parametrize(("library", "count"), [("detectron2", 1), ("mmdetection", 2)])
def test_results_without_width(library, count):
    """mmdetection keeps them; a mask without width has no pixel."""
    with torch.device("meta"):
        model = models.mask_rcnn_resnet18_fpn(num_classes=4, conventions=library)
    detections = Detections(
        boxes=torch.tensor([[[5.0, 5.0, 25.0, 25.0], [50.0, 5.0, 50.0, 25.0]]]),
        scores=torch.tensor([[0.9, 0.8]]),
        labels=torch.tensor([[2, 0]]),
        masks=torch.ones(1, 2, 28, 28),
        counts=torch.tensor([2]),
    )
    batch = ImageBatch(torch.zeros(1, 3, 32, 64), torch.tensor([[30, 50]]), [(60, 100)])
    (result,) = model.postprocess(detections, batch)
    assert result.labels.tolist() == [2, 0][:count]
    assert result.scores.tolist() == pytest.approx([0.9, 0.8][:count])
    assert result.boxes[0].tolist() == [10, 10, 50, 50]
    assert result.masks().flatten(1).sum(1).tolist() == [1600, 0][:count]


def test_sizes_of_images_are_rounded():
    with torch.device("meta"):
        sizes = [
            models.mask_rcnn_resnet18_fpn(conventions=library).transform.resized_size(480, 637)
            for library in CONVENTIONS
        ]
    assert sizes == [(800, 1061), (800, 1062), (800, 1062)]
