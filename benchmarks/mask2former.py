"""Whole Mask2Former against transformers' and mmdetection's with the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.agreement import Agreement
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import photos
from benchmarks.harness.peer_models import fill, mmdetection_model

Result = tuple[Tensor, Tensor, list[dict[str, Any]]]  # scores, labels, COCO run lengths
NUM_CLASSES = 80


def cases(setting: Setting) -> Iterator[Case]:
    """ResNet-50 on 800x1333 images: pixels to predictions, and image to run lengths."""
    height, width = (64, 96) if setting.quick else (800, 1333)
    images = photos(1, height, width, setting.device)
    model = _model(setting, images)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with torch.inference_mode():
        batch = model.preprocess(images)
        with FlopCounterMode(display=False) as counter:
            model(batch.pixels, batch.sizes)
    half = setting.dtype.itemsize == 2
    for name, providers, agreement in (
        (
            "pixels to predictions",
            {
                "fastseg": _predictions,
                "transformers": _transformers_predictions,
                "mmdetection": _mmdetection_predictions,
            },
            _same_signs(0.9, 0.5) if half else _same_signs(0.999, 0.01),
        ),
        (
            "image to run lengths",
            {"fastseg": _instances, "mmdetection": _mmdetection_instances},
            _same_instances(0.5 if half else 0.95),
        ),
        (
            "predictions to run lengths",
            {"fastseg": _instances_tail, "mmdetection": _mmdetection_tail},
            _same_instances(0.5 if half else 0.95),
        ),
    ):
        yield Case(
            name=f"mask2former_resnet50 {height}x{width}, {name}",
            providers={
                provider: lambda make=make: make(model, images, setting)
                for provider, make in providers.items()
            },
            bytes_moved=weights,
            flops=0 if "predictions to" in name else counter.get_total_flops(),
            agreement=agreement,
        )


def _predictions(model: Any, images: list[Tensor], setting: Setting) -> Run:
    batch = model.preprocess(images)

    def run() -> tuple[Tensor, Tensor]:
        found = model(batch.pixels, batch.sizes)
        return found.class_logits, found.mask_logits

    return run


def _transformers_predictions(model: Any, images: list[Tensor], setting: Setting) -> Run:
    peer = _transformers(model, setting)
    pixels = model.preprocess(images).pixels

    def run() -> tuple[Tensor, Tensor]:
        found = peer(pixels)
        return found.class_queries_logits, found.masks_queries_logits

    return run


def _mmdetection_predictions(model: Any, images: list[Tensor], setting: Setting) -> Run:
    peer = _mmdetection(model, setting)
    pixels = model.preprocess(images).pixels

    def run() -> tuple[Tensor, Tensor]:
        classes, masks = peer.panoptic_head(peer.extract_feat(pixels), [None] * len(pixels))
        return classes[-1], masks[-1]

    return run


def _instances(model: Any, images: list[Tensor], setting: Setting) -> Run:
    from fastseg import Predictor

    predictor = Predictor(model, images[0].device, batch_size=len(images))

    def run() -> list[Result]:
        return [(one.scores, one.labels, one.rles) for one in predictor(images)]

    run()  # the second call with a shape captures it
    return run


def _mmdetection_instances(model: Any, images: list[Tensor], setting: Setting) -> Run:
    peer = _mmdetection(model, setting)

    def run() -> list[Result]:
        batch = model.preprocess(images)
        samples = _samples(batch)
        predictions = peer.panoptic_head.predict(peer.extract_feat(batch.pixels), samples)
        return _encoded(peer.panoptic_fusion_head.predict(*predictions, samples, rescale=True))

    return run


def _instances_tail(model: Any, images: list[Tensor], setting: Setting) -> Run:
    batch = model.preprocess(images)
    predictions = model(batch.pixels, batch.sizes)

    def run() -> list[Result]:
        results = model.postprocess(predictions, batch, "instance")
        return [(one.scores.cpu(), one.labels.cpu(), one.rles) for one in results]

    return run


def _mmdetection_tail(model: Any, images: list[Tensor], setting: Setting) -> Run:
    peer = _mmdetection(model, setting)
    batch = model.preprocess(images)
    samples = _samples(batch)
    predictions = model(batch.pixels, batch.sizes)
    size = tuple(batch.pixels.shape[2:])

    def run() -> list[Result]:
        masks = nn.functional.interpolate(predictions.mask_logits, size=size, mode="bilinear")
        fused = peer.panoptic_fusion_head
        return _encoded(fused.predict(predictions.class_logits, masks, samples, rescale=True))

    return run


def _encoded(results: list[dict[str, Any]]) -> list[Result]:
    from pycocotools import mask

    return [
        (
            one["ins_results"].scores.cpu(),
            one["ins_results"].labels.cpu(),
            [mask.encode(np.asfortranarray(x)) for x in one["ins_results"].masks.cpu().numpy()],
        )
        for one in results
    ]


def _samples(batch: Any) -> list[Any]:
    from mmdet.structures import DetDataSample

    return [
        DetDataSample(
            metainfo={
                "img_shape": tuple(size),
                "ori_shape": original,
                "batch_input_shape": tuple(batch.pixels.shape[2:]),
            }
        )
        for size, original in zip(batch.sizes.tolist(), batch.original_sizes, strict=True)
    ]


def _transformers(model: nn.Module, setting: Setting) -> nn.Module:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        ResNetConfig,
    )

    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = Mask2FormerConfig(
        backbone_config=ResNetConfig(out_features=stages), num_labels=NUM_CLASSES
    )
    peer = Mask2FormerForUniversalSegmentation(config)
    return _filled(peer, model, "transformers Mask2Former", setting)


def _mmdetection(model: nn.Module, setting: Setting) -> nn.Module:
    peer = mmdetection_model("mask2former/mask2former_r50_8xb2-lsj-50e_coco")
    return _filled(peer, model, "mmdetection Mask2Former", setting)


def _filled(peer: nn.Module, model: nn.Module, found: str, setting: Setting) -> nn.Module:
    """The peer, whose checkpoints are of the format `found`, with our weights."""
    from fastseg.checkpoints.mask2former import NAMES, with_our_names

    fill(peer, model, partial(with_our_names, names=NAMES[found], source="the peer"))
    return peer.eval().to(setting.device, setting.dtype)


def _model(setting: Setting, images: list[Tensor]) -> Any:
    """Ours with random weights that have opinions as trained ones do, in the setting's type."""
    from fastseg import models

    torch.manual_seed(0)
    sides = sorted(images[0].shape[1:])
    model = models.mask2former_resnet50(
        num_classes=NUM_CLASSES, min_size=sides[0], max_size=sides[1]
    )
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith("bn3"):  # deep sums of branches at full variance lose all digits
                module.weight.fill_(0.2)
            if name.endswith(("sampling_offsets", "attention_weights")):
                module.weight.normal_(std=0.05)
        model.decoder.class_predictor.weight.normal_(std=0.2)
        for linear in model.decoder.mask_embed:
            linear.weight.normal_(std=(1.5 / linear.in_features) ** 0.5)
    model.to(setting.device, memory_format=torch.channels_last)
    return model.to(setting.dtype).requires_grad_(False)


def _same_signs(share: float, limit: float) -> Agreement:
    """That share of the masks' pixels lies on the same side, and the classes' logits differ by less
    than that part of their norm: a pixel whose logit rounds to the other side of 0 is attended by
    one and not by the other.
    """

    def compare(ours: Any, peers: Any) -> str | None:
        same = ((ours[1] >= 0) == (peers[1] >= 0)).float().mean().item()
        far = (ours[0] - peers[0]).float().norm() / peers[0].float().norm()
        if not same >= share:
            return f"{same:.2%} of the pixels lie on the same side"
        return None if far <= limit else f"classes differ by {far:.1e} of their norm"

    return compare


def _same_instances(share: float) -> Agreement:
    """That share of the peer's scores, in order, is ours, and of its instances has a twin among
    ours: the same label and mask IoU > 0.9.
    """

    def compare(ours: list[Result], peers: list[Result]) -> str | None:
        from pycocotools import mask

        for i, (our, peer) in enumerate(zip(ours, peers, strict=True)):
            near = (our[0].sort().values - peer[0].sort().values).abs() < 0.02
            overlap = torch.from_numpy(mask.iou(our[2], peer[2], [False] * len(peer[2])))
            twins = ((overlap > 0.9) & (our[1][:, None] == peer[1][None])).any(0)
            # Empty masks overlap with nothing.
            twins |= torch.from_numpy(mask.area(peer[2]).astype(np.int64)) == 0
            if not (near.float().mean() >= share and twins.float().mean() >= share):
                return f"image {i}: {twins.float().mean():.1%} of the instances agree"
        return None

    return compare
