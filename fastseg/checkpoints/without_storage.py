"""Networks that are about to be filled: without memory, and without initial values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def without_storage() -> Iterator[None]:
    """Tensors that are made inside are on the meta device, where none is given random values.

    There would be nothing to see of the values, but the first one costs a second: on the meta
    device torch does it in Python and imports its compiler for that.
    """
    with torch.device("meta"), _NoRandomValues():
        yield


class _NoRandomValues(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
