"""Matrix NMS of SOLOv2's candidates against mmdetection's algorithm, and mmdetection itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, object_masks

SIZE = (200, 304)  # a quarter of an image of 800 x 1216
FILTER = 0.05
KEPT = 100


def cases(setting: Setting) -> Iterator[Case]:
    """Candidates of many classes, of one, and noise, where no box and no class helps."""
    count = 20 if setting.quick else 500
    objects = object_masks(count, *SIZE, generator())
    yield _matrix_nms(setting, "objects, 80 classes", objects, classes=80)
    yield _matrix_nms(setting, "objects, 1 class", objects, classes=1)
    noise = torch.rand(count, *SIZE, generator=generator()) < 0.5
    yield _matrix_nms(setting, "noise, 1 class", noise, classes=1)


def _matrix_nms(setting: Setting, what: str, masks: Tensor, classes: int) -> Case:
    count, random = len(masks), generator(1)
    on_device = masks.to(setting.device)
    labels = torch.randint(classes, (count,), generator=random).to(setting.device)
    # Distinct, so that the peers' order is defined.
    scores = ((torch.randperm(count, generator=random) + 1.0) / count).to(setting.device)

    def fastseg() -> Run:
        from fastseg import ops

        def run() -> Any:
            kept = ops.matrix_nms(
                on_device, labels, scores, filter_threshold=FILTER, max_output=KEPT
            )
            return kept[0], kept[1], kept[3]

        return run

    def padded() -> Run:
        from fastseg import ops

        return lambda: ops.matrix_nms_padded(
            on_device, labels, scores, KEPT, filter_threshold=FILTER
        )

    def algorithm() -> Run:
        return lambda: mmdetection_algorithm(on_device, labels, scores)

    def mmdet() -> Run:
        from mmdet.models.layers.matrix_nms import mask_matrix_nms

        def run() -> Any:
            kept_scores, kept_labels, _, indices = mask_matrix_nms(
                on_device, labels, scores, filter_thr=FILTER, max_num=KEPT
            )
            return kept_scores, kept_labels, indices

        return run

    return Case(
        name=f"matrix_nms {count} at {SIZE[0]}x{SIZE[1]} {what}",
        providers={
            "fastseg": fastseg,
            "fastseg, padded": padded,
            "mmdetection algorithm": algorithm,
            "mmdet": mmdet,
        },
        bytes_moved=masks.numel(),
        flops=0 if setting.device.type == "cpu" else count * count * masks[0].numel() // 8,
        agreement=_same_selection,
        has_dtype=False,
    )


def mmdetection_algorithm(masks: Tensor, labels: Tensor, scores: Tensor) -> tuple[Tensor, ...]:
    """What mmdetection's `mask_matrix_nms` computes, by the same operations: a product of masks
    as floats, then some fifteen passes over matrices of N x N."""
    scores, order = scores.sort(descending=True)
    labels, flat = labels[order], masks[order].flatten(1).float()
    inter = flat @ flat.T
    areas = masks.sum((1, 2)).float()[order]
    iou = (inter / (areas[:, None] + areas - inter)).triu(1)
    iou = iou * (labels[:, None] == labels).triu(1)
    largest = iou.amax(0)[:, None]
    decay = torch.exp(-2 * iou**2) / torch.exp(-2 * largest**2)
    scores = scores * decay.amin(0)
    keep = scores >= FILTER
    scores, labels, order = scores[keep], labels[keep], order[keep]
    scores, best = scores.sort(descending=True)
    best = best[:KEPT]
    return scores[:KEPT], labels[best], order[best]


def _same_selection(ours: Any, peers: Any) -> str | None:
    """The same scores, and the same masks but where neighbours' scores differ by rounding."""
    if len(peers) == 4:  # padded
        peers = tuple(tensor[: int(peers[3])] for tensor in peers[:3])
    if len(ours[0]) != len(peers[0]):
        return f"{len(ours[0])} masks against {len(peers[0])}"
    difference = (ours[0] - peers[0]).abs().max().item() if len(ours[0]) else 0.0
    if not difference <= 1e-5:
        return f"scores differ by {difference:.3g}"
    different = (ours[2] != peers[2]).sum().item()
    return f"{different} indices differ" if different > 0.05 * len(ours[2]) else None
