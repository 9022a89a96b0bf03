"""Runs one case: builds its providers, checks that they agree, times them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.harness import machine, timing
from benchmarks.harness.case import OURS, Case, Run, Setting
from benchmarks.harness.timing import Times


@dataclass
class Row:
    """What was found of one provider in one case; times in seconds, per call."""

    op: str
    case: str
    provider: str
    device: str
    dtype: str
    status: str = "ok"  # or: not installed, failed, differs, not compared
    reason: str = ""
    wall: Times | None = None  # CPU: wall clock; CUDA: eager, the host's work included
    cpu: Times | None = None  # process CPU time; on the CPU only
    graph: Times | None = None  # replay of a CUDA graph
    graph_reason: str = ""  # why there is none
    bytes_moved: int = 0
    flops: int = 0
    floor: float = 0.0  # no implementation is faster than this
    # How many times faster fastseg is; absent on fastseg's own row and where results differ.
    speedup: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> Times | None:
        """The time that the floor is compared with: the device's own where that was measured."""
        return self.graph or self.wall

    @property
    def failed(self) -> bool:
        """True where the numbers cannot be vouched for; a peer that cannot run is no failure."""
        return self.status in ("differs", "not compared") or (
            self.provider == OURS and self.status != "ok"
        )

    def to_json(self) -> dict[str, Any]:
        """The row with summaries in the place of samples."""
        values = asdict(self)
        for name in ("wall", "cpu", "graph"):
            times: Times | None = getattr(self, name)
            values[name] = times and {
                "median": times.median,
                "p20": times.quantile(0.2),
                "p80": times.quantile(0.8),
                "rounds": len(times.samples),
            }
        return values


@dataclass
class Ceilings:
    """The machine's measured rates; the matrix product's only where a case needs it."""

    setting: Setting
    copy: float  # bytes per second
    matmul: float | None = None  # floating-point operations per second

    def floor(self, case: Case) -> float:
        """Seconds below which no implementation of the case can come on this machine.

        Args:
            case: its bytes and matrix products bound the time.
        """
        if case.flops and self.matmul is None:
            self.matmul = machine.matmul_rate(
                self.setting.device, self.setting.dtype, self.setting.quick
            )
        arithmetic = case.flops / self.matmul if self.matmul else 0.0
        return max(case.bytes_moved / self.copy, arithmetic)


def run_case(
    op: str,
    case: Case,
    setting: Setting,
    *,
    against: Sequence[str] | None,
    seconds: float,
    warm_cache: bool = False,
    graphs: bool = True,
    ceilings: Ceilings,
) -> list[Row]:
    """Builds, compares and times the providers of a case.

    Args:
        op: name of the op, for the rows.
        case: the workload.
        setting: device and data type.
        against: the peers to run; None for all.
        seconds: about how long to measure.
        warm_cache: leaves the inputs in the GPU's L2 cache between samples.
        graphs: also times the replay of CUDA graphs.
        ceilings: the machine's rates.

    Returns:
        One row per provider, fastseg's first.
    """
    names = [OURS] + [name for name in case.providers if name != OURS]
    if against is not None:
        names = [name for name in names if name == OURS or name in against]
    rows = {
        name: Row(
            op,
            case.name,
            name,
            setting.device.type,
            setting.type_name if case.has_dtype else "",
            bytes_moved=case.bytes_moved,
            flops=case.flops,
            floor=ceilings.floor(case),
        )
        for name in names
    }
    with _gradient_mode(case):
        runs = _prepare(case, rows)
        if not runs:  # ours failed, and there is nothing to compare with it
            return list(rows.values())
        if setting.device.type == "cpu":
            for name, (wall, cpu) in timing.time_cpu(runs, seconds).items():
                rows[name].wall, rows[name].cpu = wall, cpu
        else:
            flush = None if warm_cache else timing.l2_flush(setting.device)
            for name, times in timing.time_cuda_eager(runs, seconds / 2, flush).items():
                rows[name].wall = times
            if graphs:
                _time_graphs(runs, rows, seconds / 2, flush)
    _fill_speedups(rows)
    return list(rows.values())


def _gradient_mode(case: Case) -> AbstractContextManager[Any]:
    return torch.enable_grad() if case.needs_grad else torch.inference_mode()


def _prepare(case: Case, rows: dict[str, Row]) -> dict[str, Run]:
    """The calls that can be timed; rows of the others say why not."""
    runs: dict[str, Run] = {}
    ours: Any = None
    for name, row in rows.items():
        if name != OURS and OURS not in runs:
            row.status, row.reason = "not compared", "fastseg failed"
            continue
        try:
            run = case.providers[name]()
            result = run()
        except ImportError as error:
            row.status, row.reason = "not installed", str(error)
            continue
        except Exception as error:  # a report of all cases is worth more than the first traceback
            row.status, row.reason = "failed", f"{type(error).__name__}: {error}"
            continue
        runs[name] = run
        if name == OURS:
            ours = result
            continue
        difference = case.peer_agreement.get(name, case.agreement)(ours, result)
        if difference is not None:
            row.status, row.reason = "differs", difference
    return runs


def _time_graphs(
    runs: dict[str, Run], rows: dict[str, Row], seconds: float, flush: Run | None
) -> None:
    captured = {}
    for name, run in runs.items():
        graph, rows[name].graph_reason = timing.capture(run)
        if graph is not None:
            captured[name] = graph
    if captured:
        for name, times in timing.time_cuda_graph(captured, seconds, flush).items():
            rows[name].graph = times


def _fill_speedups(rows: dict[str, Row]) -> None:
    ours = rows[OURS]
    for row in rows.values():
        if row is ours or row.status != "ok":
            continue
        for name in ("wall", "cpu", "graph"):
            peer_times, our_times = getattr(row, name), getattr(ours, name)
            if peer_times is not None and our_times is not None:
                row.speedup[name] = peer_times.ratio_to(our_times)
