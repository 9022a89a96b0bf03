"""What it costs to take a query for an instance (Cheng et al., Mask2Former, 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastseg import ops
from fastseg.losses.solo_targets import InstanceTargets


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
        class_logits: [B, Q, K + 1]; the last class is "no instance".
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
    _check_shapes(class_logits, mask_logits, targets, points)
    with torch.autocast(mask_logits.device.type, enabled=False):
        class_logits = class_logits.float()
        logits = ops.point_sample(mask_logits.float(), points)  # [B, Q, P]
        _check_values(class_logits, logits, targets)
        probabilities = class_logits.softmax(-1)
        costs = []
        for i, target in enumerate(targets):
            truth = _sample_masks(target.masks, points[i], size)
            masks, dice = _mask_costs(logits[i], truth)
            classes = -probabilities[i][:, target.labels]
            costs.append(mask_weight * masks + class_weight * classes + dice_weight * dice)
    return costs


def _sample_masks(masks: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """[N, P] of bool [N, h, w]; the padding around them is zero, as is all beyond a map."""
    height, width = (max(side, 1) for side in masks.shape[1:])  # no masks may have no size either
    scale = points.new_tensor([size[1] / width, size[0] / height])
    return ops.point_sample(masks[None].float(), points[None] * scale)[0]


def _mask_costs(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice cost, [Q, N] each, of logits [Q, P] and truth [N, P].

    The cross-entropy of logit x and truth t is softplus(x) - x t, so that one matrix product
    serves both costs.
    """
    shares = logits.sigmoid()
    products, overlaps = (torch.cat([logits, shares]) @ truth.mT).chunk(2)
    masks = (F.softplus(logits).sum(1, keepdim=True) - products) / logits.shape[1]
    areas = shares.sum(1, keepdim=True) + truth.sum(1)
    return masks, 1 - (2 * overlaps + 1) / (areas + 1)


def _check_shapes(
    class_logits: Tensor, mask_logits: Tensor, targets: Sequence[InstanceTargets], points: Tensor
) -> None:
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
    if points.dim() != 3 or len(points) != batch or points.shape[1] == 0 or points.shape[2] != 2:
        raise ValueError(f"points must have shape [{batch}, P, 2], got {tuple(points.shape)}")


def _check_values(class_logits: Tensor, logits: Tensor, targets: Sequence[InstanceTargets]) -> None:
    """Waits for the device once."""
    classes = class_logits.shape[2] - 1
    in_range = [((x.labels >= 0) & (x.labels < classes)).all() for x in targets]
    checks = {
        "class_logits": class_logits.isfinite().flatten(1).all(1),
        "mask_logits": logits.isfinite().flatten(1).all(1),
        "labels": torch.stack(in_range) if in_range else logits.new_ones(0, dtype=torch.bool),
    }
    for (name, _), passed in zip(
        checks.items(), torch.stack(list(checks.values())).tolist(), strict=True
    ):
        if not all(passed):
            image = passed.index(False)
            wanted = f"within 0 and {classes - 1}" if name == "labels" else "finite"
            raise ValueError(f"{name} of image {image} must be {wanted}")
