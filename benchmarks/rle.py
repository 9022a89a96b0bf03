"""COCO run lengths against pycocotools: encoding from each memory order, and decoding."""

from __future__ import annotations

from collections.abc import Iterator
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
    yield _decode(setting, objects)
    if setting.device.type == "cpu":
        yield _decode_columns(objects)


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
