"""Which query is to predict which instance: pairs of least cost (Kuhn, 1955)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fastseg.layers.linear import batched_product
from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses.instance_targets import InstanceTargets, check_targets


@dataclass(frozen=True)
class Matches:
    """Pairs of a query and an instance, of L predictions for the same B images.

    An image with N instances has min(Q, N) pairs, in the order of its queries; M is their sum.

    Attributes:
        counts: pairs of each image.
        queries: int64 [L, M], image * Q + query.
        instances: int64 [L, M], where the instance is when those of all images are in a row.
    """

    counts: list[int]
    queries: Tensor
    instances: Tensor


def assign(
    predictions: Sequence[MaskPredictions],
    targets: Sequence[InstanceTargets],
    costs: Sequence[Sequence[Tensor]],
) -> Matches:
    """Finds the pairs of least cost. See `match_instances`.

    Args:
        predictions: L of them.
        targets: of each image.
        costs: of each prediction and image, float32 [Q, N].
    """
    optimize = _import_optimize()
    checks = torch.stack([check_values(one, targets) for one in predictions])
    flat = [cost.flatten() for layer in costs for cost in layer]
    host = torch.cat([*flat, checks.flatten()]).cpu().numpy()
    host, passed = np.split(host, [-checks.numel()])
    for layer, values in enumerate(passed.reshape(checks.shape)):
        raise_for_values(values, predictions[layer], f"prediction {layer}, ")

    num_queries = predictions[0].mask_logits.shape[1]
    lengths = [len(target.labels) for target in targets]
    first_instances = np.cumsum([0, *lengths])
    pairs, start = [], 0
    for _ in predictions:
        for image, length in enumerate(lengths):
            end = start + num_queries * length
            cost = host[start:end].reshape(num_queries, length)
            queries, instances = optimize.linear_sum_assignment(cost)
            pairs.append((image * num_queries + queries, first_instances[image] + instances))
            start = end
    found = np.concatenate(pairs, 1).reshape(2, len(predictions), -1)
    queries, instances = torch.from_numpy(found).to(predictions[0].mask_logits.device)
    return Matches([min(num_queries, length) for length in lengths], queries, instances)


def pair_costs(
    probabilities: Tensor,
    losses: Tensor,
    savings: Tensor,
    shares: Tensor,
    labels: Tensor,
    truth: Tensor,
    weights: tuple[float, float, float],
) -> Tensor:
    """What it costs to take the queries of an image for its instances.

    That is minus the probability of the instance's class, the mean loss of the mask's points, and
    one minus the Dice coefficient of the masks. All pairs are a product of matrices, since the loss
    of a point is linear in the truth.

    Args:
        probabilities: [Q, K + 1], of the classes.
        losses: [Q, P], of points where the truth is 0.
        savings: [Q, P], by how much the loss is less where it is 1.
        shares: [Q, P], probabilities of the masks.
        labels: int64 [N], of the instances; those out of range are found by `check_values`.
        truth: [N, P], 0 to 1.
        weights: factors of the costs of classes, masks and Dice.

    Returns:
        [Q, N].
    """
    class_weight, mask_weight, dice_weight = weights
    saved, overlaps = (batched_product(x[None], truth.mT[None])[0] for x in (savings, shares))
    masks = (losses.sum(1, keepdim=True) - saved) / losses.shape[1]  # [Q, N]
    areas = shares.sum(1, keepdim=True) + truth.sum(1)
    dice = 1 - (2 * overlaps + 1) / (areas + 1)
    classes = -probabilities[:, labels.clamp(0, probabilities.shape[1] - 2)]
    return mask_weight * masks + class_weight * classes + dice_weight * dice


def check_layers(
    predictions: Sequence[MaskPredictions],
    targets: Sequence[InstanceTargets],
    size: tuple[int, int],
) -> None:
    """ValueError where there is nothing, or shapes or types do not fit together."""
    if not predictions or not targets:
        raise ValueError(
            "there must be a prediction and an image, got "
            f"{len(predictions)} predictions and {len(targets)} targets"
        )
    for layer, one in enumerate(predictions):
        check_shapes(one, targets, size)
        if one.class_logits.shape != predictions[0].class_logits.shape:
            raise ValueError(
                f"class_logits of prediction {layer} must have shape "
                f"{tuple(predictions[0].class_logits.shape)} as those of prediction 0, got "
                f"{tuple(one.class_logits.shape)}"
            )


def check_shapes(
    predictions: MaskPredictions, targets: Sequence[InstanceTargets], size: tuple[int, int]
) -> None:
    """ValueError where shapes or types of predictions, truth and padded size do not fit."""
    class_logits, mask_logits = predictions.class_logits, predictions.mask_logits
    if class_logits.dim() != 3 or mask_logits.dim() != 4:
        raise ValueError(
            "class_logits must have shape [B, Q, K + 1] and mask_logits [B, Q, h, w], got "
            f"{tuple(class_logits.shape)} and {tuple(mask_logits.shape)}"
        )
    if class_logits.shape[:2] != mask_logits.shape[:2]:
        raise ValueError(
            f"class_logits {tuple(class_logits.shape)} and mask_logits "
            f"{tuple(mask_logits.shape)} must agree in images and queries"
        )
    check_targets(targets, len(mask_logits), size, mask_logits.device)


def check_values(predictions: MaskPredictions, targets: Sequence[InstanceTargets]) -> Tensor:
    """float32 [3, B], 0 where the class logits, mask logits or labels of an image are wrong."""
    # The sum is not finite where a term is not: one pass over the logits, and no copy.
    class_sums = predictions.class_logits.sum((1, 2), dtype=torch.float32)
    mask_sums = predictions.mask_logits.sum((1, 2, 3), dtype=torch.float32)
    classes = predictions.class_logits.shape[2] - 1
    in_range = [((one.labels >= 0) & (one.labels < classes)).all() for one in targets]
    return torch.stack(
        [
            class_sums.isfinite(),
            mask_sums.isfinite(),
            torch.stack(in_range) if in_range else class_sums > 0,
        ]
    ).float()


def raise_for_values(passed: np.ndarray, predictions: MaskPredictions, where: str) -> None:
    """ValueError for the first of `check_values` that did not pass."""
    names = ("class_logits", "mask_logits", "labels")
    wrong = np.argwhere(passed == 0)
    if len(wrong):
        kind, image = wrong[0]
        last = predictions.class_logits.shape[2] - 2
        wanted = f"within 0 and {last}" if names[kind] == "labels" else "finite"
        raise ValueError(f"{where}{names[kind]} of image {image} must be {wanted}")


def _import_optimize() -> ModuleType:
    try:
        from scipy import optimize
    except ImportError as error:
        raise ImportError(
            "matching needs SciPy: pip install 'fastseg[train]' or pip install scipy"
        ) from error
    return optimize
