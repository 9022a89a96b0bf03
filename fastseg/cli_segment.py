"""`fastseg segment`: overlays, COCO's files and label images of what a model finds in images."""

from __future__ import annotations

import argparse
import os
import sys
import time
import webbrowser
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from fastseg.instances import Instances
    from fastseg.predictor import Prediction, Predictor, Result
    from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation

TASKS = ("instance", "panoptic", "semantic")
FORMATS = ("png", "coco", "masks")
DEFAULT_FORMATS = {
    "instance": ("png", "coco"),
    "panoptic": ("png", "coco"),
    "semantic": ("png", "masks"),
}
DEFAULT_SCORE = 0.5  # of instances; panoptic segments have passed their model's threshold
DTYPES = ("float32", "float16", "bfloat16")
INTERRUPTED = 130  # what shells report for a process ended by Ctrl-C
SHARES_SHOWN = 6  # classes of an image in the table


def add_command(commands: Any) -> None:
    """Adds `segment` to the commands of a parser."""
    segment = commands.add_parser(
        "segment",
        help="find what is in images",
        description="Finds instances, panoptic segments or the class of each pixel; writes "
        "overlays, COCO's files and label images.",
    )
    segment.set_defaults(command=run)
    segment.add_argument("images", nargs="*", metavar="IMAGE", help="image file or directory")
    segment.add_argument("--demo", action="store_true", help="use the images shipped with fastseg")
    segment.add_argument(
        "--weights",
        metavar="PATH",
        help="checkpoint's file, or folder of transformers; default: the shipped model of cell "
        "nuclei",
    )
    segment.add_argument(
        "--task", choices=TASKS, help="what to find; default: what the model was trained for"
    )
    segment.add_argument(
        "--score",
        type=_score,
        help="keep instances or panoptic segments above this score; default: 0.5 for instances, "
        "the model's own for segments (often 0.8)",
    )
    segment.add_argument(
        "--output", type=Path, default=Path("fastseg-results"), metavar="DIR", help="(%(default)s)"
    )
    segment.add_argument(
        "--format",
        type=_formats,
        metavar="LIST",
        dest="formats",
        help="of png (overlays), coco (results.json or panoptic.json with its folder of PNGs, and "
        "images.json) and masks (label images); default: png,coco; of semantic results png,masks",
    )
    segment.add_argument("--show", action="store_true", help="open the overlays when done")
    segment.add_argument("--device", help="cpu, cuda, cuda:1 ...; default: the GPU if there is one")
    segment.add_argument("--dtype", choices=DTYPES, help="default: float32")
    segment.add_argument(
        "--batch-size", type=_batch_size, metavar="N", help="default: 8, on a CPU 1"
    )


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return score


def _batch_size(text: str) -> int:
    size = int(text) if text.isdecimal() else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return size


def _formats(text: str) -> tuple[str, ...]:
    formats = tuple(text.split(","))
    unknown = [word for word in formats if word not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(FORMATS)}")
    return formats


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    from fastseg.cli import progress

    if options.task is not None:  # before a model is loaded
        _check(options, options.task)
    paths, failures = _inputs(options)
    predictor = _predictor(options)
    _check(options, predictor.task)
    formats = options.formats or DEFAULT_FORMATS[predictor.task]
    options.output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    table = _table(predictor.task)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(opened) for opened in _writers(options.output, formats, predictor)
        ]
        outputs = _Outputs(options.output, formats, paths, writers)
        advance = stack.enter_context(progress("Segmenting", len(paths)))
        try:
            for prediction in predictor.stream(paths):
                source, image, result = prediction.source, prediction.image, prediction.result
                if image is None or result is None:
                    failures.append(_described(prediction))
                else:
                    outputs.write(source, image, result)
                    table.add_row(*_row(source, result, prediction.seconds))
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


def _check(options: argparse.Namespace, task: str) -> None:
    """Finds what is wrong with the options for a task."""
    from fastseg.cli import UsageError

    if task != "semantic":
        return
    if options.score is not None:
        raise UsageError("--score is not for semantic results, which have no scores")
    if "coco" in (options.formats or ()):
        raise UsageError("--format coco is not for semantic results; masks writes label images")


def _inputs(options: argparse.Namespace) -> tuple[list[Path], list[str]]:
    """The images to segment, each once, and what is wrong with the arguments."""
    from fastseg.cli import SAMPLES, UsageError
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

    from fastseg.cli import UsageError
    from fastseg.predictor import Predictor

    try:
        predictor = Predictor(
            options.weights,
            options.device,
            getattr(torch, options.dtype) if options.dtype else None,
            task=options.task,
            batch_size=options.batch_size,
        )
    except (OSError, ValueError, RuntimeError) as error:  # no such file or device, odd weights
        raise UsageError(str(error)) from error
    own = getattr(predictor.model, "object_mask_threshold", None)
    if predictor.task == "panoptic" and options.score is not None and own is not None:
        # The model's own threshold comes before and would hide a lower one.
        predictor.model.object_mask_threshold = min(own, options.score)
    default = DEFAULT_SCORE if predictor.task == "instance" else None
    predictor.score_threshold = default if options.score is None else options.score
    return predictor


def _writers(
    directory: Path, formats: Sequence[str], predictor: Predictor
) -> Iterator[AbstractContextManager[Any]]:
    """The files that hold the results of all images."""
    from fastseg.result_files import coco_panoptic_results, coco_results, label_names

    if "coco" in formats and predictor.task == "instance":
        yield coco_results(directory)
    if "coco" in formats and predictor.task == "panoptic":
        yield coco_panoptic_results(directory, getattr(predictor.model, "thing_classes", ()))
    if "masks" in formats and predictor.task == "semantic":
        yield label_names(directory)


class _Outputs:
    """Writes one image's results after the other into the output directory."""

    def __init__(
        self, directory: Path, formats: Sequence[str], paths: Sequence[Path], writers: Sequence[Any]
    ) -> None:
        from fastseg.result_files import image_ids, output_stems

        self._directory = directory
        self._formats = formats
        self._writers = writers
        self.overlays: list[Path] = []
        stems = output_stems(paths, self._directory, (".png", ".masks.png"))
        self._names = dict(zip(paths, zip(stems, image_ids(paths), strict=True), strict=True))

    def write(self, source: Path, image: Tensor, result: Result) -> None:
        from fastseg.result_files import label_image, write_png
        from fastseg.visualize import draw

        stem, image_id = self._names[source]
        if "png" in self._formats:
            overlay = draw(image, result)
            self.overlays.append(self._directory / f"{stem}.png")
            write_png(self.overlays[-1], overlay)
        if "masks" in self._formats:
            write_png(self._directory / f"{stem}.masks.png", label_image(result))
        for writer in self._writers:
            writer.add(image_id, str(source), result)


def _table(task: str) -> Table:
    from rich.table import Table

    heads = {
        "instance": ("Instances", "Classes", "Mean score"),
        "panoptic": ("Segments", "Things", "Stuff", "Void"),
        "semantic": ("Classes", "Shares of the image"),
    }
    table = Table("Image", *heads[task], "Seconds")
    for column in table.columns:
        if column.header in ("Instances", "Mean score", "Segments", "Void", "Seconds"):
            column.justify = "right"
    if task == "semantic":
        table.columns[1].justify = "right"
    table.columns[0].overflow = "fold"
    return table


def _row(source: Path, result: Result, seconds: float) -> list[str]:
    """An image's line of the table."""
    from rich.markup import escape

    from fastseg.instances import Instances
    from fastseg.segmentation import PanopticSegmentation

    if isinstance(result, Instances):
        cells = _instance_cells(result)
    elif isinstance(result, PanopticSegmentation):
        cells = _panoptic_cells(result)
    else:
        cells = _semantic_cells(result)
    return [escape(cell) for cell in (source.name, *cells, f"{seconds:.2f}")]


def _instance_cells(instances: Instances) -> list[str]:
    score = f"{instances.scores.mean().item():.3f}" if len(instances) else ""
    return [str(len(instances)), _counts(instances.names), score]


def _panoptic_cells(result: PanopticSegmentation) -> list[str]:
    total = max(1, result.ids.numel())
    named = list(zip(result.segments, result.names, strict=True))
    things = [name for segment, name in named if segment.is_thing]
    stuff: Counter[str] = Counter()
    for segment, name in named:
        if not segment.is_thing:
            stuff[name] += segment.area
    void = 1 - sum(segment.area for segment in result.segments) / total
    return [str(len(result)), _counts(things), _shares(stuff, total), f"{void:.0%}"]


def _semantic_cells(result: SemanticSegmentation) -> list[str]:
    from fastseg.categories import class_name

    areas = {
        class_name(label, result.class_names): pixels for label, pixels in result.areas().items()
    }
    return [str(len(areas)), _shares(areas, max(1, result.labels.numel()))]


def _counts(names: Sequence[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())


def _shares(areas: Mapping[str, int], total: int) -> str:
    """The largest classes and their shares of the image."""
    largest = sorted(areas.items(), key=lambda one: -one[1])
    shown = [f"{name} {area / total:.0%}" for name, area in largest[:SHARES_SHOWN]]
    rest = len(largest) - SHARES_SHOWN
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


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
