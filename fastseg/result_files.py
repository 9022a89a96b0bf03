"""Files that hold results: overlays, COCO results, label images.

Each file appears complete or not at all: it is written beside its place and then renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from fastseg.instances import Instances

_NO_CLASS = ("background", "__background__", "N/A")  # placeholders in lists indexed by label


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Gives a temporary path to write, which becomes `path` if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_png(path: Path, image: Image.Image) -> None:
    """Writes an image as PNG."""
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG")


def label_image(instances: Instances) -> Image.Image:
    """Masks as one 16-bit image: 0 is background, k the k-th instance.

    Where masks overlap the better score wins.

    Raises:
        ValueError: if there are more instances than 16 bits can number.
    """
    from fastseg.ops import rle_decode

    if len(instances) > 65535:
        raise ValueError(f"a 16-bit label image holds 65535 instances, got {len(instances)}")
    labels = np.zeros(instances.image_size, dtype=np.uint16)
    for index in instances.scores.argsort(stable=True, descending=True).flip(0).tolist():
        labels[rle_decode(instances.rles[index]).numpy()] = index + 1
    return Image.fromarray(labels)


def output_stems(paths: Sequence[Path], directory: Path, suffixes: Sequence[str]) -> list[str]:
    """A file name stem for each input: its own, numbered where names would clash.

    Args:
        paths: the inputs.
        directory: where the outputs go.
        suffixes: what is appended to a stem, as in ".png".

    Returns:
        As many stems; no stem + suffix comes twice, even where case does not count, and none is
        one of the inputs.
    """
    inputs = {os.path.realpath(path) for path in paths}
    taken: set[str] = set()
    stems = []
    for path in paths:
        stem, number = path.stem, 1
        while any(
            (stem + suffix).casefold() in taken
            or os.path.realpath(directory / (stem + suffix)) in inputs
            for suffix in suffixes
        ):
            number += 1
            stem = f"{path.stem}-{number}"
        taken.update((stem + suffix).casefold() for suffix in suffixes)
        stems.append(stem)
    return stems


def image_ids(paths: Sequence[Path]) -> list[int]:
    """COCO image ids: the numbers that the files are named by, as in COCO, else 1, 2, 3 ..."""
    stems = [path.stem for path in paths]
    if all(stem.isascii() and stem.isdigit() and len(stem) <= 15 for stem in stems):
        numbers = [int(stem) for stem in stems]
        if len(set(numbers)) == len(numbers):
            return numbers
    return list(range(1, len(paths) + 1))


class CocoWriter:
    """Writes COCO result entries to a stream as they come, and keeps what describes them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._separator = "["
        self._images: list[dict[str, Any]] = []
        self._categories: dict[int, str] = {}

    def add(self, image_id: int, file_name: str, instances: Instances) -> None:
        """Adds one image and its instances."""
        height, width = instances.image_size
        self._images.append(
            {"id": image_id, "file_name": file_name, "width": width, "height": height}
        )
        self._categories.update(zip(instances.labels.tolist(), instances.names, strict=True))
        self._categories.update(
            (label, name)
            for label, name in enumerate(instances.class_names or ())
            if name not in _NO_CLASS
        )
        for entry in instances.to_coco(image_id):
            self._stream.write(f"{self._separator}\n{json.dumps(entry)}")
            self._separator = ","

    def finish(self) -> None:
        """Closes the list of entries."""
        self._stream.write("[]\n" if self._separator == "[" else "\n]\n")

    def dataset(self) -> dict[str, Any]:
        """A COCO dataset of the images and categories, without annotations."""
        categories = [{"id": label, "name": name} for label, name in self._categories.items()]
        return {
            "info": {},
            "images": self._images,
            "annotations": [],
            "categories": sorted(categories, key=itemgetter("id")),
        }


@contextmanager
def coco_results(directory: Path) -> Iterator[CocoWriter]:
    """Writes `results.json`, a COCO results list, and `images.json` beside it.

    `images.json` says which image an `image_id` is and what the categories are called:
    `COCO("images.json").loadRes("results.json")` reads both. They appear when the block succeeds.
    """
    results = atomic_path(directory / "results.json")
    with results as temporary, temporary.open("w", encoding="utf-8") as stream:
        writer = CocoWriter(stream)
        yield writer
        writer.finish()
    with atomic_path(directory / "images.json") as temporary:
        temporary.write_text(json.dumps(writer.dataset(), indent=1) + "\n", encoding="utf-8")
