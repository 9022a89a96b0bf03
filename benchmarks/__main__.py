"""`python -m benchmarks [op ...]`: times fastseg and its peers side by side."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.harness import machine, report, timing
from benchmarks.harness.case import OURS, Case, Setting
from benchmarks.harness.runner import Ceilings, Row, run_case

OPS = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks; the exit status is 1 when a provider's results differ or ours failed.

    Args:
        arguments: the command line; None for this process's.
    """
    options = _parse(arguments)
    torch.set_num_threads(options.threads or torch.get_num_threads())
    device = torch.device(options.device)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    about = machine.describe(device)
    copy = machine.copy_bandwidth(device, options.quick)
    report.print_machine(console, about, copy)
    rows: list[Row] = []
    with timing.own_stream(device):
        for op in options.ops or OPS:
            found: list[Row] = []
            for rows_of_case in _run_op(op, options, device, copy, console):
                found += rows_of_case
                rows += rows_of_case
                # After each case, so that a run cut short leaves what it measured.
                if options.json:
                    report.write_json(options.json, about, copy, rows)
                if options.markdown:
                    report.write_markdown(options.markdown, about, copy, rows)
            if found:
                console.print(report.table(op, found))
                report.print_notes(console, found)
                console.print()
    if options.plot:
        report.plot(options.plot, about, rows)
    return int(any(row.failed for row in rows) or not rows)


def _run_op(
    op: str, options: argparse.Namespace, device: torch.device, copy: float, console: Console
) -> Iterator[list[Row]]:
    """The rows of one case after the other; what an op raises does not stop the next ones."""
    cases = importlib.import_module(f"benchmarks.{op}").cases
    for dtype in options.dtype:
        setting = Setting(device, getattr(torch, dtype), options.quick)
        ceilings = Ceilings(setting, copy)
        name = "inputs"
        try:
            case: Case
            for case in cases(setting):
                name = case.name
                repeated = not case.has_dtype and dtype != options.dtype[0]
                if options.case not in name or repeated:
                    continue
                with console.status(f"{op}: {name}"):
                    rows = run_case(
                        op,
                        case,
                        setting,
                        against=options.against,
                        seconds=0.0 if options.quick else options.seconds,
                        warm_cache=options.warm_cache,
                        graphs=not options.no_graph,
                        ceilings=ceilings,
                    )
                yield rows
        except Exception as error:
            console.print_exception()
            reason = f"{type(error).__name__}: {error}"
            yield [Row(op, name, OURS, device.type, dtype, status="failed", reason=reason)]


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("ops", nargs="*", metavar="op", help=f"default: all of {', '.join(OPS)}")
    parser.add_argument("--against", type=_names, help="peers, by comma; default: all")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", type=_names, default=["float32"], help="by comma")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's")
    parser.add_argument("--seconds", type=float, default=4, help="to measure each case for")
    parser.add_argument("--warm-cache", action="store_true", help="do not flush the GPU's L2")
    parser.add_argument("--no-graph", action="store_true", help="do not capture CUDA graphs")
    parser.add_argument("--quick", action="store_true", help="tiny inputs: does it run at all")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    parser.add_argument("--markdown", type=Path, help="file for a table of the ratios")
    parser.add_argument("--plot", type=Path, help="image file for the ratios")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.ops) - set(OPS))
    if unknown:
        parser.error(f"no benchmark called {', '.join(unknown)}; there are {', '.join(OPS)}")
    wrong = [
        name for name in options.dtype if not isinstance(getattr(torch, name, None), torch.dtype)
    ]
    if wrong:
        parser.error(f"no dtype called {', '.join(wrong)}")
    return options


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
