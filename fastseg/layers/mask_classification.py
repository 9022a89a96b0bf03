"""Mask classification (Cheng et al., MaskFormer, 2021): a query is a class and a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fastseg.layers.linear import Linear, batched_product


@dataclass(frozen=True)
class MaskPredictions:
    """What the queries say of a batch of images.

    Attributes:
        class_logits: [B, Q, K + 1], the last class is "no object".
        mask_logits: [B, Q, h, w] at a quarter of the size of ``pixels``.
    """

    class_logits: Tensor
    mask_logits: Tensor


class MLP(nn.Sequential):
    """Three linear layers with ReLUs between; children "0", "1", "2".

    Args:
        channels: of the input and between the layers.
        out_channels: of the output.
    """

    def __init__(self, *, channels: int, out_channels: int) -> None:
        super().__init__(
            Linear(channels, channels),
            Linear(channels, channels),
            Linear(channels, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C_out]."""
        y: Tensor = self[2](self[1](self[0](x).relu()).relu())
        return y


class MaskClassifier(nn.Module):
    """A transformer decoder whose queries become a class and a mask each; base of the decoders.

    Args:
        channels: C, of the queries.
        mask_channels: of the mask features.
        num_classes: K; "no object" is one more.
    """

    def __init__(self, *, channels: int, mask_channels: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.norm = nn.LayerNorm(channels)
        self.class_predictor = Linear(channels, num_classes + 1)
        self.mask_embed = MLP(channels=channels, out_channels=mask_channels)

    def decode(self, levels: Sequence[Tensor], mask_features: Tensor) -> list[Tensor]:
        """The queries that make predictions, [B, Q, C], normalised; those of the last layer last.

        Args:
            levels: the pixel decoder's features [B, C_in, h, w], the coarsest first.
            mask_features: [B, C_mask, H / 4, W / 4].
        """
        raise NotImplementedError

    def forward(self, levels: Sequence[Tensor], mask_features: Tensor) -> MaskPredictions:
        """The predictions after the last layer; arguments as of ``decode``."""
        return self.classify(self.decode(levels, mask_features)[-1], mask_features)

    def predict_layers(
        self, levels: Sequence[Tensor], mask_features: Tensor
    ) -> list[MaskPredictions]:
        """The predictions of all layers, for training; arguments as of ``decode``."""
        return [self.classify(x, mask_features) for x in self.decode(levels, mask_features)]

    def classify(self, queries: Tensor, mask_features: Tensor) -> MaskPredictions:
        """Classes and masks.

        Args:
            queries: [B, Q, C], normalised.
            mask_features: [B, C_mask, h, w].
        """
        masks = batched_product(self.mask_embed(queries), mask_features.flatten(2))  # [B, Q, h * w]
        return MaskPredictions(
            class_logits=self.class_predictor(queries),
            mask_logits=masks.unflatten(2, mask_features.shape[2:]),
        )
