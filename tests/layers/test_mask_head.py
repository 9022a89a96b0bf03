"""The mask predictor computes the channel of the given class and no other."""

from __future__ import annotations

import torch

from fastseg.layers.mask_head import MaskPredictor


def test_selected_class_equals_all_classes():
    predictor = MaskPredictor(in_channels=5, dim_reduced=6, num_classes=4)
    x, labels = torch.randn(7, 5, 14, 14), torch.tensor([0, 3, 1, 1, 2, 3, 0])
    with torch.inference_mode():
        every = predictor.mask_fcn_logits(predictor.conv5_mask(x).relu())
        selected = predictor(x, labels)
    assert selected.shape == (7, 28, 28)
    torch.testing.assert_close(selected, every[torch.arange(7), labels], rtol=1e-5, atol=1e-6)


def test_no_regions():
    predictor = MaskPredictor(in_channels=5, dim_reduced=6, num_classes=4)
    masks = predictor(torch.zeros(0, 5, 14, 14), torch.zeros(0, dtype=torch.int64))
    assert masks.shape == (0, 28, 28)
