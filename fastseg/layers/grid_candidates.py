"""From class scores of cells to instances, with static shapes (SOLOv2, sections 3.4 and 3.5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Candidates:
    """Cells and classes above a score, best first; zeros behind the last one.

    Attributes:
        scores: float32 [B, K], probability of the class.
        labels: int64 [B, K].
        cells: int64 [B, K], indices into the cells of all levels, one level after the other.
        counts: int64 [B], number of candidates per image.
    """

    scores: Tensor
    labels: Tensor
    cells: Tensor
    counts: Tensor


def points_nms(scores: Tensor) -> Tensor:
    """Sets scores [B, C, S, S] to 0 where the cell above, to the left or between has a higher."""
    highest = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (highest == scores)


def top_candidates(
    class_logits: Sequence[Tensor], *, score_thr: float, max_candidates: int
) -> Candidates:
    """The best pairs of cell and class.

    Args:
        class_logits: per level [B, C, S, S].
        score_thr: candidates score more than this.
        max_candidates: K; fewer only where there are fewer pairs in all.
    """
    levels = [points_nms(logits.float().sigmoid()).flatten(2) for logits in class_logits]
    scores = torch.cat(levels, dim=2)  # [B, C, cells]
    num_cells = scores.shape[2]
    scores = scores.flatten(1)
    scores = scores.masked_fill(~(scores > score_thr), 0)
    scores, index = scores.topk(min(max_candidates, scores.shape[1]), dim=1)
    found = scores > 0
    index = index.masked_fill(~found, 0)
    return Candidates(
        scores=scores,
        labels=torch.div(index, num_cells, rounding_mode="floor"),
        cells=index % num_cells,
        counts=found.sum(1),
    )
