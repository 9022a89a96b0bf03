"""Sine position encodings against the formula and DETR's in transformers."""

from __future__ import annotations

import math

import pytest
import torch

from fastseg.layers.position_encoding import sine_position_encoding


def test_formula():
    height, width, channels = 3, 5, 8
    found = sine_position_encoding(height, width, channels, device=torch.device("cpu"))
    assert found.shape == (15, 8)
    for row in range(height):
        for column in range(width):
            y, x = 2 * math.pi * (row + 1) / height, 2 * math.pi * (column + 1) / width
            expected = [
                f(position / 10000 ** (2 * pair / 4))
                for position in (y, x)
                for pair in (0, 1)
                for f in (math.sin, math.cos)
            ]
            one = found[row * width + column].tolist()
            assert one == pytest.approx(expected, abs=1e-5)


def test_equals_transformers():
    peer = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    embedding = peer.Mask2FormerSinePositionEmbedding(num_position_features=32, normalize=True)
    expected = embedding(torch.Size((1, 64, 17, 30)), torch.device("cpu"), torch.float32)
    found = sine_position_encoding(17, 30, 64, device=torch.device("cpu"))
    torch.testing.assert_close(found, expected[0].flatten(1).T, rtol=0, atol=1e-5)


def test_channels_must_be_quadruples():
    with pytest.raises(ValueError, match="channels must be a multiple of 4, got 6"):
        sine_position_encoding(2, 2, 6, device=torch.device("cpu"))
