"""Metrics as text and as plots."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastseg.evaluation.average_precision import IOU_THRESHOLDS, RECALL_LEVELS, Curves

_AREAS = {"": "all", "s": "small", "m": "medium", "l": "large"}


def summary_lines(numbers: Mapping[str, Any], max_dets: int) -> list[str]:
    """A line for each number, in pycocotools' words.

    Args:
        numbers: what an evaluator of detections computes for a metric, such as {"AP50": 0.5}.
        max_dets: the limit of detections where a number's name has none.
    """
    lines = []
    for name, value in numbers.items():
        found = re.fullmatch(r"A([PR])([smlrcf]?)(\d*)(?:@(\d+))?", name)
        if found is None:  # no number, but per_category or curves
            continue
        kind, letter, number, limit = found.groups()
        is_precision = kind == "P"
        title = "Average Precision" if is_precision else "Average Recall"
        overlap = f"0.{number}" if is_precision and number else "0.50:0.95"
        if not is_precision and number:
            limit = number
        group = f" | frequency={letter}" if letter and letter in "rcf" else ""
        lines.append(
            f" {title:<18} (A{kind}) @[ IoU={overlap:<9} | area={_AREAS.get(letter, 'all'):>6} | "
            f"maxDets={limit or max_dets:>3}{group} ] = {value:0.3f}"
        )
    return lines


def plot_curves(path: Path, curves: Mapping[str, Curves], form: str = "png") -> None:
    """Draws precision against recall, averaged over categories, a panel for each metric.

    Args:
        path: image file.
        curves: by metric, of all areas at the largest limit of detections; IoU thresholds are
            COCO's.
        form: what matplotlib can write, such as png, svg or pdf.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib does not know the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(curves), 4.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (metric, one) in zip(panels, curves.items(), strict=True):
        precision = one.precision[..., 0, -1]
        for label, chosen in _thresholds():
            values = _category_means(precision[chosen])
            if len(values):
                panel.plot(RECALL_LEVELS, values, label=f"IoU {label}: AP {values.mean():.3f}")
        panel.set(title=metric, xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(loc="lower left")
    figure.savefig(path, dpi=150, format=form)


def _thresholds() -> list[tuple[str, slice]]:
    last = len(IOU_THRESHOLDS)
    return [("0.50", slice(0, 1)), ("0.75", slice(5, 6)), ("0.50:0.95", slice(0, last))]


def _category_means(precision: np.ndarray) -> np.ndarray:
    """[R] from [T, R, K], over thresholds and the categories that have something to be found."""
    there = (precision > -1).all(axis=(0, 1))
    return precision[:, :, there].mean(axis=(0, 2)) if there.any() else np.empty(0)
