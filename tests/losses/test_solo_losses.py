"""Targets and losses of the SOLO family: stored numbers of the peers, and edge cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from solov2_golden import NUM_CLASSES, PADDED, TENSORS, predictions, truth, unpacked

from fastseg.layers.grid_heads import NUM_GRIDS
from fastseg.layers.solo_head import DecoupledSOLOHead, SOLOHead
from fastseg.layers.solov2_head import MaskFeatureHead, SOLOv2Head
from fastseg.losses import InstanceTargets, SOLOLoss
from fastseg.losses.solo import LIGHT_SCALE_RANGES, dice_loss, focal_loss
from fastseg.losses.solo_targets import grid_targets, shrink_masks

OPTIONS = {
    "size": PADDED,
    "num_classes": NUM_CLASSES,
    "num_grids": NUM_GRIDS,
    "scale_ranges": LIGHT_SCALE_RANGES,
    "pos_scale": 0.2,
}


def solov2_head() -> SOLOv2Head:
    return SOLOv2Head(
        in_channels=64,
        num_classes=NUM_CLASSES,
        channels=64,
        mask_features=MaskFeatureHead(in_channels=64, channels=64, out_channels=64),
    )


@pytest.mark.parametrize("image", [0, 1])
def test_targets_equal_mmdetections(image):
    targets = truth(image)
    levels = grid_targets(targets, one_per_cell=False, **OPTIONS)
    shrunk = shrink_masks(targets.masks, 4, PADDED)
    assert not targets.masks[-1].any()
    for level, ours in enumerate(levels):
        expected = {
            key: TENSORS[f"target.{image}.{key}.{level}"]
            for key in ("labels", "pos_index", "masks_packed")
        }
        assert torch.equal(ours.labels, expected["labels"])
        assert torch.equal(ours.cells, expected["pos_index"])
        assert torch.equal(shrunk[ours.instances], unpacked(expected["masks_packed"], 40, 56))


@pytest.mark.parametrize("image", [0, 1])
def test_one_instance_per_cell(image):
    shared = grid_targets(truth(image), one_per_cell=False, **OPTIONS)
    single = grid_targets(truth(image), one_per_cell=True, **OPTIONS)
    assert any(len(level.cells) > len(level.cells.unique()) for level in shared)
    for ours, others in zip(single, shared, strict=True):
        assert torch.equal(ours.labels, others.labels)
        last = dict(zip(others.cells.tolist(), others.instances.tolist(), strict=True))
        assert dict(zip(ours.cells.tolist(), ours.instances.tolist(), strict=True)) == last
        assert ours.cells.tolist() == sorted(last)


@pytest.mark.parametrize(
    ("normalizer", "loss", "gradient"),
    [
        ("cells", "loss.loss_mask", "grad.conv_kernel.bias"),
        ("masks", "loss.official_loss_mask", "official_grad.conv_kernel.bias"),
    ],
)
def test_losses_and_gradients_equal_the_peers(normalizer, loss, gradient):
    found = predictions()
    for x in (*found.class_logits, *found.kernels):
        x.requires_grad_()
    try:
        losses = SOLOLoss(scale_ranges=LIGHT_SCALE_RANGES, dice_normalizer=normalizer)(
            solov2_head(), found, [truth(0), truth(1)], PADDED
        )
        losses.total.backward()
        sums = [
            sum(x.grad.sum((0, 2, 3)) for x in levels)
            for levels in (found.class_logits, found.kernels)
        ]
    finally:
        for x in found.class_logits:
            x.requires_grad_(False).grad = None
    torch.testing.assert_close(losses.classes, TENSORS["loss.loss_cls"], rtol=1e-5, atol=0)
    torch.testing.assert_close(losses.masks, TENSORS[loss].squeeze(), rtol=1e-5, atol=0)
    for x, name in zip(sums, ("grad.conv_cls.bias", gradient), strict=True):
        expected = TENSORS[name]
        assert (x - expected).abs().max() <= 1e-5 * expected.abs().max()


HEADS = {
    "solov2": solov2_head,
    "solo": lambda: SOLOHead(
        in_channels=64, num_classes=NUM_CLASSES, channels=32, conv_layers=[torch.nn.Conv2d]
    ),
    "decoupled_solo": lambda: DecoupledSOLOHead(
        in_channels=64, num_classes=NUM_CLASSES, channels=32, conv_layers=[torch.nn.Conv2d]
    ),
}


@pytest.mark.parametrize("normalizer", ["cells", "masks"])
@pytest.mark.parametrize("name", HEADS)
def test_images_without_instances(name, normalizer):
    head = HEADS[name]()
    pyramid = [torch.randn(2, 64, 160 >> i, 224 >> i) for i in range(2, 7)]
    nothing = truth(1)
    nothing = InstanceTargets(nothing.boxes[:0], nothing.labels[:0], nothing.masks[:0])
    one = truth(0)
    one = replace(one, boxes=one.boxes[:1], labels=one.labels[:1], masks=one.masks[:1])
    for targets in ([nothing, nothing], [one, nothing]):
        loss = SOLOLoss(scale_ranges=LIGHT_SCALE_RANGES, dice_normalizer=normalizer)
        losses = loss(head, head(pyramid), targets, PADDED)
        assert losses.classes.isfinite()
        assert (losses.masks > 0) == (targets[0] is one)
        losses.total.backward()
        for key, parameter in head.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


def test_scale_ranges_include_both_ends():
    masks = torch.zeros(1, *PADDED, dtype=torch.bool)
    masks[0, 20:76, 30:86] = True
    targets = InstanceTargets(torch.tensor([[30.0, 20, 86, 76]]), torch.tensor([3]), masks)
    levels = grid_targets(targets, one_per_cell=False, **OPTIONS)
    assert [len(level.cells) > 0 for level in levels] == [True, True, True, False, False]
    assert (levels[2].labels == 3).sum() == len(levels[2].cells)


def test_targets_stay_inside_the_grid():
    """Instances in the corners, whose centre region reaches beyond the image."""
    masks = torch.zeros(2, *PADDED, dtype=torch.bool)
    masks[0, :3, :3] = masks[1, -3:, -3:] = True
    boxes = torch.tensor([[-40.0, -40, 40, 40], [180, 120, 260, 200]])
    targets = InstanceTargets(boxes, torch.tensor([1, 2]), masks)
    for level, num_grid in zip(
        grid_targets(targets, one_per_cell=False, **OPTIONS), NUM_GRIDS, strict=True
    ):
        assert ((level.cells >= 0) & (level.cells < num_grid**2)).all()
        if len(level.cells):
            assert level.labels[0, 0] == 1
            assert level.labels[-1, -1] == 2


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_shrunk_masks_equal_opencvs_resize(stride):
    cv2 = pytest.importorskip("cv2", reason="OpenCV makes the peers' targets")
    masks = torch.rand(3, 150, 201) > torch.tensor([0.3, 0.5, 0.7])[:, None, None]
    shrunk = shrink_masks(masks, stride, PADDED)
    padded = torch.nn.functional.pad(masks.byte(), (0, 23, 0, 10)).numpy()
    size = (PADDED[1] // stride, PADDED[0] // stride)
    for ours, mask in zip(shrunk, padded, strict=True):
        expected = cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR)
        assert torch.equal(ours, torch.from_numpy(expected).bool())


def test_dice_loss_of_right_and_wrong_masks():
    goals = torch.tensor([[[True, False], [True, False]]] * 3)
    masks = torch.stack((goals[0].float(), 1 - goals[0].float(), torch.full((2, 2), 0.5)))
    expected = torch.tensor([1 - 4 / 4.002, 1.0, 1 - 2 / 3.002])
    torch.testing.assert_close(dice_loss(masks, goals), expected)


def test_focal_loss_equals_its_definition():
    logits = torch.randn(50, 4, dtype=torch.float64)
    labels = torch.randint(5, (50,))
    expected = 0.0
    for row, label in zip(logits.sigmoid().tolist(), labels.tolist(), strict=True):
        for c, p in enumerate(row):
            pt, alpha = (p, 0.25) if c == label else (1 - p, 0.75)
            expected -= alpha * (1 - pt) ** 2 * torch.tensor(pt).log().item()
    assert focal_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_single(dtype):
    masks = torch.rand(2, 600, 400).to(dtype)  # the sum of squares exceeds what float16 can hold
    goals = torch.rand(2, 600, 400) > 0.5
    assert torch.equal(dice_loss(masks, goals), dice_loss(masks.float(), goals))
    logits, labels = torch.randn(5000, 8).to(dtype), torch.randint(9, (5000,))
    assert torch.equal(focal_loss(logits, labels), focal_loss(logits.float(), labels))


def test_unknown_normalizer_is_refused():
    with pytest.raises(ValueError, match="'pixels'"):
        SOLOLoss(dice_normalizer="pixels")
