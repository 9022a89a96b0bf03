"""Deformable convolutions with their offsets: mmcv's numbers, keys of other libraries."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from fastseg.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d, with_inner_offsets


def assert_near(actual: Tensor | None, expected: list) -> None:
    assert actual is not None
    expected = torch.tensor(expected)
    torch.testing.assert_close(actual.flatten(), expected.flatten(), rtol=1e-4, atol=1e-4)


def test_numbers_of_mmcv() -> None:
    # tests/test_ops/test_deform_conv.py of mmcv at a8073c7
    layer = DeformConv2d(1, 1, 2)
    offset_weight = [
        *[0.1, 0.4, 0.6, 0.1, 0.3, 0.2, 0.1, 0.3, 0.5, 0.5, 0.2, 0.8, 0.8, 0.3, 0.9, 0.1],
        *[0.3, 0.1, 0.2, 0.5, 0.3, 0.7, 0.5, 0.3, 0.6, 0.2, 0.5, 0.3, 0.4, 0.1, 0.8, 0.4],
    ]
    state = {
        "weight": torch.tensor([0.4, 0.2, 0.1, 0.9]).view(1, 1, 2, 2),
        "conv_offset.weight": torch.tensor(offset_weight).view(8, 1, 2, 2),
        "conv_offset.bias": torch.tensor([0.7, 0.1, 0.8, 0.5, 0.6, 0.5, 0.4, 0.7]),
    }
    layer.load_state_dict(state)
    x = torch.tensor([[[[1.0, 2, 3], [0, 1, 2], [3, 5, 2]]]], requires_grad=True)
    y = layer(x)
    assert_near(y, [1.65, 0, 0, 0])
    y.backward(torch.ones_like(y))
    assert_near(x.grad, [-0.666, 0.204, 0, 0.03, -0.416, 0.012, 0, 0.252, 0.129])
    assert_near(layer.weight.grad, [3.62, 0, 0.4, 0.18])
    assert_near(
        layer.conv_offset.bias.grad,
        [1.44, -0.72, 0, 0, -0.1, -0.08, -0.54, -0.54],
    )
    assert_near(
        layer.conv_offset.weight.grad,
        [
            *[1.44, 2.88, 0, 1.44, -0.72, -1.44, 0, -0.72, *[0] * 8],
            *[-0.1, -0.2, 0, -0.1, -0.08, -0.16, 0, -0.08],
            *[-0.54, -1.08, 0, -0.54, -0.54, -1.08, 0, -0.54],
        ],
    )


def test_numbers_of_mmcv_with_masks() -> None:
    # tests/test_ops/test_modulated_deform_conv.py of mmcv at a8073c7
    layer = ModulatedDeformConv2d(1, 1, 2, padding=1)
    nn.init.ones_(layer.weight)
    x = torch.tensor([1.0, 2, 3]).expand(1, 1, 3, 3).clone().requires_grad_()
    y = layer(x)
    assert_near(y, [0.5, 1.5, 2.5, 1.5, 1, 3, 5, 3, 1, 3, 5, 3, 0.5, 1.5, 2.5, 1.5])
    y.sum().backward()
    assert_near(x.grad, [2.0] * 9)
    assert_near(layer.weight.grad, [9.0] * 4)
    # Those of the offsets differ: mmcv lets a tap exactly one cell beyond the border pass no
    # gradient to its offset, torchvision lets it.
    masks = layer.conv_offset.weight.grad[8:]
    assert_near(layer.conv_offset.bias.grad[8:], [4.5] * 4)
    assert_near(masks, [10.5, 6, 7, 4, 6, 10.5, 4, 7, 7, 4, 10.5, 6, 4, 7, 6, 10.5])


@pytest.mark.parametrize("layer_type", [DeformConv2d, ModulatedDeformConv2d])
def test_starts_as_a_convolution(layer_type: type[DeformConv2d]) -> None:
    layer = layer_type(6, 4, (3, 2), stride=2, padding=(1, 2), groups=2, offset_groups=3, bias=True)
    x = torch.randn(2, 6, 9, 8)
    expected = nn.functional.conv2d(x, layer.weight, None, 2, (1, 2), groups=2)
    factor = 0.5 if layer_type is ModulatedDeformConv2d else 1.0
    torch.testing.assert_close(layer(x), factor * expected, rtol=1e-4, atol=1e-5)
    assert layer.conv_offset.out_channels == layer_type.channels_per_tap * 3 * 6


@pytest.mark.parametrize("layer_type", [DeformConv2d, ModulatedDeformConv2d])
def test_offset_convolution_as_a_neighbour(layer_type: type[DeformConv2d]) -> None:
    def block() -> nn.Module:
        conv2 = layer_type(4, 4, 3, padding=1)
        nn.init.normal_(conv2.conv_offset.weight)
        return nn.Sequential(OrderedDict(conv1=nn.Conv2d(4, 4, 1), conv2=conv2))

    ours, theirs = block(), block()
    assert set(theirs.state_dict()) == {
        *("conv1.weight", "conv1.bias", "conv2.weight"),
        *("conv2.conv_offset.weight", "conv2.conv_offset.bias"),
    }
    neighbour = {
        key.replace("conv2.conv_offset", "conv2_offset"): value
        for key, value in theirs.state_dict().items()
    }
    neighbour["mask_offset.weight"] = torch.zeros(1)  # of a layer that is not deformable
    renamed = with_inner_offsets(neighbour)
    assert "conv2_offset.weight" in neighbour
    assert renamed.pop("mask_offset.weight") is neighbour["mask_offset.weight"]
    ours.load_state_dict(renamed)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x))


def test_bad_groups_are_named() -> None:
    with pytest.raises(ValueError, match="groups=1, offset_groups=4"):
        DeformConv2d(6, 4, 3, offset_groups=4)
