"""Times the providers of a case, interleaved (A B A B ...) so that drift hits all alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from benchmarks.harness.case import Run

_MIN_SAMPLE = (
    1e-3  # seconds; shorter calls are repeated within a sample, the clock being too coarse
)
_MIN_ROUNDS, _MAX_ROUNDS = 5, 200
_WARM_UP = 0.3  # seconds; a GPU needs about this long to raise its clocks


@dataclass(frozen=True)
class Times:
    """Seconds per call, one entry per round. Entry i of all providers ran in the same round."""

    samples: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    def quantile(self, share: float) -> float:
        return sorted(self.samples)[round(share * (len(self.samples) - 1))]

    def ratio_to(self, other: Times) -> float:
        """Median over the rounds of this time / the other's time in the same round."""
        pairs = zip(self.samples, other.samples, strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)


def time_cpu(runs: dict[str, Run], seconds: float) -> dict[str, tuple[Times, Times]]:
    """Wall-clock and process CPU time of each provider.

    CPU time sums over threads, spinning ones too: it compares providers in runs with one thread,
    where it does not see what else the machine does.

    Args:
        runs: calls by provider.
        seconds: about how long to measure all of them together.
    """
    single = {name: _warm_up(run, min(0.02, seconds)) for name, run in runs.items()}
    repeats = {name: max(1, math.ceil(_MIN_SAMPLE / single[name])) for name in runs}
    rounds = _rounds(seconds, sum(single[name] * repeats[name] for name in runs))
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    with _no_garbage_collection():
        for _ in range(rounds):
            for name, run in runs.items():
                cpu_start, wall_start = time.process_time(), time.perf_counter()
                for _ in range(repeats[name]):
                    run()
                wall[name].append((time.perf_counter() - wall_start) / repeats[name])
                cpu[name].append((time.process_time() - cpu_start) / repeats[name])
    return {name: (Times(wall[name]), Times(cpu[name])) for name in runs}


def time_cuda_eager(runs: dict[str, Run], seconds: float, flush: Run | None) -> dict[str, Times]:
    """Time from an idle GPU to the end of the work: what the host costs is part of it.

    Args:
        runs: calls by provider.
        seconds: about how long to measure all of them together.
        flush: of `l2_flush`, before each sample; None leaves the caches warm.
    """
    return _time_events(runs, seconds, flush, idle=True)


def time_cuda_graph(
    graphs: dict[str, torch.cuda.CUDAGraph], seconds: float, flush: Run | None
) -> dict[str, Times]:
    """Time of a graph's replay on a GPU that is still busy: device work alone.

    Args:
        graphs: captured calls by provider.
        seconds: about how long to measure all of them together.
        flush: of `l2_flush`, before each sample; None leaves the caches warm.
    """
    runs = {name: graph.replay for name, graph in graphs.items()}
    return _time_events(runs, seconds, flush, idle=False)


def capture(run: Run) -> tuple[torch.cuda.CUDAGraph | None, str]:
    """The call as a CUDA graph, or None and the reason why it cannot be captured.

    Must run on the stream that is current while the provider was prepared and warmed up.
    """
    # A failed capture can leave torch's allocator in a bad state, so ask about the usual cause,
    # a synchronisation with the host, without capturing.
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        run()
    except RuntimeError as error:
        return None, f"synchronises: {_first_line(error)}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            run()
    except RuntimeError as error:
        return None, f"capture fails: {_first_line(error)}"
    return graph, ""


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream of our own on a GPU: the default one cannot be captured, and the backward pass runs
    on the stream of its forward pass, which must therefore be the one that is captured.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def l2_flush(device: torch.device) -> Run:
    """A call that leaves none of the inputs in the GPU's L2 cache, by overwriting all of it.

    It takes long enough for the host to hand over a graph meanwhile.
    """
    size = max(2 * torch.cuda.get_device_properties(device).L2_cache_size, 2**28)
    return torch.empty(size, dtype=torch.uint8, device=device).zero_


def _time_events(
    runs: dict[str, Run], seconds: float, flush: Run | None, idle: bool
) -> dict[str, Times]:
    single = {name: _warm_up(run, min(_WARM_UP, seconds) / len(runs)) for name, run in runs.items()}
    samples: dict[str, list[float]] = {name: [] for name in runs}
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with _no_garbage_collection():
        for _ in range(_rounds(seconds, sum(single.values()))):
            for name, run in runs.items():
                (flush or run)()
                if idle:
                    torch.cuda.synchronize()
                start.record()
                run()
                end.record()
                torch.cuda.synchronize()
                samples[name].append(start.elapsed_time(end) * 1e-3)
    return {name: Times(values) for name, values in samples.items()}


def _warm_up(run: Run, seconds: float) -> float:
    """Calls for at least that long; returns the fastest call's time."""
    fastest, begin = math.inf, time.perf_counter()
    while fastest == math.inf or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        run()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def _rounds(seconds: float, seconds_per_round: float) -> int:
    if seconds == 0:  # not a measurement, only a trial
        return 1
    return min(max(int(seconds / seconds_per_round), _MIN_ROUNDS), _MAX_ROUNDS)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
