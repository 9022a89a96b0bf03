"""MaskFormer's losses against transformers', values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastseg.layers.mask_classification import MaskPredictions
from fastseg.losses import InstanceTargets, MaskFormerLoss
from fastseg.losses.maskformer import nearest

pytest.importorskip("scipy", reason="it solves the assignment")

NUM_CLASSES = 5
PADDED = (48, 64)
SIZES = [(40, 56), (48, 64), (33, 41)]


def random_case(
    counts: tuple[int, ...], layers: int = 2
) -> tuple[list[MaskPredictions], list[InstanceTargets]]:
    targets = []
    for count, size in zip(counts, SIZES, strict=True):
        masks = F.interpolate(torch.randn(count, 1, 5, 6), size, mode="bilinear")[:, 0] > 0
        labels = torch.randint(NUM_CLASSES, (count,))
        targets.append(InstanceTargets(torch.zeros(count, 4), labels, masks))
    predictions = [
        MaskPredictions(
            torch.randn(3, 9, NUM_CLASSES + 1).requires_grad_(),
            (4 * torch.randn(3, 9, 12, 16)).requires_grad_(),
        )
        for _ in range(layers)
    ]
    return predictions, targets


def padded(masks: torch.Tensor) -> torch.Tensor:
    height, width = masks.shape[1:]
    return F.pad(masks.float(), (0, PADDED[1] - width, 0, PADDED[0] - height))


# In the last case there are more instances than queries.
@pytest.mark.parametrize("counts", [(4, 6, 5), (3, 0, 2), (12, 4, 10)])
def test_losses_and_gradients_equal_transformers(counts: tuple[int, ...]) -> None:
    peer = pytest.importorskip("transformers.models.maskformer.modeling_maskformer")
    predictions, targets = random_case(counts)
    matcher = peer.MaskFormerHungarianMatcher(cost_class=1.0, cost_mask=20.0, cost_dice=1.0)
    found = peer.MaskFormerLoss(NUM_CLASSES, matcher, {}, eos_coef=0.1)(
        predictions[-1].mask_logits,
        predictions[-1].class_logits,
        [padded(one.masks) for one in targets],
        [one.labels for one in targets],
        [
            {"masks_queries_logits": one.mask_logits, "class_queries_logits": one.class_logits}
            for one in predictions[:-1]
        ],
    )
    weights = {"loss_ce": 1, "loss_mask": 20, "loss_dice": 1}
    expected = {}
    for name, value in found.items():
        name = name.replace("cross_entropy", "ce")
        expected[name] = weights[name.removesuffix("_0")] * value

    losses = MaskFormerLoss()(predictions, targets, PADDED)
    assert losses.named().keys() == expected.keys()
    for name, value in losses.named().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    leaves = [x for one in predictions for x in (one.class_logits, one.mask_logits)]
    grads = torch.autograd.grad(losses.total, leaves)
    for grad, other in zip(grads, torch.autograd.grad(sum(expected.values()), leaves), strict=True):
        assert (grad - other).abs().max() <= 1e-5 * other.abs().max()


def test_images_without_instances() -> None:
    predictions, targets = random_case((0, 0, 0))
    targets[1] = InstanceTargets(targets[1].boxes, targets[1].labels, torch.zeros(0, 0, 0).bool())
    losses = MaskFormerLoss()(predictions, targets, PADDED)
    assert not losses.masks.any() and not losses.dice.any()
    losses.total.backward()
    for one in predictions:
        assert (one.class_logits.grad != 0).all() and not one.mask_logits.grad.any()


@pytest.mark.parametrize("shape", [(12, 16), (7, 9), (48, 64), (60, 70)])
def test_nearest_pixels_equal_torchs(shape: tuple[int, int]) -> None:
    for height, width in [*SIZES, (1, 1), (0, 0)]:
        masks = torch.rand(3, height, width) > 0.5
        expected = F.interpolate(padded(masks)[:, None], shape, mode="nearest")[:, 0]
        assert torch.equal(nearest(masks, shape, PADDED), expected > 0)


def test_half_precision_is_single_under_autocast() -> None:
    predictions, targets = random_case((4, 6, 5))
    half = [
        MaskPredictions(one.class_logits.bfloat16(), one.mask_logits.bfloat16())
        for one in predictions
    ]
    single = [MaskPredictions(one.class_logits.float(), one.mask_logits.float()) for one in half]
    with torch.autocast("cpu", torch.bfloat16):
        losses = MaskFormerLoss()(half, targets, PADDED)
    assert torch.equal(losses.total, MaskFormerLoss()(single, targets, PADDED).total)


def test_wrong_input() -> None:
    predictions, targets = random_case((4, 6, 5))
    loss = MaskFormerLoss()
    with pytest.raises(ValueError, match="a prediction and an image, got 0 predictions and 3"):
        loss([], targets, PADDED)
    with pytest.raises(ValueError, match=r"targets\[1\] must have masks no larger"):
        loss(predictions, targets, (40, 64))
    predictions[1].mask_logits.data[2, 3, 5, 5] = float("nan")
    with pytest.raises(ValueError, match="prediction 1, mask_logits of image 2 must be finite"):
        loss(predictions, targets, PADDED)
    targets[0].labels[0] = NUM_CLASSES
    with pytest.raises(ValueError, match="labels of image 0 must be within 0 and 4"):
        loss(predictions[:1], targets, PADDED)
    with pytest.raises(ValueError, match="no_object_weight must be positive, got 0"):
        MaskFormerLoss(no_object_weight=0)
