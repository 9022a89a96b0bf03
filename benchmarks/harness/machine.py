"""The machine that a number was taken on: names, versions, and its measured ceilings."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT

PEERS = ("torchvision", "pycocotools", "numpy")


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware, driver, versions, commit and date, for the head of a report.

    Args:
        device: the device that is measured.
    """
    import fastseg
    from fastseg import _C

    machine: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "fastseg": fastseg.__version__,
        "build": dict(_C.build_info()),
        "torch": torch.__version__,
        **{name: _version(name) for name in PEERS},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine["gpu"] = properties.name
        machine["gpu_memory"] = properties.total_memory
        machine["l2_cache"] = properties.L2_cache_size
        machine["driver"] = _output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
        machine["cuda"] = torch.version.cuda
    return machine


def copy_bandwidth(device: torch.device, quick: bool = False) -> float:
    """Bytes per second of a large copy, read and written bytes both counted: the floor's rate.

    Args:
        device: where to measure.
        quick: a small buffer, for tests.
    """
    size = 2**20 if quick else 2**28 if device.type == "cpu" else 2**30
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _fastest(lambda: target.copy_(source), device)


def matmul_rate(device: torch.device, dtype: torch.dtype, quick: bool = False) -> float:
    """Floating-point operations per second of a large matrix product.

    Args:
        device: where to measure.
        dtype: of the matrices.
        quick: a small product, for tests.
    """
    n = 128 if quick else 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32, which convolutions use on a GPU by default
    try:
        return 2 * n**3 / _fastest(lambda: a @ a, device)
    finally:
        torch.set_float32_matmul_precision(precision)


def _fastest(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds per call; on a GPU of several calls in a row, which hides the cost of launching."""
    calls = 10 if device.type == "cuda" else 1
    fastest = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(calls):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        fastest = min(fastest, (time.perf_counter() - start) / calls)
    return fastest


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    commit = _output("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit


def _output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip().partition("\n")[0]


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
