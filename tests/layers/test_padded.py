"""Lists of unlike length in one tensor."""

from __future__ import annotations

import torch

from fastseg.layers.padded import as_rois, is_row, rows_in_use, take_rows


def test_take_rows_leaves_zeros_for_padding():
    index = torch.tensor([[2, 0, -1], [-1, -1, -1]])
    labels = torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert take_rows(labels, index).tolist() == [[7, 5, 0], [0, 0, 0]]
    boxes = torch.stack((labels, -labels), dim=2).float()
    assert take_rows(boxes, index).tolist() == [[[7, -7], [5, -5], [0, 0]], [[0, 0]] * 3]


def test_is_row():
    assert is_row(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]


def test_rows_in_use_are_read_on_the_cpu_alone():
    assert rows_in_use(torch.tensor([3, 7]), 10) == 7
    assert rows_in_use(torch.empty(2, dtype=torch.int64, device="meta"), 10) == 10


def test_as_rois():
    boxes = torch.arange(16.0).view(2, 2, 4)
    rois = as_rois(boxes)
    assert rois[:, 0].tolist() == [0, 0, 1, 1]
    assert torch.equal(rois[:, 1:], boxes.view(4, 4))
