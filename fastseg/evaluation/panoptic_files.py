"""COCO panoptic files: a PNG per image whose colours are segment ids, and a JSON beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastseg import _C
from fastseg.result_files import atomic_path, write_png

MAX_ID = (1 << 24) - 1  # what three bytes of colour hold


def rgb2id(color: Any) -> Any:
    """Segment ids of colours: R + 256 G + 65536 B.

    Args:
        color: [..., 3] uint8 array, or three numbers.

    Returns:
        [...] uint32 array, or an int for three numbers.

    Raises:
        ValueError: the last dimension is not 3, or a number is no byte.
    """
    values = np.asarray(color)
    if values.ndim == 0 or values.shape[-1] != 3:
        raise ValueError(f"color must have shape [..., 3], got {list(values.shape)}")
    if values.dtype != np.uint8 and values.size and not 0 <= values.min() <= values.max() <= 255:
        raise ValueError(f"color must be in [0, 255], got {values.min()} to {values.max()}")
    wide = values.astype(np.uint32)
    ids = wide[..., 0] + (wide[..., 1] << 8) + (wide[..., 2] << 16)
    return ids if ids.ndim else int(ids)


def id2rgb(id_map: Any) -> Any:
    """Colours of segment ids, the inverse of `rgb2id`.

    Args:
        id_map: [...] integers below 2^24, or one.

    Returns:
        [..., 3] uint8 array, or a list of three numbers for one id.

    Raises:
        TypeError: the ids are no integers.
        ValueError: an id is negative or does not fit three bytes.
    """
    ids = np.asarray(id_map)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"id_map must be integer, got {ids.dtype}")
    if ids.size and not 0 <= ids.min() <= ids.max() <= MAX_ID:
        raise ValueError(f"id_map must be in [0, {MAX_ID}], got {ids.min()} to {ids.max()}")
    colors = np.stack([(ids >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    return colors if ids.ndim else colors.tolist()


def read_panoptic_png(path: str | Path) -> NDArray[np.uint8]:
    """Reads the colours of a panoptic PNG: [H, W, 3] uint8, see `rgb2id`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no RGB image.
    """
    with Image.open(path) as image:
        if image.mode != "RGB":
            raise ValueError(f"{path} must be an RGB image, its mode is {image.mode}")
        return np.asarray(image)


class PanopticWriter:
    """Writes PNGs as they come and keeps what describes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.annotations: list[dict[str, Any]] = []

    def add(
        self,
        image_id: int,
        segmentation: Any,
        segments_info: Sequence[Mapping[str, Any]],
        file_name: str | None = None,
    ) -> None:
        """Writes one image's segments.

        Args:
            image_id: COCO's id of the image.
            segmentation: [H, W] segment ids below 2^24, 0 where there is none; an array or tensor.
            segments_info: a dict per segment with at least "id" and "category_id".
            file_name: of the PNG; the default is the id in 12 digits, as COCO does.

        Raises:
            ValueError: an id does not fit a colour, is missing from segments_info or has no pixel.
        """
        ids = on_host(segmentation)
        present = set(np.unique(ids).tolist()) - {0}
        if odd := present ^ {int(segment["id"]) for segment in segments_info}:
            raise ValueError(
                f"image {image_id}: segmentation and segments_info must have the same ids, "
                f"only one has {sorted(odd)[:10]}"
            )
        name = file_name or f"{image_id:012d}.png"
        write_png(self._folder / name, Image.fromarray(id2rgb(ids)))
        self.annotations.append(
            {
                "image_id": image_id,
                "file_name": name,
                "segments_info": [
                    {
                        **segment,
                        "id": int(segment["id"]),
                        "category_id": int(segment["category_id"]),
                    }
                    for segment in segments_info
                ],
            }
        )


@contextmanager
def panoptic_results(results_json: str | Path) -> Iterator[PanopticWriter]:
    """Writes COCO panoptic results: `results.json` and its PNGs in the folder `results`.

    The PNGs appear one by one, the JSON when the block succeeds::

        with panoptic_results("results.json") as writer:
            writer.add(image_id, segmentation, segments_info)

    Args:
        results_json: the JSON file; the folder is its name without the ending.
    """
    path = Path(results_json)
    folder = path.with_suffix("")
    if folder == path:
        raise ValueError(f"results_json must have an ending such as .json, got {path}")
    folder.mkdir(parents=True, exist_ok=True)
    writer = PanopticWriter(folder)
    yield writer
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({"annotations": writer.annotations}), encoding="utf-8")


def panoptic_to_instances(
    panoptic: Mapping[str, Any], folder: str | Path, *, things_only: bool = True
) -> dict[str, Any]:
    """Turns a COCO panoptic dataset into COCO's detection format.

    As COCO's converter does, but that ids of annotations start at 1: in COCO's evaluation an
    annotation of id 0 counts as not found.

    Args:
        panoptic: the dataset: "images", "categories", "annotations" with "segments_info".
        folder: the PNGs' place.
        things_only: leaves out the segments and categories of stuff.

    Returns:
        The dataset with one annotation, an RLE, per segment.

    Raises:
        ValueError: a segment's category is not among the categories.
    """
    kept = [one for one in panoptic["categories"] if one["isthing"] == 1 or not things_only]
    known = {one["id"] for one in panoptic["categories"]}
    wanted = {one["id"] for one in kept}
    annotations: list[dict[str, Any]] = []
    for annotation in panoptic["annotations"]:
        ids = rgb2id(read_panoptic_png(Path(folder) / png_name(annotation["file_name"])))
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in known:
                raise ValueError(
                    f"image {annotation['image_id']}: segment {segment['id']} has unknown "
                    f"category_id {segment['category_id']}"
                )
            if segment["category_id"] not in wanted:
                continue
            rle = _C.rle_encode(ids == segment["id"])
            annotations.append(
                {
                    **segment,
                    "id": len(annotations) + 1,
                    "image_id": annotation["image_id"],
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
    described = [{key: value for key, value in one.items() if key != "isthing"} for one in kept]
    return {**panoptic, "annotations": annotations, "categories": described}


def png_name(file_name: str) -> str:
    """The PNG of an annotation, which older files name by its photo."""
    return f"{file_name.rsplit('.', 1)[0]}.png"


def on_host(array: Any) -> NDArray[Any]:
    """An array or tensor, wherever it lies, as NumPy's."""
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)
