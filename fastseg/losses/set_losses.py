"""What the losses of a set of masks are made of (Cheng et al., MaskFormer, 2021, section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses.assignment import Matches
from fastseg.losses.instance_targets import InstanceTargets


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


def set_losses(
    predictions: Sequence[MaskPredictions],
    targets: Sequence[InstanceTargets],
    matches: Matches,
    mask_losses: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    *,
    class_weight: float,
    mask_weight: float,
    dice_weight: float,
    no_object_weight: float,
) -> MaskLosses:
    """Losses of predictions that are matched with the truth.

    Args:
        predictions: L of them.
        targets: of each image.
        matches: of queries and instances.
        mask_losses: float32 logits [M, h, w] of the matched masks, and the number of their
            prediction -> their losses pixel by pixel and their Dice losses, [M] each.
        class_weight: factor of the classes' loss.
        mask_weight: factor of the masks' loss.
        dice_weight: factor of the Dice loss.
        no_object_weight: weight in the mean over queries of those without instance.
    """
    labels = torch.cat([one.labels for one in targets])
    num_masks = mean_over_processes(len(labels), predictions[0].mask_logits.device)
    classes, masks, dice = [], [], []
    for layer, prediction in enumerate(predictions):
        queries, instances = matches.queries[layer], matches.instances[layer]
        classes.append(
            class_loss(prediction.class_logits, labels[instances], queries, no_object_weight)
        )
        logits = prediction.mask_logits.flatten(0, 1).index_select(0, queries).float()
        of_masks, of_dice = mask_losses(logits, layer)
        masks.append(of_masks.sum() / num_masks)
        dice.append(of_dice.sum() / num_masks)
    return MaskLosses(
        classes=class_weight * torch.stack(classes),
        masks=mask_weight * torch.stack(masks),
        dice=dice_weight * torch.stack(dice),
    )


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
