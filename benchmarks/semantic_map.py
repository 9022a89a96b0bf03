"""Classes of pixels from queries, against MaskFormer's rule in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.agreement import nearly_all_equal
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator

Size = tuple[int, int]

# Queries, classes, cells, padded input, image within it, original image.
SIZES = (
    ("ADE20K", 100, 150, (128, 176), (512, 704), (512, 683), (768, 1024)),
    ("Cityscapes", 100, 19, (256, 512), (1024, 2048), (1024, 2048), (1024, 2048)),
)
QUICK = (("ADE20K", 9, 5, (16, 16), (64, 64), (43, 64), (80, 120)),)


def cases(setting: Setting) -> Iterator[Case]:
    """Models that make semantic maps alone: the scores of classes are resized."""
    for name, queries, classes, cells, via, crop, size in QUICK if setting.quick else SIZES:
        masks = _masks(queries, cells).to(setting.device, setting.dtype)
        logits = torch.randn(queries, classes + 1, generator=generator())
        logits[torch.arange(queries), torch.arange(queries) % (classes + 1)] += 8
        probabilities = logits.softmax(1)[:, :-1].to(setting.device)
        arguments = (probabilities, masks, size, via, crop)
        yield Case(
            name=f"{name}'s {classes} classes of {queries} queries to {size[0]}x{size[1]}",
            providers={
                "fastseg": lambda arguments=arguments: _fastseg(*arguments),
                "torch": lambda arguments=arguments: _torch(*arguments),
            },
            bytes_moved=masks.numel() * masks.element_size() + 4 * size[0] * size[1],
            flops=2 * queries * classes * crop[0] * crop[1],
            agreement=nearly_all_equal(),
        )


def _masks(count: int, cells: Size) -> Tensor:
    """Logits of smooth regions, which are mostly sure."""
    coarse = torch.randn(count, 1, 7, 9, generator=generator())
    return 12 * F.interpolate(coarse, cells, mode="bicubic")[:, 0] - 4


def _fastseg(probabilities: Tensor, masks: Tensor, size: Size, via: Size, crop: Size) -> Run:
    from fastseg import ops

    return lambda: ops.semantic_map(probabilities, masks, size, via=via, crop=crop)


def _torch(probabilities: Tensor, masks: Tensor, size: Size, via: Size, crop: Size) -> Run:
    def run() -> Tensor:
        resized = F.interpolate(masks[None].float(), via, mode="bilinear")[0].sigmoid()
        scores = torch.einsum("qc,qhw->chw", probabilities, resized)[None]
        scores = F.interpolate(scores[..., : crop[0], : crop[1]], size, mode="bilinear")
        return scores[0].argmax(0)

    return run
