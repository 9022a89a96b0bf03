"""Layers that are to tell other classes than those that they were trained for."""

from __future__ import annotations

from torch import nn

DEVIATION = 0.01


def reset_outputs(layer: nn.Linear | nn.Conv2d, number: int) -> None:
    """Gives a layer another number of outputs, random weights and biases of zero, in place.

    Args:
        layer: with a bias; its device and type stay.
        number: of outputs, at least 1.
    """
    weight = layer.weight.detach()
    weight = weight.new_empty(number, *weight.shape[1:])
    layer.weight = nn.Parameter(nn.init.normal_(weight, std=DEVIATION))
    layer.bias = nn.Parameter(weight.new_zeros(number))
    if isinstance(layer, nn.Linear):
        layer.out_features = number
    else:
        layer.out_channels = number
