"""Random weights of the builders have the peers' distributions, so that training begins alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection

from fastseg import models
from fastseg.layers.deform_conv import DeformConv2d
from fastseg.models import mask_rcnn_resnet50_fpn, mask_rcnn_resnet50_fpn_v2


def assert_same_distribution(ours: Tensor, theirs: Tensor, name: str):
    if ours.numel() < 2000:  # too few to tell more than whether there is anything random
        assert bool(ours.std(correction=0) > 0) == bool(theirs.std(correction=0) > 0), name
        return
    deviation = theirs.std().item()
    # Six standard errors of a normal deviation; a uniform one's is smaller.
    assert ours.std().item() == pytest.approx(deviation, rel=6 / ours.numel() ** 0.5), name
    assert abs(ours.mean() - theirs.mean()) <= 9 * deviation / ours.numel() ** 0.5, name
    # A uniform distribution ends at 1.73 deviations, a normal one of so many numbers beyond 3.
    assert (ours.abs().max() > 2 * deviation) == (theirs.abs().max() > 2 * deviation), name


@pytest.mark.parametrize(
    ("build", "peer"),
    [
        (mask_rcnn_resnet50_fpn, detection.maskrcnn_resnet50_fpn),
        (mask_rcnn_resnet50_fpn_v2, detection.maskrcnn_resnet50_fpn_v2),
    ],
    ids=["v1", "v2"],
)
def test_mask_rcnn_begins_as_torchvisions(build, peer):
    torch.manual_seed(0)
    ours = build(norm_layer=nn.BatchNorm2d).state_dict()
    theirs = peer(weights=None, weights_backbone=None).state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        if tensor.dim() > 0:
            assert_same_distribution(ours[name], tensor, name)


def test_offsets_of_deformable_convolutions_begin_as_zeros():
    body = models.solov2_light_resnet50_dcn_fpn().backbone.body
    layers = [module for module in body.modules() if isinstance(module, DeformConv2d)]
    assert len(layers) == 13
    for layer in layers:
        assert not layer.conv_offset.weight.any()
        assert not layer.conv_offset.bias.any()
        assert layer.weight.any()
