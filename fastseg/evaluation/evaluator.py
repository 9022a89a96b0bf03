"""What all evaluators share: their three methods, and merging across processes."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, TypeVar

Part = TypeVar("Part")


class Evaluator(ABC):
    """Collects results and turns them into numbers.

    Where `torch.distributed` is initialised each process updates its evaluator with the results of
    its own images, and `compute`, which all processes must call, gives each the same numbers.
    """

    @abstractmethod
    def update(self, *results: Any, **options: Any) -> None:
        """Adds results; each evaluator says of what form."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The metrics of all results so far, by name."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets all results."""


def gathered(part: Part) -> list[Part]:
    """The parts of all processes, in order of their rank; `[part]` where there is only this one.

    Args:
        part: what this process holds; pickled, so best a few NumPy arrays.
    """
    torch = sys.modules.get("torch")  # nobody has initialised what nobody has imported
    if torch is None or not torch.distributed.is_available():
        return [part]
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return [part]
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return parts
