"""Which query is to predict which instance (Cheng et al., Mask2Former, 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fastseg import ops
from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses.solo_targets import InstanceTargets


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
    optimize = _import_optimize()
    weights = (class_weight, mask_weight, dice_weight)
    for layer, (one, own_points) in enumerate(zip(predictions, points, strict=True)):
        _check_shapes(one, targets, own_points, size)
        if one.class_logits.shape != predictions[0].class_logits.shape:
            raise ValueError(
                f"class_logits of prediction {layer} must have shape "
                f"{tuple(predictions[0].class_logits.shape)} as those of prediction 0, got "
                f"{tuple(one.class_logits.shape)}"
            )
    costs = [
        cost.flatten()
        for one, own_points in zip(predictions, points, strict=True)
        for cost in _costs(one, targets, own_points, size, weights)
    ]
    checks = torch.stack([_checks(one, targets) for one in predictions])
    host = torch.cat([*costs, checks.flatten()]).cpu().numpy()
    host, passed = np.split(host, [-checks.numel()])
    for layer, values in enumerate(passed.reshape(checks.shape)):
        _raise_for(values, predictions[layer], f"prediction {layer}, ")

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
    _check_shapes(predictions, targets, points, size)
    _raise_for(_checks(predictions, targets).cpu().numpy(), predictions, "")
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
    """The cross-entropy of logit x and truth t is softplus(x) - x t, so that one matrix product
    serves the costs of masks and of Dice.
    """
    class_weight, mask_weight, dice_weight = weights
    with torch.autocast(points.device.type, enabled=False):
        probabilities = predictions.class_logits.float().softmax(-1)
        logits = ops.point_sample(predictions.mask_logits.float(), points)  # [B, Q, P]
        shares = logits.sigmoid()
        areas = shares.sum(2, keepdim=True)
        # Several times as fast on the CPU as torch's own softplus.
        softplus = logits.relu() - torch.maximum(shares, 1 - shares).log()
        softplus = softplus.sum(2, keepdim=True)
        both = torch.cat([logits, shares], dim=1)
        costs = []
        for i, target in enumerate(targets):
            truth = sample_masks(target.masks[None], points[i, None], size)[0]  # [N, P]
            products, overlaps = (both[i] @ truth.mT).chunk(2)  # [Q, N] each
            masks = (softplus[i] - products) / points.shape[1]
            dice = 1 - (2 * overlaps + 1) / (areas[i] + truth.sum(1) + 1)
            # Labels out of range are found later, together with all else.
            labels = target.labels.clamp(0, probabilities.shape[2] - 2)
            classes = -probabilities[i][:, labels]
            costs.append(mask_weight * masks + class_weight * classes + dice_weight * dice)
    return costs


def _check_shapes(
    predictions: MaskPredictions,
    targets: Sequence[InstanceTargets],
    points: Tensor,
    size: tuple[int, int],
) -> None:
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
    batch = len(mask_logits)
    if len(targets) != batch:
        raise ValueError(f"targets must be one for each of {batch} images, got {len(targets)}")
    for i, target in enumerate(targets):
        if target.masks.dim() != 3 or target.labels.shape != target.masks.shape[:1]:
            raise ValueError(
                f"targets[{i}] must have labels [N] and masks [N, h, w], got shapes "
                f"{tuple(target.labels.shape)} and {tuple(target.masks.shape)}"
            )
        if target.masks.dtype != torch.bool:
            raise ValueError(f"targets[{i}] must have bool masks, got {target.masks.dtype}")
        if target.masks.shape[1] > size[0] or target.masks.shape[2] > size[1]:
            raise ValueError(
                f"targets[{i}] must have masks no larger than the padded image, {tuple(size)}, "
                f"got {tuple(target.masks.shape[1:])}"
            )
    if points.dim() != 3 or len(points) != batch or points.shape[1] == 0 or points.shape[2] != 2:
        raise ValueError(f"points must have shape [{batch}, P, 2], got {tuple(points.shape)}")


def _checks(predictions: MaskPredictions, targets: Sequence[InstanceTargets]) -> Tensor:
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


def _raise_for(passed: np.ndarray, predictions: MaskPredictions, where: str) -> None:
    """ValueError for the first of `_checks` that did not pass."""
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
