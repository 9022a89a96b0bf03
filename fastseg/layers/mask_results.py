"""From the queries' classes and masks of one image to its result, by MaskFormer's rules.

These are the rules of the original repositories (``instance_inference`` and ``panoptic_inference``
of Mask2Former, ``panoptic_inference`` of MaskFormer), which transformers' differ from. Masks go
from logits to run lengths or to one map; what is read back from the device before that is a few
numbers per query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg import ops
from fastseg.instances import Instances, boxes_around
from fastseg.segmentation import PanopticSegmentation, Segment, SemanticSegmentation


@dataclass(frozen=True)
class ImageFrame:
    """Where an image lies in its batch, as (height, width): what mask logits are resized by.

    Attributes:
        padded: size of the batch, to which the mask logits are stretched.
        image: size of the resized image in its top left corner.
        original: size of the image before, and of the result.
    """

    padded: tuple[int, int]
    image: tuple[int, int]
    original: tuple[int, int]


def instances_of(
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: ImageFrame,
    *,
    top_k: int = 100,
    labels_kept: Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
) -> Instances:
    """The best pairs of query and class; a query may be an instance of several classes.

    The score is the class's probability times the mean probability of the mask's pixels.

    Args:
        class_logits: [Q, K + 1], the last class is "no object".
        mask_logits: [Q, h, w].
        frame: of the image.
        top_k: pairs that are looked at.
        labels_kept: of these, classes that become instances; None for all. The original keeps
            things alone where a model makes panoptic maps as well.
        class_names: names indexed by label.

    Returns:
        Instances, best first. Their masks may be empty.
    """
    probabilities = class_logits.float().softmax(1)[:, :-1]
    scores, pairs = probabilities.flatten().topk(min(top_k, probabilities.numel()))
    labels, queries = pairs % probabilities.shape[1], pairs // probabilities.shape[1]
    if labels_kept is not None:
        kept = torch.isin(labels, torch.tensor(list(labels_kept), device=labels.device))
        scores, labels, queries = scores[kept], labels[kept], queries[kept]
    queries, which = queries.unique(return_inverse=True)  # one mask may be of several classes
    masks = mask_logits[queries]
    rles = ops.resize_masks(masks, frame.original, via=frame.padded, crop=frame.image)
    certainty = ops.mask_scores(masks, frame.original, via=frame.padded, crop=frame.image)
    scores, order = (scores * certainty[which]).sort(descending=True, stable=True)
    rles = [rles[index] for index in which[order].tolist()]
    return Instances(
        boxes=boxes_around(rles).to(scores.device),
        scores=scores,
        labels=labels[order],
        rles=rles,
        image_size=frame.original,
        class_names=None if class_names is None else tuple(class_names),
    )


def panoptic_of(
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: ImageFrame,
    *,
    thing_classes: Sequence[int],
    object_mask_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
    inside_only: bool = True,
    class_names: Sequence[str] | None = None,
) -> PanopticSegmentation:
    """Each pixel's segment: queries compete by the product of class and mask probability.

    Args:
        class_logits: [Q, K + 1], the last class is "no object".
        mask_logits: [Q, h, w].
        frame: of the image.
        thing_classes: labels of countable classes; queries of one of the others make one segment.
        object_mask_threshold: only queries take part whose best class has a higher probability.
        overlap_threshold: a query that wins less than this share of its mask is dropped, and
            its pixels with it.
        inside_only: pixels are void where the winner's mask probability is below 0.5, as in
            Mask2Former; False as in MaskFormer.
        class_names: names indexed by label.

    Returns:
        Ids from 1 on in the order of the queries. The score of a segment is its best query's class
        probability, which the original does not tell.
    """
    num_classes = class_logits.shape[1] - 1
    scores, labels = class_logits.float().softmax(1).max(1)
    taking_part = (labels != num_classes) & (scores > object_mask_threshold)
    winners, areas = ops.panoptic_map(
        mask_logits,
        scores.where(taking_part, 0),
        frame.original,
        via=frame.padded,
        crop=frame.image,
        inside_only=inside_only,
    )
    numbers = torch.cat([areas, labels[None], taking_part[None].long()]).T.tolist()
    queries = [
        _Query(won, inside, both, label, bool(part), score)
        for (won, inside, both, label, part), score in zip(numbers, scores.tolist(), strict=True)
    ]
    ids, segments = _segments(queries, set(thing_classes), overlap_threshold, inside_only)
    id_of_winner = torch.tensor([0, *ids], dtype=torch.int32, device=winners.device)
    return PanopticSegmentation(
        ids=id_of_winner.index_select(0, winners.add_(1).flatten()).view(winners.shape),
        segments=segments,
        class_names=None if class_names is None else tuple(class_names),
    )


def semantic_of(
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: ImageFrame,
    *,
    resize_scores: bool = True,
    class_names: Sequence[str] | None = None,
) -> SemanticSegmentation:
    """The class of each pixel: the greatest sum of class x mask probability over the queries.

    Args:
        class_logits: [Q, K + 1], the last class is "no object".
        mask_logits: [Q, h, w].
        frame: of the image.
        resize_scores: the scores of classes are resized to the original size, as the original does
            where a model makes semantic maps alone; False: the masks' logits, as it does where
            the model makes panoptic maps or instances as well.
        class_names: names indexed by label.
    """
    labels = ops.semantic_map(
        class_logits.float().softmax(1)[:, :-1],
        mask_logits,
        frame.original,
        via=frame.padded,
        crop=frame.image,
        resize_scores=resize_scores,
    )
    return SemanticSegmentation(labels, None if class_names is None else tuple(class_names))


class _Query(NamedTuple):
    won: int  # pixels, as panoptic_map counts them
    inside: int
    both: int
    label: int
    takes_part: bool
    score: float


def _segments(
    queries: list[_Query], things: set[int], overlap_threshold: float, inside_only: bool
) -> tuple[list[int], list[Segment]]:
    """The id of each query, 0 for none, and what the ids are."""
    ids = [0] * len(queries)
    segments: list[Segment] = []
    stuff: dict[int, int] = {}  # id by label
    for index, query in enumerate(queries):
        area = query.both if inside_only else query.won
        if not query.takes_part or area == 0 or query.inside == 0:
            continue
        if query.won / query.inside < overlap_threshold:
            continue
        label, score = query.label, query.score
        number = stuff.get(label, 0)
        if number:
            first = segments[number - 1]
            area, score = area + first.area, max(score, first.score)
            segments[number - 1] = Segment(number, label, False, score, area)
        else:
            number = len(segments) + 1
            segments.append(Segment(number, label, label in things, score, area))
            if label not in things:
                stuff[label] = number
        ids[index] = number
    return ids, segments
