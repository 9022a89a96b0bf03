"""Evaluation of folders: label images of classes, and Cityscapes' images of objects."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastseg import _C
from fastseg.categories import CITYSCAPES
from fastseg.evaluation.cityscapes import CityscapesInstanceEvaluator
from fastseg.evaluation.semantic import SemanticEvaluator

# What is not a name's own: Cityscapes' kinds of files, and the ending of our label images.
_KIND = re.compile(r"(_leftImg8bit|_gtFine_\w+|_gtCoarse_\w+)?(\.masks)?$")


def evaluate_semantic(
    ground_truth: str | Path,
    results: str | Path,
    num_classes: int,
    *,
    ignore_index: int | None = 255,
    zero_is_void: bool = False,
) -> dict[str, Any]:
    """Compares two folders of label images, which belong together by their names.

    Of Cityscapes' ground truth the `_labelTrainIds` are taken, or else the `_labelIds`, whose
    classes become train ids; `_leftImg8bit` and `.masks` in a result's name do not count.

    Args:
        ground_truth: folder of PNGs, with folders in it or not.
        results: the same; if some are named `.masks.png`, those alone.
        num_classes: classes are 0 to num_classes - 1.
        ignore_index: label of the ground truth that does not count, or None.
        zero_is_void: the ground truth counts classes from 1, and 0 does not count, as in ADE20K.

    Returns:
        See `SemanticEvaluator.compute`.

    Raises:
        ValueError: an image of the ground truth has no result, two have one name, or sizes or
            labels do not fit; with the file's name.
    """
    evaluator = SemanticEvaluator(num_classes, ignore_index)
    void = -1 if ignore_index is None else ignore_index
    if zero_is_void and ignore_index is None:
        raise ValueError("zero_is_void needs an ignore_index")
    lock = Lock()

    def update(pair: tuple[Path, Path]) -> None:
        truth, prediction = (_read_labels(path) for path in pair)
        if zero_is_void:
            is_void = (truth == 0) | (truth == void)
            truth = np.where(is_void, void, truth.astype(np.int64) - 1)
        if pair[0].stem.endswith("_labelIds"):
            truth = _train_ids(void)[truth]
        try:
            with lock:
                evaluator.update(prediction, truth)
        except ValueError as error:
            raise ValueError(f"{pair[1]}: {error}") from None

    endings = ("_labelTrainIds.png", "_labelIds.png", ".png")
    pairs = _pairs(_files(ground_truth, endings), _files(results, (".masks.png", ".png")))
    with ThreadPoolExecutor(_C.build_info()["threads"]) as pool:
        for _ in pool.map(update, pairs):
            pass
    return evaluator.compute()


def evaluate_cityscapes(ground_truth: str | Path, results: str | Path) -> dict[str, Any]:
    """Cityscapes' AP of a COCO results file, whose categories have Cityscapes' ids.

    Args:
        ground_truth: folder of `_instanceIds.png`, with folders in it or not.
        results: COCO results with run lengths; `images.json` beside it tells their file names.

    Returns:
        See `CityscapesInstanceEvaluator.compute`.

    Raises:
        ValueError: a result is of an image that `images.json` lacks, or an image of the ground
            truth is not in it, or two have one name.
    """
    listing = Path(results).with_name("images.json")
    images = json.loads(listing.read_text(encoding="utf-8"))["images"]
    found: dict[Any, list[dict[str, Any]]] = {one["id"]: [] for one in images}
    for entry in json.loads(Path(results).read_text(encoding="utf-8")):
        if entry["image_id"] not in found:
            raise ValueError(f"{listing} has no image {entry['image_id']}")
        found[entry["image_id"]].append(entry)
    names = {Path(one["file_name"]): one["id"] for one in images}
    evaluator = CityscapesInstanceEvaluator()
    for truth, photo in _pairs(_files(ground_truth, ("_instanceIds.png",)), names):
        entries = found[names[photo]]
        evaluator.update(
            truth.name,
            truth,
            [one["segmentation"] for one in entries],
            np.array([one["category_id"] for one in entries], np.int64),
            np.array([one["score"] for one in entries], np.float64),
        )
    return evaluator.compute()


def _files(folder: str | Path, endings: Iterable[str]) -> list[Path]:
    """Files below a folder with the first of the endings that some have."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder} is no folder")
    for ending in endings:
        if files := sorted(Path(folder).rglob(f"*{ending}")):
            return files
    raise ValueError(f"{folder} has no files *{ending}")


def _pairs(truths: Iterable[Path], others: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Each file of the ground truth with the other that has its name."""
    by_name: dict[str, list[Path]] = defaultdict(list)
    for path in others:
        by_name[_KIND.sub("", path.stem)].append(path)
    pairs = []
    for truth in truths:
        named = by_name[_KIND.sub("", truth.stem)]
        if len(named) > 1:
            raise ValueError(f"both {named[0]} and {named[1]} belong to {truth}")
        if not named:
            raise ValueError(f"{truth} has no result")
        pairs.append((truth, named.pop()))
    return pairs


def _read_labels(path: Path) -> NDArray[Any]:
    with Image.open(path) as image:
        if len(image.getbands()) != 1:
            raise ValueError(f"{path} must be grey or have a palette, its mode is {image.mode}")
        return np.asarray(image)


def _train_ids(void: int) -> NDArray[np.int64]:
    """Train id of each of Cityscapes' ids."""
    table = np.full(256, void, np.int64)
    table[list(CITYSCAPES.ids)] = np.arange(len(CITYSCAPES))
    return table
