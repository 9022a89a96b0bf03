"""COCO's annotation files, read as columns, with the methods of pycocotools' `COCO`.

pycocotools builds dicts and lists of all annotations when a file is opened. Here the file is read
in one pass in C++, and Python objects are made when somebody asks for them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseg import _C
from fastseg.evaluation.columns import Columns, mapped, positions

Entry = dict[str, Any]


class COCO:
    """A dataset with annotations, or with results (`loadRes`).

    Attributes and methods are pycocotools': `dataset`, `anns`, `imgs`, `cats`, `imgToAnns`,
    `catToImgs`, made when first used; `getAnnIds`, `getCatIds`, `getImgIds`, `loadAnns`,
    `loadCats`, `loadImgs`, `loadRes`, `annToRLE`, `annToMask`. Nothing is printed.

    Args:
        annotation_file: path of a JSON file, or what it holds as a dict.

    Raises:
        ValueError: the file is not JSON, or an image, category or annotation lacks what it must
            have; the message names it.
    """

    def __init__(self, annotation_file: str | Path | Mapping[str, Any] | None = None) -> None:
        self._path = None
        if annotation_file is None:
            annotation_file = {}
        if isinstance(annotation_file, (str, Path)):
            self._path = annotation_file
            try:
                self._read_file(annotation_file)
            except ValueError as error:
                raise ValueError(f"{annotation_file}: {error}") from error
        elif isinstance(annotation_file, Mapping):
            self.dataset = annotation_file
            self._images = list(annotation_file.get("images", annotation_file.get("videos", [])))
            self._categories = list(annotation_file.get("categories", []))
            self._index()
            self.columns = self.columns_of(annotation_file.get("annotations", []), "annotations")
        else:
            raise TypeError(
                f"annotation_file must be a path or a dict, got {type(annotation_file).__name__}"
            )

    def _read_file(self, path: str | Path) -> None:
        with mapped(path) as text:
            members = _C.json_members(text)

            def part(*keys: str) -> Any:
                found = [text[slice(*members[key])] for key in keys if key in members]
                return json.loads(found[0]) if found else []

            self._images = part("images", "videos")
            self._categories = part("categories")
            self._index()
            if self.has_integer_ids and "annotations" in members:
                self.columns = Columns.from_json(text, members["annotations"], "annotations")
            else:
                self.columns = self.columns_of(part("annotations"), "annotations")

    def _index(self) -> None:
        ids = [_id_of(image, n, "images") for n, image in enumerate(self._images)]
        self.has_integer_ids = all(isinstance(one, (int, np.integer)) for one in ids)
        # Number of each image in ascending order of ids, in which they are evaluated.
        self.image_places = {one: n for n, one in enumerate(sorted(set(ids)))}
        self.category_ids = np.array(
            sorted({_id_of(one, n, "categories") for n, one in enumerate(self._categories)}),
            dtype=np.int64,
        )

    def columns_of(self, entries: Sequence[Entry], name: str) -> Columns:
        """Columns whose image ids are numbers, the images' positions where the ids are not."""
        if not self.has_integer_ids:
            known = self.image_places
            entries = [
                {**entry, "image_id": known.get(entry.get("image_id"), -1)} for entry in entries
            ]
        return Columns.from_dicts(entries, name)

    @cached_property
    def image_ids(self) -> NDArray[np.int64]:
        """[I] ascending, as they are in `columns`."""
        if self.has_integer_ids:
            return np.array(list(self.image_places), dtype=np.int64)
        return np.arange(len(self.image_places))

    @cached_property
    def image_sizes(self) -> NDArray[np.int64]:
        """[I, 2] height and width of the images in order of `image_ids`; 0 where not given."""
        sizes = np.zeros((len(self.image_places), 2), np.int64)
        for image in self._images:
            sizes[self.image_places[image["id"]]] = (
                image.get("height") or 0,
                image.get("width") or 0,
            )
        return sizes

    @property
    def images(self) -> list[Entry]:
        """The images as they are in the file."""
        return self._images

    @property
    def categories(self) -> list[Entry]:
        """The categories as they are in the file."""
        return self._categories

    def image_name(self, column_id: int) -> Any:
        """The id of an image as the file has it, from that in `columns`."""
        if self.has_integer_ids:
            return int(column_id)
        names = list(self.image_places)
        return names[column_id] if 0 <= column_id < len(names) else "unknown"

    # ---- as pycocotools ------------------------------------------------------------------------

    @cached_property
    def dataset(self) -> Any:
        """All that the file holds."""
        assert self._path is not None
        with open(self._path, encoding="utf-8") as file:
            return json.load(file)

    @cached_property
    def imgs(self) -> dict[Any, Entry]:
        """Images by id."""
        return {image["id"]: image for image in self._images}

    @cached_property
    def cats(self) -> dict[int, Entry]:
        """Categories by id."""
        return {category["id"]: category for category in self._categories}

    @cached_property
    def anns(self) -> dict[int, Entry]:
        """Annotations by id."""
        return {one["id"]: one for one in self._annotations}

    @cached_property
    def imgToAnns(self) -> dict[Any, list[Entry]]:
        """Lists of annotations by image id."""
        lists: dict[Any, list[Entry]] = defaultdict(list)
        for one in self._annotations:
            lists[one["image_id"]].append(one)
        return lists

    @cached_property
    def catToImgs(self) -> dict[int, list[Any]]:
        """Lists of image ids by category id, one for each annotation."""
        lists: dict[int, list[Any]] = defaultdict(list)
        for one in self._annotations:
            lists[one["category_id"]].append(one["image_id"])
        return lists

    @property
    def _annotations(self) -> list[Entry]:
        return self.dataset.get("annotations", [])

    def getAnnIds(
        self,
        imgIds: Any = (),
        catIds: Any = (),
        areaRng: Sequence[float] = (),
        iscrowd: bool | None = None,
    ) -> list[int]:
        """Ids of annotations that meet all conditions; an empty one is met by all.

        Args:
            imgIds: one image id or several; annotations come in their order.
            catIds: one category id or several.
            areaRng: least and largest area, both outside.
            iscrowd: whether they are crowd regions.
        """
        columns = self.columns
        chosen = np.ones(len(columns), bool)
        if wanted := _as_list(catIds):
            chosen &= np.isin(columns.category_ids, wanted)
        if len(areaRng) == 2:
            chosen &= (columns.areas > areaRng[0]) & (columns.areas < areaRng[1])
        if iscrowd is not None:
            chosen &= columns.crowds == bool(iscrowd)
        if not (wanted := _as_list(imgIds)):
            return columns.ids[chosen].tolist()
        if not self.has_integer_ids:
            wanted = [self.image_places.get(one, -1) for one in wanted]
        order = np.argsort(columns.image_ids, kind="stable")
        order = order[chosen[order]]
        sorted_ids = columns.image_ids[order]
        begins = np.searchsorted(sorted_ids, wanted, "left")
        ends = np.searchsorted(sorted_ids, wanted, "right")
        rows = [order[begin:end] for begin, end in zip(begins, ends, strict=True)]
        return columns.ids[np.concatenate(rows)].tolist()

    def getCatIds(self, catNms: Any = (), supNms: Any = (), catIds: Any = ()) -> list[int]:
        """Ids of categories with these names, supercategories and ids."""
        names, groups, ids = _as_list(catNms), _as_list(supNms), _as_list(catIds)
        return [
            one["id"]
            for one in self._categories
            if (not names or one["name"] in names)
            and (not groups or one.get("supercategory") in groups)
            and (not ids or one["id"] in ids)
        ]

    def getImgIds(self, imgIds: Any = (), catIds: Any = ()) -> list[Any]:
        """Ids of images among `imgIds` that have annotations of all of `catIds`."""
        ids = set(_as_list(imgIds) or self.imgs)
        columns = self.columns
        for category in _as_list(catIds):
            with_it = np.unique(columns.image_ids[columns.category_ids == category])
            ids &= {self.image_name(one) for one in with_it.tolist()}
        return list(ids)

    def loadAnns(self, ids: Any = ()) -> list[Entry]:
        """Annotations by id, one or several."""
        return [self.anns[one] for one in _as_list(ids)]

    def loadCats(self, ids: Any = ()) -> list[Entry]:
        """Categories by id, one or several."""
        return [self.cats[one] for one in _as_list(ids)]

    def loadImgs(self, ids: Any = ()) -> list[Entry]:
        """Images by id, one or several."""
        return [self.imgs[one] for one in _as_list(ids)]

    def loadRes(self, resFile: str | Path | Sequence[Entry]) -> COCO:
        """The same images and categories with results for annotations.

        As in pycocotools results get ids from 1 on, `iscrowd` 0, and an area: of their boxes where
        the first has one, else of their masks, whose boxes they get too.

        Args:
            resFile: path of a JSON file, or the list of results.
        """
        entries: Any = resFile
        if isinstance(resFile, (str, Path)):
            entries = json.loads(Path(resFile).read_bytes())
        results = [dict(entry) for entry in entries]
        unknown = {result["image_id"] for result in results} - self.imgs.keys()
        if unknown:
            raise ValueError(f"results are of images that the dataset lacks: {sorted(unknown)[:5]}")
        boxed = bool(results) and len(results[0].get("bbox") or ()) > 0
        for number, result in enumerate(results, 1):
            _complete(result, boxed)
            result.update(id=number, iscrowd=0)
        return COCO(
            {"images": self._images, "categories": self._categories, "annotations": results}
        )

    def annToRLE(self, ann: Entry) -> Entry:
        """An annotation's mask as compressed run lengths, from polygons or counts of any form."""
        from fastseg import mask

        segmentation = ann["segmentation"]
        image = self.imgs[ann["image_id"]]
        if isinstance(segmentation, list):
            return mask.merge(mask.frPyObjects(segmentation, image["height"], image["width"]))
        if isinstance(segmentation["counts"], list):
            return mask.frPyObjects(segmentation, *segmentation["size"])
        return segmentation

    def annToMask(self, ann: Entry) -> NDArray[np.uint8]:
        """An annotation's mask, [height, width] of 0 and 1."""
        from fastseg import mask

        return mask.decode(self.annToRLE(ann))

    def positions(self, column_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of images in order of `image_ids`, -1 for those that the dataset lacks."""
        return positions(column_ids, self.image_ids)


def _complete(result: Entry, boxed: bool) -> None:
    from fastseg import mask

    if boxed:
        left, top, width, height = result["bbox"]
        right, bottom = left + width, top + height
        corners = [left, top, left, bottom, right, bottom, right, top]
        result.setdefault("segmentation", [corners])
        result["area"] = width * height
    else:
        result["area"] = mask.area(result["segmentation"])
        if not result.get("bbox"):
            result["bbox"] = mask.toBbox(result["segmentation"])


def _id_of(entry: Any, number: int, name: str) -> Any:
    if not isinstance(entry, Mapping) or "id" not in entry:
        raise ValueError(f"{name}[{number}] has no id")
    return entry["id"]


def _as_list(ids: Any) -> list[Any]:
    several = isinstance(ids, Iterable) and not isinstance(ids, (str, bytes))
    return list(ids) if several else [ids]
