"""Networks are made for their tensors without computing initial values that nobody will see."""

from __future__ import annotations

import torch
from torch import nn

from fastseg.checkpoints.without_storage import without_storage


def test_random_values_are_left_out():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with without_storage():
        layer = nn.Linear(3, 2)
        for initialise in (nn.init.normal_, nn.init.trunc_normal_, nn.init.orthogonal_):
            assert initialise(layer.weight) is layer.weight
        assert layer.weight.normal_() is layer.weight
    assert layer.weight.is_meta
    assert layer.weight.shape == (2, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert nn.Linear(3, 2).weight.std() > 0


def test_torch_does_not_import_its_compiler(run_python):
    """Which takes longer than reading a file."""
    program = """
import sys
from fastseg import models
from fastseg.checkpoints.without_storage import without_storage
with without_storage():
    models.mask2former_swin_t()
    models.maskformer_resnet50()
    models.solov2_resnet50_fpn()
    models.mask_rcnn_resnet50_fpn()
sys.exit(" ".join({"torch._dynamo", "sympy"} & set(sys.modules)) or None)
"""
    done = run_python("-c", program)
    assert (done.returncode, done.stderr) == (0, "")
