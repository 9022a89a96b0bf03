"""Packing masks with areas and boxes against NumPy's packbits and torch, and unpacking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.agreement import close
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator


def cases(setting: Setting) -> Iterator[Case]:
    """Boolean masks and half-precision logits at the size of COCO images."""
    count, size = (3, (60, 80)) if setting.quick else (100, (800, 1333))
    logits = torch.randn(count, *size, generator=generator())
    yield _pack(setting, "bool", logits > 0, None)
    yield _pack(setting, "bool, columns", _columns(logits > 0), None)
    yield _pack(setting, "float16 logits", logits.half(), 0.0)
    yield _unpack(setting, logits > 0)


def _columns(masks: Tensor) -> Tensor:
    return masks.transpose(1, 2).contiguous().transpose(1, 2)


def _pack(setting: Setting, what: str, masks: Tensor, threshold: float | None) -> Case:
    """torch has no packing of bits: it finds areas and boxes alone, NumPy packs."""
    on_device = masks.to(setting.device)

    def inside() -> Tensor:
        return on_device if threshold is None else on_device > threshold

    def fastseg() -> Run:
        from fastseg import ops

        def run() -> Any:
            packed = ops.pack_masks(on_device, threshold)
            return packed.areas, packed.boxes

        return run

    def torch_alone() -> Run:
        from torchvision.ops import masks_to_boxes

        def run() -> Any:
            pixels = inside()
            boxes = masks_to_boxes(pixels).long()
            boxes[:, 2:] += 1
            return pixels.flatten(1).sum(1), boxes

        return run

    def numpy() -> Run:
        bits = np.packbits(inside().cpu().numpy(), axis=2, bitorder="little")
        assert bits.shape[:2] == masks.shape[:2]

        def run() -> Any:
            pixels = inside().cpu().numpy()
            return np.packbits(pixels, axis=2, bitorder="little"), pixels.sum((1, 2))

        return run

    def same_areas(ours: Any, peers: Any) -> str | None:
        return close(0, 0)(ours[0].cpu(), torch.from_numpy(peers[1]))

    return Case(
        name=f"pack {_size(masks)} {what}",
        providers={"fastseg": fastseg, "torch (areas, boxes)": torch_alone, "numpy": numpy},
        bytes_moved=masks.nbytes + masks.numel() // 8,
        agreement=close(0, 0),
        peer_agreement={"numpy": same_areas},
        has_dtype=False,
    )


def _unpack(setting: Setting, masks: Tensor) -> Case:
    from fastseg import ops

    packed = ops.pack_masks(masks.to(setting.device))

    def fastseg() -> Run:
        return lambda: ops.unpack_masks(packed)

    def numpy() -> Run:
        bits = np.packbits(masks.numpy(), axis=2, bitorder="little")

        def run() -> Any:
            pixels = np.unpackbits(bits, axis=2, count=masks.shape[2], bitorder="little")
            return torch.from_numpy(pixels.view(bool)).to(setting.device)

        return run

    return Case(
        name=f"unpack {_size(masks)}",
        providers={"fastseg": fastseg, "numpy": numpy},
        bytes_moved=masks.numel() + masks.numel() // 8,
        agreement=close(0, 0),
        has_dtype=False,
    )


def _size(masks: Tensor) -> str:
    return "x".join(str(side) for side in masks.shape)
