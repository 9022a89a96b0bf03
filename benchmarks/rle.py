"""COCO run lengths against pycocotools and faster-coco-eval: encoding from each memory order,
decoding, and what is done with strings alone."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.agreement import equal
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, object_masks

BYTES_PER_RUN = 4  # how runs are counted in the traffic; strings are a little shorter


def cases(setting: Setting) -> Iterator[Case]:
    """Many objects in a large image, one mask alone, and noise (the worst case: a run a pixel)."""
    count, size = (3, (60, 80)) if setting.quick else (100, (1080, 1920))
    objects = object_masks(count, *size, generator())
    yield _encode(setting, "rows", objects)
    if setting.device.type == "cpu":
        yield _encode_columns(objects)
    yield _encode(setting, "rows", objects[:1])
    noise = torch.rand(count // 3, *size, generator=generator()) < 0.5
    yield _encode(setting, "noise, rows", noise)
    yield _encode_packed(setting, objects)
    yield _decode(setting, objects)
    if setting.device.type == "cpu":
        yield _decode_columns(objects)
        yield from _on_run_lengths(objects)


def _encode(setting: Setting, what: str, masks: Tensor) -> Case:
    """What a model gives: row-major masks on its device. pycocotools needs them transposed."""
    on_device = masks.to(setting.device)

    def fastseg() -> Run:
        from fastseg import ops

        return lambda: ops.rle_encode(on_device)

    def pycocotools() -> Run:
        from pycocotools import mask

        def run() -> Any:
            pixels = on_device.cpu().numpy().view(np.uint8)
            return mask.encode(np.asfortranarray(pixels.transpose(1, 2, 0)))

        return run

    return Case(
        name=f"encode {_size(masks)} {what}",
        providers={"fastseg": fastseg, "pycocotools": pycocotools},
        bytes_moved=_bytes(masks),
        agreement=equal,
        has_dtype=False,
    )


def _encode_packed(setting: Setting, masks: Tensor) -> Case:
    """From one bit a pixel, which pycocotools needs unpacked."""

    def fastseg() -> Run:
        from fastseg import ops

        packed = ops.pack_masks(masks.to(setting.device))
        return lambda: ops.rle_encode(packed)

    def pycocotools() -> Run:
        from pycocotools import mask

        from fastseg import ops

        words, width = ops.pack_masks(masks.to(setting.device)).words, masks.shape[2]

        def run() -> Any:
            bits = words.cpu().numpy().view(np.uint8)
            pixels = np.unpackbits(bits, axis=2, count=width, bitorder="little")
            return mask.encode(np.asfortranarray(pixels.transpose(1, 2, 0)))

        return run

    return Case(
        name=f"encode {_size(masks)} packed",
        providers={"fastseg": fastseg, "pycocotools": pycocotools},
        bytes_moved=_bytes(masks) - masks.numel() * 7 // 8,
        agreement=equal,
        has_dtype=False,
    )


def _encode_columns(masks: Tensor) -> Case:
    columns = np.asfortranarray(masks.numpy().view(np.uint8).transpose(1, 2, 0))

    def fastseg() -> Run:
        from fastseg import mask

        return lambda: mask.encode(columns)

    def pycocotools() -> Run:
        from pycocotools import mask

        return lambda: mask.encode(columns)

    return Case(
        name=f"encode {_size(masks)} columns",
        providers={"fastseg": fastseg, "pycocotools": pycocotools},
        bytes_moved=_bytes(masks),
        agreement=equal,
        has_dtype=False,
    )


def _decode(setting: Setting, masks: Tensor) -> Case:
    """Row-major on the device from fastseg; as it comes, column-major, from pycocotools."""

    def fastseg() -> Run:
        from fastseg import ops

        rles = ops.rle_encode(masks)
        return lambda: ops.rle_decode(rles, device=setting.device)

    def pycocotools() -> Run:
        from pycocotools import mask

        from fastseg import ops

        rles = ops.rle_encode(masks)
        return lambda: torch.from_numpy(mask.decode(rles)).permute(2, 0, 1).to(setting.device)

    return Case(
        name=f"decode {_size(masks)} rows",
        providers={"fastseg": fastseg, "pycocotools": pycocotools},
        bytes_moved=_bytes(masks),
        agreement=_same_pixels,
        has_dtype=False,
    )


def _decode_columns(masks: Tensor) -> Case:
    def fastseg() -> Run:
        from fastseg import mask, ops

        rles = ops.rle_encode(masks)
        return lambda: mask.decode(rles)

    def pycocotools() -> Run:
        from pycocotools import mask

        from fastseg import ops

        rles = ops.rle_encode(masks)
        return lambda: mask.decode(rles)

    return Case(
        name=f"decode {_size(masks)} columns",
        providers={"fastseg": fastseg, "pycocotools": pycocotools},
        bytes_moved=_bytes(masks),
        agreement=_same_pixels,
        has_dtype=False,
    )


def _on_run_lengths(masks: Tensor) -> Iterator[Case]:
    """What is done with the strings of one image; polygons are the masks' own contours."""
    from fastseg import mask, ops

    rles = ops.rle_encode(masks)
    size = rles[0]["size"]
    polygons = [polygon for one in mask.to_polygons(rles) for polygon in one]
    boxes = mask.toBbox(rles)
    flags = [0] * len(rles)
    calls: dict[str, Callable[[Any], Any]] = {
        "area": lambda m: m.area(rles),
        "boxes": lambda m: m.toBbox(rles),
        "merge": lambda m: m.merge(rles),
        "IoU": lambda m: m.iou(rles, rles[1:], flags[1:]),
        "IoU of boxes": lambda m: m.iou(boxes, boxes, flags),
        "fill polygons": lambda m: m.frPyObjects(polygons, *size),
        "fill boxes": lambda m: m.frPyObjects(boxes, *size),
    }
    for what, call in calls.items():
        yield Case(
            name=f"{what} {len(rles)}x{size[0]}x{size[1]}",
            providers={
                "fastseg": partial(_with_module, "fastseg.mask", call),
                "pycocotools": partial(_with_module, "pycocotools.mask", call),
                "faster-coco-eval": partial(_with_module, "faster_coco_eval.core.mask", call),
            },
            bytes_moved=sum(len(rle["counts"]) for rle in rles),
            agreement=_same_values,
            has_dtype=False,
        )
    yield _boundary(rles)


def _with_module(name: str, call: Callable[[Any], Any]) -> Run:
    module = importlib.import_module(name)
    return lambda: call(module)


def _same_values(ours: Any, peers: Any) -> str | None:
    if not isinstance(ours, np.ndarray):
        return equal(ours, peers)
    return None if np.array_equal(ours, peers) else "values differ"


def _boundary(rles: list[Any]) -> Case:
    def fastseg() -> Run:
        from fastseg import mask

        return lambda: mask.boundary(rles)

    def faster_coco_eval() -> Run:
        from faster_coco_eval.core.mask import rleToBoundary

        return lambda: [rleToBoundary(rle) for rle in rles]

    height, width = rles[0]["size"]
    return Case(
        name=f"boundary {len(rles)}x{height}x{width}",
        providers={"fastseg": fastseg, "faster-coco-eval": faster_coco_eval},
        bytes_moved=2 * sum(len(rle["counts"]) for rle in rles),
        agreement=equal,
        has_dtype=False,
    )


def _size(masks: Tensor) -> str:
    return "x".join(str(side) for side in masks.shape)


def _bytes(masks: Tensor) -> int:
    """A byte a pixel, and the runs."""
    in_columns = masks.transpose(1, 2).flatten(1)
    changes = (in_columns[:, 1:] != in_columns[:, :-1]).sum().item()
    return masks.numel() + BYTES_PER_RUN * int(changes + len(masks))


def _same_pixels(ours: Any, peers: Any) -> str | None:
    ours, peers = torch.as_tensor(ours), torch.as_tensor(peers)
    if ours.shape != peers.shape:
        return f"shape {tuple(ours.shape)} against {tuple(peers.shape)}"
    wrong = (ours.bool() != peers.bool()).sum().item()
    return f"{wrong} pixels differ" if wrong else None
