"""Mask R-CNN in the sizes that people use; every number that differs between them is here."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastseg.backbones.resnet import (
    ResNet,
    resnet18,
    resnet50,
    resnet101,
    resnext101_32x8d,
)
from fastseg.layers.batch_norm import FrozenBatchNorm2d, NormLayer
from fastseg.layers.box_head import ConvFCHead, FastRCNNPredictor, TwoMLPHead
from fastseg.layers.conventions import conventions_of
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.mask_head import MaskHead, MaskPredictor
from fastseg.layers.region_proposal_network import RPNHead
from fastseg.models.mask_rcnn import MaskRCNN


def mask_rcnn_resnet18_fpn(
    *, num_classes: int = 91, norm_layer: NormLayer = FrozenBatchNorm2d, **hyper_parameters: Any
) -> MaskRCNN:
    """Mask R-CNN, ResNet-18-FPN, random weights; arguments as of ``mask_rcnn_resnet50_fpn``."""
    return mask_rcnn_fpn(resnet18(norm_layer=norm_layer), num_classes, **hyper_parameters)


def mask_rcnn_resnet50_fpn(
    *, num_classes: int = 91, norm_layer: NormLayer = FrozenBatchNorm2d, **hyper_parameters: Any
) -> MaskRCNN:
    """Mask R-CNN, ResNet-50-FPN, random weights (torchvision's ``maskrcnn_resnet50_fpn``).

    Args:
        num_classes: number of classes, background among them.
        norm_layer: makes the normalisation of the backbone from a channel count.
        **hyper_parameters: of ``MaskRCNN``, such as ``min_size`` or ``box_score_thresh``.
    """
    return mask_rcnn_fpn(resnet50(norm_layer=norm_layer), num_classes, **hyper_parameters)


def mask_rcnn_resnet101_fpn(
    *, num_classes: int = 91, norm_layer: NormLayer = FrozenBatchNorm2d, **hyper_parameters: Any
) -> MaskRCNN:
    """Mask R-CNN, ResNet-101-FPN, random weights; arguments as of ``mask_rcnn_resnet50_fpn``."""
    return mask_rcnn_fpn(resnet101(norm_layer=norm_layer), num_classes, **hyper_parameters)


def mask_rcnn_resnext101_32x8d_fpn(
    *, num_classes: int = 91, norm_layer: NormLayer = FrozenBatchNorm2d, **hyper_parameters: Any
) -> MaskRCNN:
    """Mask R-CNN, ResNeXt-101-32x8d-FPN, random weights; else as ``mask_rcnn_resnet50_fpn``."""
    return mask_rcnn_fpn(resnext101_32x8d(norm_layer=norm_layer), num_classes, **hyper_parameters)


def mask_rcnn_resnet50_fpn_v2(
    *, num_classes: int = 91, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> MaskRCNN:
    """Mask R-CNN, ResNet-50-FPN with the heads of Li et al. (2021), section 3.1, random weights.

    torchvision's ``maskrcnn_resnet50_fpn_v2``: normalisation also in the pyramid and the heads,
    two convolutions in the RPN, four in the box head.

    Args:
        num_classes: number of classes, background among them.
        norm_layer: makes all normalisations from a channel count.
        **hyper_parameters: of ``MaskRCNN``.
    """
    body = resnet50(norm_layer=norm_layer)
    fpn = FeaturePyramidNetwork(
        in_channels=body.out_channels, out_channels=256, norm_layer=norm_layer
    )
    return MaskRCNN(
        backbone=BackboneWithFPN(body=body, fpn=fpn),
        rpn_head=RPNHead(in_channels=256, num_anchors=3, conv_depth=2),
        box_head=ConvFCHead(
            in_channels=256,
            conv_channels=(256, 256, 256, 256),
            fc_features=(1024,),
            norm_layer=norm_layer,
        ),
        mask_head=MaskHead(
            in_channels=256, conv_channels=(256, 256, 256, 256), norm_layer=norm_layer
        ),
        **predictors(num_classes, **hyper_parameters),
        **hyper_parameters,
    )


def mask_rcnn_fpn(body: ResNet, num_classes: int, **hyper_parameters: Any) -> MaskRCNN:
    """The heads of the FPN paper (Lin et al., 2017) and of Mask R-CNN on a backbone."""
    fpn = FeaturePyramidNetwork(in_channels=body.out_channels, out_channels=256)
    return MaskRCNN(
        backbone=BackboneWithFPN(body=body, fpn=fpn),
        rpn_head=RPNHead(in_channels=256, num_anchors=3, conv_depth=1),
        box_head=TwoMLPHead(in_channels=256, representation_size=1024),
        mask_head=MaskHead(in_channels=256, conv_channels=(256, 256, 256, 256)),
        **predictors(num_classes, **hyper_parameters),
        **hyper_parameters,
    )


def predictors(
    num_classes: int, *, conventions: str = "torchvision", **others: Any
) -> dict[str, Any]:
    """The last layers, in which it matters whether the background has boxes and masks."""
    num_labels = conventions_of(conventions).num_labels(num_classes)
    return {
        "box_predictor": FastRCNNPredictor(
            in_features=1024, num_classes=num_classes, num_boxes=num_labels
        ),
        "mask_predictor": MaskPredictor(in_channels=256, dim_reduced=256, num_classes=num_labels),
    }
