"""What `benchmarks/<op>.py` yields: cases, each with its providers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.harness.agreement import Agreement, close

OURS = "fastseg"

Run = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """What the command line chose for all cases of a run."""

    device: torch.device
    dtype: torch.dtype
    quick: bool = False  # tiny inputs, for a test that the benchmarks still run

    @property
    def type_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Case:
    """One workload and those that can do it.

    `providers` maps a name to a function that imports the provider, prepares it and returns the
    call to be timed. It is called once, before timing; an ImportError there means that the
    provider is not installed. `fastseg` is one of them, and the one that others are compared to.
    """

    name: str
    providers: dict[str, Callable[[], Run]]
    bytes_moved: int  # each input byte that matters read once, each output byte written once
    flops: int = 0  # of matrix products, where those bound the time
    agreement: Agreement = field(default_factory=close)
    # Peers that are known to round differently, with their own criterion.
    peer_agreement: dict[str, Agreement] = field(default_factory=dict)
    needs_grad: bool = False  # otherwise everything runs in inference mode
    has_dtype: bool = True  # False: the same whatever the setting's dtype, and run only once
