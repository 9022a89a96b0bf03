"""What Mask R-CNN is trained to find, and its samples, against torchvision's own."""

from __future__ import annotations

import pytest
import torch

from fastseg.layers.box_coder import decode_boxes, encode_boxes
from fastseg.losses import mask_rcnn_targets
from fastseg.losses.mask_rcnn_targets import (
    count_matches,
    draw_samples,
    match_boxes,
    nth_true,
    project_masks,
)

pytest.importorskip("torchvision", reason="it is the peer that is compared with")
from torchvision.models.detection import _utils as peer_targets
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("count", [1, 3, 11])
@pytest.mark.parametrize("pairs", [1, 100, 1 << 22])
def test_matches_equal_torchvision(
    low_quality: bool, count: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Corners are integers and boxes come twice, so that overlaps tie; one overlaps nothing."""
    monkeypatch.setattr(mask_rcnn_targets, "PAIRS_AT_ONCE", pairs)
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        corners = torch.randint(0, 12, (2, 40, 2), generator=random).float()
        boxes = torch.cat([corners[0], corners[0] + 1 + corners[1]], 1)
        truth, candidates = boxes[:count], boxes[count // 2 :]
        if seed % 2:
            truth = torch.cat([truth, truth.flip(0), truth[:1] + 100])
        iou = box_iou(truth, candidates)
        assert torch.equal(mask_rcnn_targets.box_iou(truth, candidates), iou)
        for high, low in ((0.7, 0.3), (0.5, 0.5), (0.2, 0.0)):
            matches = match_boxes(
                truth,
                candidates,
                fg_iou_thresh=high,
                bg_iou_thresh=low,
                allow_low_quality_matches=low_quality,
            )
            peer = peer_targets.Matcher(high, low, allow_low_quality_matches=low_quality)
            assert torch.equal(matches, peer(iou))


def test_without_instances_all_is_background() -> None:
    options = {"fg_iou_thresh": 0.5, "bg_iou_thresh": 0.0, "allow_low_quality_matches": True}
    assert match_boxes(torch.zeros(0, 4), torch.ones(3, 4), **options).tolist() == [-1, -1, -1]
    assert match_boxes(torch.ones(2, 4), torch.zeros(0, 4), **options).shape == (0,)


def test_box_offsets_equal_torchvision() -> None:
    corners, sides = 50 * torch.rand(2, 100, 2), 1 + 80 * torch.rand(2, 100, 2)
    boxes, references = torch.cat([corners, corners + sides], 2)
    weights = (10.0, 9.0, 5.0, 4.0)
    offsets = encode_boxes(boxes, references, weights)
    assert torch.equal(offsets, peer_targets.BoxCoder(weights).encode_single(boxes, references))
    torch.testing.assert_close(
        decode_boxes(offsets, references, weights), boxes, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("positives", [0, 3, 60])
@pytest.mark.parametrize("negatives", [0, 5, 200])
@pytest.mark.parametrize(("batch_size", "fraction"), [(64, 0.5), (33, 0.3), (512, 0.25), (1, 0.0)])
def test_samples_equal_torchvision(
    positives: int, negatives: int, batch_size: int, fraction: float
) -> None:
    kinds = torch.tensor([7] * positives + [-1] * negatives + [-2] * 20)
    matches = kinds[torch.randperm(len(kinds))]
    labels = torch.where(matches >= 0, 1, matches + 1)  # 0 is background, -1 ignored
    assert count_matches(matches).tolist() == [positives, negatives]

    torch.manual_seed(3)
    samples = draw_samples(
        matches,
        positives,
        negatives,
        batch_size_per_image=batch_size,
        positive_fraction=fraction,
        randperm=torch.randperm,
    )
    torch.manual_seed(3)
    chosen = peer_targets.BalancedPositiveNegativeSampler(batch_size, fraction)([labels])
    for ours, (mask,) in zip((samples.positives, samples.negatives), chosen, strict=True):
        assert torch.equal(ours, mask.nonzero().flatten())
    assert (samples.instances == 7).all() and len(samples.instances) == len(samples.positives)


def test_finds_true_elements_by_rank() -> None:
    mask = torch.tensor([False, True, True, False, True])
    assert nth_true(mask, torch.tensor([2, 0])).tolist() == [1, 4]
    assert nth_true(mask, torch.tensor([], dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("count", [0, 2, 9])
def test_projected_masks_equal_torchvision(count: int) -> None:
    """Fewer and more regions than masks; some of them beyond the image, one a point."""
    masks = torch.rand(4, 50, 70) > 0.5
    corners = torch.tensor([70, 50]) * (1.4 * torch.rand(count, 2) - 0.2)
    boxes = torch.cat([corners, corners + 60 * torch.rand(count, 2)], 1)
    boxes[:1, 2:] = boxes[:1, :2]
    instances = torch.randint(4, (count,))
    projected = project_masks(masks, boxes, instances, 28)
    expected = project_masks_on_boxes(masks.byte(), boxes, instances, 28)
    torch.testing.assert_close(projected, expected, rtol=0, atol=1e-6)
