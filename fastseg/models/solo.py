"""SOLO and Decoupled SOLO (Wang et al., ECCV 2020), SOLOv2 (Wang et al., NeurIPS 2020).

An image goes through the backbone and the pyramid (P2..P6); cells of a grid classify the instances
whose centres they hold and say what their masks are; Matrix NMS removes duplicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastseg import ops
from fastseg.categories import checked_names
from fastseg.instances import Instances, boxes_around
from fastseg.layers.batch_norm import keep_statistics
from fastseg.layers.fpn import BackboneWithFPN
from fastseg.layers.grid_candidates import top_candidates
from fastseg.layers.grid_heads import GridHead, initialise_prior
from fastseg.layers.mask_selection import MaskDetections, MaskSelection
from fastseg.layers.padded import rows_in_use
from fastseg.layers.reset_outputs import reset_outputs
from fastseg.layers.solo_head import (
    DecoupledSOLOHead,
    DecoupledSOLOPredictions,
    SOLOHead,
    SOLOPredictions,
)
from fastseg.layers.solov2_head import SOLOv2Head, SOLOv2Predictions
from fastseg.models.image_batch import ImageBatch, ImageTransform

# Masks are predicted at a quarter of the image's size.
MASK_STRIDE = 4


class SOLO(nn.Module):
    """SOLO, Decoupled SOLO or SOLOv2, which differ in their heads.

    From ``pixels`` to ``MaskDetections`` all shapes depend on the shape of ``pixels`` alone and
    nothing is read back from the device, so that the model can be captured in a CUDA graph.

    The parameters without default are the network; the others are the peers', under their names.

    Args:
        backbone: pixels -> P2..P6.
        head: P2..P6 -> classes and masks of cells.
        strides: per level, masks have more pixels (of the quarter size) than this.
        min_size: images are resized so that their shorter side is this long,
        max_size: unless their longer side would exceed this.
        image_mean: RGB mean of pixels from 0 to 1, subtracted.
        image_std: RGB standard deviation, divided by.
        size_divisible: images are padded to a multiple of this.
        score_thr: candidates' classes have a higher probability.
        max_candidates: candidates per image whose masks are computed, best class first. The peers
            compute all, which are hundreds at most; more of them here cost time for every image.
        mask_thr: a pixel belongs to a mask if its probability is more than this.
        nms_pre: candidates that enter Matrix NMS.
        filter_thr: least score after it; the original's ``update_thr``.
        max_per_img: most instances per image.
        kernel: how Matrix NMS lowers scores, "gaussian" or "linear".
        sigma: of the Gaussian kernel.
        class_names: names indexed by label.
    """

    tasks: tuple[str, ...] = ("instance",)

    def __init__(
        self,
        *,
        backbone: BackboneWithFPN,
        head: SOLOv2Head | SOLOHead | DecoupledSOLOHead,
        strides: Sequence[int] = (8, 8, 16, 32, 32),
        min_size: int = 800,
        max_size: int = 1333,
        image_mean: Sequence[float] = (0.485, 0.456, 0.406),
        image_std: Sequence[float] = (0.229, 0.224, 0.225),
        size_divisible: int = 32,
        score_thr: float = 0.1,
        max_candidates: int = 500,
        mask_thr: float = 0.5,
        nms_pre: int = 500,
        filter_thr: float = 0.05,
        max_per_img: int = 100,
        kernel: Literal["gaussian", "linear"] = "gaussian",
        sigma: float = 2.0,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.class_names = checked_names(class_names, head.num_classes)
        if len(strides) != len(head.num_grids):
            raise ValueError(
                f"strides has {len(strides)} numbers for {len(head.num_grids)} levels of cells"
            )
        self.transform = ImageTransform(
            min_size=min_size,
            max_size=max_size,
            image_mean=tuple(image_mean),
            image_std=tuple(image_std),
            size_divisible=size_divisible,
            round_sizes=True,
        )
        self.backbone = backbone
        self.head = head
        self.score_thr = score_thr
        self.max_candidates = max_candidates
        self.selection = MaskSelection(
            mask_thr=mask_thr,
            nms_pre=nms_pre,
            filter_thr=filter_thr,
            max_per_img=max_per_img,
            kernel=kernel,
            sigma=sigma,
        )
        self.strides = tuple(strides)
        # On the CPU even under torch.device("meta"): no checkpoint holds it.
        cells = torch.tensor(head.num_grids, device="cpu") ** 2
        min_areas = torch.tensor(strides, device="cpu").repeat_interleave(cells)
        self.register_buffer("min_areas", min_areas, persistent=False)
        self.min_areas: Tensor
        self.eval()

    def reset_classes(self, num_classes: int, *, class_names: Sequence[str] | None = None) -> None:
        """Makes the model one of other classes, to be trained: what tells them is random again.

        Args:
            num_classes: number of classes; there is no background.
            class_names: as of the model.

        Raises:
            ValueError: as of the model, or there is no class.
        """
        self.class_names = checked_names(class_names, num_classes)
        reset_outputs(self.head.class_predictor, num_classes)
        initialise_prior(self.head.class_predictor)
        self.head.num_classes = num_classes

    def hyper_parameters(self) -> dict[str, Any]:
        """The arguments besides the network, with which the model can be made again."""
        return {
            "strides": self.strides,
            **self.transform.sizes_and_colors(),
            "score_thr": self.score_thr,
            "max_candidates": self.max_candidates,
            **asdict(self.selection),
            "class_names": self.class_names,
        }

    def preprocess(self, images: Sequence[Tensor]) -> ImageBatch:
        """Normalises, resizes, pads and stacks images, on the model's device in its type.

        Args:
            images: each [3, h, w] float, RGB from 0 to 1, of any size.
        """
        weight = self.head.class_predictor.weight
        return self.transform(images, device=weight.device, dtype=weight.dtype)

    def train(self, mode: bool = True) -> SOLO:
        """Sets training mode, in which the backbone keeps its statistics as the peers' does."""
        super().train(mode)
        keep_statistics(self.backbone.body)
        return self

    def predict_grids(
        self, pixels: Tensor
    ) -> SOLOv2Predictions | SOLOPredictions | DecoupledSOLOPredictions:
        """The network alone: pixels [B, 3, H, W] -> predictions of all cells.

        For training these go to ``fastseg.losses.SOLOLoss``.
        """
        return self.head(self.backbone(pixels.contiguous(memory_format=torch.channels_last)))

    def forward(self, pixels: Tensor, sizes: Tensor) -> MaskDetections:
        """Detects instances.

        Args:
            pixels: [B, 3, H, W], a batch's ``pixels``; H and W are multiples of 32.
            sizes: int64 [B, 2], its ``sizes``; the network does not tell padding from image.

        Returns:
            ``max_per_img`` rows per image, padded.

        Raises:
            RuntimeError: the model is in training mode; its losses are in ``fastseg.losses``.
        """
        if self.training:
            raise RuntimeError("SOLO is in training mode: call model.eval() before predicting")
        return self.detect(self.predict_grids(pixels))

    def detect(
        self, predictions: SOLOv2Predictions | SOLOPredictions | DecoupledSOLOPredictions
    ) -> MaskDetections:
        """The instances among the predictions of all cells: the best cells' masks, then NMS."""
        head: GridHead = self.head
        candidates = top_candidates(
            predictions.class_logits,
            score_thr=self.score_thr,
            max_candidates=self.max_candidates,
        )
        # At least one row, which may be padding: some ops take no empty tensors.
        num_rows = max(1, rows_in_use(candidates.counts, candidates.cells.shape[1]))
        cells = candidates.cells[:, :num_rows]
        probabilities = head.mask_probabilities(predictions, cells)
        return self.selection(probabilities, candidates, self.min_areas[cells])

    @torch.no_grad()
    def postprocess(self, detections: MaskDetections, batch: ImageBatch) -> list[Instances]:
        """Results per image at its original size, masks as COCO RLE.

        Args:
            detections: of ``batch``.
            batch: from ``preprocess``.
        """
        results = []
        for rows, size, original in batch.padded_rows(detections.counts):
            masks = detections.masks[rows]
            rles = ops.resize_masks(
                masks,
                original,
                threshold=self.selection.mask_thr,
                via=(MASK_STRIDE * masks.shape[1], MASK_STRIDE * masks.shape[2]),
                crop=(size[0], size[1]),
            )
            scores = detections.scores[rows]
            results.append(
                Instances(
                    boxes=boxes_around(rles).to(scores.device),
                    scores=scores,
                    labels=detections.labels[rows],
                    rles=rles,
                    image_size=original,
                    class_names=self.class_names,
                )
            )
        return results
