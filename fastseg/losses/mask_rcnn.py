"""Losses of Mask R-CNN (He et al., 2017, section 3) and of its region proposal network, as in
torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg.layers.box_coder import encode_boxes
from fastseg.layers.padded import is_row
from fastseg.layers.region_proposal_network import OFFSET_WEIGHTS
from fastseg.losses.instance_targets import InstanceTargets
from fastseg.losses.mask_rcnn_checks import check_logits, check_shapes, read_counts
from fastseg.losses.mask_rcnn_targets import (
    IGNORED,
    Candidates,
    Samples,
    draw_samples,
    match_boxes,
    project_masks,
    regions_of,
)
from fastseg.models.mask_rcnn import AnchorPredictions, MaskRCNN

# Where the box losses turn from quadratic to linear.
BETA = 1 / 9


@dataclass(frozen=True)
class MaskRCNNLosses:
    """Losses of a batch, scalars.

    Attributes:
        classifier: cross-entropy of the classes of regions.
        box_reg: smooth L1 loss of their box offsets.
        mask: binary cross-entropy of their masks.
        objectness: binary cross-entropy of the scores of anchors.
        rpn_box_reg: smooth L1 loss of their box offsets.
    """

    classifier: Tensor
    box_reg: Tensor
    mask: Tensor
    objectness: Tensor
    rpn_box_reg: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum, a scalar: what is to be minimised."""
        return torch.stack(list(self.named().values())).sum()

    def named(self) -> dict[str, Tensor]:
        """The same under torchvision's names: "loss_classifier", "loss_box_reg", ..."""
        return {f"loss_{name}": loss for name, loss in vars(self).items()}


@dataclass(frozen=True, kw_only=True)
class MaskRCNNLoss:
    """Compares predictions with the truth; values and gradients are torchvision's.

    One step of training, with a ``batch`` of ``model.preprocess`` and a list of
    ``InstanceTargets``::

        predictions = model.train().predict_anchors(batch.pixels)
        losses = MaskRCNNLoss()(model, predictions, targets, batch.sizes)
        losses.total.backward()

    Anchors that overlap an instance learn to propose it. Among the proposals, the true boxes with
    them, regions are drawn on which the box branch and, where they overlap an instance, the mask
    branch are trained.

    The parameters have torchvision's names and defaults. ``rpn_nms_thresh``, ``rpn_score_thresh``,
    ``bbox_reg_weights`` and the freezing of the backbone are the model's. So are its conventions:
    a model of detectron2's or mmdetection's is trained by the same losses on its own anchors and
    regions.

    Attributes:
        rpn_pre_nms_top_n_train: candidates per level before NMS, of which proposals are made.
        rpn_post_nms_top_n_train: proposals per image after NMS.
        rpn_fg_iou_thresh: least IoU of an anchor that shall propose the instance.
        rpn_bg_iou_thresh: anchors of a smaller IoU are background.
        rpn_batch_size_per_image: anchors that are drawn per image.
        rpn_positive_fraction: most of them that shall propose an instance, as a share.
        box_fg_iou_thresh: least IoU of a region that shall find the instance.
        box_bg_iou_thresh: regions of a smaller IoU are background.
        box_batch_size_per_image: regions that are drawn per image.
        box_positive_fraction: most of them that shall find an instance, as a share.
    """

    rpn_pre_nms_top_n_train: int = 2000
    rpn_post_nms_top_n_train: int = 2000
    rpn_fg_iou_thresh: float = 0.7
    rpn_bg_iou_thresh: float = 0.3
    rpn_batch_size_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    box_fg_iou_thresh: float = 0.5
    box_bg_iou_thresh: float = 0.5
    box_batch_size_per_image: int = 512
    box_positive_fraction: float = 0.25

    def __post_init__(self) -> None:
        for stage in ("rpn", "box"):
            low, high = (getattr(self, f"{stage}_{kind}_iou_thresh") for kind in ("bg", "fg"))
            if not low <= high:
                raise ValueError(
                    f"{stage}_bg_iou_thresh must not exceed {stage}_fg_iou_thresh, "
                    f"got {low} and {high}"
                )
            batch_size = getattr(self, f"{stage}_batch_size_per_image")
            if batch_size < 1:
                raise ValueError(f"{stage}_batch_size_per_image must be positive, got {batch_size}")
            fraction = getattr(self, f"{stage}_positive_fraction")
            if not 0 <= fraction <= 1:
                raise ValueError(f"{stage}_positive_fraction must be in [0, 1], got {fraction}")

    def __call__(
        self,
        model: MaskRCNN,
        predictions: AnchorPredictions,
        targets: Sequence[InstanceTargets],
        sizes: Tensor,
        *,
        randperm: Callable[[int], Tensor] | None = None,
    ) -> MaskRCNNLosses:
        """Losses of a batch, in float32 whatever the network's type.

        The box and mask branch run here, in the mode of the model and, under autocast, in the type
        that the predictions were made in. The device is waited for twice: for the numbers of
        candidates, without which none can be drawn, and for whether the branches' logits are
        finite.

        Args:
            model: that made the predictions.
            predictions: of B images.
            targets: of the same images; labels as the model gives them, from 1 in torchvision's
                conventions since 0 is background.
            sizes: int64 [B, 2], (height, width) of each image without padding, a batch's ``sizes``.
            randperm: draws a permutation of 0, 1, ..., n - 1; by default `torch.randperm` on the
                device of the predictions. Called as by torchvision, so that its samples are ours
                with the same seed: for each image with the number of anchors that shall propose an
                instance, then of those that are background; then likewise for its regions.

        Returns:
            Finite losses, also for images without instances.

        Raises:
            ValueError: shapes do not fit, a true box has no area, logits are not finite or labels
                out of range; the message names the image.
        """
        device = predictions.levels[0].logits.device
        check_shapes(model, predictions, targets, sizes)
        randperm = randperm or partial(torch.randperm, device=device)
        with torch.autocast(device.type, enabled=False):
            with torch.no_grad():
                anchors = self._match_anchors(model, predictions, targets)
                regions = self._match_regions(model, predictions, targets, sizes)
                counts = read_counts(anchors, regions, model, predictions, targets, sizes)
                drawn_anchors = [
                    draw_samples(
                        one.matches,
                        count.positive_anchors,
                        count.negative_anchors,
                        batch_size_per_image=self.rpn_batch_size_per_image,
                        positive_fraction=self.rpn_positive_fraction,
                        randperm=randperm,
                    )
                    for one, count in zip(anchors, counts, strict=True)
                ]
                drawn_regions = [
                    draw_samples(
                        one.matches,
                        count.positive_regions,
                        count.negative_regions,
                        batch_size_per_image=self.box_batch_size_per_image,
                        positive_fraction=self.box_positive_fraction,
                        randperm=randperm,
                    )
                    for one, count in zip(regions, counts, strict=True)
                ]
            objectness, rpn_box_reg = anchor_losses(predictions, anchors, drawn_anchors, targets)
        classifier, box_reg, mask = region_losses(
            model, predictions, regions, drawn_regions, targets
        )
        return MaskRCNNLosses(classifier, box_reg, mask, objectness, rpn_box_reg)

    def _match_anchors(
        self, model: MaskRCNN, predictions: AnchorPredictions, targets: Sequence[InstanceTargets]
    ) -> list[Candidates]:
        anchors = model.rpn.all_anchors(predictions.levels)
        return [
            Candidates(
                anchors,
                match_boxes(
                    one.boxes.float(),
                    anchors,
                    fg_iou_thresh=self.rpn_fg_iou_thresh,
                    bg_iou_thresh=self.rpn_bg_iou_thresh,
                    allow_low_quality_matches=True,
                ),
            )
            for one in targets
        ]

    def _match_regions(
        self,
        model: MaskRCNN,
        predictions: AnchorPredictions,
        targets: Sequence[InstanceTargets],
        sizes: Tensor,
    ) -> list[Candidates]:
        """Proposals, then the true boxes; places without proposal are ignored."""
        proposals = model.rpn.propose(
            predictions.levels,
            sizes,
            pre_nms_top_n=self.rpn_pre_nms_top_n_train,
            post_nms_top_n=self.rpn_post_nms_top_n_train,
        )
        is_proposal = is_row(proposals.counts, proposals.boxes.shape[1])
        found = []
        for boxes, in_use, target in zip(proposals.boxes, is_proposal, targets, strict=True):
            truth = target.boxes.float()
            regions = torch.cat([boxes, truth])
            matches = match_boxes(
                truth,
                regions,
                fg_iou_thresh=self.box_fg_iou_thresh,
                bg_iou_thresh=self.box_bg_iou_thresh,
                allow_low_quality_matches=False,
            )
            in_use = F.pad(in_use, (0, len(truth)), value=True)
            found.append(Candidates(regions, matches.masked_fill(~in_use, IGNORED)))
        return found


def anchor_losses(
    predictions: AnchorPredictions,
    anchors: Sequence[Candidates],
    samples: Sequence[Samples],
    targets: Sequence[InstanceTargets],
) -> tuple[Tensor, Tensor]:
    """Losses of the scores and of the box offsets of the anchors that were drawn."""
    logits = torch.cat([level.logits for level in predictions.levels], dim=1)  # [B, A]
    deltas = torch.cat([level.deltas for level in predictions.levels], dim=1)  # [B, A, 4]
    num_anchors = logits.shape[1]
    positives = torch.cat([i * num_anchors + one.positives for i, one in enumerate(samples)])
    negatives = torch.cat([i * num_anchors + one.negatives for i, one in enumerate(samples)])
    rows = torch.cat([positives, negatives])
    is_instance = F.pad(logits.new_ones(len(positives)), (0, len(negatives)))
    scores = logits.flatten().index_select(0, rows)
    entropy = F.binary_cross_entropy_with_logits(scores, is_instance, reduction="sum")
    error = offset_error(
        deltas.flatten(0, 1).index_select(0, positives),
        targets,
        samples,
        torch.cat([a.boxes[one.positives] for a, one in zip(anchors, samples, strict=True)]),
        OFFSET_WEIGHTS,
    )
    return entropy / max(1, len(rows)), error / max(1, len(rows))


def region_losses(
    model: MaskRCNN,
    predictions: AnchorPredictions,
    regions: Sequence[Candidates],
    samples: Sequence[Samples],
    targets: Sequence[InstanceTargets],
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the classes, box offsets and masks of the regions that were drawn."""
    heads, pyramid = model.roi_heads, predictions.pyramid[:4]
    drawn = list(zip(regions, samples, strict=True))
    positives = regions_of([region.boxes[one.positives] for region, one in drawn])
    negatives = regions_of([region.boxes[one.negatives] for region, one in drawn])
    rois = torch.cat([positives, negatives])
    labels = torch.cat(
        [target.labels[one.instances] for target, one in zip(targets, samples, strict=True)]
    )
    class_logits, deltas = heads.classify(pyramid, rois)
    mask_logits = heads.draw_masks(pyramid, positives, labels)
    check_logits(rois, class_logits=class_logits, box_offsets=deltas, mask_logits=mask_logits)

    with torch.autocast(rois.device.type, enabled=False):
        background = 0 if model.conventions.background_first else class_logits.shape[1] - 1
        goals = F.pad(labels, (0, len(negatives)), value=background)
        entropy = F.cross_entropy(class_logits.float(), goals, reduction="sum")
        own_boxes = labels if deltas.shape[1] > 1 else torch.zeros_like(labels)
        own_deltas = deltas[torch.arange(len(labels), device=labels.device), own_boxes]
        error = offset_error(
            own_deltas.float(), targets, samples, positives[:, 1:], heads.bbox_reg_weights
        )
        truth = torch.cat(
            [
                project_masks(
                    target.masks, region.boxes[one.positives], one.instances, mask_logits.shape[-1]
                )
                for target, (region, one) in zip(targets, drawn, strict=True)
            ]
        )
        mask_entropy = F.binary_cross_entropy_with_logits(
            mask_logits.float(), truth, reduction="sum"
        )
    count = max(1, len(rois))
    return entropy / count, error / count, mask_entropy / max(1, truth.numel())


def offset_error(
    deltas: Tensor,
    targets: Sequence[InstanceTargets],
    samples: Sequence[Samples],
    references: Tensor,
    weights: tuple[float, float, float, float],
) -> Tensor:
    """Sum of the smooth L1 losses (Girshick, Fast R-CNN, 2015, equation 3) of box offsets.

    Args:
        deltas: float32 [P, 4], predicted for the candidates that shall find an instance.
        targets: of each image.
        samples: candidates that were drawn in each image, P with an instance.
        references: float32 [P, 4], these candidates.
        weights: what offsets are multiplied by.
    """
    boxes = torch.cat(
        [target.boxes.float()[one.instances] for target, one in zip(targets, samples, strict=True)]
    )
    goals = encode_boxes(boxes, references, weights)
    return F.smooth_l1_loss(deltas, goals, beta=BETA, reduction="sum")
