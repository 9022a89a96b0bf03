"""Non-maximum suppression against torchvision's: plain, per class, and of fixed size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.agreement import Agreement, equal
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, proposals

IMAGE = (800, 1344)
PADDED = 1000  # proposals kept per image, as Mask R-CNN's region proposal network does


def cases(setting: Setting) -> Iterator[Case]:
    """Boxes all over the image, boxes crowding around few objects, classes, and two images."""
    for count in (100,) if setting.quick else (1000, 4000, 8000):
        yield _plain(setting, "spread", count)
        yield _plain(setting, "crowded", count)
    yield _classes(setting, 100 if setting.quick else 5000, classes=80)
    yield _padded(setting, images=2, count=100 if setting.quick else 4741)


def _boxes(count: int, placing: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[N, 4] boxes and [N] scores; "crowded" ones are jittered copies of one in fifty."""
    random = generator(seed)
    if placing == "spread":
        boxes = proposals(count, *IMAGE, random)
    else:
        objects = proposals(-(-count // 50), *IMAGE, random).repeat(50, 1)[:count]
        sides = (objects[:, 2:] - objects[:, :2]).repeat(1, 2)
        boxes = objects + 0.1 * sides * torch.randn(count, 4, generator=random)
        boxes = torch.cat([boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, 2:]], 1)
    return boxes, torch.rand(count, generator=random)


def _plain(setting: Setting, placing: str, count: int) -> Case:
    boxes, scores = _on_device(setting, *_boxes(count, placing))

    def fastseg() -> Run:
        from fastseg import ops

        return lambda: ops.nms(boxes, scores, 0.7)

    def torchvision() -> Run:
        from torchvision.ops import nms

        return lambda: nms(boxes, scores, 0.7)

    return Case(
        name=f"nms {count} {placing}, iou 0.7",
        providers={"fastseg": fastseg, "torchvision": torchvision},
        bytes_moved=_bytes(boxes, scores),
        agreement=equal,
    )


def _classes(setting: Setting, count: int, classes: int) -> Case:
    boxes, scores = _on_device(setting, *_boxes(count, "crowded"))
    labels = torch.randint(classes, (count,), generator=generator(1)).to(setting.device)

    def fastseg() -> Run:
        from fastseg import ops

        return lambda: ops.batched_nms(boxes, scores, labels, 0.5)

    def torchvision() -> Run:
        from torchvision.ops import batched_nms

        return lambda: batched_nms(boxes, scores, labels, 0.5)

    return Case(
        name=f"batched_nms {count} boxes, {classes} classes, iou 0.5",
        providers={"fastseg": fastseg, "torchvision": torchvision},
        bytes_moved=_bytes(boxes, scores, labels),
        # Up to some number of boxes torchvision shifts the classes apart, which rounds coordinates.
        agreement=_nearly_equal(0.005),
    )


def _padded(setting: Setting, images: int, count: int) -> Case:
    """Proposals of five pyramid levels: the fixed-size form needs no word from the device."""
    pairs = [_boxes(count, "crowded", seed) for seed in range(images)]
    boxes = torch.stack([pair[0] for pair in pairs])
    boxes, scores = _on_device(setting, boxes, torch.stack([pair[1] for pair in pairs]))
    levels = torch.randint(5, (images, count), generator=generator(1)).to(setting.device)

    def fastseg() -> Run:
        from fastseg import ops

        return lambda: ops.batched_nms(boxes, scores, levels, 0.7, max_output=PADDED)

    def torchvision() -> Run:
        from torchvision.ops import batched_nms

        return lambda: [
            batched_nms(boxes[i], scores[i], levels[i], 0.7)[:PADDED] for i in range(images)
        ]

    def agreement(ours: Any, peers: Any) -> str | None:
        indices, counts = ours
        kept = [row[:count] for row, count in zip(indices, counts.tolist(), strict=True)]
        differences = map(_nearly_equal(0.005), kept, peers)
        return next((text for text in differences if text), None)

    return Case(
        name=f"batched_nms {images}x{count} boxes, 5 levels, iou 0.7, best {PADDED}",
        providers={"fastseg": fastseg, "torchvision": torchvision},
        bytes_moved=_bytes(boxes, scores, levels),
        agreement=agreement,
    )


def _on_device(setting: Setting, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes.to(setting.device, setting.dtype), scores.to(setting.device, setting.dtype))


def _bytes(*inputs: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in inputs)


def _nearly_equal(share: float) -> Agreement:
    """The same indices but for a share of them, for peers that compare rounded coordinates."""

    def compare(ours: Tensor, peers: Tensor) -> str | None:
        different = set(ours.tolist()) ^ set(peers.tolist())
        if len(different) <= share * len(peers):
            return None
        return f"{len(different)} of {len(peers)} kept indices differ"

    return compare
