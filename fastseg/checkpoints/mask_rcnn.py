"""Mask R-CNN from our keys: the shape of the network is read off the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastseg.checkpoints.coco_classes import COCO_CATEGORY_NAMES, COCO_CLASS_NAMES
from fastseg.checkpoints.keys import Keys, resnet
from fastseg.layers.box_head import ConvFCHead, FastRCNNPredictor, TwoMLPHead
from fastseg.layers.conventions import conventions_of
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.mask_head import MaskHead, MaskPredictor
from fastseg.layers.region_proposal_network import RPNHead
from fastseg.models.mask_rcnn import MaskRCNN

MASK_LOGITS = "roi_heads.mask_predictor.mask_fcn_logits"
# As many classes as LVIS 0.5 and 1 have, and what the zoos then change.
LVIS_CLASSES = (1230, 1203)
LVIS = {"box_score_thresh": 1e-4, "box_detections_per_img": 300}


def defaults(state_dict: Mapping[str, Tensor], conventions: str) -> dict[str, Any]:
    """Hyper-parameters that the number of classes suggests.

    Args:
        state_dict: tensors under our names.
        conventions: of ``MaskRCNN``.
    """
    rules = conventions_of(conventions)
    bias = state_dict.get("roi_heads.box_predictor.cls_score.bias")
    num_labels = 0 if bias is None else rules.num_labels(len(bias))
    names = COCO_CLASS_NAMES if rules.background_first else COCO_CATEGORY_NAMES
    if num_labels == len(names):
        return {"class_names": names}
    return LVIS if num_labels in LVIS_CLASSES and not rules.background_first else {}


def build(
    state_dict: Mapping[str, Tensor],
    *,
    batch_norm_eps: float,
    stride_in_1x1: bool,
    hyper_parameters: Mapping[str, Any],
) -> MaskRCNN:
    """Makes the network that the tensors fit; does not load them.

    A tensor that is missing counts as having the size of the paper's network, so that the
    comparison of keys afterwards names everything that is missing.

    Args:
        state_dict: tensors under our names.
        batch_norm_eps: eps of all normalisations.
        stride_in_1x1: see ``Bottleneck``.
        hyper_parameters: arguments of ``MaskRCNN``.
    """
    keys = Keys(state_dict, batch_norm_eps)
    channels = keys.size("backbone.fpn.inner_blocks.0.0.weight", 0, default=256)
    num_classes = keys.size("roi_heads.box_predictor.cls_score.weight", 0, default=91)
    conventions = conventions_of(hyper_parameters.get("conventions", "torchvision"))
    num_labels = conventions.num_labels(num_classes)
    boxes_are_shared = keys.size("roi_heads.box_predictor.bbox_pred.weight", 0, default=0) == 4
    masks_are_shared = keys.size(f"{MASK_LOGITS}.weight", 0, default=0) == 1
    body = resnet(keys, "backbone.body", stride_in_1x1=stride_in_1x1)
    fpn = FeaturePyramidNetwork(
        in_channels=body.out_channels,
        out_channels=channels,
        norm_layer=keys.norm_layer("backbone.fpn.inner_blocks.0.1"),
    )
    box_features = box_head(keys, channels)
    mask_features = MaskHead(
        in_channels=channels,
        conv_channels=keys.sizes(r"roi_heads\.mask_head\.(\d+)\.0\.weight", default=(256,) * 4),
        norm_layer=keys.norm_layer("roi_heads.mask_head.0.1"),
    )
    return MaskRCNN(
        backbone=BackboneWithFPN(body=body, fpn=fpn),
        rpn_head=RPNHead(
            in_channels=channels,
            num_anchors=keys.size("rpn.head.cls_logits.weight", 0, default=3),
            conv_depth=keys.count(r"rpn\.head\.conv\.(\d+)\."),
        ),
        box_head=box_features,
        box_predictor=FastRCNNPredictor(
            in_features=box_features.out_features,
            num_classes=num_classes,
            num_boxes=1 if boxes_are_shared else num_labels,
        ),
        mask_head=mask_features,
        mask_predictor=MaskPredictor(
            in_channels=mask_features.out_channels,
            dim_reduced=keys.size("roi_heads.mask_predictor.conv5_mask.weight", 1, default=256),
            num_classes=1 if masks_are_shared else num_labels,
        ),
        **hyper_parameters,
    )


def box_head(keys: Keys, in_channels: int) -> TwoMLPHead | ConvFCHead:
    """The box head of v1 (two fully connected layers) or v2 (convolutions first)."""
    head = "roi_heads.box_head."
    convolutions = keys.sizes(r"roi_heads\.box_head\.(\d+)\.0\.weight", default=())
    if not convolutions:
        return TwoMLPHead(
            in_channels=in_channels,
            representation_size=keys.size(f"{head}fc6.weight", 0, default=1024),
        )
    return ConvFCHead(
        in_channels=in_channels,
        conv_channels=convolutions,
        fc_features=keys.sizes(r"roi_heads\.box_head\.(\d+)\.weight", default=(1024,)),
        norm_layer=keys.norm_layer(f"{head}0.1"),
    )
