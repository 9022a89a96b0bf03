"""COCO's average precision, from the files of annotations and results to the twelve numbers."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import evaluation
from benchmarks.harness.agreement import close
from benchmarks.harness.case import Case, Run, Setting

PEERS = {
    "segm": ("fastseg", "pycocotools", "faster_coco_eval", "hotcoco"),
    "boundary": ("fastseg", "faster_coco_eval"),
}


def cases(setting: Setting) -> Iterator[Case]:
    """Masks and boundaries of images with 100 detections each. The CPU alone evaluates."""
    if setting.device.type != "cpu":
        return
    for metric, images in (("segm", 250), ("boundary", 50)):
        images, detections = (3, 20) if setting.quick else (images, 100)
        with tempfile.TemporaryDirectory() as folder:
            truth, results = evaluation.write_files(Path(folder), images, detections)
            providers = PEERS[metric]
            yield Case(
                name=f"{metric} of {images} images x {detections} detections",
                providers={
                    name: functools.partial(_provider, name, truth, results, metric)
                    for name in providers
                },
                bytes_moved=truth.stat().st_size + results.stat().st_size,
                agreement=close(0, 1e-9),
                has_dtype=False,
            )


def _provider(name: str, truth: Path, results: Path, metric: str) -> Run:
    __import__(name)

    def run() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):
            numbers = evaluation.PROVIDERS[name](truth, results, metric)
        return torch.tensor(numbers, dtype=torch.float64)

    return run
