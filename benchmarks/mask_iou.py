"""Mask IoU of all pairs: from pixels against a matrix product, from run lengths against
pycocotools and faster-coco-eval."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.agreement import close
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, object_masks

MAX_MATRIX_BYTES = 2 << 30  # of the matrix product's float masks


def cases(setting: Setting) -> Iterator[Case]:
    """Objects as COCO has them, and noise, where no box helps; pairs of one set and of two."""
    count, size = (3, (60, 80)) if setting.quick else (100, (800, 1333))
    masks = object_masks(count, *size, generator())
    yield _pixels(setting, "objects", masks, masks.roll(1, 0))
    yield _pixels(setting, "noise", torch.rand(count, *size, generator=generator()) < 0.5, None)
    if setting.device.type == "cpu":
        yield _runs("objects", masks)
        yield _runs("objects", object_masks(10 * count, *size, generator()))
    else:
        yield _pixels(setting, "objects", object_masks(10 * count, *size, generator()), None)


def _pixels(setting: Setting, what: str, a: Tensor, b: Tensor | None) -> Case:
    a = a.to(setting.device)
    b = None if b is None else b.to(setting.device)
    pixels = a.shape[1] * a.shape[2]
    num_b = len(a if b is None else b)
    products = len(a) * num_b * pixels

    def fastseg() -> Run:
        from fastseg import ops

        return lambda: ops.mask_iou(a, b)

    def packed() -> Run:
        from fastseg import ops

        packed_a = ops.pack_masks(a)
        packed_b = None if b is None else ops.pack_masks(b)
        return lambda: ops.mask_iou(packed_a, packed_b)

    def torch_product() -> Run:
        def run() -> Tensor:
            first = a.flatten(1).float()
            second = first if b is None else b.flatten(1).float()
            common = first @ second.T
            union = first.sum(1)[:, None] + second.sum(1)[None] - common
            return common / union

        return run

    providers = {"fastseg": fastseg, "fastseg, packed": packed}
    if 8 * len(a) * pixels <= MAX_MATRIX_BYTES or setting.device.type != "cpu":
        providers["torch matmul"] = torch_product
    return Case(
        name=f"{len(a)}x{num_b} at {a.shape[1]}x{a.shape[2]} {what}{', itself' * (b is None)}",
        providers=providers,
        bytes_moved=a.numel() + (0 if b is None else b.numel()),
        flops=0 if setting.device.type == "cpu" else 2 * products // 8,  # b1: 8 times int8
        agreement=close(1e-6, 1e-6),  # the product rounds
        has_dtype=False,
    )


def _runs(what: str, masks: Tensor) -> Case:
    from fastseg import ops

    rles = ops.rle_encode(masks)
    others = rles[1:] + rles[:1]

    def fastseg() -> Run:
        return lambda: ops.mask_iou(rles, others)

    def pycocotools() -> Run:
        from pycocotools import mask

        return lambda: torch.from_numpy(mask.iou(rles, others, [0] * len(others)))

    def faster_coco_eval() -> Run:
        from faster_coco_eval.core import mask

        def run() -> Any:
            return torch.as_tensor(mask.iou(rles, others, [0] * len(others)))

        return run

    return Case(
        name=f"{len(masks)}x{len(masks)} at {masks.shape[1]}x{masks.shape[2]} {what}, run lengths",
        providers={
            "fastseg": fastseg,
            "pycocotools": pycocotools,
            "faster-coco-eval": faster_coco_eval,
        },
        bytes_moved=2 * sum(len(rle["counts"]) for rle in rles),
        agreement=close(0, 0),
        has_dtype=False,
    )
