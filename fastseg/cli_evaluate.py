"""`fastseg evaluate`: results against annotations, by the metrics of many data sets."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastseg.evaluation.detections import DetectionEvaluator

MEASURES = ("bbox", "segm", "boundary")
PROTOCOLS = ("lvis", "video", "panoptic", "semantic", "cityscapes")
ALONE = ("panoptic", "semantic", "cityscapes")  # metrics that go with no other
DEFAULT_LIMITS = {"coco": (1, 10, 100), "video": (1, 10, 100), "lvis": (300,)}


def add_command(commands: Any) -> None:
    """Adds `evaluate` to the commands of a parser."""
    evaluate = commands.add_parser(
        "evaluate",
        help="compare results with annotations",
        description="Compares results with annotations, as pycocotools, lvis, panopticapi and "
        "cityscapesscripts do, but faster.",
    )
    evaluate.set_defaults(command=run)
    evaluate.add_argument(
        "--gt",
        type=Path,
        required=True,
        metavar="FILE",
        help="annotations, COCO's JSON; for semantic and cityscapes a folder of PNGs",
    )
    evaluate.add_argument(
        "--results",
        type=Path,
        required=True,
        metavar="FILE",
        help="results, COCO's JSON; for semantic a folder of PNGs",
    )
    evaluate.add_argument(
        "--metric",
        type=_metrics,
        default=("segm",),
        metavar="LIST",
        help="of bbox, segm and boundary; with lvis or video by those data sets' rules; or "
        "panoptic, semantic (mean IoU) or cityscapes (AP of instances); default: segm",
    )
    evaluate.add_argument(
        "--max-dets",
        type=_limits,
        metavar="LIST",
        help="detections per image and category; default: 1,10,100; of LVIS 300 per image",
    )
    evaluate.add_argument(
        "--detection-area",
        choices=("mask", "box"),
        default="mask",
        help="what makes a detection with a box and a mask small or large; pycocotools takes the "
        "box; default: mask",
    )
    evaluate.add_argument(
        "--class-agnostic", action="store_true", help="match whatever the categories"
    )
    _add_options_of_maps(evaluate)
    evaluate.add_argument("--summary", action="store_true", help="print no table of categories")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    evaluate.add_argument("--plot", type=Path, metavar="FILE", help="draw precision and recall")


def _add_options_of_maps(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("--gt-folder", type=Path, metavar="DIR", help="PNGs of panoptic --gt")
    evaluate.add_argument(
        "--results-folder", type=Path, metavar="DIR", help="PNGs of panoptic --results"
    )
    evaluate.add_argument(
        "--num-classes",
        type=int,
        metavar="N",
        help="of semantic label images; default: by classes.json in the results",
    )
    evaluate.add_argument(
        "--ignore", type=int, default=255, metavar="LABEL", help="of semantic --gt; default: 255"
    )
    evaluate.add_argument(
        "--zero-is-void",
        action="store_true",
        help="semantic --gt counts classes from 1, as ADE20K does",
    )


def _metrics(text: str) -> tuple[str, ...]:
    metrics = tuple(dict.fromkeys(text.split(",")))
    for word in metrics:
        if word not in (*MEASURES, *PROTOCOLS):
            known = ", ".join((*MEASURES, *PROTOCOLS))
            raise argparse.ArgumentTypeError(f"{word!r} is none of {known}")
    alone = any(word in ALONE for word in metrics) and len(metrics) > 1
    if alone or sum(word in PROTOCOLS for word in metrics) > 1:
        raise argparse.ArgumentTypeError(f"{text} do not go together")
    return metrics


def _limits(text: str) -> tuple[int, ...]:
    try:
        limits = tuple(int(word) for word in text.split(","))
    except ValueError:
        limits = ()
    if not limits or min(limits) < 1:
        raise argparse.ArgumentTypeError(f"must be positive integers by comma, got {text}")
    return limits


def run(options: argparse.Namespace) -> int:
    """Runs the command; returns its exit status."""
    from fastseg.cli import UsageError

    if options.plot is not None:
        _check_plot(options)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            found = EVALUATIONS.get(options.metric[0], _detections)(options)
    except KeyError as error:
        message = f"{options.gt} or {options.results} is of another kind: it has no {error}"
        raise UsageError(message) from error
    except (OSError, ValueError, TypeError) as error:  # no such file, malformed
        raise UsageError(str(error)) from error
    if options.json is not None:
        from fastseg.result_files import atomic_path

        with atomic_path(options.json) as temporary:
            temporary.write_text(json.dumps(_json_ready(found), indent=1) + "\n", encoding="utf-8")
    return 0


def _check_plot(options: argparse.Namespace) -> None:
    from fastseg.cli import UsageError

    if options.metric[0] in ALONE:
        raise UsageError(f"--plot draws precision and recall, not for {options.metric[0]}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install matplotlib") from error


def _print_warning(message: Any, *_: Any, **__: Any) -> None:
    print(f"fastseg: warning: {message}", file=sys.stderr)


def _detections(options: argparse.Namespace) -> dict[str, Any]:
    from fastseg.cli import progress

    protocol = next((word for word in options.metric if word in PROTOCOLS), "coco")
    limits = options.max_dets or DEFAULT_LIMITS[protocol]
    with progress("Evaluating", 3) as advance:
        evaluator = _evaluator(options, protocol, limits)
        advance()
        evaluator.update(options.results)
        advance()
        found = evaluator.compute(per_category=True, curves=options.plot is not None)
        advance()
    if options.plot is not None:
        _plot(options.plot, found)
    names = {one["id"]: str(one.get("name", "")) for one in evaluator.ground_truth.categories}
    _print_detections(found, max(limits), {} if options.summary else names)
    return found


def _evaluator(
    options: argparse.Namespace, protocol: str, limits: tuple[int, ...]
) -> DetectionEvaluator:
    from fastseg.cli import UsageError
    from fastseg.evaluation import COCOEvaluator, LVISEvaluator, YouTubeVISEvaluator

    measures = [word for word in options.metric if word in MEASURES]
    if protocol != "coco" and options.class_agnostic:
        raise UsageError(f"--class-agnostic is not for {protocol}")
    if protocol == "video":
        if measures not in ([], ["segm"]):
            raise UsageError("video has the metric segm alone")
        return YouTubeVISEvaluator(options.gt, limits)
    if protocol == "lvis":
        if len(limits) != 1:
            raise UsageError("lvis has one limit of detections")
        measures = measures or ["bbox", "segm"]
        return LVISEvaluator(options.gt, measures, limits[0], detection_area=options.detection_area)
    return COCOEvaluator(
        options.gt,
        measures,
        limits,
        use_categories=not options.class_agnostic,
        detection_area=options.detection_area,
    )


def _plot(path: Path, found: dict[str, Any]) -> None:
    from fastseg.evaluation.report import plot_curves
    from fastseg.result_files import atomic_path

    curves = {metric: one.pop("curves") for metric, one in found.items()}
    with atomic_path(path) as temporary:
        plot_curves(temporary, curves, path.suffix.removeprefix(".") or "png")


def _print_detections(found: dict[str, Any], max_dets: int, names: Mapping[int, str]) -> None:
    from fastseg.evaluation.report import summary_lines

    for metric, numbers in found.items():
        print(metric)
        print("\n".join(summary_lines(numbers, max_dets)))
    shown = {metric: numbers["per_category"] for metric, numbers in found.items()}
    occurring = [one for one in names if any(aps.get(one, -1) > -1 for aps in shown.values())]
    rows = [[names[one], *(_cell(aps.get(one, -1)) for aps in shown.values())] for one in occurring]
    _print_table(["Category", *(f"{metric} AP" for metric in shown)], rows)


def _panoptic(options: argparse.Namespace) -> dict[str, Any]:
    from fastseg.cli import progress
    from fastseg.evaluation import evaluate_panoptic

    with progress("Evaluating", 2) as advance:
        advance()
        found = evaluate_panoptic(
            options.gt, options.gt_folder, options.results, options.results_folder
        )
    keys = ("pq", "sq", "rq")
    groups = ("All", "Things", "Stuff")
    rows = [
        [name, *(_cell(found[name][key]) for key in keys), str(found[name]["n"])] for name in groups
    ]
    _print_table(["", "PQ", "SQ", "RQ", "Categories"], rows)
    if not options.summary:
        categories = json.loads(options.gt.read_text(encoding="utf-8"))["categories"]
        names = {one["id"]: str(one.get("name", one["id"])) for one in categories}
        rows = [
            [names[one], *(_cell(numbers[key]) for key in keys)]
            for one, numbers in found["per_class"].items()
            if numbers["tp"] + numbers["fp"] + numbers["fn"]
        ]
        _print_table(["Category", "PQ", "SQ", "RQ"], rows)
    return found


def _semantic(options: argparse.Namespace) -> dict[str, Any]:
    from fastseg.categories import class_name
    from fastseg.cli import UsageError, progress
    from fastseg.evaluation import evaluate_semantic

    names: dict[int, str] = {}
    listing = options.results / "classes.json"
    if listing.exists():
        known = json.loads(listing.read_text(encoding="utf-8"))
        names = {int(label): str(name) for label, name in known.items()}
    num_classes = options.num_classes or max(names, default=-1) + 1
    if num_classes < 1:
        raise UsageError(f"give --num-classes: there is no {listing}")
    with progress("Evaluating", 2) as advance:
        advance()
        found = evaluate_semantic(
            options.gt,
            options.results,
            num_classes,
            ignore_index=options.ignore,
            zero_is_void=options.zero_is_void,
        )
    found["confusion_matrix"] = found["confusion_matrix"].tolist()
    heads = ("miou", "fwiou", "pixel_accuracy", "mean_accuracy")
    titles = ["", "Mean IoU", "Weighted IoU", "Pixel accuracy", "Mean accuracy"]
    _print_table(titles, [["All", *(_cell(found[key]) for key in heads)]])
    if not options.summary:
        rows = [
            [names.get(label, class_name(label, None)), _cell(one["iou"]), _cell(one["accuracy"])]
            for label, one in found["per_class"].items()
            if one["iou"] == one["iou"]  # NaN: does not occur
        ]
        _print_table(["Class", "IoU", "Accuracy"], rows)
    return found


def _cityscapes(options: argparse.Namespace) -> dict[str, Any]:
    from fastseg.cli import progress
    from fastseg.evaluation import evaluate_cityscapes

    with progress("Evaluating", 2) as advance:
        advance()
        found = evaluate_cityscapes(options.gt, options.results)
    rows = [["All", _cell(found["AP"]), _cell(found["AP50"])]]
    if not options.summary:
        rows += [
            [name, _cell(one["AP"]), _cell(one["AP50"])] for name, one in found["per_class"].items()
        ]
    _print_table(["Class", "AP", "AP50"], rows)
    return found


EVALUATIONS = {"panoptic": _panoptic, "semantic": _semantic, "cityscapes": _cityscapes}


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        return
    table = Table(head[0], *(f"{title}" for title in head[1:]))
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


def _cell(value: float) -> str:
    return f"{value:.3f}" if value > -1 else ""


def _json_ready(value: Any) -> Any:
    """Text for keys, and null for what is not there."""
    if isinstance(value, Mapping):
        return {str(key): _json_ready(one) for key, one in value.items()}
    if isinstance(value, float) and (math.isnan(value) or value == -1):
        return None
    return value
