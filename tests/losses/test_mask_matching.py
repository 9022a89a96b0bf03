"""Matching costs against the formulas, mmdetection's costs and Mask2Former's stored matches."""

from __future__ import annotations

import mask2former_training as golden
import pytest
import torch
from mmdetection_peer import import_mmdet
from torch import Tensor
from torch.nn import functional as F

from fastseg.losses import InstanceTargets, matching_costs


def instances(masks: Tensor, labels: Tensor) -> InstanceTargets:
    return InstanceTargets(torch.zeros(len(masks), 4), labels, masks)


def random_case(counts: tuple[int, ...] = (4, 0, 7)) -> tuple[Tensor, Tensor, list, Tensor]:
    """Three images of 40x56 or less, padded to 48x64, 9 queries, 5 classes."""
    sizes = [(40, 56), (48, 64), (33, 41)]
    targets = [
        instances(
            F.interpolate(torch.randn(n, 1, 5, 6), size, mode="bilinear")[:, 0] > 0,
            torch.randint(5, (n,)),
        )
        for n, size in zip(counts, sizes, strict=True)
    ]
    logits = 4 * torch.randn(3, 9, 12, 16)
    return torch.randn(3, 9, 6), logits, targets, torch.rand(3, 500, 2)


def samples(logits: Tensor, target: InstanceTargets, points: Tensor) -> tuple[Tensor, Tensor]:
    """Of the logits and of the masks, padded first, as the peers take them."""
    height, width = target.masks.shape[1:]
    padded = F.pad(target.masks.float(), (0, 64 - width, 0, 48 - height))
    grid = (2 * points - 1)[None, :, None]
    return tuple(
        F.grid_sample(maps[None], grid, align_corners=False)[0, ..., 0] for maps in (logits, padded)
    )


def test_matches_the_formulas() -> None:
    class_logits, mask_logits, targets, points = random_case()
    costs = matching_costs(
        class_logits,
        mask_logits,
        targets,
        points,
        (48, 64),
        class_weight=0.7,
        mask_weight=1.9,
        dice_weight=3.1,
    )
    assert [cost.shape for cost in costs] == [(9, 4), (9, 0), (9, 7)]
    for i in (0, 2):
        predicted, truth = samples(mask_logits[i], targets[i], points[i])
        for q in range(9):
            probabilities = class_logits[i, q].double().softmax(0)
            shares = predicted[q].double().sigmoid()
            for n, mask in enumerate(truth.double()):
                entropy = F.binary_cross_entropy_with_logits(predicted[q].double(), mask)
                dice = (2 * (shares * mask).sum() + 1) / (shares.sum() + mask.sum() + 1)
                expected = (
                    -0.7 * probabilities[targets[i].labels[n]] + 1.9 * entropy + 3.1 * (1 - dice)
                )
                assert costs[i][q, n].item() == pytest.approx(expected.item(), abs=1e-5)


def test_matches_mmdetection() -> None:
    import_mmdet()
    from mmdet.models.task_modules.assigners import match_cost
    from mmengine.structures import InstanceData

    class_logits, mask_logits, targets, points = random_case()
    peers = [
        match_cost.ClassificationCost(weight=2.0),
        match_cost.CrossEntropyLossCost(weight=5.0, use_sigmoid=True),
        match_cost.DiceCost(weight=5.0, pred_act=True, eps=1.0),
    ]
    costs = matching_costs(class_logits, mask_logits, targets, points, (48, 64))
    for i in (0, 2):
        predicted, truth = samples(mask_logits[i], targets[i], points[i])
        queries = InstanceData(scores=class_logits[i], masks=predicted)
        objects = InstanceData(labels=targets[i].labels, masks=truth)
        expected = sum(peer(queries, objects) for peer in peers)
        torch.testing.assert_close(costs[i], expected, rtol=1e-5, atol=2e-5)


def test_stored_matches_of_mask2former() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    logits = (golden.MATCHING["class_logits"], golden.MATCHING["mask_logits"])
    points = golden.MATCHING["points"]
    costs = matching_costs(*logits, golden.targets(), points, golden.PADDED)
    for i, cost in enumerate(costs):
        queries, objects = optimize.linear_sum_assignment(cost)
        assert queries.tolist() == golden.MATCHING[f"src{i}"].tolist()
        assert objects.tolist() == golden.MATCHING[f"tgt{i}"].tolist()


def test_single_precision_under_autocast() -> None:
    class_logits, mask_logits, targets, points = random_case()
    class_logits, mask_logits = class_logits.bfloat16(), mask_logits.bfloat16().requires_grad_()
    expected = matching_costs(class_logits.float(), mask_logits.float(), targets, points, (48, 64))
    with torch.autocast("cpu", torch.bfloat16):
        costs = matching_costs(class_logits, mask_logits, targets, points, (48, 64))
    for cost, exact in zip(costs, expected, strict=True):
        assert cost.dtype == torch.float32 and not cost.requires_grad
        assert torch.equal(cost, exact)


def test_large_logits_stay_finite() -> None:
    class_logits, mask_logits, targets, points = random_case()
    costs = matching_costs(class_logits, 1e4 * mask_logits, targets, points, (48, 64))
    assert all(cost.isfinite().all() for cost in costs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_names_the_image_whose_logits_are_not_finite(bad: float) -> None:
    class_logits, mask_logits, targets, points = random_case()
    mask_logits[1, 3, 4:8] = bad
    with pytest.raises(ValueError, match="mask_logits of image 1 must be finite"):
        matching_costs(class_logits, mask_logits, targets, points, (48, 64))
    class_logits[2, 8, 5] = bad
    with pytest.raises(ValueError, match="class_logits of image 2 must be finite"):
        matching_costs(class_logits, mask_logits, targets, points, (48, 64))


def test_wrong_input() -> None:
    class_logits, mask_logits, targets, points = random_case()
    size = (48, 64)
    with pytest.raises(ValueError, match="class_logits must have shape"):
        matching_costs(class_logits[0], mask_logits, targets, points, size)
    with pytest.raises(ValueError, match="must agree in images and queries"):
        matching_costs(class_logits[:, 1:], mask_logits, targets, points, size)
    with pytest.raises(ValueError, match="targets must be one for each of 3 images, got 2"):
        matching_costs(class_logits, mask_logits, targets[:2], points, size)
    with pytest.raises(ValueError, match=r"points must have shape \[3, P, 2\], got \(1, 500, 2\)"):
        matching_costs(class_logits, mask_logits, targets, points[:1], size)
    short = [*targets[:2], instances(targets[2].masks, targets[2].labels[:1])]
    with pytest.raises(ValueError, match=r"targets\[2\] must have labels \[N\] and masks.*\(1,\)"):
        matching_costs(class_logits, mask_logits, short, points, size)
    for label in (-1, 5):  # 5 is "no object"
        targets[2].labels[1] = label
        with pytest.raises(ValueError, match="labels of image 2 must be within 0 and 4"):
            matching_costs(class_logits, mask_logits, targets, points, size)


def test_no_images_and_no_instances() -> None:
    logits = (torch.zeros(0, 9, 6), torch.zeros(0, 9, 4, 4))
    assert matching_costs(*logits, [], torch.zeros(0, 5, 2), (4, 4)) == []
    class_logits, mask_logits, targets, points = random_case((0, 0, 0))
    targets[1] = instances(torch.zeros(0, 0, 0).bool(), targets[1].labels)
    costs = matching_costs(class_logits, mask_logits, targets, points, (48, 64))
    assert [cost.shape for cost in costs] == 3 * [(9, 0)]
