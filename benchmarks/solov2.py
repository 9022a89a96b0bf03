"""Whole SOLOv2 against mmdetection's with the same random weights."""

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

Result = tuple[Tensor, list[dict[str, Any]]]  # labels and COCO run lengths of an image


def cases(setting: Setting) -> Iterator[Case]:
    """SOLOv2 on 800x1333 and SOLOv2-light on 448x768 images: tensors to run lengths."""
    for builder, config, height, width in (
        ("solov2_resnet50_fpn", "solov2_r50_fpn_1x_coco", 800, 1333),
        ("solov2_light_resnet18_fpn", "solov2-light_r18_fpn_ms-3x_coco", 448, 768),
    ):
        if setting.quick:
            if "light" not in builder:
                continue
            height, width = 96, 128
        images = photos(1, height, width, setting.device)
        model = _model(builder, setting, images)
        with torch.inference_mode():
            batch = model.preprocess(images)
            with FlopCounterMode(display=False) as counter:
                model(batch.pixels, batch.sizes)
            predictions = model.predict_grids(batch.pixels)
            with FlopCounterMode(display=False) as tail_counter:
                model.detect(predictions)
        arguments = (model, images, config, setting)
        for name, ours, peer, flops in (
            ("image to run lengths", _fastseg, _mmdetection, counter.get_total_flops()),
            (
                "cells to run lengths",
                _fastseg_tail,
                _mmdetection_tail,
                tail_counter.get_total_flops(),
            ),
        ):
            yield Case(
                name=f"{builder} {height}x{width}, {name}",
                providers={
                    "fastseg": lambda ours=ours, arguments=arguments: ours(*arguments),
                    "mmdetection": lambda peer=peer, arguments=arguments: peer(*arguments),
                },
                bytes_moved=sum(p.numel() * p.element_size() for p in model.parameters()),
                flops=flops,
                # In half precision many of a random model's scores change places.
                agreement=_same_instances(0.5 if setting.dtype.itemsize == 2 else 0.95),
            )


def _fastseg(model: Any, images: list[Tensor], config: str, setting: Setting) -> Run:
    from fastseg import Predictor

    predictor = Predictor(model, images[0].device, batch_size=len(images))

    def run() -> list[Result]:
        return [(one.labels, one.rles) for one in predictor(images)]

    run()  # the second call with a shape captures it
    return run


def _fastseg_tail(model: Any, images: list[Tensor], config: str, setting: Setting) -> Run:
    batch = model.preprocess(images)
    predictions = model.predict_grids(batch.pixels)

    def run() -> list[Result]:
        results = model.postprocess(model.detect(predictions), batch)
        return [(one.labels.cpu(), one.rles) for one in results]

    return run


def _mmdetection(model: Any, images: list[Tensor], config: str, setting: Setting) -> Run:
    peer = _peer(model, config, setting)

    def run() -> list[Result]:
        batch = model.preprocess(images)
        predictions = peer.mask_head(peer.extract_feat(batch.pixels))
        return _encoded(peer.mask_head.predict_by_feat(*predictions, _image_infos(batch)))

    return run


def _mmdetection_tail(model: Any, images: list[Tensor], config: str, setting: Setting) -> Run:
    peer = _peer(model, config, setting)
    batch = model.preprocess(images)
    kernels, class_logits, features = peer.mask_head(peer.extract_feat(batch.pixels))

    def run() -> list[Result]:  # which replaces the elements of the list of logits
        predictions = (kernels, list(class_logits), features)
        return _encoded(peer.mask_head.predict_by_feat(*predictions, _image_infos(batch)))

    return run


def _image_infos(batch: Any) -> list[dict[str, Any]]:
    return [
        {"img_shape": tuple(size), "ori_shape": original}
        for size, original in zip(batch.sizes.tolist(), batch.original_sizes, strict=True)
    ]


def _encoded(results: list[Any]) -> list[Result]:
    from pycocotools import mask

    return [
        (one.labels.cpu(), [mask.encode(np.asfortranarray(x)) for x in one.masks.cpu().numpy()])
        for one in results
    ]


def _peer(model: nn.Module, config: str, setting: Setting) -> nn.Module:
    """mmdetection's with the same weights."""
    from fastseg.checkpoints.keys import renamed
    from fastseg.checkpoints.mmdetection_solo import RULES

    peer = mmdetection_model(f"solov2/{config}")
    fill(peer, model, partial(renamed, rules=RULES))
    return peer.eval().to(setting.device, setting.dtype, memory_format=torch.channels_last)


def _model(builder: str, setting: Setting, images: list[Tensor]) -> Any:
    """Ours with random weights that have opinions as trained ones do, in the setting's type."""
    from fastseg import models

    torch.manual_seed(0)
    sides = sorted(images[0].shape[1:])
    model = getattr(models, builder)(min_size=sides[0], max_size=sides[1], max_candidates=1000)
    for name, module in model.named_modules():
        if name.endswith("bn3"):  # deep sums of branches at full variance lose all digits
            nn.init.constant_(module.weight, 0.2)
    model.to(setting.device, memory_format=torch.channels_last)
    _spread_outputs(model, images)
    return model.to(setting.dtype)


@torch.inference_mode()
def _spread_outputs(model: Any, images: list[Tensor]) -> None:
    """Gives the predictors' outputs on these images deviations and means.

    Masks have a twentieth of the pixels inside on average, so that up to 100 instances remain.
    """
    pixels = model.preprocess(images).pixels
    predictions = model.predict_grids(pixels)
    for predictor, levels, deviation, mean in (
        (model.head.class_predictor, predictions.class_logits, 2.0, -8.0),
        (model.head.kernel_predictor, predictions.kernels, 0.25, 0.0),
    ):
        values = torch.cat([level.flatten() for level in levels])
        factor = deviation / values.std()
        predictor.weight.mul_(factor)
        predictor.bias.sub_(values.mean()).mul_(factor).add_(mean)
    predictions = model.predict_grids(pixels)
    kernels = torch.cat([level.flatten(2) for level in predictions.kernels], 2)[0, :, ::37]
    features = predictions.mask_features.flatten(2)[0, :, ::41]
    highest = (kernels.T @ features).flatten().quantile(0.95)
    model.head.kernel_predictor.bias.sub_(highest / features.sum(0).mean())


def _same_instances(share: float) -> Agreement:
    """For each image that share of the peer's instances has a twin among ours: the same label and
    mask IoU > 0.9.
    """

    def compare(ours: list[Result], peers: list[Result]) -> str | None:
        from pycocotools import mask

        for i, (our, peer) in enumerate(zip(ours, peers, strict=True)):
            if not peer[1] or not our[1]:
                return f"image {i}: {len(our[1])} instances, the peer finds {len(peer[1])}"
            overlap = torch.from_numpy(mask.iou(our[1], peer[1], [False] * len(peer[1])))
            twins = (overlap > 0.9) & (our[0][:, None] == peer[0][None])
            found = twins.any(0).float().mean().item()
            if not found >= share:
                return f"image {i}: {found:.1%} of {len(peer[1])} instances agree"
        return None

    return compare
