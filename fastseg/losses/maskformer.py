"""Losses of MaskFormer (Cheng et al., 2021, section 3.3), from all pixels of the masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses.assignment import assign, check_layers, pair_costs
from fastseg.losses.instance_targets import InstanceTargets
from fastseg.losses.set_losses import MaskLosses, dice_loss, set_losses

FOCAL_ALPHA = 0.25


@dataclass(frozen=True, kw_only=True)
class MaskFormerLoss:
    """Compares predictions with the truth, layer by layer; used as ``Mask2FormerLoss``.

    Masks are matched at the size of the predictions and compared at that of the image, by the
    focal loss (Lin et al., 2017) and the Dice loss. The enlarged masks of one image at a time are
    in memory: the gradient computes them again.

    Attributes:
        class_weight: factor of the classes' loss, and of their cost in the matching.
        mask_weight: the same of the masks' focal loss.
        dice_weight: the same of the Dice loss.
        no_object_weight: weight of a query without instance in the mean over queries.
    """

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    no_object_weight: float = 0.1

    def __post_init__(self) -> None:
        if not self.no_object_weight > 0:  # a batch without instances would divide by zero
            raise ValueError(f"no_object_weight must be positive, got {self.no_object_weight}")

    def __call__(
        self,
        predictions: Sequence[MaskPredictions],
        targets: Sequence[InstanceTargets],
        size: tuple[int, int],
    ) -> MaskLosses:
        """Losses of a batch. Arguments, results and errors are ``Mask2FormerLoss``'s.

        Args:
            predictions: of every layer, or of the last layer alone.
            targets: of the same images.
            size: (height, width) of the padded batch.
        """
        check_layers(predictions, targets, size)
        with torch.autocast(predictions[0].mask_logits.device.type, enabled=False):
            matches = assign(
                predictions, targets, [self._costs(one, targets, size) for one in predictions]
            )

            def mask_losses(logits: Tensor, layer: int) -> tuple[Tensor, Tensor]:
                instances = matches.instances[layer].split(matches.counts)
                losses, first = [], 0
                for target, own, chosen in zip(
                    targets, logits.split(matches.counts), instances, strict=True
                ):
                    arguments = (own, target.masks, chosen - first, size)
                    losses.append(
                        checkpoint(
                            full_size_losses,
                            *arguments,
                            use_reentrant=False,
                            preserve_rng_state=False,
                        )
                    )
                    first += len(target.labels)
                focal, dice = zip(*losses, strict=True)
                return torch.cat(focal), torch.cat(dice)

            return set_losses(
                predictions,
                targets,
                matches,
                mask_losses,
                class_weight=self.class_weight,
                mask_weight=self.mask_weight,
                dice_weight=self.dice_weight,
                no_object_weight=self.no_object_weight,
            )

    @torch.no_grad()
    def _costs(
        self,
        predictions: MaskPredictions,
        targets: Sequence[InstanceTargets],
        size: tuple[int, int],
    ) -> list[Tensor]:
        """Per image float32 [Q, N]."""
        probabilities = predictions.class_logits.float().softmax(-1)
        weights = (self.class_weight, self.mask_weight, self.dice_weight)
        costs = []
        for i, target in enumerate(targets):
            logits = predictions.mask_logits[i].float()
            truth = nearest(target.masks, logits.shape[1:], size).flatten(1).float()
            queries = (probabilities[i], *_focal_losses(logits.flatten(1)))
            costs.append(pair_costs(*queries, target.labels, truth, weights))
        return costs


def full_size_losses(
    logits: Tensor, masks: Tensor, instances: Tensor, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Focal loss and Dice loss of each mask at the size of the padded image.

    Args:
        logits: [M, h, w].
        masks: bool [N, H, W] of an image, without padding.
        instances: int64 [M], whose masks are true.
        size: (height, width) of the padded image.

    Returns:
        [M] each.
    """
    padding = (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1])
    truth = F.pad(masks[instances].float(), padding).flatten(1)
    logits = F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    logits = logits.flatten(1)
    shares = logits.sigmoid()
    error = shares + truth - 2 * shares * truth
    weight = (1 - FOCAL_ALPHA) + (2 * FOCAL_ALPHA - 1) * truth
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (weight * error * error * entropy).mean(1), dice_loss(logits, truth)


def nearest(masks: Tensor, shape: Sequence[int], size: tuple[int, int]) -> Tensor:
    """Masks padded with zeros to a size, then resized to the nearest pixels as torch does it.

    Args:
        masks: bool [N, H, W].
        shape: (h, w) of the result.
        size: (height, width) of the padded image.

    Returns:
        bool [N, h, w].
    """
    for dim in (0, 1):
        lines = torch.arange(shape[dim], device=masks.device) * size[dim] // shape[dim]
        inside = -(-masks.shape[dim + 1] * shape[dim] // size[dim])  # of the new lines
        masks = masks.index_select(dim + 1, lines[:inside])
    return F.pad(masks, (0, shape[1] - masks.shape[2], 0, shape[0] - masks.shape[1]))


def _focal_losses(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `pair_costs` takes of the masks' logits [Q, P]: losses, savings and shares."""
    shares = logits.sigmoid()
    log_larger = torch.maximum(shares, 1 - shares).log()
    inside = FOCAL_ALPHA * (1 - shares) ** 2 * ((-logits).relu() - log_larger)
    outside = (1 - FOCAL_ALPHA) * shares**2 * (logits.relu() - log_larger)
    return outside, outside - inside, shares
