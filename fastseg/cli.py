"""The command `fastseg`: `segment` finds instances, `evaluate` compares results with annotations,
`doctor` checks the machine.

Exit status: 0 everything done, 1 some image or check failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import webbrowser
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from fastseg.instances import Instances
    from fastseg.predictor import Prediction, Predictor
    from fastseg.result_files import CocoWriter

SAMPLES = Path(__file__).parent / "samples"
FORMATS = ("png", "coco", "masks")
DTYPES = ("float32", "float16", "bfloat16")
INTERRUPTED = 130  # what shells report for a process ended by Ctrl-C


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
    from fastseg import cli_evaluate

    parser = argparse.ArgumentParser(prog="fastseg", description="Fast instance segmentation.")
    parser.add_argument("--version", action="version", version=f"fastseg {fastseg.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    segment = commands.add_parser(
        "segment",
        help="find the instances in images",
        description="Finds the instances in images; writes overlays and COCO results.",
    )
    segment.set_defaults(command=_segment)
    segment.add_argument("images", nargs="*", metavar="IMAGE", help="image file or directory")
    segment.add_argument("--demo", action="store_true", help="use the images shipped with fastseg")
    segment.add_argument(
        "--weights", metavar="FILE", help="checkpoint; default: the shipped model of cell nuclei"
    )
    segment.add_argument(
        "--score", type=_score, default=0.5, help="keep instances above this score (%(default)s)"
    )
    segment.add_argument(
        "--output", type=Path, default=Path("fastseg-results"), metavar="DIR", help="(%(default)s)"
    )
    segment.add_argument(
        "--format",
        type=_formats,
        default=("png", "coco"),
        metavar="LIST",
        dest="formats",
        help="of png (overlays), coco (results.json, images.json) and masks (16-bit label images); "
        "default: png,coco",
    )
    segment.add_argument("--show", action="store_true", help="open the overlays when done")
    segment.add_argument("--device", help="cpu, cuda, cuda:1 ...; default: the GPU if there is one")
    segment.add_argument("--dtype", choices=DTYPES, help="default: float32")
    segment.add_argument(
        "--batch-size", type=_batch_size, metavar="N", help="default: 8, on a CPU 1"
    )

    cli_evaluate.add_command(commands)

    doctor = commands.add_parser(
        "doctor",
        help="show versions, GPU, CPU and whether they fit",
        description="Shows versions, GPU and CPU, and says what does not fit and how to mend it.",
    )
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _score(text: str) -> float:
    score = float(text)
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return score


def _batch_size(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return size


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(text.split(","))
    unknown = [word for word in formats if word not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(FORMATS)}")
    return formats


def _doctor(options: argparse.Namespace) -> int:
    from fastseg import doctor

    report = doctor.examine()
    print(doctor.as_json(report) if options.json else doctor.as_text(report))
    return 1 if report["problems"] else 0


def _segment(options: argparse.Namespace) -> int:
    from fastseg.result_files import coco_results

    paths, failures = _inputs(options)
    predictor = _predictor(options)
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    table = _table()
    with ExitStack() as stack:
        coco = None
        if "coco" in options.formats:
            coco = stack.enter_context(coco_results(options.output))
        outputs = _Outputs(options, paths, coco)
        advance = stack.enter_context(progress("Segmenting", len(paths)))
        try:
            for prediction in predictor.stream(paths):
                source, image, instances = prediction.source, prediction.image, prediction.instances
                if image is None or instances is None:
                    failures.append(_described(prediction))
                else:
                    outputs.write(source, image, instances)
                    _add_row(table, source, instances, prediction.seconds)
                advance()
            interrupted = False
        except KeyboardInterrupt:  # keeps what is done
            interrupted = True
    _report(table, options.output, failures, time.perf_counter() - start)
    if options.show:
        for overlay in outputs.overlays:
            webbrowser.open(overlay.resolve().as_uri())
    if interrupted:
        done = f"{table.row_count} of {len(paths)} images"
        print(f"fastseg: interrupted after {done}", file=sys.stderr)
        return INTERRUPTED
    return 1 if failures else 0


def _inputs(options: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The images to segment, each once, and what is wrong with the arguments."""
    from fastseg.images import ImageError, image_files

    named = [Path(name) for name in options.images]
    if options.demo:
        # The default model knows nuclei only; the photo is for models of everyday objects.
        named += [path for path in image_files(SAMPLES) if options.weights or path.suffix == ".png"]
    if not named:
        raise UsageError("name an image or a directory, or use --demo")
    paths: dict[str, Path] = {}
    failures = []
    for path in named:
        try:
            for file in image_files(path) if path.is_dir() else [path]:
                paths.setdefault(os.path.realpath(file), file)
        except ImageError as error:
            failures.append(str(error))
    return list(paths.values()), failures


def _predictor(options: argparse.Namespace) -> Predictor:
    import torch

    from fastseg.predictor import Predictor

    try:
        return Predictor(
            options.weights,
            options.device,
            getattr(torch, options.dtype) if options.dtype else None,
            options.score,
            batch_size=options.batch_size,
        )
    except (OSError, ValueError, RuntimeError) as error:  # no such file or device, odd weights
        raise UsageError(str(error)) from error


class _Outputs:
    """Writes one image's results after the other into the output directory."""

    def __init__(
        self, options: argparse.Namespace, paths: Sequence[Path], coco: CocoWriter | None
    ) -> None:
        from fastseg.result_files import image_ids, output_stems

        self._directory = options.output
        self._formats = options.formats
        self._coco = coco
        self.overlays: list[Path] = []
        stems = output_stems(paths, self._directory, (".png", ".masks.png"))
        self._names = dict(zip(paths, zip(stems, image_ids(paths), strict=True), strict=True))

    def write(self, source: Path, image: Tensor, instances: Instances) -> None:
        from fastseg.result_files import label_image, write_png
        from fastseg.visualize import draw

        stem, image_id = self._names[source]
        if "png" in self._formats:
            overlay = draw(image, instances)
            self.overlays.append(self._directory / f"{stem}.png")
            write_png(self.overlays[-1], overlay)
        if "masks" in self._formats:
            write_png(self._directory / f"{stem}.masks.png", label_image(instances))
        if self._coco is not None:
            self._coco.add(image_id, str(source), instances)


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


def _table() -> Table:
    from rich.table import Table

    table = Table("Image", "Instances", "Classes", "Mean score", "Seconds")
    for column in table.columns[1:2] + table.columns[3:]:
        column.justify = "right"
    table.columns[0].overflow = "fold"
    return table


def _add_row(table: Table, source: Path, instances: Instances, seconds: float) -> None:
    from rich.markup import escape

    counts = Counter(instances.names).most_common()
    table.add_row(
        escape(source.name),
        str(len(instances)),
        escape(", ".join(f"{name} {count}" for name, count in counts)),
        f"{instances.scores.mean().item():.3f}" if len(instances) else "",
        f"{seconds:.2f}",
    )


def _described(prediction: Prediction) -> str:
    from fastseg.images import ImageError

    error = prediction.error
    if isinstance(error, ImageError):
        return str(error)  # starts with the file's name
    return f"{prediction.source}: {type(error).__name__}: {error}"


def _report(table: Table, directory: Path, failures: Sequence[str], seconds: float) -> None:
    from rich.console import Console

    if table.row_count:
        Console().print(table)
        print(f"{table.row_count} images in {seconds:.1f} s; results are in {directory}/")
    if failures:
        print(f"fastseg: {len(failures)} could not be processed:", file=sys.stderr)
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)
