"""Whole Mask R-CNN against torchvision's with the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.agreement import Agreement
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import photos

NUM_CLASSES = 81


def cases(setting: Setting) -> Iterator[Case]:
    """ResNet-50-FPN on 800x1333 images: tensors to run lengths, and the network alone."""
    height, width = (96, 128) if setting.quick else (800, 1333)
    model = _model(setting, photos(1, height, width, setting.device))
    for batch in (1, 8) if setting.device.type == "cuda" and not setting.quick else (1,):
        images = photos(batch, height, width, setting.device)
        with torch.inference_mode():
            inputs = model.preprocess(images)
            with FlopCounterMode(display=False) as counter:
                model(inputs.pixels, inputs.sizes)
        for name, ours, peer in (
            ("image to run lengths", _fastseg, _torchvision),
            ("pixels to detections", _fastseg_network, _torchvision_network),
        ):
            yield Case(
                name=f"R50-FPN {height}x{width}, batch {batch}, {name}",
                providers={
                    "fastseg": lambda ours=ours, images=images: ours(model, images),
                    "torchvision": lambda peer=peer, images=images: peer(model, images, setting),
                },
                bytes_moved=sum(p.numel() * p.element_size() for p in model.parameters()),
                flops=counter.get_total_flops(),
                # In half precision many of a random model's scores change places.
                agreement=_same_instances(0.5 if setting.dtype.itemsize == 2 else 0.95),
            )


def _fastseg(model: nn.Module, images: list[Tensor]) -> Run:
    from fastseg import Predictor

    predictor = Predictor(model, images[0].device, batch_size=len(images))

    def run() -> list[tuple[Tensor, Tensor, list[dict[str, Any]]]]:
        return [(one.labels, one.boxes, one.rles) for one in predictor(images)]

    run()  # the second call with a shape captures it
    return run


def _torchvision(model: nn.Module, images: list[Tensor], setting: Setting) -> Run:
    from pycocotools import mask

    peer = _peer(model, setting)

    def run() -> list[tuple[Tensor, Tensor, list[dict[str, Any]]]]:
        with torch.autocast(setting.device.type, setting.dtype, setting.dtype.itemsize == 2):
            results = peer(images)
        masks = [(one["masks"][:, 0] > 0.5).cpu().numpy() for one in results]
        return [
            (
                one["labels"].cpu(),
                one["boxes"].cpu(),
                [mask.encode(np.asfortranarray(pixels)) for pixels in pasted],
            )
            for one, pasted in zip(results, masks, strict=True)
        ]

    return run


def _fastseg_network(model: nn.Module, images: list[Tensor]) -> Run:
    batch = model.preprocess(images)

    def run() -> Any:
        found = model(batch.pixels, batch.sizes)
        return found.labels, found.boxes, found.masks

    return run


def _torchvision_network(model: nn.Module, images: list[Tensor], setting: Setting) -> Run:
    peer = _peer(model, setting)
    batch, _ = peer.transform(images)

    def run() -> list[tuple[Tensor, Tensor, Tensor]]:
        with torch.autocast(setting.device.type, setting.dtype, setting.dtype.itemsize == 2):
            pyramid = peer.backbone(batch.tensors)
            proposals, _ = peer.rpn(batch, pyramid)
            found, _ = peer.roi_heads(pyramid, proposals, batch.image_sizes)
        return [(one["labels"], one["boxes"], one["masks"]) for one in found]

    return run


def _model(setting: Setting, images: list[Tensor]) -> Any:
    """Ours with random weights that have opinions as trained ones do, in the setting's type."""
    from fastseg import models

    torch.manual_seed(0)
    min_size = min(images[0].shape[1:])
    model = models.mask_rcnn_resnet50_fpn(num_classes=NUM_CLASSES, min_size=min_size)
    for name, module in model.named_modules():
        if name.endswith("bn3"):  # deep sums of branches at full variance lose all digits
            nn.init.constant_(module.weight, 0.2)
    model.to(setting.device, memory_format=torch.channels_last)
    _spread_outputs(model, images)
    return model.to(setting.dtype)


@torch.inference_mode()
def _spread_outputs(model: Any, images: list[Tensor]) -> None:
    """Scales some layers' weights until their outputs on these images have given deviations."""
    heads = model.roi_heads
    deviations = {
        **{block[0]: 1.0 for block in model.backbone.fpn.layer_blocks},
        model.rpn.head.cls_logits: 2.0,
        model.rpn.head.bbox_pred: 0.3,
        heads.box_predictor.cls_score: 2.0,
        heads.box_predictor.bbox_pred: 1.0,
    }

    def scale(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
        hooks.pop(layer).remove()
        factor = deviations[layer] / output.std()
        layer.weight.mul_(factor)
        return output * factor

    hooks = {layer: layer.register_forward_hook(scale) for layer in deviations}
    batch = model.preprocess(images)
    model(batch.pixels, batch.sizes)
    assert not hooks, "a layer whose outputs are to be spread did not run"


def _peer(model: nn.Module, setting: Setting) -> nn.Module:
    """torchvision's with the same weights, channels-last as its convolutions like it best."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    peer = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=NUM_CLASSES,
        min_size=model.transform.min_size,
    )
    peer.load_state_dict(model.state_dict())
    return peer.eval().to(setting.device, memory_format=torch.channels_last)


def _same_instances(share: float) -> Agreement:
    """For each image that share of the peer's instances has a twin among ours: the same label,
    box IoU and (where there are run lengths) mask IoU > 0.9.
    """

    def compare(ours: Any, peers: Any) -> str | None:
        from torchvision.ops import box_iou

        if isinstance(ours, tuple):  # tensors over the batch
            ours = list(zip(*ours, strict=True))
        for i, (our, peer) in enumerate(zip(ours, peers, strict=True)):
            twins = our[0][:, None] == peer[0][None]
            twins &= box_iou(our[1].float(), peer[1].float()) > 0.9
            if isinstance(our[2], list):
                twins &= _same_masks(our[2], peer[2])
            found = twins.any(0).float().mean().item()
            if not found >= share:
                return f"image {i}: {found:.1%} of {len(peer[0])} instances agree"
        return None

    return compare


def _same_masks(ours: list[dict[str, Any]], peers: list[dict[str, Any]]) -> Tensor:
    """[ours, peers] bool; two empty masks are the same, though their IoU is 0."""
    from pycocotools import mask

    overlap = torch.from_numpy(mask.iou(ours, peers, [False] * len(peers))) > 0.9
    both_empty = (mask.area(ours)[:, None] == 0) & (mask.area(peers)[None] == 0)
    return overlap | torch.from_numpy(both_empty)
