"""Batch normalisation with fixed statistics, on its own and after a convolution."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastseg.layers.batch_norm import ConvNorm, FrozenBatchNorm2d, conv_norm


@torch.no_grad()
def randomise(norm: nn.Module) -> nn.Module:
    for tensor, low in (
        (norm.weight, 0.2),
        (norm.bias, -0.5),
        (norm.running_mean, -0.5),
        (norm.running_var, 0.01),
    ):
        tensor.copy_(low + torch.rand(len(tensor)))
    return norm


@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
def test_definition(eps):
    norm = randomise(FrozenBatchNorm2d(5, eps=eps)).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    mean, variance, weight, bias = (
        tensor.view(5, 1, 1)
        for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    expected = (x - mean) / (variance + eps).sqrt() * weight + bias
    torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [FrozenBatchNorm2d, nn.BatchNorm2d])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_after_a_convolution(layer, dtype, memory_format):
    conv = nn.Conv2d(4, 6, 3, bias=False).to(dtype)
    norm = randomise(layer(6)).eval()
    x = torch.randn(2, 4, 9, 8, dtype=dtype).contiguous(memory_format=memory_format)
    before = x.clone()
    # Outputs go up to 10, where a step of the type is 10 * eps.
    tolerance = {"rtol": 0, "atol": 20 * torch.finfo(dtype).eps}
    with torch.no_grad():
        expected = norm(conv(x).float())
    norm.to(dtype)
    with torch.inference_mode():
        inference = conv_norm(x, conv, norm)
    training = conv_norm(x, conv, norm)
    assert inference.dtype == training.dtype == dtype
    torch.testing.assert_close(inference.float(), expected, **tolerance)
    torch.testing.assert_close(training.float(), expected, **tolerance)
    assert training.requires_grad
    assert torch.equal(x, before)


def test_other_normalisations_are_used_as_they_are():
    conv, norm = nn.Conv2d(4, 6, 1, bias=False), nn.GroupNorm(2, 6)
    x = torch.randn(1, 4, 5, 5)
    with torch.inference_mode():
        assert torch.equal(conv_norm(x, conv, norm), norm(conv(x)))


def test_keys_are_those_of_torch():
    assert FrozenBatchNorm2d(3).state_dict().keys() == (
        nn.BatchNorm2d(3).state_dict().keys() - {"num_batches_tracked"}
    )
    block = ConvNorm(in_channels=3, out_channels=4, kernel_size=3, norm_layer=nn.BatchNorm2d)
    assert "0.bias" not in block.state_dict()
    assert "1.running_var" in block.state_dict()
    assert "0.bias" in ConvNorm(in_channels=3, out_channels=4, kernel_size=3).state_dict()
