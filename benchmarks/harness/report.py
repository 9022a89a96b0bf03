"""Results as a table on the terminal, as JSON and as a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.case import OURS
from benchmarks.harness.runner import Row


def print_machine(console: Console, machine: dict[str, Any], copy: float) -> None:
    """What is measured on: hardware, versions, date.

    Args:
        console: where to.
        machine: of `machine.describe`.
        copy: measured copy bandwidth in bytes per second.
    """
    console.print(_versions(machine, copy) + "\n")


def table(op: str, rows: list[Row]) -> Table:
    """The rows of one op side by side.

    Args:
        op: the table's title.
        rows: of one device.
    """
    cuda = rows[0].device == "cuda"
    result = Table(title=op, title_justify="left", title_style="bold")
    result.add_column("case")
    result.add_column("provider")
    for header in ("eager ms", "p20-p80", "graph ms") if cuda else ("wall ms", "p20-p80", "cpu ms"):
        result.add_column(header, justify="right")
    for header in ("TFLOP/s" if any(row.flops for row in rows) else "GB/s", "of floor"):
        result.add_column(header, justify="right")
    result.add_column("fastseg is", justify="right")
    for i, row in enumerate(rows):
        same_case = i > 0 and _label(rows[i - 1]) == _label(row)
        if i > 0 and not same_case:
            result.add_section()
        result.add_row("" if same_case else _label(row), row.provider, *_cells(row, cuda))
    return result


def print_notes(console: Console, rows: list[Row]) -> None:
    """Everything that was not measured, and why.

    Args:
        console: where to.
        rows: of one op.
    """
    for row in rows:
        if row.status != "ok":
            colour = "red" if row.failed else "yellow"
            console.print(f"[{colour}]{_label(row)}: {row.provider} {row.status}[/]: {row.reason}")
        elif row.graph_reason:
            console.print(f"{_label(row)}: {row.provider} has no CUDA graph: {row.graph_reason}")


def write_json(path: Path, machine: dict[str, Any], copy: float, rows: list[Row]) -> None:
    """Everything measured, with the machine that it was measured on.

    Args:
        path: file to write.
        machine: of `machine.describe`.
        copy: measured copy bandwidth in bytes per second.
        rows: all rows.
    """
    document = {
        "machine": {**machine, "copy_bandwidth": copy},
        "results": [row.to_json() for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def write_markdown(path: Path, machine: dict[str, Any], copy: float, rows: list[Row]) -> None:
    """The results against peers as a section of docs/performance.md.

    Args:
        path: file to write.
        machine: of `machine.describe`.
        copy: measured copy bandwidth in bytes per second.
        rows: all rows.
    """
    cuda = rows[0].device == "cuda"
    kinds = ("wall", "graph") if cuda else ("wall", "cpu")
    names = ("eager", "graph") if cuda else ("wall clock", "CPU time")
    columns = [f"{whose}, ms {name}" for whose in ("peer", "fastseg") for name in names]
    columns = ["op", "case", "peer", *columns, *(f"ratio {name}" for name in names), "of floor"]
    lines = [_versions(machine, copy), "", _markdown_row(columns), "| --- " * len(columns) + "|"]
    ours: Row | None = None
    for row in rows:
        if row.provider == OURS:
            ours = row
        if ours is None or not row.speedup:
            continue
        times = [getattr(side, kind) for side in (row, ours) for kind in kinds]
        cells = [row.op, _label(row), row.provider]
        cells += [_milliseconds(time.median) if time else "no" for time in times]
        cells += [f"{row.speedup[kind]:.3g}" if kind in row.speedup else "" for kind in kinds]
        best = ours.best
        cells.append(f"{ours.floor / best.median:.1%}" if best else "")
        lines.append(_markdown_row(cells))
    path.write_text("\n".join(lines) + "\n")


def plot(path: Path, machine: dict[str, Any], rows: list[Row]) -> None:
    """A bar per case and peer: how many times faster fastseg is, on a logarithmic axis.

    Args:
        path: image file to write.
        machine: of `machine.describe`.
        rows: all rows; those without a speed-up are left out.
    """
    from matplotlib.figure import Figure

    cuda = rows[0].device == "cuda"
    kinds = {"wall": "eager", "graph": "CUDA graph"} if cuda else {"wall": "wall clock"}
    bars = [
        (f"{row.op}: {_label(row)}, {row.provider}, {kinds[kind]}", ratio)
        for row in rows
        for kind, ratio in row.speedup.items()
        if kind in kinds
    ][::-1]
    figure = Figure(figsize=(10, 1.2 + 0.24 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    ratios = [ratio for _, ratio in bars]
    colours = ["#2f6f9f" if ratio >= 1 else "#c0504d" for ratio in ratios]
    # Bars start at 1, so that they point to the left where fastseg is slower.
    drawn = axes.barh(range(len(bars)), [r - 1 for r in ratios], left=1, color=colours)
    axes.bar_label(drawn, [f"{ratio:.3g}x" for ratio in ratios], padding=3, fontsize=8)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(x=0.15, y=0.01)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("fastseg is this many times faster")
    axes.set_title(_hardware(machine))
    figure.savefig(path, dpi=130)


def _hardware(machine: dict[str, Any]) -> str:
    return machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} thread(s)"


def _versions(machine: dict[str, Any], copy: float) -> str:
    names = ("fastseg", "commit", "torch", "torchvision", "pycocotools", "cuda", "driver")
    parts = [
        _hardware(machine),
        f"copy {copy / 1e9:.4g} GB/s (read + written)",
        *(f"{name} {machine[name]}" for name in names if machine.get(name)),
        machine["date"],
    ]
    return " · ".join(parts)


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _label(row: Row) -> str:
    return f"{row.case} {row.dtype}".strip()


def _cells(row: Row, cuda: bool) -> list[str]:
    if row.wall is None:
        return [row.status, *[""] * 5]
    best = row.best
    assert best is not None
    rate = f"{row.flops / best.median / 1e12:.3g}" if row.flops else ""
    second = row.graph if cuda else row.cpu
    return [
        _milliseconds(row.wall.median),
        f"{_milliseconds(row.wall.quantile(0.2))}-{_milliseconds(row.wall.quantile(0.8))}",
        _milliseconds(second.median) if second else "no",
        rate or f"{row.bytes_moved / best.median / 1e9:.3g}",
        f"{row.floor / best.median:.1%}",
        _speedup(row),
    ]


def _speedup(row: Row) -> str:
    if row.provider == OURS:
        return ""
    if row.status != "ok":
        return row.status
    names = {"wall": "", "cpu": " cpu", "graph": " graph"}
    return ", ".join(f"{ratio:.3g}x{names[kind]}" for kind, ratio in row.speedup.items())


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"
