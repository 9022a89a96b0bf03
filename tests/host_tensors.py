"""What a forward pass in a CUDA graph must not do and the meta device does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


@contextmanager
def nothing_from_the_host() -> Iterator[None]:
    """Tensors made of Python's numbers raise: a GPU waits for them, which no graph can hold."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a tensor is copied from the host")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("tensor", "as_tensor", "asarray", "from_numpy"):
            patch.setattr(torch, name, refuse)
        patch.setattr(torch.Tensor, "new_tensor", refuse)
        yield
