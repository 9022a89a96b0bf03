"""Second stage of Faster R-CNN on a pyramid: class and refined box of each proposal."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.batch_norm import NormLayer, conv_norm_layers
from fastseg.layers.initial_weights import he_normal, initialise_convolutions
from fastseg.layers.linear import Linear


class TwoMLPHead(nn.Module):
    """Two fully connected layers with ReLU (Lin et al., FPN, 2017, section 4.2).

    Args:
        in_channels: channels of a pooled region.
        resolution: its height and width.
        representation_size: width of both layers.
    """

    def __init__(
        self, *, in_channels: int, resolution: int = 7, representation_size: int = 1024
    ) -> None:
        super().__init__()
        self.out_features = representation_size
        self.fc6 = Linear(in_channels * resolution**2, representation_size)
        self.fc7 = Linear(representation_size, representation_size)

    def forward(self, regions: Tensor) -> Tensor:
        """[R, C, h, w] -> [R, representation_size]."""
        x = F.relu_(self.fc6(regions.flatten(1)))
        return F.relu_(self.fc7(x))


class ConvFCHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers (Wu & He, Group Normalization, 2018).

    The children are numbered as in torchvision: convolutions, a flatten, then pairs of a fully
    connected layer and a ReLU.

    Args:
        in_channels: channels of a pooled region.
        resolution: its height and width.
        conv_channels: channels of each convolution.
        fc_features: width of each fully connected layer.
        norm_layer: makes the normalisation after each convolution from a channel count.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        resolution: int = 7,
        conv_channels: Sequence[int] = (256, 256, 256, 256),
        fc_features: Sequence[int] = (1024,),
        norm_layer: NormLayer | None = nn.BatchNorm2d,
    ) -> None:
        convolutions = conv_norm_layers(in_channels, conv_channels, norm_layer)
        layers: list[nn.Module] = [*convolutions, nn.Flatten()]
        features = (in_channels, *conv_channels)[-1] * resolution**2
        for width in fc_features:
            layers += [Linear(features, width), nn.ReLU(inplace=True)]
            features = width
        super().__init__(*layers)
        self.out_features = features
        initialise_convolutions(self, he_normal)


class FastRCNNPredictor(nn.Module):
    """Class scores, and box offsets for every class (Girshick, Fast R-CNN, 2015, section 2.1).

    Args:
        in_features: width of the box head's output.
        num_classes: number of classes, background among them.
        num_boxes: number of classes with offsets of their own, the background by default among
            them; 1 for offsets that all classes share.
    """

    def __init__(self, *, in_features: int, num_classes: int, num_boxes: int | None = None) -> None:
        super().__init__()
        self.cls_score = Linear(in_features, num_classes)
        self.bbox_pred = Linear(in_features, 4 * (num_boxes or num_classes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[R, in_features] -> logits [R, num_classes], offsets [R, num_boxes, 4]."""
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))
