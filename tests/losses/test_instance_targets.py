"""The truth of an image that is resized."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fastseg.losses import InstanceTargets


@pytest.mark.parametrize(
    ("old", "new"),
    [((7, 9), (14, 20)), ((100, 60), (33, 47)), ((1, 1), (3, 2)), ((48, 64), (80, 107))],
)
def test_resized(old: tuple[int, int], new: tuple[int, int]) -> None:
    targets = InstanceTargets(
        boxes=torch.rand(3, 4), labels=torch.tensor([4, 0, 2]), masks=torch.rand(3, *old) > 0.5
    )
    resized = targets.resized(new)
    expected = F.interpolate(targets.masks[:, None].float(), new, mode="nearest-exact")[:, 0]
    assert torch.equal(resized.masks, expected > 0)
    assert resized.labels is targets.labels
    for corner, scale in ((0, new[1] / old[1]), (1, new[0] / old[0])):
        moved = targets.boxes[:, corner::2] * scale
        torch.testing.assert_close(resized.boxes[:, corner::2], moved)


@pytest.mark.parametrize("size", [(5, 6), (0, 0)])
def test_no_instances_resized(size: tuple[int, int]) -> None:
    nothing = InstanceTargets(
        torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, *size).bool()
    )
    resized = nothing.resized((10, 12))
    assert resized.masks.shape == (0, 10, 12) and resized.masks.dtype == torch.bool
    assert resized.boxes.shape == (0, 4)
