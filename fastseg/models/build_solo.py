"""The SOLO family in the sizes of its model zoos: every number that differs is here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from fastseg.backbones.resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnext101_64x4d,
)
from fastseg.layers.batch_norm import ConvLayer, NormLayer
from fastseg.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.solo_head import DecoupledSOLOHead, SOLOHead
from fastseg.layers.solov2_head import MaskFeatureHead, SOLOv2Head
from fastseg.models.solo import SOLO

# Images of the light networks.
LIGHT = {"min_size": 448, "max_size": 768}
DEFORMABLE_STAGES = (nn.Conv2d, *(ModulatedDeformConv2d,) * 3)
LIGHT_512 = {"min_size": 512, "max_size": 852}


def solov2_resnet18_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLOv2, ResNet-18-FPN, random weights; arguments as of ``solov2_resnet50_fpn``."""
    return solov2_fpn(resnet18(norm_layer=norm_layer), num_classes, **hyper_parameters)


def solov2_resnet34_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLOv2, ResNet-34-FPN, random weights; arguments as of ``solov2_resnet50_fpn``."""
    return solov2_fpn(resnet34(norm_layer=norm_layer), num_classes, **hyper_parameters)


def solov2_resnet50_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLOv2, ResNet-50-FPN, random weights (mmdetection's ``solov2_r50_fpn``).

    Args:
        num_classes: number of classes; there is no background.
        norm_layer: makes the normalisation of the backbone from a channel count.
        **hyper_parameters: of ``SOLO``, such as ``min_size`` or ``score_thr``.
    """
    return solov2_fpn(resnet50(norm_layer=norm_layer), num_classes, **hyper_parameters)


def solov2_resnet101_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLOv2, ResNet-101-FPN, random weights; arguments as of ``solov2_resnet50_fpn``."""
    return solov2_fpn(resnet101(norm_layer=norm_layer), num_classes, **hyper_parameters)


def solov2_resnet101_dcn_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLOv2, ResNet-101-DCN-FPN: deformable convolutions (v2) in the stages C3 to C5 and in all
    of the head; else as ``solov2_resnet50_fpn``.
    """
    body = resnet101(norm_layer=norm_layer, conv_layers=DEFORMABLE_STAGES)
    return solov2_dcn_fpn(body, num_classes, **hyper_parameters)


def solov2_resnext101_dcn_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLOv2, ResNeXt-101-64x4d-DCN-FPN; else as ``solov2_resnet101_dcn_fpn``."""
    body = resnext101_64x4d(norm_layer=norm_layer, conv_layers=DEFORMABLE_STAGES)
    return solov2_dcn_fpn(body, num_classes, **hyper_parameters)


def solov2_light_resnet18_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLOv2-light of 448 pixels, ResNet-18-FPN; else as ``solov2_resnet50_fpn``."""
    return solov2_light_fpn(resnet18(norm_layer=norm_layer), num_classes, **hyper_parameters)


def solov2_light_resnet34_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLOv2-light of 448 pixels, ResNet-34-FPN; else as ``solov2_resnet50_fpn``."""
    return solov2_light_fpn(resnet34(norm_layer=norm_layer), num_classes, **hyper_parameters)


def solov2_light_resnet50_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLOv2-light of 448 pixels, ResNet-50-FPN; else as ``solov2_resnet50_fpn``."""
    return solov2_light_fpn(resnet50(norm_layer=norm_layer), num_classes, **hyper_parameters)


def solov2_light_resnet50_dcn_fpn(
    *,
    num_classes: int = 80,
    norm_layer: NormLayer = nn.BatchNorm2d,
    deform_layer: ConvLayer = DeformConv2d,
    **hyper_parameters: Any,
) -> SOLO:
    """SOLOv2-light of 512 pixels, ResNet-50-DCN-FPN: deformable convolutions in the stages C3 to
    C5 and at the end of the kernel and the class branch.

    Args:
        num_classes: number of classes; there is no background.
        norm_layer: makes the normalisation of the backbone from a channel count.
        deform_layer: makes the deformable convolutions: ``DeformConv2d`` as in the original's zoo,
            or ``ModulatedDeformConv2d`` as in mmdetection's.
        **hyper_parameters: of ``SOLO``.
    """
    body = resnet50(norm_layer=norm_layer, conv_layers=(nn.Conv2d, *(deform_layer,) * 3))
    return solov2_light_fpn(
        body,
        num_classes,
        conv_layers=(nn.Conv2d, nn.Conv2d, deform_layer),
        **{**LIGHT_512, **hyper_parameters},
    )


def solo_resnet50_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLO, ResNet-50-FPN, random weights; arguments as of ``solov2_resnet50_fpn``."""
    return SOLO(
        backbone=with_fpn(resnet50(norm_layer=norm_layer)),
        head=SOLOHead(num_classes=num_classes),
        **hyper_parameters,
    )


def solo_resnet101_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """SOLO, ResNet-101-FPN, random weights; arguments as of ``solov2_resnet50_fpn``."""
    return SOLO(
        backbone=with_fpn(resnet101(norm_layer=norm_layer)),
        head=SOLOHead(num_classes=num_classes),
        **hyper_parameters,
    )


def decoupled_solo_resnet50_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """Decoupled SOLO, ResNet-50-FPN, random weights; arguments as of ``solov2_resnet50_fpn``."""
    return SOLO(
        backbone=with_fpn(resnet50(norm_layer=norm_layer)),
        head=DecoupledSOLOHead(num_classes=num_classes),
        **hyper_parameters,
    )


def decoupled_solo_resnet101_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """Decoupled SOLO, ResNet-101-FPN, random weights; arguments as of ``solov2_resnet50_fpn``."""
    return SOLO(
        backbone=with_fpn(resnet101(norm_layer=norm_layer)),
        head=DecoupledSOLOHead(num_classes=num_classes),
        **hyper_parameters,
    )


def decoupled_solo_light_resnet50_fpn(
    *, num_classes: int = 80, norm_layer: NormLayer = nn.BatchNorm2d, **hyper_parameters: Any
) -> SOLO:
    """Decoupled SOLO light of 512 pixels, ResNet-50-FPN; else as ``solov2_resnet50_fpn``."""
    return SOLO(
        backbone=with_fpn(resnet50(norm_layer=norm_layer)),
        head=DecoupledSOLOHead(num_classes=num_classes, conv_layers=(nn.Conv2d,) * 4, light=True),
        **{**LIGHT_512, **hyper_parameters},
    )


def solov2_fpn(body: ResNet, num_classes: int, **hyper_parameters: Any) -> SOLO:
    """The head of the SOLOv2 paper on a backbone."""
    return SOLO(
        backbone=with_fpn(body),
        head=SOLOv2Head(num_classes=num_classes, mask_features=MaskFeatureHead()),
        **hyper_parameters,
    )


def solov2_dcn_fpn(body: ResNet, num_classes: int, **hyper_parameters: Any) -> SOLO:
    """The head of the SOLOv2 paper on a backbone, with deformable convolutions (v2) alone."""
    return SOLO(
        backbone=with_fpn(body),
        head=SOLOv2Head(
            num_classes=num_classes,
            conv_layers=(ModulatedDeformConv2d,) * 4,
            mask_features=MaskFeatureHead(conv_layer=ModulatedDeformConv2d),
        ),
        **hyper_parameters,
    )


def solov2_light_fpn(
    body: ResNet,
    num_classes: int,
    *,
    conv_layers: Sequence[ConvLayer] = (nn.Conv2d,) * 2,
    **hyper_parameters: Any,
) -> SOLO:
    """The head of SOLOv2-light on a backbone: half the channels, fewer convolutions."""
    return SOLO(
        backbone=with_fpn(body),
        head=SOLOv2Head(
            num_classes=num_classes,
            channels=256,
            conv_layers=conv_layers,
            mask_features=MaskFeatureHead(out_channels=128),
        ),
        **{**LIGHT, **hyper_parameters},
    )


def with_fpn(body: ResNet) -> BackboneWithFPN:
    """A pyramid of 256 channels on a backbone."""
    fpn = FeaturePyramidNetwork(in_channels=body.out_channels, out_channels=256)
    return BackboneWithFPN(body=body, fpn=fpn)
