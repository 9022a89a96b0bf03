"""MaskFormer's pixel decoder with an encoder; against mmdetection's see tests/checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.encoder_pixel_decoder import (
    TransformerEncoderLayer,
    TransformerEncoderPixelDecoder,
)
from fastseg.layers.position_encoding import sine_position_encoding

SIZES = {"channels": 32, "mask_channels": 12, "num_heads": 4, "num_layers": 2, "ffn_channels": 24}


def stages() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 8 * 2**i, 24 >> i, 40 >> i, generator=generator) for i in range(4)]


def pixel_decoder(**options: bool) -> TransformerEncoderPixelDecoder:
    torch.manual_seed(0)
    made = TransformerEncoderPixelDecoder(in_channels=(8, 16, 32, 64), **SIZES, **options)
    return made.eval()


def test_layer_is_torchs_with_positions_for_the_attention_alone():
    torch.manual_seed(0)
    layer = TransformerEncoderLayer(channels=32, num_heads=4, ffn_channels=24, dropout=0.3).eval()
    theirs = nn.TransformerEncoderLayer(32, 4, 24, batch_first=True).eval()
    theirs.load_state_dict(layer.state_dict())
    tokens, positions = torch.randn(2, 15, 32), torch.randn(15, 32)
    with torch.no_grad():
        torch.testing.assert_close(layer(tokens, 0 * positions), theirs(tokens), rtol=0, atol=1e-5)
        placed = tokens + positions
        attended = theirs.self_attn(placed, placed, tokens, need_weights=False)[0]
        x = theirs.norm1(tokens + attended)
        expected = theirs.norm2(x + theirs.linear2(F.relu(theirs.linear1(x))))
        torch.testing.assert_close(layer(tokens, positions), expected, rtol=0, atol=1e-5)


def test_what_the_transformer_decoder_sees():
    """The same encoder feeds the pyramid either way."""
    inputs = stages()
    with torch.no_grad():
        [encoded], features = pixel_decoder()(inputs)
        [past], same = pixel_decoder(returns_encoded=False)(inputs)
    assert encoded.shape == (2, 32, 3, 5)
    assert features.shape == (2, 12, 24, 40)
    assert past is inputs[-1]
    assert torch.equal(features, same)


def test_encoder_by_the_definition():
    """Row by row, each pixel with its place; the result has the stage's layout again."""
    decoder = pixel_decoder()
    x = stages()[-1]
    with torch.no_grad():
        [encoded], _ = decoder(stages())
        tokens = decoder.input_projection(x).flatten(2).transpose(1, 2)
        positions = sine_position_encoding(3, 5, 32, device=x.device)
        for layer in decoder.layers:
            tokens = layer(tokens, positions)
    assert torch.equal(encoded[1, :, 2, 3], tokens[1, 2 * 5 + 3])


@pytest.mark.parametrize("returns_encoded", [True, False])
def test_dropout_and_gradients_in_training(returns_encoded):
    decoder = pixel_decoder(returns_encoded=returns_encoded).train()
    inputs = stages()
    _, features = decoder(inputs)
    assert not torch.equal(features, decoder(inputs)[1])
    features.square().sum().backward()
    assert all(x.grad is not None and x.grad.any() for x in decoder.parameters())
