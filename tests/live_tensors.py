"""Memory by what is alive: the bytes of tensors that exist at the same time."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Adds up the storages of ops' outputs that live, but for the known ones.

    What an op allocates inside and frees before it returns is not seen.

    Args:
        known: tensors whose storages do not count.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {x.untyped_storage().data_ptr() for x in known}
        self.tensors: dict[int, tuple[int, list[weakref.ref]]] = {}
        self.peak = 0
        self.largest = 0

    def __torch_dispatch__(
        self, op: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        outputs = op(*args, **(kwargs or {}))
        for x in tree_leaves(outputs):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.known:
                storage = x.untyped_storage()
                _, views = self.tensors.get(storage.data_ptr(), (0, []))
                self.tensors[storage.data_ptr()] = (storage.nbytes(), [*views, weakref.ref(x)])
                self.largest = max(self.largest, storage.nbytes())
        self.tensors = {
            address: (size, views)
            for address, (size, views) in self.tensors.items()
            if any(view() is not None for view in views)
        }
        self.peak = max(self.peak, sum(size for size, _ in self.tensors.values()))
        return outputs
