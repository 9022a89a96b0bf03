"""The SOLO family against mmdetection's models, run with the same random weights."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import mmdetection_peer
import pytest
import torch
from made_up_images import images
from pycocotools import mask as coco_mask

from fastseg import load_model
from fastseg.checkpoints.keys import renamed
from fastseg.checkpoints.mmdetection_solo import RULES
from fastseg.layers.solo_head import SOLOPredictions
from fastseg.layers.solov2_head import SOLOv2Predictions
from fastseg.losses import InstanceTargets, SOLOLoss

mmdetection_peer.import_mmdet()

SCALE_RANGES = ((1, 48), (24, 64), (32, 96), (48, 128), (96, 256))
SMALL = {
    "backbone__depth": 18,
    "neck__in_channels": [64, 128, 256, 512],
    "neck__out_channels": 64,
    "mask_head__in_channels": 64,
    "mask_head__feat_channels": 64,
    "mask_head__num_classes": 7,
    "mask_head__scale_ranges": SCALE_RANGES,
}
DEFORMABLE = {
    "backbone__depth": 50,
    "backbone__base_channels": 8,
    "neck__in_channels": [32, 64, 128, 256],
    "mask_head__feat_channels": 32,
}
# Config, changes, layers whose outputs get a deviation and a mean, and a seed with which no value
# lies within rounding of a threshold.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, tuple[float, float]], int]] = {
    "solov2": (
        "solov2/solov2_r50_fpn_1x_coco",
        {},
        {"conv_cls": (2.0, -7.0), "conv_kernel": (0.25, -0.05)},
        3,
    ),
    "solov2_light": (
        "solov2/solov2-light_r50_fpn_ms-3x_coco",
        {},
        {"conv_cls": (2.0, -7.0), "conv_kernel": (0.25, -0.05)},
        2,
    ),
    "solov2_dcn": (
        "solov2/solov2_r101-dcn_fpn_ms-3x_coco",
        DEFORMABLE,
        {"conv_cls": (2.0, -7.0), "conv_kernel": (0.25, -0.05)},
        4,
    ),
    "solov2_light_dcn": (
        "solov2/solov2-light_r50-dcn_fpn_ms-3x_coco",
        {
            **DEFORMABLE,
            "backbone__type": "ResNeXt",
            "backbone__groups": 8,
            "backbone__base_width": 4,
        },
        {"conv_cls": (2.0, -7.0), "conv_kernel": (0.25, -0.05)},
        4,
    ),
    "solov2_light_dcn_v1": (
        "solov2/solov2-light_r50-dcn_fpn_ms-3x_coco",
        {**DEFORMABLE, "backbone__dcn__type": "DCN", "mask_head__dcn_cfg__type": "DCN"},
        {"conv_cls": (2.0, -7.0), "conv_kernel": (0.25, -0.05)},
        4,
    ),
    "solo": (
        "solo/solo_r50_fpn_1x_coco",
        {},
        {
            "conv_cls": (2.0, -7.0),
            **{f"conv_mask_list.{level}": (2.0, -2.0) for level in range(5)},
        },
        0,
    ),
    "decoupled_solo": (
        "solo/decoupled-solo_r50_fpn_1x_coco",
        {},
        {
            "conv_cls": (2.0, -7.0),
            **{f"conv_mask_list_{a}.{level}": (2.0, 0.0) for a in "xy" for level in range(5)},
        },
        9,
    ),
    "decoupled_solo_light": (
        "solo/decoupled-solo-light_r50_fpn_3x_coco",
        {},
        {
            "conv_cls": (2.0, -7.0),
            **{f"conv_mask_list_{a}.{level}": (2.0, 0.0) for a in "xy" for level in range(5)},
        },
        1,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A peer, ours with its weights, and a batch of unlike images of odd sizes."""
    config, changes, deviations, seed = CASES[request.param]
    peer = mmdetection_peer.mmdet_model(config, seed, **{**SMALL, **changes})
    options = {"min_size": 128, "max_size": 224, "max_candidates": 10000}
    batch = load_model(peer.state_dict(), **options).preprocess(images((101, 150), (163, 131)))
    mmdetection_peer.spread_outputs(peer, batch.pixels, **deviations)
    return peer, load_model(peer.state_dict(), **options), batch


def test_predictions_of_cells(case):
    peer, model, batch = case
    with torch.no_grad():
        ours = model.predict_grids(batch.pixels)
        peer.mask_head.train()  # in evaluation mode the peer's SOLO goes on to probabilities
        theirs = peer.mask_head(peer.extract_feat(batch.pixels))
        peer.mask_head.eval()
    if isinstance(ours, SOLOv2Predictions):
        found = [*ours.kernels, *ours.class_logits, ours.mask_features]
    elif isinstance(ours, SOLOPredictions):
        pairs = zip(model.head.mask_predictors, ours.mask_features, strict=True)
        found = [*(predictor(features) for predictor, features in pairs), *ours.class_logits]
    else:
        found = [*ours.column_logits, *ours.row_logits, *ours.class_logits]
    expected = [x for levels in theirs for x in (levels if isinstance(levels, list) else [levels])]
    for x, other in zip(found, expected, strict=True):
        # Logits reach 14, and dozens of convolutions sum in another order than the peer's, which
        # are not channels-last: measured 8e-6 of the largest.
        torch.testing.assert_close(x, other, rtol=2e-5, atol=1e-4)


def test_instances(case):
    peer, model, batch = case
    with torch.inference_mode():
        results = model.postprocess(model(batch.pixels, batch.sizes), batch)
    expected = mmdetection_peer.mmdet_results(
        peer, batch.pixels, [tuple(size) for size in batch.sizes.tolist()], batch.original_sizes
    )
    for ours, theirs in zip(results, expected, strict=True):
        assert len(ours) >= 10
        assert len(set(ours.labels.tolist())) > 2
        assert ours.labels.tolist() == theirs["labels"].tolist()
        # What the logits' differences give: measured 7e-6. A pixel differs where its probability
        # is within as much of the threshold.
        torch.testing.assert_close(ours.scores, theirs["scores"], rtol=0, atol=1e-5)
        masks = torch.from_numpy(coco_mask.decode(ours.rles)).permute(2, 0, 1).bool()
        assert (masks != theirs["masks"]).float().mean() <= 1e-4
        assert 0.001 < masks.float().mean() < 0.5


def test_losses_and_gradients(case):
    # In double precision: ReLUs near 0 multiply rounding on the way back to the first layers.
    peer, model, batch = case
    peer, model, pixels = deepcopy(peer).double(), deepcopy(model).double(), batch.pixels.double()
    targets = [blobs(size, seed) for seed, size in enumerate(batch.sizes.tolist())]
    expected, gradients = mmdetection_peer.mmdet_losses(peer, pixels, targets)
    losses = SOLOLoss(scale_ranges=SCALE_RANGES, dice_normalizer="cells")(
        model.head, model.train().predict_grids(pixels), targets, tuple(pixels.shape[2:])
    )
    losses.total.backward()
    torch.testing.assert_close(losses.named(), dict(expected), rtol=1e-6, atol=0)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = renamed(gradients, RULES)
    assert len(gradients) > 50
    for name, gradient in gradients.items():
        assert (ours[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


def blobs(size: list[int], seed: int) -> InstanceTargets:
    """Ellipses of many sizes; the last two share box and centre, so that they share cells."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(9, 4, generator=generator)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    centers = numbers[:, :2] * torch.tensor([height, width])
    radii = 4 + numbers[:, 2:] * torch.tensor([height, width]) * torch.arange(1, 10)[:, None] / 24
    centers[8], radii[8] = centers[7], radii[7]
    masks = torch.stack(
        [
            ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
            for (cy, cx), (ry, rx) in zip(centers.tolist(), radii.tolist(), strict=True)
        ]
    )
    boxes = torch.stack(
        [
            torch.stack((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            for rows, columns in (mask.nonzero(as_tuple=True) for mask in masks)
        ]
    )
    labels = torch.randint(7, (9,), generator=generator)
    return InstanceTargets(boxes.float(), labels, masks)
