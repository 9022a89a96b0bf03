"""Mask R-CNN (He et al., 2017) with a feature pyramid, as in torchvision and its peers.

An image goes through the backbone and the pyramid (P2..P6); the region proposal network proposes
boxes; the box branch classifies and refines them; the mask branch draws a 28x28 mask in each.
Parameters are named as in torchvision, so that its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastseg import ops
from fastseg.categories import checked_names
from fastseg.instances import Instances
from fastseg.layers.anchors import AnchorGenerator
from fastseg.layers.box_coder import has_sides
from fastseg.layers.box_head import ConvFCHead, FastRCNNPredictor, TwoMLPHead
from fastseg.layers.conventions import conventions_of
from fastseg.layers.fpn import BackboneWithFPN
from fastseg.layers.mask_head import MaskHead, MaskPredictor
from fastseg.layers.region_proposal_network import (
    LevelPredictions,
    RegionProposalNetwork,
    RPNHead,
)
from fastseg.layers.reset_outputs import reset_outputs
from fastseg.layers.roi_heads import Detections, RoIHeads
from fastseg.models.image_batch import ImageBatch, ImageTransform

MASK_THRESHOLD = 0.5
# Parts of a ResNet, in the order in which torchvision's ``trainable_backbone_layers`` counts them.
BACKBONE_LAYERS = (("layer4",), ("layer3",), ("layer2",), ("layer1",), ("conv1", "bn1"))


@dataclass(frozen=True)
class AnchorPredictions:
    """What the region proposal network says of a batch of images, and what the heads look at.

    Attributes:
        pyramid: P2..P6, each [B, C, H_l, W_l].
        levels: predictions for the anchors of each level.
        size: (height, width) of the padded batch.
    """

    pyramid: list[Tensor]
    levels: list[LevelPredictions]
    size: tuple[int, int]


class MaskRCNN(nn.Module):
    """Mask R-CNN.

    From ``pixels`` to ``Detections`` all shapes depend on the shape of ``pixels`` alone and
    nothing is read back from the device, so that the model can be captured in a CUDA graph.
    Feature maps are channels-last whatever the layout of the pixels and the weights: on the CPU a
    ResNet-50 takes 1.5 s instead of 2.0 s at 800x1333, and RoIAlign reads them faster.

    The parameters without default are the network; the others are torchvision's, under its names.

    Args:
        backbone: pixels -> P2..P6.
        rpn_head: scores and offsets of anchors.
        box_head: features of regions for the box branch.
        box_predictor: classes and boxes of regions.
        mask_head: features of regions for the mask branch.
        mask_predictor: masks of regions.
        min_size: images are resized so that their shorter side is this long; of a sequence the
            last number counts.
        max_size: unless their longer side would exceed this.
        image_mean: RGB mean of pixels from 0 to 1, subtracted.
        image_std: RGB standard deviation, divided by.
        size_divisible: images are padded to a multiple of this.
        fixed_size: (width, height) that images are resized to instead.
        anchor_sizes: per level P2..P6, side lengths of the square anchors in pixels.
        aspect_ratios: height / width of the anchors, for all levels or per level.
        rpn_pre_nms_top_n_test: candidates per level before NMS.
        rpn_post_nms_top_n_test: proposals per image after NMS.
        rpn_nms_thresh: IoU above which proposals suppress each other.
        rpn_score_thresh: least objectness of a proposal.
        box_score_thresh: detections score more than this.
        box_nms_thresh: IoU above which detections of a class suppress each other.
        box_detections_per_img: most detections per image.
        bbox_reg_weights: what box offsets are multiplied by in training.
        trainable_backbone_layers: of the backbone's stem and four stages so many are trained, the
            deepest first; the parameters of the others need no gradient. torchvision trains 3 of
            a backbone that was trained before.
        class_names: names indexed by label; in torchvision's conventions background first.
        conventions: "torchvision", "detectron2" or "mmdetection": whose rules hold where these
            differ, see ``fastseg.layers.conventions``. The network was trained by one of them, and
            which of its outputs is the background depends on it.
    """

    tasks: tuple[str, ...] = ("instance",)

    def __init__(
        self,
        *,
        backbone: BackboneWithFPN,
        rpn_head: RPNHead,
        box_head: TwoMLPHead | ConvFCHead,
        box_predictor: FastRCNNPredictor,
        mask_head: MaskHead,
        mask_predictor: MaskPredictor,
        min_size: int | Sequence[int] = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        size_divisible: int = 32,
        fixed_size: tuple[int, int] | None = None,
        anchor_sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,)),
        aspect_ratios: Sequence[float] | Sequence[Sequence[float]] = (0.5, 1.0, 2.0),
        rpn_pre_nms_top_n_test: int = 1000,
        rpn_post_nms_top_n_test: int = 1000,
        rpn_nms_thresh: float = 0.7,
        rpn_score_thresh: float = 0.0,
        box_score_thresh: float = 0.05,
        box_nms_thresh: float = 0.5,
        box_detections_per_img: int = 100,
        bbox_reg_weights: tuple[float, float, float, float] | None = None,
        trainable_backbone_layers: int = 5,
        class_names: Sequence[str] | None = None,
        conventions: str = "torchvision",
    ) -> None:
        super().__init__()
        self.conventions = conventions_of(conventions)
        num_labels = self.conventions.num_labels(box_predictor.cls_score.out_features)
        self.class_names = self._known_names(class_names, num_labels)
        self.transform = ImageTransform(
            min_size=min_size if isinstance(min_size, int) else min_size[-1],
            max_size=max_size,
            image_mean=tuple(image_mean),
            image_std=tuple(image_std),
            size_divisible=size_divisible,
            fixed_size=None if fixed_size is None else (fixed_size[0], fixed_size[1]),
            round_sizes=self.conventions.round_image_sizes,
        )
        anchors = AnchorGenerator(
            sizes=anchor_sizes,
            aspect_ratios=aspect_ratios,
            rounded=self.conventions.round_anchors,
            ratio_major=self.conventions.ratio_major_anchors,
        )
        for level in range(anchors.num_levels):
            if anchors.num_anchors(level) != rpn_head.cls_logits.out_channels:
                raise ValueError(
                    f"anchor_sizes and aspect_ratios give {anchors.num_anchors(level)} anchors per "
                    f"position of level {level}, the network has "
                    f"{rpn_head.cls_logits.out_channels}"
                )
        self.backbone = backbone
        self.rpn = RegionProposalNetwork(
            head=rpn_head,
            anchors=anchors,
            pre_nms_top_n=rpn_pre_nms_top_n_test,
            post_nms_top_n=rpn_post_nms_top_n_test,
            nms_thresh=rpn_nms_thresh,
            score_thresh=rpn_score_thresh,
            conventions=self.conventions,
        )
        self.roi_heads = RoIHeads(
            box_head=box_head,
            box_predictor=box_predictor,
            mask_head=mask_head,
            mask_predictor=mask_predictor,
            bbox_reg_weights=bbox_reg_weights or (10.0, 10.0, 5.0, 5.0),
            score_thresh=box_score_thresh,
            nms_thresh=box_nms_thresh,
            detections_per_img=box_detections_per_img,
            conventions=self.conventions,
        )
        self.trainable_backbone_layers = trainable_backbone_layers
        freeze_backbone(backbone.body, trainable_backbone_layers)
        self.eval()

    def _known_names(
        self, class_names: Sequence[str] | None, num_labels: int
    ) -> tuple[str, ...] | None:
        counted = " (background included)" if self.conventions.background_first else ""
        return checked_names(class_names, num_labels, counted)

    def reset_classes(self, num_classes: int, *, class_names: Sequence[str] | None = None) -> None:
        """Makes the model one of other classes, to be trained: what tells them is random again.

        Args:
            num_classes: number of classes; in torchvision's conventions background included.
            class_names: as of the model.

        Raises:
            ValueError: as of the model, or there is no class.
        """
        self.class_names = self._known_names(class_names, num_classes)
        boxes, masks = self.roi_heads.box_predictor, self.roi_heads.mask_predictor.mask_fcn_logits
        of_one = self.conventions.num_labels(boxes.cls_score.out_features) == 1
        # One box or mask for several classes is one that they share.
        if of_one or boxes.bbox_pred.out_features > 4:
            reset_outputs(boxes.bbox_pred, 4 * num_classes)
        if of_one or masks.out_channels > 1:
            reset_outputs(masks, num_classes)
        has_background = self.conventions.background_first
        reset_outputs(boxes.cls_score, num_classes if has_background else num_classes + 1)

    def hyper_parameters(self) -> dict[str, Any]:
        """The arguments besides the network, with which the model can be made again."""
        return {
            **self.transform.sizes_and_colors(),
            "fixed_size": self.transform.fixed_size,
            "anchor_sizes": self.rpn.anchors.sizes,
            "aspect_ratios": self.rpn.anchors.aspect_ratios,
            "rpn_pre_nms_top_n_test": self.rpn.pre_nms_top_n,
            "rpn_post_nms_top_n_test": self.rpn.post_nms_top_n,
            "rpn_nms_thresh": self.rpn.nms_thresh,
            "rpn_score_thresh": self.rpn.score_thresh,
            "box_score_thresh": self.roi_heads.score_thresh,
            "box_nms_thresh": self.roi_heads.nms_thresh,
            "box_detections_per_img": self.roi_heads.detections_per_img,
            "bbox_reg_weights": self.roi_heads.bbox_reg_weights,
            "trainable_backbone_layers": self.trainable_backbone_layers,
            "class_names": self.class_names,
            "conventions": self.conventions.name,
        }

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """Normalises, resizes, pads and stacks images, on the model's device in its type.

        Args:
            images: each [3, h, w] float, RGB from 0 to 1, of any size.
        """
        weight = self.rpn.head.cls_logits.weight
        return self.transform(images, device=weight.device, dtype=weight.dtype)

    def predict_anchors(self, pixels: Tensor) -> AnchorPredictions:
        """Backbone, pyramid and region proposal network, whose predictions are for all anchors.

        For training these go to ``fastseg.losses.MaskRCNNLoss``.

        Args:
            pixels: [B, 3, H, W], a batch's ``pixels``; H and W are multiples of 32.
        """
        pyramid = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        size = (pixels.shape[2], pixels.shape[3])
        return AnchorPredictions(pyramid, self.rpn.predict(pyramid, size), size)

    def forward(self, pixels: Tensor, sizes: Tensor) -> Detections:
        """Detects instances.

        Args:
            pixels: [B, 3, H, W], a batch's ``pixels``; H and W are multiples of 32.
            sizes: int64 [B, 2], its ``sizes``.

        Returns:
            ``box_detections_per_img`` rows per image, padded, in pixels of the resized images.

        Raises:
            RuntimeError: the model is in training mode; its losses are in ``fastseg.losses``.
        """
        if self.training:
            raise RuntimeError("MaskRCNN is in training mode: call model.eval() before predicting")
        pyramid = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        proposals = self.rpn(pyramid, sizes, (pixels.shape[2], pixels.shape[3]))
        return self.roi_heads(pyramid[:4], proposals, sizes)

    @torch.no_grad()
    def postprocess(self, detections: Detections, batch: ImageBatch) -> list[Instances]:
        """Results per image at its original size, masks as COCO RLE.

        Args:
            detections: of ``batch``.
            batch: from ``preprocess``.
        """
        results = []
        for (image, rows), size, original in batch.padded_rows(detections.counts):
            boxes = resize_boxes(detections.boxes[image, rows], size, original)
            kept = has_sides(boxes, self.conventions.min_result_size)
            boxes = boxes[kept]
            rles = ops.paste_masks(
                detections.masks[image, rows][kept],
                boxes,
                original,
                mode=self.conventions.paste_mode,
                threshold=MASK_THRESHOLD,
                output="rle",
            )
            results.append(
                Instances(
                    boxes=boxes,
                    scores=detections.scores[image, rows][kept],
                    labels=detections.labels[image, rows][kept],
                    rles=rles,
                    image_size=original,
                    class_names=self.class_names,
                )
            )
        return results


def freeze_backbone(body: nn.Module, trainable_layers: int) -> None:
    """Lets all parameters of a ResNet need no gradient but those of its deepest layers."""
    if trainable_layers not in range(len(BACKBONE_LAYERS) + 1):
        raise ValueError(
            f"trainable_backbone_layers must be from 0 to {len(BACKBONE_LAYERS)}, "
            f"got {trainable_layers}"
        )
    for names in BACKBONE_LAYERS[trainable_layers:]:
        for name in names:
            body.get_submodule(name).requires_grad_(False)


def resize_boxes(boxes: Tensor, size: Sequence[int], new_size: Sequence[int]) -> Tensor:
    """Scales boxes [N, 4] from an image of ``size`` (height, width) to one of ``new_size``."""
    # Divided in single precision as in torchvision, so that the boxes are bit-equal.
    ratio_y, ratio_x = torch.tensor(new_size).float() / torch.tensor(size).float()
    return boxes * torch.stack((ratio_x, ratio_y, ratio_x, ratio_y)).to(boxes.device)
