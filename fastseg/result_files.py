"""Files that hold results: overlays, COCO results, label images.

Each file appears complete or not at all: it is written beside its place and then renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from PIL import Image

from fastseg.categories import by_names, category_id, class_name

if TYPE_CHECKING:
    from fastseg.evaluation.panoptic_files import PanopticWriter
    from fastseg.instances import Instances
    from fastseg.predictor import Result
    from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation

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


def label_image(result: Result) -> Image.Image:
    """A result as one grey image of 8 or 16 bits.

    Of instances and panoptic segments: 0 is background or void, k the k-th one; where masks of
    instances overlap the better score wins. Of semantic results: the labels.

    Raises:
        ValueError: if 16 bits cannot hold the numbers.
    """
    from fastseg.ops import rle_decode
    from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation

    if isinstance(result, SemanticSegmentation):
        return result.to_image()
    if len(result) > 65535:
        raise ValueError(f"a 16-bit label image holds 65535 numbers, got {len(result)}")
    if isinstance(result, PanopticSegmentation):
        return Image.fromarray(result.numbered().astype(np.uint16))
    labels = np.zeros(result.image_size, dtype=np.uint16)
    for index in result.scores.argsort(stable=True, descending=True).flip(0).tolist():
        labels[rle_decode(result.rles[index]).numpy()] = index + 1
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


class Listing:
    """The images and categories that results speak of, without annotations.

    Category ids are those of a known data set, if the class names are, else the labels.
    """

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._categories: dict[int, dict[str, Any]] = {}

    def add_image(self, image_id: int, file_name: str, size: tuple[int, int]) -> None:
        """Adds an image of this height and width."""
        height, width = size
        self._images.append(
            {"id": image_id, "file_name": file_name, "width": width, "height": height}
        )

    def add_categories(
        self, names: Mapping[int, str], class_names: Sequence[str] | None, **more: Mapping[int, int]
    ) -> None:
        """Adds the categories of a result.

        Args:
            names: by label, of what was found.
            class_names: all that the model knows.
            **more: further keys of a category, by label.
        """
        known = {n: name for n, name in enumerate(class_names or ()) if name not in _NO_CLASS}
        ids = category_ids(class_names)
        for label, name in {**known, **names}.items():
            values = {key: value[label] for key, value in more.items()}
            number = category_id(label, ids)
            self._categories[number] = {"id": number, "name": name, **values}

    def write(self, path: Path) -> None:
        """Writes a COCO dataset."""
        dataset = {
            "info": {},
            "images": self._images,
            "annotations": [],
            "categories": sorted(self._categories.values(), key=itemgetter("id")),
        }
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(dataset, indent=1) + "\n", encoding="utf-8")


def category_ids(class_names: Sequence[str] | None) -> tuple[int, ...] | None:
    """Category id of each label where the class names are those of a known data set, else None."""
    data_set = by_names(class_names)
    return None if data_set is None else data_set.ids


class CocoWriter:
    """Writes COCO result entries to a stream as they come, and keeps what describes them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._separator = "["
        self.listing = Listing()

    def add(self, image_id: int, file_name: str, instances: Instances) -> None:
        """Adds one image and its instances."""
        self.listing.add_image(image_id, file_name, instances.image_size)
        names = dict(zip(instances.labels.tolist(), instances.names, strict=True))
        self.listing.add_categories(names, instances.class_names)
        ids = category_ids(instances.class_names)
        for entry in instances.to_coco(image_id, category_ids=ids):
            self._stream.write(f"{self._separator}\n{json.dumps(entry)}")
            self._separator = ","

    def finish(self) -> None:
        """Closes the list of entries."""
        self._stream.write("[]\n" if self._separator == "[" else "\n]\n")


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
    writer.listing.write(directory / "images.json")


class PanopticCocoWriter:
    """Writes panoptic results as COCO's, and keeps what describes them.

    Args:
        writer: of the PNGs.
        things: labels that the model calls things.
    """

    def __init__(self, writer: PanopticWriter, things: Collection[int]) -> None:
        self._writer = writer
        self._things = set(things)
        self.listing = Listing()

    def add(self, image_id: int, file_name: str, result: PanopticSegmentation) -> None:
        """Adds one image and its segments."""
        info = result.segments_info(category_ids(result.class_names))
        self._writer.add(image_id, result.ids, info)
        self.listing.add_image(image_id, file_name, result.image_size)
        self._things.update(segment.label for segment in result.segments if segment.is_thing)
        found = [segment.label for segment in result.segments]
        labels = {*found, *range(len(result.class_names or ()))}
        self.listing.add_categories(
            dict(zip(found, result.names, strict=True)),
            result.class_names,
            isthing={label: int(label in self._things) for label in labels},
        )


@contextmanager
def coco_panoptic_results(
    directory: Path, things: Collection[int] = ()
) -> Iterator[PanopticCocoWriter]:
    """Writes `panoptic.json`, its PNGs in the folder `panoptic`, and `images.json` beside them.

    They are what panopticapi reads. The JSON files appear when the block succeeds.

    Args:
        directory: where to.
        things: labels that the model calls things.
    """
    from fastseg.evaluation.panoptic_files import panoptic_results

    with panoptic_results(directory / "panoptic.json") as pngs:
        writer = PanopticCocoWriter(pngs, things)
        yield writer
    writer.listing.write(directory / "images.json")


class ClassNameWriter:
    """Keeps the names of the labels of semantic results."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}

    def add(self, image_id: int, file_name: str, result: SemanticSegmentation) -> None:
        """Adds the names of one result."""
        known = result.class_names or ()
        self.names.update(enumerate(known))
        self.names.update((label, class_name(label, known)) for label in result.areas())


@contextmanager
def label_names(directory: Path) -> Iterator[ClassNameWriter]:
    """Writes `classes.json`, {label: name}, when the block succeeds: what label images mean."""
    writer = ClassNameWriter()
    yield writer
    with atomic_path(directory / "classes.json") as temporary:
        text = json.dumps(dict(sorted(writer.names.items())), indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
