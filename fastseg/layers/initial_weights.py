"""Initial weights of convolutions, for networks that are trained from scratch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

# Keeps the variance of gradients through ReLUs (He et al., 2015).
he_normal = partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu")
# Keeps the variance of activations without ReLUs (Caffe2's "XavierFill").
fan_in_uniform = partial(nn.init.kaiming_uniform_, a=1)
narrow_normal = partial(nn.init.normal_, std=0.01)


def initialise_convolutions(network: nn.Module, fill: Callable[[Tensor], object]) -> None:
    """Gives the convolutions in a network initial weights and biases of zero.

    Args:
        network: whose deformable convolutions keep their own.
        fill: gives a weight its values, in place.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and not name.endswith("conv_offset"):
            fill(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
