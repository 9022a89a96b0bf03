"""Mask2Former's losses and their gradients against transformers', with the same random points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.agreement import relative_norm
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator

NUM_CLASSES = 80
WEIGHTS = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}


@dataclass(frozen=True)
class Inputs:
    """Logits of L predictions, and the truth.

    Attributes:
        classes: each [B, Q, K + 1].
        masks: each [B, Q, h, w].
        labels: of each image, [N].
        truth: of each image, bool [N, 4 h, 4 w].
        num_points: of each mask.
    """

    classes: list[Tensor]
    masks: list[Tensor]
    labels: list[Tensor]
    truth: list[Tensor]
    num_points: int


def cases(setting: Setting) -> Iterator[Case]:
    """A step of training on COCO: the learned queries' and nine layers' predictions for two images
    of 1024x1024, 100 queries, 20 instances.
    """
    layers, queries, instances, side, points = (
        (2, 8, 3, 16, 50) if setting.quick else (10, 100, 20, 256, 12544)
    )
    inputs = _inputs(setting, layers, queries, instances, side, points)
    size = sum(x.numel() * x.element_size() for x in [*inputs.classes, *inputs.masks])
    single = setting.dtype == torch.float32
    name = f"{layers} layers 2x{queries}x{side}x{side}, {instances} instances, {points} points"
    yield Case(
        name=f"losses and gradients, {name}",
        providers={
            "fastseg": lambda: _fastseg(inputs),
            "transformers": lambda: _transformers(inputs),
        },
        bytes_moved=2 * size,  # logits are read, gradients written
        # In half precision the points that the peer finds uncertain are others.
        agreement=relative_norm(1e-4 if single else 0.3),
        needs_grad=True,
    )
    yield Case(
        name=f"matching, {name}",
        providers={
            "fastseg": lambda: _fastseg_matching(inputs),
            "transformers": lambda: _transformers_matching(inputs),
        },
        bytes_moved=2 * layers * (queries + instances) * points * 16,  # four cells a sample
        agreement=relative_norm(0 if single else 0.5),
    )


def _inputs(
    setting: Setting, layers: int, queries: int, instances: int, side: int, points: int
) -> Inputs:
    """Blobs, as those of a network that is no longer quite untrained."""
    source = generator()

    def blobs(count: int, channels: int, side: int) -> Tensor:
        coarse = torch.randn(count, channels, 8, 8, generator=source)
        return F.interpolate(coarse, (side, side), mode="bilinear").to(setting.device)

    classes = torch.randn(layers, 2, queries, NUM_CLASSES + 1, generator=source)
    return Inputs(
        classes=list(classes.to(setting.device, setting.dtype)),
        masks=[(6 * blobs(2, queries, side)).to(setting.dtype) for _ in range(layers)],
        labels=list(
            torch.randint(NUM_CLASSES, (2, instances), generator=source).to(setting.device)
        ),
        truth=list(blobs(2, instances, 4 * side) > 0.5),
        num_points=points,
    )


def _fastseg(inputs: Inputs) -> Run:
    from fastseg.layers.mask_classification import MaskPredictions
    from fastseg.losses import Mask2FormerLoss

    loss = Mask2FormerLoss(num_points=inputs.num_points)
    leaves = _leaves(inputs)
    predictions = [MaskPredictions(*pair) for pair in zip(*leaves, strict=True)]
    targets, size = _targets(inputs)

    def run() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        total = loss(predictions, targets, size).total
        return (total, *torch.autograd.grad(total, leaves[0] + leaves[1]))

    return run


def _transformers(inputs: Inputs) -> Run:
    from transformers.models.mask2former import modeling_mask2former as peer

    config = peer.Mask2FormerConfig(num_labels=NUM_CLASSES, train_num_points=inputs.num_points)
    loss = peer.Mask2FormerLoss(config, WEIGHTS).to(inputs.truth[0].device)
    classes, masks = leaves = _leaves(inputs)
    truth = [one.float() for one in inputs.truth]  # as its image processor gives them
    others = [
        {"class_queries_logits": one, "masks_queries_logits": mask}
        for one, mask in zip(classes[:-1], masks[:-1], strict=True)
    ]

    def run() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        found = loss(masks[-1], classes[-1], truth, inputs.labels, others)
        total = sum(WEIGHTS[name.rstrip("_0123456789")] * value for name, value in found.items())
        return (total, *torch.autograd.grad(total, leaves[0] + leaves[1]))

    return run


def _fastseg_matching(inputs: Inputs) -> Run:
    from fastseg.layers.mask_classification import MaskPredictions
    from fastseg.losses import match_instances

    predictions = [
        MaskPredictions(*pair) for pair in zip(inputs.classes, inputs.masks, strict=True)
    ]
    targets, size = _targets(inputs)

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        points = [
            torch.rand(2, inputs.num_points, 2, device=inputs.truth[0].device) for _ in predictions
        ]
        return list(match_instances(predictions, targets, points, size).queries.cpu())

    return run


def _transformers_matching(inputs: Inputs) -> Run:
    from transformers.models.mask2former import modeling_mask2former as peer

    matcher = peer.Mask2FormerHungarianMatcher(2.0, 5.0, 5.0, inputs.num_points)
    truth = [one.float() for one in inputs.truth]

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        queries = []
        for classes, masks in zip(inputs.classes, inputs.masks, strict=True):
            pairs = matcher(masks, classes, truth, inputs.labels)
            queries.append(
                torch.cat([i * masks.shape[1] + own for i, (own, _) in enumerate(pairs)])
            )
        return queries

    return run


def _leaves(inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    classes, masks = (
        [x.detach().requires_grad_() for x in kind] for kind in (inputs.classes, inputs.masks)
    )
    return classes, masks


def _targets(inputs: Inputs) -> tuple[list[Any], tuple[int, int]]:
    from fastseg.losses import InstanceTargets

    targets = [
        InstanceTargets(torch.zeros(len(labels), 4), labels, masks)
        for labels, masks in zip(inputs.labels, inputs.truth, strict=True)
    ]
    height, width = inputs.truth[0].shape[1:]
    return targets, (height, width)
