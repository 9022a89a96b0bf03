"""What it costs to take a query for an instance (Cheng et al., Mask2Former, 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg import ops
from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses.assignment import (
    Matches,
    assign,
    check_layers,
    check_shapes,
    check_values,
    pair_costs,
    raise_for_values,
)
from fastseg.losses.instance_targets import InstanceTargets


@torch.no_grad()
def match_instances(
    predictions: Sequence[MaskPredictions],
    targets: Sequence[InstanceTargets],
    points: Sequence[Tensor],
    size: tuple[int, int],
    *,
    class_weight: float = 2.0,
    mask_weight: float = 5.0,
    dice_weight: float = 5.0,
) -> Matches:
    """Pairs queries with instances so that the sum of their `matching_costs` is least.

    Waits for the device once: the costs of all predictions are copied together, matched by SciPy
    on the host, and what was found is copied back.

    Args:
        predictions: L of them, as of the layers of a decoder, with B images and Q queries each.
        targets: of each image.
        points: [B, P, 2] for each prediction.
        size: (height, width) of the padded image.
        class_weight: factor of the classes' cost.
        mask_weight: factor of the cross-entropy.
        dice_weight: factor of the Dice cost.

    Returns:
        The pairs, on the device of the predictions.

    Raises:
        ValueError: as `matching_costs`; the message names the prediction as well.
        ImportError: SciPy is not installed.
    """
    check_layers(predictions, targets, size)
    weights = (class_weight, mask_weight, dice_weight)
    costs = []
    for one, own_points in zip(predictions, points, strict=True):
        _check_points(own_points, len(targets))
        costs.append(_costs(one, targets, own_points, size, weights))
    return assign(predictions, targets, costs)


@torch.no_grad()
def matching_costs(
    class_logits: Tensor,
    mask_logits: Tensor,
    targets: Sequence[InstanceTargets],
    points: Tensor,
    size: tuple[int, int],
    *,
    class_weight: float = 2.0,
    mask_weight: float = 5.0,
    dice_weight: float = 5.0,
) -> list[Tensor]:
    """The cost of every pair of query and instance, for the Hungarian method to minimise.

    It is that of the original and of mmdetection: minus the probability of the instance's class,
    the mean binary cross-entropy of the masks at the points, and one minus their Dice coefficient
    there. All of it is float32, under autocast as well.

    Args:
        class_logits: [B, Q, K + 1]; the last class is "no object".
        mask_logits: [B, Q, h, w].
        targets: of each image; labels from 0 to K - 1, any number of instances.
        points: [B, P, 2] as `ops.point_sample` takes them, relative to ``size``; the original
            draws `torch.rand(1, P, 2)` for each image in turn.
        size: (height, width) of the padded image, which the mask logits cover.
        class_weight: factor of the classes' cost.
        mask_weight: factor of the cross-entropy.
        dice_weight: factor of the Dice cost.

    Returns:
        Per image float32 [Q, N] for N instances.

    Raises:
        ValueError: shapes do not fit, or an image's logits are not finite or its labels out of
            range; the message names the image.
    """
    predictions = MaskPredictions(class_logits, mask_logits)
    check_shapes(predictions, targets, size)
    _check_points(points, len(targets))
    raise_for_values(check_values(predictions, targets).cpu().numpy(), predictions, "")
    return _costs(predictions, targets, points, size, (class_weight, mask_weight, dice_weight))


def sample_masks(masks: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """True masks at points of the padded image; the padding is zero, as is all beyond a map.

    Args:
        masks: bool [N, C, h, w], without padding.
        points: [N, P, 2], relative to ``size``.
        size: (height, width) of the padded image.

    Returns:
        float32 [N, C, P].
    """
    height, width = (max(side, 1) for side in masks.shape[2:])  # no masks may have no size either
    x, y = points.unbind(2)
    points = torch.stack([x * (size[1] / width), y * (size[0] / height)], dim=2)
    return ops.point_sample(masks, points)


def _costs(
    predictions: MaskPredictions,
    targets: Sequence[InstanceTargets],
    points: Tensor,
    size: tuple[int, int],
    weights: tuple[float, float, float],
) -> list[Tensor]:
    """The cross-entropy of logit x and truth t is softplus(x) - x t."""
    with torch.autocast(points.device.type, enabled=False):
        probabilities = predictions.class_logits.float().softmax(-1)
        logits = ops.point_sample(predictions.mask_logits.float(), points)  # [B, Q, P]
        shares = logits.sigmoid()
        # Several times as fast on the CPU as torch's own softplus.
        softplus = logits.relu() - torch.maximum(shares, 1 - shares).log()
        costs = []
        for i, target in enumerate(targets):
            truth = sample_masks(target.masks[None], points[i, None], size)[0]  # [N, P]
            queries = (probabilities[i], softplus[i], logits[i], shares[i])
            costs.append(pair_costs(*queries, target.labels, truth, weights))
    return costs


def _check_points(points: Tensor, batch: int) -> None:
    if points.dim() != 3 or len(points) != batch or points.shape[1] == 0 or points.shape[2] != 2:
        raise ValueError(f"points must have shape [{batch}, P, 2], got {tuple(points.shape)}")
