"""Which mask wins each pixel, and whole panoptic maps, against the original's rule in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.agreement import Agreement, close, nearly_all_equal
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, object_logits

Size = tuple[int, int]
THINGS = range(80)

# Masks, those kept by their score, cells, padded input, image within it, original image.
SIZES = (
    ("COCO", 100, 15, (256, 256), (1024, 1024), (683, 1024), (800, 1200)),
    ("Cityscapes", 100, 30, (256, 512), (1024, 2048), (1024, 2048), (1024, 2048)),
)
QUICK = (("COCO", 9, 3, (16, 16), (64, 64), (43, 64), (80, 120)),)


def cases(setting: Setting) -> Iterator[Case]:
    """A share of the masks is kept, the others score 0; and noise, of which nothing is certain."""
    for name, count, kept, cells, via, crop, size in QUICK if setting.quick else SIZES:
        masks = object_logits(count, *cells, generator()).to(setting.device, setting.dtype)
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
                agreement=winners_and_areas(),
            )
        # transformers knows of no padding: here the image fills its batch.
        yield _whole_rule(name, masks, scores, (size, via, via))


def _whole_rule(name: str, masks: Tensor, scores: Tensor, sizes: tuple[Size, Size, Size]) -> Case:
    """From class and mask logits to ids; transformers goes through masks of 384 x 384."""
    num_classes, size = 133, sizes[0]
    class_logits = torch.zeros(len(masks), num_classes + 1, device=masks.device)
    labels = torch.arange(len(masks), device=masks.device) % num_classes
    labels[scores == 0] = num_classes
    class_logits[torch.arange(len(masks)), labels] = 8 + scores
    return Case(
        name=f"{name}: {len(masks)} queries to panoptic ids {size[0]}x{size[1]}",
        providers={
            "fastseg": lambda: _ids_fastseg(class_logits, masks, *sizes),
            "original": lambda: _ids_original(class_logits, masks, *sizes),
            "transformers": lambda: _ids_transformers(class_logits, masks, size),
        },
        bytes_moved=masks.numel() * masks.element_size() + 4 * size[0] * size[1],
        agreement=nearly_all_equal(),
        peer_agreement={"transformers": as_many_segments},
    )


def winners_and_areas(share: float = 1e-4) -> Agreement:
    """Winners are equal but for a share of the pixels, where products tie, and areas as much.

    Args:
        share: of the pixels.
    """
    same_winners = nearly_all_equal(share)

    def compare(ours: tuple[Tensor, Tensor], peers: tuple[Tensor, Tensor]) -> str | None:
        same_areas = close(rtol=0, atol=share * ours[0].numel())
        return same_winners(ours[0], peers[0]) or same_areas(ours[1], peers[1])

    return compare


def as_many_segments(ours: Tensor, peers: Tensor) -> str | None:
    """One more or less, for transformers: there pixels outside of all masks belong to some."""
    our, peer = (int(ids.unique().count_nonzero()) for ids in (ours, peers))
    return None if abs(our - peer) <= 1 else f"{our} segments against {peer}"


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


def _ids_fastseg(class_logits: Tensor, masks: Tensor, size: Size, via: Size, crop: Size) -> Run:
    from fastseg.layers.mask_results import ImageFrame, panoptic_of

    frame = ImageFrame(via, crop, size)
    return lambda: panoptic_of(class_logits, masks, frame, thing_classes=THINGS).ids


def _ids_original(class_logits: Tensor, masks: Tensor, size: Size, via: Size, crop: Size) -> Run:
    from fastseg.reference.mask_results import panoptic_results
    from fastseg.reference.resize_masks import resize_logits

    def run() -> Tensor:
        resized = resize_logits(masks, size, via, crop)
        return panoptic_results(class_logits, resized, thing_classes=THINGS)[0]

    return run


def _ids_transformers(class_logits: Tensor, masks: Tensor, size: Size) -> Run:
    from transformers import Mask2FormerImageProcessor
    from transformers.models.mask2former.modeling_mask2former import (
        Mask2FormerForUniversalSegmentationOutput,
    )

    processor = Mask2FormerImageProcessor()
    outputs = Mask2FormerForUniversalSegmentationOutput(
        class_queries_logits=class_logits[None], masks_queries_logits=masks[None].float()
    )
    stuff = set(range(len(THINGS), class_logits.shape[1]))

    def run() -> Tensor:
        found = processor.post_process_panoptic_segmentation(
            outputs, threshold=0.8, label_ids_to_fuse=stuff, target_sizes=[size]
        )[0]["segmentation"]
        return found.clamp(min=0)  # void is -1 or 0 there

    return run
