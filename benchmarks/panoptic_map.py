"""Which of the kept masks wins each pixel, against MaskFormer's rule in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.agreement import Agreement
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator

# Masks, those kept by their score, cells, padded input, image within it, original image.
SIZES = (
    ("COCO", 100, 15, (256, 256), (1024, 1024), (683, 1024), (800, 1200)),
    ("Cityscapes", 100, 30, (256, 512), (1024, 2048), (1024, 2048), (1024, 2048)),
)
QUICK = (("COCO", 9, 3, (16, 16), (64, 64), (43, 64), (80, 120)),)


def cases(setting: Setting) -> Iterator[Case]:
    """A share of the masks is kept, the others score 0; and noise, of which nothing is certain."""
    for name, count, kept, cells, via, crop, size in QUICK if setting.quick else SIZES:
        masks = _objects(count, cells).to(setting.device, setting.dtype)
        scores = torch.zeros(count, device=setting.device)
        scores[:kept] = torch.linspace(0.99, 0.81, kept)
        scores = scores[torch.randperm(count, generator=generator()).to(setting.device)]
        noise = torch.randn(masks.shape, generator=generator()).to(masks)
        for what, logits in (("objects", masks), ("noise", noise)):
            yield Case(
                name=f"{name}'s {kept} of {count} {what} to {size[0]}x{size[1]}",
                providers={
                    "fastseg": lambda m=logits, s=scores, o=(size, via, crop): _fastseg(m, s, *o),
                    "torch": lambda m=logits, s=scores, o=(size, via, crop): _torch(m, s, *o),
                },
                bytes_moved=kept * cells[0] * cells[1] * masks.element_size()
                + 4 * size[0] * size[1],
                agreement=nearly_all_equal(),
            )


def _objects(count: int, cells: tuple[int, int]) -> Tensor:
    """Logits of one blob each, of log-uniform sizes of 3 to 70 % of the image."""
    random = generator()
    centre = torch.rand(count, 2, generator=random) * 1.6 - 0.8
    radius = 0.03 * (0.7 / 0.03) ** torch.rand(count, generator=random)
    y = torch.linspace(-1, 1, cells[0])[:, None] - centre[:, 0, None, None]
    x = torch.linspace(-1, 1, cells[1]) - centre[:, 1, None, None]
    waves = torch.randn(count, 1, cells[0] // 8, cells[1] // 8, generator=random)
    texture = F.interpolate(waves, cells, mode="bicubic")[:, 0]
    return 30 * (radius[:, None, None] - torch.hypot(y, x)) + texture


def nearly_all_equal(share: float = 1e-4) -> Agreement:
    """Winners and areas are equal but for a share of the pixels, where products tie.

    Args:
        share: of the pixels.
    """

    def compare(ours: tuple[Tensor, Tensor], peers: tuple[Tensor, Tensor]) -> str | None:
        limit = share * ours[0].numel()
        for name, our, peer in zip(("winners", "areas"), ours, peers, strict=True):
            differs = (our != peer).sum() if name == "winners" else (our - peer).abs().max()
            if differs > limit:
                return f"{name} differ by {differs} pixels, {limit:.0f} may"
        return None

    return compare


Size = tuple[int, int]


def _fastseg(masks: Tensor, scores: Tensor, size: Size, via: Size, crop: Size) -> Run:
    from fastseg import ops

    return lambda: ops.panoptic_map(masks, scores, size, via=via, crop=crop)


def _torch(masks: Tensor, scores: Tensor, size: Size, via: Size, crop: Size) -> Run:
    """As the original: all masks are resized, the kept ones compete."""

    def run() -> tuple[Tensor, Tensor]:
        logits = F.interpolate(masks[None].float(), via, mode="bilinear")
        logits = F.interpolate(logits[..., : crop[0], : crop[1]], size, mode="bilinear")[0]
        kept = scores > 0
        probabilities = logits.sigmoid()[kept]
        best = (scores[kept, None, None] * probabilities).argmax(0)
        winners = torch.full(size, -1, dtype=torch.int32, device=masks.device)
        areas = torch.zeros(3, len(masks), dtype=torch.int64, device=masks.device)
        for row, query in enumerate(kept.nonzero().flatten().tolist()):
            won, inside = best == row, probabilities[row] >= 0.5
            winners[won & inside] = query
            areas[:, query] = torch.stack([won.sum(), inside.sum(), (won & inside).sum()])
        return winners, areas

    return run
