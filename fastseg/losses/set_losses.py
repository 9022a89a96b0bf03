"""What the losses of a set of masks are made of (Cheng et al., MaskFormer, 2021, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional as F


@dataclass(frozen=True)
class MaskLosses:
    """Weighted losses of L predictions, in their order.

    Attributes:
        classes: [L], cross-entropy of the queries' classes.
        masks: [L], of the masks pixel by pixel.
        dice: [L], Dice loss of the masks.
    """

    classes: Tensor
    masks: Tensor
    dice: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum, a scalar: what is to be minimised."""
        return torch.stack([self.classes, self.masks, self.dice]).sum()

    def named(self) -> dict[str, Tensor]:
        """Scalars under the original's names: "loss_ce", "loss_mask" and "loss_dice" are those of
        the last prediction; those of the others end in "_0", "_1", ...
        """
        endings = ["", *(f"_{layer}" for layer in range(len(self.classes) - 1))]
        return {
            f"loss_{name}{ending}": losses[layer - 1]
            for layer, ending in enumerate(endings)
            for name, losses in (("ce", self.classes), ("mask", self.masks), ("dice", self.dice))
        }


def class_loss(
    class_logits: Tensor,
    labels: Tensor,
    queries: Tensor,
    no_object_weight: float,
) -> Tensor:
    """Mean cross-entropy of the classes of all queries.

    Args:
        class_logits: [B, Q, K + 1].
        labels: int64 [M], of the queries that are matched.
        queries: int64 [M], which those are, image * Q + query.
        no_object_weight: weight in the mean of the others, whose class is K, "no object".
    """
    logits = class_logits.float().flatten(0, 1)
    classes = logits.shape[1] - 1
    goals = labels.new_full((len(logits),), classes).index_copy(0, queries, labels)
    weight = F.pad(logits.new_ones(classes), (0, 1), value=no_object_weight)
    return F.cross_entropy(logits, goals, weight)


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - Dice coefficient (Milletari et al., V-Net, 2016) of each mask, its counts plus 1.

    Args:
        logits: [M, P].
        truth: [M, P], 0 to 1.

    Returns:
        [M].
    """
    shares = logits.sigmoid()
    overlaps = (shares * truth).sum(1)
    return 1 - (2 * overlaps + 1) / (shares.sum(1) + truth.sum(1) + 1)


def mean_over_processes(count: int, device: torch.device) -> Tensor:
    """Of instances, at least 1: float32 scalar. All processes of `torch.distributed` call it."""
    mean = torch.full((), float(count), device=device)
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(mean)
        mean /= distributed.get_world_size()
    return mean.clamp(min=1)
