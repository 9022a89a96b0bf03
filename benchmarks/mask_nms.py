"""NMS of masks against the loop over a matrix of IoUs that models use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.harness.agreement import Agreement, close, equal
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, object_masks

SIZE = (200, 304)


def cases(setting: Setting) -> Iterator[Case]:
    """Greedy, fast and soft NMS of one class, and greedy NMS of many."""
    count = 20 if setting.quick else 500
    masks = object_masks(count, *SIZE, generator())
    yield _nms(setting, masks, "greedy", 1)
    yield _nms(setting, masks, "greedy", 80)
    yield _nms(setting, masks, "fast", 1)
    yield _soft(setting, masks)


def _scored(setting: Setting, masks: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    random = generator(1)
    scores = (torch.randperm(len(masks), generator=random) + 1.0) / len(masks)
    labels = torch.randint(classes, (len(masks),), generator=random)
    return masks.to(setting.device), scores.to(setting.device), labels.to(setting.device)


def _nms(setting: Setting, masks: Tensor, method: Literal["greedy", "fast"], classes: int) -> Case:
    arguments = _scored(setting, masks, classes)

    def fastseg() -> Run:
        from fastseg import ops

        return lambda: ops.mask_nms(*arguments, 0.5, method=method)

    def torch_loop() -> Run:
        return lambda: torch_nms(*arguments, greedy=method == "greedy")

    return _case(f"{method}, {classes} classes", masks, fastseg, torch_loop, equal)


def _soft(setting: Setting, masks: Tensor) -> Case:
    arguments = _scored(setting, masks, 1)

    def fastseg() -> Run:
        from fastseg import ops

        return lambda: ops.soft_mask_nms(*arguments, method="gaussian")

    def torch_loop() -> Run:
        return lambda: torch_soft_nms(*arguments[:2])

    return _case("soft gaussian, 1 class", masks, fastseg, torch_loop, close(1e-5, 1e-6))


def _case(what: str, masks: Tensor, fastseg: Any, peer: Any, agreement: Agreement) -> Case:
    return Case(
        name=f"mask_nms {len(masks)} at {SIZE[0]}x{SIZE[1]} {what}",
        providers={"fastseg": fastseg, "torch matmul and loop": peer},
        bytes_moved=masks.numel(),
        agreement=agreement,
        has_dtype=False,
    )


def torch_nms(masks: Tensor, scores: Tensor, labels: Tensor, greedy: bool) -> Tensor:
    """As models do it: the matrix on the masks' device, the loop over rows of it."""
    order = scores.sort(descending=True, stable=True).indices
    flat = masks[order].flatten(1).float()
    overlaps = (_iou(flat) > 0.5) & (labels[order][:, None] == labels[order])
    overlaps = overlaps.triu(1)
    if not greedy:
        return order[~overlaps.any(0)]
    keep = torch.ones(len(order), dtype=torch.bool, device=masks.device)
    for i in range(len(order)):
        if keep[i]:
            keep &= ~overlaps[i]
    return order[keep]


def torch_soft_nms(masks: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.exp(-(_iou(masks.flatten(1).float()) ** 2) / 0.5)
    scores, taken, indices = scores.clone(), [], []
    for _ in range(len(scores)):
        best = scores.argmax()
        if scores[best] < 1e-3:
            break
        taken.append(scores[best].clone())
        indices.append(best)
        scores *= weights[best]
        scores[best] = -torch.inf
    return torch.stack(taken), torch.stack(indices)


def _iou(flat: Tensor) -> Tensor:
    inter = flat @ flat.T
    areas = flat.sum(1)
    return inter / (areas[:, None] + areas - inter)
