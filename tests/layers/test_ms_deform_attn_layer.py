"""Deformable DETR's attention module against transformers', and its initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastseg.layers.ms_deform_attn import MSDeformAttn
from fastseg.ops import ms_deform_attn_fused

SHAPES = [(6, 7), (3, 4), (2, 2)]
ROWS = sum(height * width for height, width in SHAPES)
SIZE = {"num_levels": 3, "num_heads": 4, "num_points": 2}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module


def random_inputs(coordinates: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, reference points, value input, padding mask."""
    query, maps = torch.randn(2, 9, 32), torch.randn(2, ROWS, 32)
    return query, torch.rand(2, 9, 3, coordinates), maps, torch.rand(2, ROWS) < 0.3


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("as_list", [False, True])
def test_equals_mask2former_of_transformers(coordinates: int, as_list: bool) -> None:
    peers = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")
    peer = randomised(
        peers.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(32, 4, 3, 2)
    )
    layer = MSDeformAttn(32, **SIZE)
    layer.load_state_dict(peer.state_dict())
    query, references, maps, padding = random_inputs(coordinates)
    actual = layer(
        query,
        references,
        maps,
        SHAPES if as_list else torch.tensor(SHAPES),
        padding_mask=padding,
    )
    expected = peer(
        query,
        attention_mask=padding,
        encoder_hidden_states=maps,
        reference_points=references,
        spatial_shapes_list=SHAPES,
    )[0]
    torch.testing.assert_close(actual, expected)


def test_equals_deformable_detr_of_transformers() -> None:
    peers = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    config = peers.DeformableDetrConfig(
        d_model=32,
        num_feature_levels=3,
        encoder_layers=1,
        encoder_attention_heads=4,
        encoder_n_points=2,
    )
    peer = peers.DeformableDetrEncoder(config).eval().layers[0].self_attn
    layer = MSDeformAttn(32, **SIZE)
    for name, parameter in layer.named_parameters():
        if name not in ("value_proj.weight", "output_proj.weight"):  # these are drawn
            torch.testing.assert_close(parameter, peer.state_dict()[name], rtol=0, atol=1e-6)
    randomised(peer)
    layer.load_state_dict(peer.state_dict())
    query, references, maps, _ = random_inputs(2)
    inputs = [x.requires_grad_() for x in (query, references, maps)]
    actual = layer(query, references, maps, SHAPES, [0, 42, 54])
    expected = peer(
        query,
        encoder_hidden_states=maps,
        reference_points=references,
        spatial_shapes=torch.tensor(SHAPES),
        spatial_shapes_list=SHAPES,
    )[0]
    torch.testing.assert_close(actual, expected)
    grad = torch.randn_like(actual)
    theirs = torch.autograd.grad(expected, [*inputs, *peer.parameters()], grad)
    ours = torch.autograd.grad(
        actual, [*inputs, *(layer.get_parameter(name) for name, _ in peer.named_parameters())], grad
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_heads_start_in_directions_of_their_own() -> None:
    layer = MSDeformAttn(16, num_levels=1, num_heads=4, num_points=2)
    offsets = layer.sampling_offsets.bias.view(4, 2, 2).round(decimals=5).tolist()
    assert offsets == [[[1, 0], [2, 0]], [[0, 1], [0, 2]], [[-1, 0], [-2, 0]], [[0, -1], [0, -2]]]
    # Maps that are the same everywhere, sampled away from their borders.
    output = layer(
        torch.randn(1, 3, 16), torch.full((1, 3, 1, 2), 0.5), torch.ones(1, 81, 16), [(9, 9)]
    )
    expected = layer.output_proj(layer.value_proj(torch.ones(1, 3, 16)))
    torch.testing.assert_close(output, expected)


def test_autocast_keeps_locations_in_float32() -> None:
    layer = randomised(MSDeformAttn(32, **SIZE))
    query, references, maps, padding = random_inputs(4)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(query, references, maps, SHAPES, padding_mask=padding)
        value = layer.value_proj(maps).masked_fill(padding[..., None], 0).unflatten(2, (4, -1))
        offsets = layer.sampling_offsets(query).float().unflatten(2, (4, 3, 2, 2))
        logits = layer.attention_weights(query).float().unflatten(2, (4, 3, 2))
        attended = ms_deform_attn_fused(value, SHAPES, None, references, offsets, logits)
        expected = layer.output_proj(attended)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)


def test_heads_must_divide_channels() -> None:
    with pytest.raises(ValueError, match="num_heads must divide channels, got channels=30, num_"):
        MSDeformAttn(30)
