"""What the ops know of the GPU that they run on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastseg.ops import _registry


@pytest.mark.parametrize(
    ("compiled", "gpu", "expected"),
    [
        ([75, 80, 86, 89, 90], (9, 0), (9, 0)),
        ([75, 80, 86, 89, 90], (8, 7), (8, 6)),
        ([75, 80, 86, 89, 90], (12, 0), (9, 0)),
        ([75], (8, 0), (7, 5)),  # whose PTX lacks what came with 8.0
        ([100, 120], (12, 1), (12, 0)),
        ([90], (8, 0), (8, 0)),  # a launch will fail
    ],
)
def test_capability_of_kernels(
    compiled: list[int],
    gpu: tuple[int, int],
    expected: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_registry, "_ARCHITECTURES", compiled)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpu)
    tensor = SimpleNamespace(is_cuda=True, device="cuda:1")
    assert _registry.kernel_capability(tensor) == expected


def test_the_emulator_has_tensor_cores() -> None:
    assert _registry.kernel_capability(torch.zeros(1)) == (8, 0)
