"""Losses of SOLO and SOLOv2: focal loss of the cells' classes, Dice loss of the masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg.layers.grid_heads import GridHead
from fastseg.losses.instance_targets import InstanceTargets
from fastseg.losses.solo_targets import LevelTargets, grid_targets, shrink_masks

SCALE_RANGES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
LIGHT_SCALE_RANGES = ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))
LIGHT_512_SCALE_RANGES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))


@dataclass(frozen=True)
class SOLOLosses:
    """Weighted losses of a batch.

    Attributes:
        classes: focal loss, a scalar.
        masks: Dice loss, a scalar.
    """

    classes: Tensor
    masks: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum, a scalar: what is to be minimised."""
        return self.classes + self.masks

    def named(self) -> dict[str, Tensor]:
        """The same under mmdetection's names: "loss_cls" and "loss_mask"."""
        return {"loss_cls": self.classes, "loss_mask": self.masks}


@dataclass(frozen=True, kw_only=True)
class SOLOLoss:
    """Compares predictions with the truth.

    One step of training, with ``pixels`` [B, 3, H, W] and a list of ``InstanceTargets``::

        predictions = model.train().predict_grids(pixels)
        losses = SOLOLoss()(model.head, predictions, targets, (height, width))
        losses.total.backward()

    Attributes:
        scale_ranges: per level, least and greatest square root of the area of an instance's box;
            ``LIGHT_SCALE_RANGES`` and ``LIGHT_512_SCALE_RANGES`` are those of the light networks.
        pos_scale: an instance's centre is this share of its box wide and high.
        dice_normalizer: what the sum over masks is divided by: "masks" is their number, as in
            the original; "cells" the number of cells that predict them, as in mmdetection. They
            differ where instances share a cell.
        class_weight: factor of the focal loss.
        mask_weight: factor of the Dice loss.
    """

    scale_ranges: Sequence[tuple[float, float]] = SCALE_RANGES
    pos_scale: float = 0.2
    dice_normalizer: Literal["masks", "cells"] = "masks"
    class_weight: float = 1.0
    mask_weight: float = 3.0

    def __post_init__(self) -> None:
        if self.dice_normalizer not in ("masks", "cells"):
            raise ValueError(
                f"dice_normalizer must be 'masks' or 'cells', got {self.dice_normalizer!r}"
            )

    def __call__(
        self,
        head: GridHead,
        predictions: Any,
        targets: Sequence[InstanceTargets],
        size: tuple[int, int],
    ) -> SOLOLosses:
        """Losses of a batch.

        Args:
            head: that made the predictions.
            predictions: of B images.
            targets: of the same images.
            size: (height, width) of the padded batch.

        Returns:
            Finite losses, also for images without instances.
        """
        images = [self.assign(one, head, size) for one in targets]
        dice, labels = [], []
        for level in range(len(head.num_grids)):
            for image, (levels, truth) in enumerate(zip(images, targets, strict=True)):
                goal = levels[level]
                masks = head.training_masks(predictions, level, image, goal.cells)
                shrunk = shrink_masks(truth.masks, size[0] // masks.shape[1], size)
                dice.append(dice_loss(masks, shrunk[goal.instances]))
                labels.append(goal.labels.flatten())
        dice_losses, all_labels = torch.cat(dice), torch.cat(labels)
        logits = torch.cat(
            [level.permute(0, 2, 3, 1).flatten(0, 2) for level in predictions.class_logits]
        )
        num_cells = (all_labels < head.num_classes).sum()
        divisor = num_cells if self.dice_normalizer == "cells" else torch.tensor(len(dice_losses))
        return SOLOLosses(
            classes=self.class_weight * focal_loss(logits, all_labels) / (num_cells + 1),
            masks=self.mask_weight * dice_losses.sum() / divisor.clamp(min=1),
        )

    def assign(
        self, targets: InstanceTargets, head: GridHead, size: tuple[int, int]
    ) -> list[LevelTargets]:
        """What the cells of one image shall predict."""
        return grid_targets(
            targets,
            size=size,
            num_classes=head.num_classes,
            num_grids=head.num_grids,
            scale_ranges=self.scale_ranges,
            pos_scale=self.pos_scale,
            one_per_cell=head.one_per_cell,
        )


def dice_loss(masks: Tensor, goals: Tensor, eps: float = 1e-3) -> Tensor:
    """1 - Dice coefficient (Milletari et al., V-Net, 2016) of each mask.

    Args:
        masks: [P, h, w], probabilities.
        goals: bool [P, h, w].
        eps: added to both squared sums.

    Returns:
        [P].
    """
    masks = at_least_single(masks).flatten(1)
    goals = goals.flatten(1).to(masks.dtype)
    both = (masks * goals).sum(1)
    squares = (masks * masks).sum(1) + eps
    return 1 - 2 * both / (squares + (goals * goals).sum(1) + eps)


def focal_loss(
    logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Sum of the focal losses (Lin et al., 2017, section 3) of independent classes.

    Args:
        logits: [N, C].
        labels: int64 [N]; C = none of the classes.
        alpha: weight of a true class, 1 - alpha of a false one.
        gamma: exponent that lowers the loss of what is easy.
    """
    logits = at_least_single(logits)
    goals = F.one_hot(labels, logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    probabilities = logits.sigmoid()
    error = (1 - probabilities) * goals + probabilities * (1 - goals)
    weight = (alpha * goals + (1 - alpha) * (1 - goals)) * error.pow(gamma)
    return (F.binary_cross_entropy_with_logits(logits, goals, reduction="none") * weight).sum()


def at_least_single(x: Tensor) -> Tensor:
    """Half precision as float32: sums over a mask would lose their digits or overflow."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
