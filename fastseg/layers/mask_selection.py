"""The instances among a grid's candidate masks, with static shapes (SOLOv2, sections 3.4, 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg import ops
from fastseg.layers.grid_candidates import Candidates
from fastseg.layers.padded import is_row


@dataclass(frozen=True)
class MaskDetections:
    """Instances of a batch of images, best first; zeros behind the last one.

    Attributes:
        scores: float32 [B, D].
        labels: int64 [B, D].
        masks: [B, D, H / 4, W / 4], probabilities.
        counts: int64 [B], number of instances per image.
    """

    scores: Tensor
    labels: Tensor
    masks: Tensor
    counts: Tensor


@dataclass(frozen=True, kw_only=True)
class MaskSelection:
    """Scores candidates by their masks, lowers overlapping ones' scores and keeps the best.

    Attributes:
        mask_thr: a pixel belongs to a mask if its probability is more than this.
        nms_pre: candidates that enter Matrix NMS.
        filter_thr: least score after it.
        max_per_img: most instances of an image.
        kernel: how scores decay with overlap.
        sigma: exp(-sigma * IoU^2) for the Gaussian kernel.
    """

    mask_thr: float = 0.5
    nms_pre: int = 500
    filter_thr: float = 0.05
    max_per_img: int = 100
    kernel: Literal["gaussian", "linear"] = "gaussian"
    sigma: float = 2.0

    def __call__(
        self, probabilities: Tensor, candidates: Candidates, min_areas: Tensor
    ) -> MaskDetections:
        """Selects instances.

        Args:
            probabilities: [B, K, h, w], masks of the first K candidates.
            candidates: of the same images.
            min_areas: [B, K], masks have more pixels than this.
        """
        num_rows = probabilities.shape[1]
        packed = ops.pack_masks(probabilities.flatten(0, 1), self.mask_thr)
        areas = packed.areas.unflatten(0, min_areas.shape)  # [B, K]
        inside = F.threshold(probabilities, self.mask_thr, 0)
        maskness = inside.sum((2, 3), dtype=torch.float32) / areas
        valid = is_row(candidates.counts, num_rows) & (areas > min_areas)
        scores = (candidates.scores[:, :num_rows] * maskness).masked_fill(~valid, -torch.inf)
        scores, labels, index, counts = ops.matrix_nms_padded(
            packed,
            candidates.labels[:, :num_rows],
            scores,
            self.max_per_img,
            kernel=self.kernel,
            sigma=self.sigma,
            filter_threshold=self.filter_thr,
            pre_top_k=self.nms_pre,
        )
        masks = take_masks(probabilities, index)
        return MaskDetections(scores=scores, labels=labels, masks=masks, counts=counts)


def take_masks(masks: Tensor, index: Tensor) -> Tensor:
    """Picks masks [B, N, h, w] per image by an index [B, M]; -1 gives zeros."""
    batch, num_masks = masks.shape[:2]
    first = torch.arange(batch, device=index.device)[:, None] * num_masks
    rows = (first + index.clamp(min=0)).flatten()
    taken = masks.flatten(0, 1).index_select(0, rows).unflatten(0, index.shape)
    return taken.masked_fill((index < 0)[:, :, None, None], 0)
