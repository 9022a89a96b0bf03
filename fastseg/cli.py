"""The command `fastseg`: `segment` finds what is in images, `evaluate` compares results with
annotations, `doctor` checks the machine.

Exit status: 0 everything done, 1 some image or check failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SAMPLES = Path(__file__).parent / "samples"


class UsageError(Exception):
    """The command cannot do what was asked; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    Args:
        arguments: the words after `fastseg`; default: those of this process.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return options.command(options)
    except UsageError as error:
        print(f"fastseg: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of the outputs: a full disk, a directory without permission
        print(f"fastseg: error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    import fastseg
    from fastseg import cli_evaluate, cli_segment

    parser = argparse.ArgumentParser(prog="fastseg", description="Fast instance segmentation.")
    parser.add_argument("--version", action="version", version=f"fastseg {fastseg.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    cli_segment.add_command(commands)
    cli_evaluate.add_command(commands)

    doctor = commands.add_parser(
        "doctor",
        help="show versions, GPU, CPU and whether they fit",
        description="Shows versions, GPU and CPU, and says what does not fit and how to mend it.",
    )
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from fastseg import doctor

    report = doctor.examine()
    print(doctor.as_json(report) if options.json else doctor.as_text(report))
    return 1 if report["problems"] else 0


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on the terminal for several steps; gives the function that advances it."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    hidden = total < 2 or not console.is_terminal
    with Progress(*columns, console=console, disable=hidden, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
