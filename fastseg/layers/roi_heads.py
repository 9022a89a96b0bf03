"""The two branches of Mask R-CNN that run on regions of interest (He et al., 2017, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastseg import ops
from fastseg.layers.box_coder import clip_boxes, decode_boxes, has_sides
from fastseg.layers.box_head import FastRCNNPredictor
from fastseg.layers.conventions import TORCHVISION, Conventions
from fastseg.layers.mask_head import MaskHead, MaskPredictor
from fastseg.layers.padded import as_rois, is_row, rows_in_use, take_rows
from fastseg.layers.region_proposal_network import Proposals

# Regions are pooled from P2..P5. torchvision derives the same scales from the first image that it
# sees, and others where that image is under 68 px high.
SPATIAL_SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
BOX_RESOLUTION = 7
MASK_RESOLUTION = 14


@dataclass(frozen=True)
class Detections:
    """Detected instances of a batch of images, best first; zeros behind the last one.

    Attributes:
        boxes: float32 [B, D, 4], (x1, y1, x2, y2) in pixels of the resized image.
        scores: float32 [B, D].
        labels: int64 [B, D]; 0 is padding as well.
        masks: float32 [B, D, 28, 28], probability within the box.
        counts: int64 [B], number of instances per image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    counts: Tensor


class RoIHeads(nn.Module):
    """Box branch on all proposals, then mask branch on the boxes that are left.

    Args:
        box_head: pooled regions [R, C, 7, 7] -> [R, F].
        box_predictor: [R, F] -> class logits and box offsets.
        mask_head: pooled regions [R, C, 14, 14] -> [R, C', 14, 14].
        mask_predictor: -> mask logits [R, 28, 28] of given classes.
        bbox_reg_weights: what box offsets were multiplied by in training.
        score_thresh: detections score more than this.
        nms_thresh: IoU above which the lower-scored detection of a class is dropped.
        detections_per_img: most detections of an image.
        conventions: the rules in which the libraries differ.
    """

    def __init__(
        self,
        *,
        box_head: nn.Module,
        box_predictor: FastRCNNPredictor,
        mask_head: MaskHead,
        mask_predictor: MaskPredictor,
        bbox_reg_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        detections_per_img: int = 100,
        conventions: Conventions = TORCHVISION,
    ) -> None:
        super().__init__()
        self.box_head = box_head
        self.box_predictor = box_predictor
        self.mask_head = mask_head
        self.mask_predictor = mask_predictor
        self.bbox_reg_weights = bbox_reg_weights
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.conventions = conventions

    def forward(self, pyramid: list[Tensor], proposals: Proposals, sizes: Tensor) -> Detections:
        """Detects instances among the proposals.

        Args:
            pyramid: P2..P5, each [B, C, H_l, W_l].
            proposals: of the same images.
            sizes: int64 [B, 2], (height, width) of each image without padding.
        """
        boxes, scores, labels, counts = self.detect_boxes(pyramid, proposals, sizes)
        masks = self.predict_masks(pyramid, boxes, labels, counts)
        return Detections(boxes=boxes, scores=scores, labels=labels, masks=masks, counts=counts)

    def detect_boxes(
        self, pyramid: list[Tensor], proposals: Proposals, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Box branch: boxes [B, D, 4], scores [B, D], labels [B, D] and counts [B]."""
        num_images = len(sizes)
        num_proposals = rows_in_use(proposals.counts, proposals.boxes.shape[1])
        references = proposals.boxes[:, :num_proposals]  # [B, P, 4]
        logits, deltas = self.classify(pyramid, as_rois(references))
        logits = logits.unflatten(0, (num_images, num_proposals))  # [B, P, classes]
        deltas = deltas.unflatten(0, (num_images, num_proposals))  # [B, P, classes or 1, 4]

        # Every class of every proposal is a candidate, but for the background.
        things = slice(1, None) if self.conventions.background_first else slice(-1)
        scores = logits.float().softmax(-1)[:, :, things]
        labels = torch.arange(logits.shape[2], device=logits.device)[things].expand_as(scores)
        if self.conventions.background_first and deltas.shape[2] > 1:
            deltas = deltas[:, :, 1:]
        boxes = decode_boxes(
            deltas,
            references[:, :, None],
            self.bbox_reg_weights,
            limit_shrinking=self.conventions.limit_shrinking,
        )
        boxes = boxes.expand(*scores.shape, 4).flatten(1, 2)  # [B, P * (classes - 1), 4]
        boxes = clip_boxes(boxes, sizes)

        valid = is_row(proposals.counts, num_proposals)[:, :, None] & (scores > self.score_thresh)
        valid = valid.flatten(1) & has_sides(boxes, self.conventions.min_detection_size)
        scores = scores.flatten(1).masked_fill(~valid, -torch.inf)
        labels = labels.flatten(1)
        index, counts = ops.batched_nms(
            boxes, scores, labels, self.nms_thresh, max_output=self.detections_per_img
        )
        return take_rows(boxes, index), take_rows(scores, index), take_rows(labels, index), counts

    def classify(self, pyramid: list[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Box branch alone: class logits [R, classes], box offsets [R, classes or 1, 4].

        Args:
            pyramid: P2..P5, each [B, C, H_l, W_l].
            rois: float32 [R, 5], (image index, x1, y1, x2, y2).
        """
        predictions: tuple[Tensor, Tensor] = self.box_predictor(
            self.box_head(pool(pyramid, rois, BOX_RESOLUTION, self.conventions))
        )
        return predictions

    def predict_masks(
        self, pyramid: list[Tensor], boxes: Tensor, labels: Tensor, counts: Tensor
    ) -> Tensor:
        """Mask branch: probabilities [B, D, 28, 28] of each box's class; zeros in the padding."""
        num_images, max_detections = labels.shape
        num_rows = rows_in_use(counts, max_detections)
        rois = as_rois(boxes[:, :num_rows])
        logits = self.draw_masks(pyramid, rois, labels[:, :num_rows].flatten())
        masks = logits.float().sigmoid().unflatten(0, (num_images, num_rows))
        masks = masks.masked_fill(~is_row(counts, num_rows)[:, :, None, None], 0)
        return nn.functional.pad(masks, (0, 0, 0, 0, 0, max_detections - num_rows))

    def draw_masks(self, pyramid: list[Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Mask branch alone: logits [R, 28, 28] of the masks of given classes.

        Args:
            pyramid: P2..P5, each [B, C, H_l, W_l].
            rois: float32 [R, 5], (image index, x1, y1, x2, y2).
            labels: int64 [R].
        """
        logits: Tensor = self.mask_predictor(
            self.mask_head(pool(pyramid, rois, MASK_RESOLUTION, self.conventions)), labels
        )
        return logits


def pool(pyramid: list[Tensor], rois: Tensor, resolution: int, conventions: Conventions) -> Tensor:
    """Pools regions [R, 5] from the levels that suit their sizes: [R, C, res, res]."""
    return ops.multi_scale_roi_align(
        pyramid,
        rois,
        (resolution, resolution),
        SPATIAL_SCALES,
        sampling_ratio=conventions.sampling_ratio,
        aligned=conventions.aligned,
        level_rule=conventions.level_rule,
    )
