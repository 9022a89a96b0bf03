"""MaskFormer's pixel decoder with a transformer encoder, which is DETR's (Carion et al., 2020)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastseg.layers.attention import MultiHeadAttention
from fastseg.layers.base_pixel_decoder import BasePixelDecoder
from fastseg.layers.encoder_layer import EncoderLayer
from fastseg.layers.initial_weights import fan_in_uniform, initialise_convolutions
from fastseg.layers.position_encoding import sine_position_encoding


class TransformerEncoderLayer(EncoderLayer):
    """All pixels attend to one another.

    Args:
        channels: C, of the tokens.
        num_heads: heads of the attention.
        ffn_channels: between the two linear layers.
        dropout: in training, share of values that are set to zero.
    """

    def __init__(
        self, *, channels: int, num_heads: int, ffn_channels: int, dropout: float = 0.0
    ) -> None:
        super().__init__(
            MultiHeadAttention(channels=channels, num_heads=num_heads, dropout=dropout),
            channels=channels,
            ffn_channels=ffn_channels,
            dropout=dropout,
        )

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Tokens [B, S, C], positions [S, C] -> [B, S, C]."""
        placed = x + positions
        return self.with_attended(x, self.self_attn(placed, placed, x))


class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """A transformer encoder on the stage at stride 32, below the pyramid of ``BasePixelDecoder``.

    As in the original, padding is encoded like the image.

    Args:
        in_channels: channels of each stage of the backbone, the finest first.
        channels: C, of the encoder and the pyramid.
        mask_channels: of the mask features.
        num_heads: heads of the encoder's attention.
        num_layers: layers of the encoder.
        ffn_channels: between the linear layers of its feed-forward networks.
        dropout: of the encoder in training, share of values that are set to zero.
        returns_encoded: the transformer decoder looks at the encoder's result, as for COCO; else
            at the backbone's last stage, as for the panoptic maps of ADE20K.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int = 256,
        mask_channels: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        ffn_channels: int = 2048,
        dropout: float = 0.1,
        returns_encoded: bool = True,
    ) -> None:
        *finer, coarsest = in_channels
        super().__init__(
            in_channels=(*finer, channels), channels=channels, mask_channels=mask_channels
        )
        self.returns_encoded = returns_encoded
        self.input_projection = nn.Conv2d(coarsest, channels, 1)
        initialise_convolutions(self.input_projection, fan_in_uniform)
        self.layers = nn.ModuleList(
            TransformerEncoderLayer(
                channels=channels, num_heads=num_heads, ffn_channels=ffn_channels, dropout=dropout
            )
            for _ in range(num_layers)
        )

    def forward(self, stages: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Encodes the last stage and builds the pyramid on it.

        Args:
            stages: the backbone's, at strides 4, 8, 16 and 32.

        Returns:
            What the transformer decoder looks at, at stride 32, alone in a list, and the mask
            features [B, C_mask, H / 4, W / 4].
        """
        encoded = self.encode(self.input_projection(stages[-1]))
        level = encoded if self.returns_encoded else stages[-1]
        return [level], self.pyramid(stages[:-1], encoded)

    def encode(self, x: Tensor) -> Tensor:
        """Lets the pixels of [B, C, h, w] attend to one another."""
        channels, height, width = x.shape[1:]
        tokens = x.flatten(2).transpose(1, 2)
        positions = sine_position_encoding(height, width, channels, device=x.device)
        positions = positions.to(x.dtype)
        for layer in self.layers:
            tokens = layer(tokens, positions)
        return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)
