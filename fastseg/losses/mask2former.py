"""Losses of Mask2Former (Cheng et al., 2022, section 3.3), from a sample of each mask's points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg import ops
from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses.assignment import Matches, check_layers
from fastseg.losses.instance_targets import InstanceTargets
from fastseg.losses.mask_matching import match_instances, sample_masks
from fastseg.losses.set_losses import MaskLosses, dice_loss, set_losses

Draws = tuple[Tensor, Tensor]  # as `ops.sample_uncertain_points` takes them


@dataclass(frozen=True, kw_only=True)
class Mask2FormerLoss:
    """Compares predictions with the truth, layer by layer.

    One step of training, with ``pixels`` [B, 3, H, W] and a list of ``InstanceTargets``::

        predictions = model.train().predict_layers(pixels)
        losses = Mask2FormerLoss()(predictions, targets, (height, width))
        losses.total.backward()

    Each prediction is matched with the instances on its own. The masks of the matched queries are
    then compared at points most of which lie where the mask is uncertain; the other queries shall
    say "no object". Needs SciPy (``pip install 'fastseg[train]'``).

    Attributes:
        num_points: P, points per mask for the matching, and again for the losses.
        oversample_ratio: P times this many are drawn to choose the uncertain ones from.
        importance_sample_ratio: this share of P is uncertain, the rest is anywhere.
        class_weight: factor of the classes' loss, and of their cost in the matching.
        mask_weight: the same of the masks' cross-entropy.
        dice_weight: the same of the Dice loss.
        no_object_weight: weight of a query without instance in the mean over queries.
    """

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1

    def __post_init__(self) -> None:
        if self.num_points < 1:
            raise ValueError(f"num_points must be positive, got {self.num_points}")
        if not self.no_object_weight > 0:  # a batch without instances would divide by zero
            raise ValueError(f"no_object_weight must be positive, got {self.no_object_weight}")

    def __call__(
        self,
        predictions: Sequence[MaskPredictions],
        targets: Sequence[InstanceTargets],
        size: tuple[int, int],
        *,
        rand: Callable[[tuple[int, ...]], Tensor] | None = None,
    ) -> MaskLosses:
        """Losses of a batch, in float32 whatever the predictions' type, under autocast as well.

        Losses of masks are divided by the number of instances, its mean over the processes where
        `torch.distributed` is initialised. The device is waited for once.

        Args:
            predictions: of the learned queries and of every layer, or of the last layer alone;
                each of B images and Q queries.
            targets: of the same images; boxes are not used, and what is to be segmented may be
                "stuff" as well. An instance with an empty mask counts as any other.
            size: (height, width) of the padded batch.
            rand: draws uniform numbers in [0, 1) of a given shape; by default `torch.rand`. Called
                as by the original, so that its points are ours with the same seed: for the last
                prediction, then for each of the others, (1, P, 2) per image for the matching, then
                (M, int(P * oversample_ratio), 2) and (M, P - int(P * importance_sample_ratio), 2)
                for the M matched masks of all images.

        Returns:
            Finite losses, also for images without instances.

        Raises:
            ValueError: shapes do not fit, logits are not finite or labels out of range; the
                message names the prediction and the image.
            ImportError: SciPy is not installed.
        """
        check_layers(predictions, targets, size)
        device = predictions[0].mask_logits.device
        points, draws = self._draw(rand or partial(torch.rand, device=device), predictions, targets)
        weights = {
            "class_weight": self.class_weight,
            "mask_weight": self.mask_weight,
            "dice_weight": self.dice_weight,
        }
        with torch.autocast(device.type, enabled=False):
            matches = match_instances(predictions, targets, points, size, **weights)

            def mask_losses(logits: Tensor, layer: int) -> tuple[Tensor, Tensor]:
                # The draws, which are many, go as they are used up.
                samples, truth = self._sample(logits, draws.pop(0), targets, matches, layer, size)
                entropy = F.binary_cross_entropy_with_logits(samples, truth, reduction="none")
                return entropy.mean(1), dice_loss(samples, truth)

            return set_losses(
                predictions,
                targets,
                matches,
                mask_losses,
                no_object_weight=self.no_object_weight,
                **weights,
            )

    def _draw(
        self,
        rand: Callable[[tuple[int, ...]], Tensor],
        predictions: Sequence[MaskPredictions],
        targets: Sequence[InstanceTargets],
    ) -> tuple[list[Tensor], list[Draws]]:
        """Points [B, P, 2] for the matching and numbers for the losses, of each prediction."""
        num_queries = predictions[0].mask_logits.shape[1]
        count = sum(min(num_queries, len(one.labels)) for one in targets)
        candidates = int(self.num_points * self.oversample_ratio)
        rest = self.num_points - int(self.importance_sample_ratio * self.num_points)
        points, draws = [], []
        for _ in predictions:
            points.append(torch.cat([rand((1, self.num_points, 2)) for _ in targets]))
            draws.append((rand((count, candidates, 2)), rand((count, rest, 2))))
        return points[1:] + points[:1], draws[1:] + draws[:1]  # the last prediction's came first

    def _sample(
        self,
        logits: Tensor,
        draws: Draws,
        targets: Sequence[InstanceTargets],
        matches: Matches,
        layer: int,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Logits and truth [M, P] of the matched masks, whose logits are [M, h, w]."""
        points = ops.sample_uncertain_points(
            logits[:, None],
            self.num_points,
            self.oversample_ratio,
            self.importance_sample_ratio,
            random=draws,
        )
        truth, first = [], 0
        per_image = (points.split(matches.counts), matches.instances[layer].split(matches.counts))
        for target, own_points, instances in zip(targets, *per_image, strict=True):
            # The points go to the masks: there is no copy of masks in the order of queries.
            count = len(target.labels)
            placed = own_points.new_zeros(count, *own_points.shape[1:])
            placed = placed.index_copy(0, instances - first, own_points)
            samples = sample_masks(target.masks[:, None], placed, size)[:, 0]
            truth.append(samples[instances - first])
            first += count
        return ops.point_sample(logits[:, None], points)[:, 0], torch.cat(truth)
