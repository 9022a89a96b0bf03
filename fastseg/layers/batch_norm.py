"""Batch normalisation with fixed statistics, and convolutions followed by a normalisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Makes the normalisation of a given number of channels.
NormLayer = Callable[[int], nn.Module]
# Makes a convolution from nn.Conv2d's arguments: nn.Conv2d itself, or a deformable one.
ConvLayer = Callable[..., nn.Module]


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine parameters are buffers and never change.

    ``y = (x - running_mean) / sqrt(running_var + eps) * weight + bias`` per channel; the buffers
    are named as in ``nn.BatchNorm2d``.

    Args:
        channels: number of channels of the input.
        eps: added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises ``x`` [N, C, H, W]."""
        scale, shift = scale_and_shift(self, x.dtype)
        return torch.addcmul(shift, x, scale)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, eps={self.eps}"


def scale_and_shift(
    norm: FrozenBatchNorm2d | nn.BatchNorm2d, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The two tensors [C, 1, 1] with ``norm(x) == x * scale + shift``."""
    weight, bias, mean, variance = (
        cast(Tensor, tensor).float()
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    scale = weight * torch.rsqrt(variance + norm.eps)
    shift = bias - mean * scale
    return scale.to(dtype)[:, None, None], shift.to(dtype)[:, None, None]


def is_fixed(norm: nn.Module) -> TypeGuard[FrozenBatchNorm2d | nn.BatchNorm2d]:
    """Whether ``norm`` is a batch normalisation that uses stored statistics."""
    if isinstance(norm, nn.BatchNorm2d):
        return not norm.training and norm.track_running_stats and norm.affine
    return isinstance(norm, FrozenBatchNorm2d)


def keep_statistics(module: nn.Module) -> None:
    """Sets the batch normalisations in a module to eval mode: they use what they have stored."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """``norm(conv(x))``, in place on the convolution's output where no gradient is needed.

    In place, batch normalisation costs 5 % of a ResNet-50 on the CPU instead of 40 %: most of a
    separate pass is the allocation of its output. Folding it into the weights is no faster and
    rounds differently from torchvision (scores moved by up to 1.2e-5).

    Args:
        x: [N, C, H, W].
        conv: convolution.
        norm: normalisation of its output.
    """
    y = conv(x)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not is_fixed(norm):
        return norm(y)
    scale, shift = scale_and_shift(norm, y.dtype)
    return torch.addcmul(shift, y, scale, out=y)


class ConvNorm(nn.Sequential):
    """Convolution with optional normalisation and ReLU; children "0" and "1".

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd; the padding keeps the size at stride 1.
        stride: of the convolution.
        norm_layer: makes the normalisation from a channel count; the convolution has a bias if
            and only if there is none.
        relu: whether a ReLU follows.
        conv_layer: makes the convolution.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        norm_layer: NormLayer | None = None,
        relu: bool = False,
        conv_layer: ConvLayer = nn.Conv2d,
    ) -> None:
        conv = conv_layer(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=norm_layer is None,
        )
        super().__init__(conv, *([] if norm_layer is None else [norm_layer(out_channels)]))
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H / stride, W / stride]."""
        x = self[0](x) if len(self) == 1 else conv_norm(x, self[0], self[1])
        return F.relu_(x) if self.relu else x


def conv_norm_layers(
    in_channels: int,
    conv_channels: Sequence[int],
    norm_layer: NormLayer | None,
    conv_layers: Sequence[ConvLayer] | None = None,
) -> list[ConvNorm]:
    """3x3 convolutions with normalisation and ReLU, one after the other.

    Args:
        in_channels: channels of the first one's input.
        conv_channels: channels of each one's output.
        norm_layer: see `ConvNorm`.
        conv_layers: what makes each convolution; nn.Conv2d by default.
    """
    return [
        ConvNorm(
            in_channels=channels_in,
            out_channels=channels,
            kernel_size=3,
            norm_layer=norm_layer,
            relu=True,
            conv_layer=conv_layer,
        )
        for channels_in, channels, conv_layer in zip(
            (in_channels, *conv_channels[:-1]),
            conv_channels,
            conv_layers or (nn.Conv2d,) * len(conv_channels),
            strict=True,
        )
    ]
