"""Whole Mask R-CNN against torchvision's and mmdetection's with the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.agreement import Agreement, relative_norm
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, object_masks, photos, proposals
from benchmarks.harness.peer_models import fill, mmdetection_model

NUM_CLASSES = 81
CONVENTIONS: dict[str, dict[str, Any]] = {
    "torchvision": {},
    "mmdetection": {"conventions": "mmdetection", "norm_layer": nn.BatchNorm2d},
}


def cases(setting: Setting) -> Iterator[Case]:
    """ResNet-50-FPN on 800x1333 images: tensors to run lengths, the network alone, and a step of
    training.

    With each peer ours follows its conventions, and has its background first or last.
    """
    height, width = (96, 128) if setting.quick else (800, 1333)
    for library in CONVENTIONS:
        options = CONVENTIONS[library]
        model = _model(setting, photos(1, height, width, setting.device), **options)
        for batch in (1, 8) if setting.device.type == "cuda" and not setting.quick else (1,):
            images = photos(batch, height, width, setting.device)
            yield from _cases(model, images, library, setting)
    yield _training(setting, height, width)


def _cases(model: Any, images: list[Tensor], library: str, setting: Setting) -> Iterator[Case]:
    height, width = images[0].shape[1:]
    with torch.inference_mode():
        inputs = model.preprocess(images)
        with FlopCounterMode(display=False) as counter:
            model(inputs.pixels, inputs.sizes)
    peers = {
        "torchvision": (_torchvision, _torchvision_network),
        "mmdetection": (_mmdetection, _mmdetection_network),
    }
    for name, ours, peer in (
        ("image to run lengths", _fastseg, peers[library][0]),
        ("pixels to detections", _fastseg_network, peers[library][1]),
    ):
        title = f"R50-FPN {height}x{width}, batch {len(images)}, {name}"
        yield Case(
            name=title if library == "torchvision" else f"{title}, as {library}",
            providers={
                "fastseg": lambda ours=ours: ours(model, images),
                library: lambda peer=peer: peer(model, images, setting),
            },
            bytes_moved=sum(p.numel() * p.element_size() for p in model.parameters()),
            flops=counter.get_total_flops(),
            # In half precision many of a random model's scores change places.
            agreement=_same_instances(0.5 if setting.dtype.itemsize == 2 else 0.95),
        )


def _training(setting: Setting, height: int, width: int) -> Case:
    """Losses and gradients of fine-tuning: frozen normalisation, three trained stages."""
    num_images, instances = (2 if setting.device.type == "cuda" else 1), 10
    single = replace(setting, dtype=torch.float32)  # half precision is autocast's
    images = photos(num_images, height, width, setting.device)
    model = _model(single, images, trainable_backbone_layers=3)
    options = {"box_batch_size_per_image": 16} if setting.quick else {}
    truth = []
    for seed in range(num_images):
        boxes = proposals(instances, height, width, generator(seed))
        masks = object_masks(instances, height, width, generator(seed))  # in these boxes
        labels = torch.randint(1, NUM_CLASSES, (instances,), generator=generator(seed))
        truth.append([x.to(setting.device) for x in (boxes, labels, masks)])
    with FlopCounterMode(display=False) as counter:
        _fastseg_training(model, images, truth, options, setting)()
    return Case(
        name=f"R50-FPN {height}x{width}, batch {num_images}, training step, {instances} instances",
        providers={
            "fastseg": lambda: _fastseg_training(model, images, truth, options, setting),
            "torchvision": lambda: _torchvision_training(model, images, truth, options, setting),
        },
        # Weights are read, gradients written.
        bytes_moved=2 * sum(p.numel() * p.element_size() for p in model.parameters()),
        flops=counter.get_total_flops(),
        # Proposals of nearly equal scores change places, by which they are drawn.
        agreement=relative_norm(0.3 if setting.dtype.itemsize == 2 else 0.02),
        needs_grad=True,
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


def _mmdetection(model: Any, images: list[Tensor], setting: Setting) -> Run:
    peer = _mmdetection_peer(model, setting)

    def run() -> list[tuple[Tensor, Tensor, list[dict[str, Any]]]]:
        from pycocotools import mask

        batch = model.preprocess(images)
        with torch.autocast(setting.device.type, setting.dtype, setting.dtype.itemsize == 2):
            results = peer.predict(batch.pixels, _samples(batch))
        found = [one.pred_instances for one in results]
        return [
            (
                one.labels.cpu(),
                one.bboxes.cpu(),
                [mask.encode(np.asfortranarray(pixels)) for pixels in one.masks.cpu().numpy()],
            )
            for one in found
        ]

    return run


def _mmdetection_network(model: Any, images: list[Tensor], setting: Setting) -> Run:
    peer = _mmdetection_peer(model, setting)
    batch = model.preprocess(images)

    def run() -> list[tuple[Tensor, Tensor, Tensor]]:
        with torch.autocast(setting.device.type, setting.dtype, setting.dtype.itemsize == 2):
            pyramid = peer.extract_feat(batch.pixels)
            samples = _samples(batch)
            infos = [sample.metainfo for sample in samples]
            proposals = peer.rpn_head.predict(pyramid, samples, rescale=False)
            heads = peer.roi_head
            found = heads.predict_bbox(pyramid, infos, proposals, heads.test_cfg)
            rois = torch.cat(
                [nn.functional.pad(one.bboxes, (1, 0), value=i) for i, one in enumerate(found)]
            )
            logits = heads._mask_forward(pyramid, rois)["mask_preds"]
            labels = torch.cat([one.labels for one in found])
            masks = logits[torch.arange(len(labels)), labels].sigmoid()
        counts = [len(one.labels) for one in found]
        return [
            (one.labels, one.bboxes, pixels)
            for one, pixels in zip(found, masks.split(counts), strict=True)
        ]

    return run


def _samples(batch: Any) -> list[Any]:
    """What mmdetection is told of each image."""
    from mmdet.structures import DetDataSample

    shape = tuple(batch.pixels.shape[2:])
    return [
        DetDataSample(
            metainfo={
                "img_shape": tuple(size),
                "ori_shape": original,
                "batch_input_shape": shape,
                "pad_shape": shape,
                "scale_factor": (size[1] / original[1], size[0] / original[0]),
            }
        )
        for size, original in zip(batch.sizes.tolist(), batch.original_sizes, strict=True)
    ]


def _fastseg_training(
    model: Any,
    images: list[Tensor],
    truth: list[list[Tensor]],
    options: dict[str, int],
    setting: Setting,
) -> Run:
    from fastseg.losses import InstanceTargets, MaskRCNNLoss

    batch, loss = model.preprocess(images), MaskRCNNLoss(**options)
    targets = [InstanceTargets(*one) for one in truth]

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        model.train().zero_grad()
        with torch.autocast(setting.device.type, setting.dtype, setting.dtype.itemsize == 2):
            predictions = model.predict_anchors(batch.pixels)
            losses = loss(model, predictions, targets, batch.sizes)
        losses.total.backward()
        return _losses_and_gradients(losses.named(), model)

    return run


def _torchvision_training(
    model: Any,
    images: list[Tensor],
    truth: list[list[Tensor]],
    options: dict[str, int],
    setting: Setting,
) -> Run:
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.models.detection.image_list import ImageList

    # Of torchvision's own builder without weights all would be trained, the normalisation as well.
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    peer = MaskRCNN(backbone, NUM_CLASSES, **options)
    peer.load_state_dict(model.state_dict())
    peer.train().to(setting.device, memory_format=torch.channels_last)
    batch = model.preprocess(images)
    sizes = [tuple(size) for size in batch.sizes.tolist()]
    targets = [
        {"boxes": boxes, "labels": labels, "masks": masks.byte()} for boxes, labels, masks in truth
    ]

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        peer.zero_grad()
        with torch.autocast(setting.device.type, setting.dtype, setting.dtype.itemsize == 2):
            pyramid = peer.backbone(batch.pixels)
            found, proposal_losses = peer.rpn(ImageList(batch.pixels, sizes), pyramid, targets)
            _, region_losses = peer.roi_heads(pyramid, found, sizes, targets)
        losses = {**region_losses, **proposal_losses}
        sum(losses.values()).backward()
        return _losses_and_gradients(losses, peer)

    return run


def _losses_and_gradients(losses: dict[str, Tensor], model: Any) -> list[Tensor]:
    """Of a few layers, in which all losses come together or which one of them alone reaches."""
    layers = (
        model.backbone.fpn.inner_blocks[0][0],
        model.rpn.head.cls_logits,
        model.roi_heads.box_predictor.cls_score,
        model.roi_heads.mask_predictor.conv5_mask,
    )
    values = [losses[name].detach() for name in sorted(losses)]
    return [torch.stack(values), *(layer.weight.grad.clone() for layer in layers)]


def _model(setting: Setting, images: list[Tensor], **options: Any) -> Any:
    """Ours with random weights that have opinions as trained ones do, in the setting's type."""
    from fastseg import models

    torch.manual_seed(0)
    min_size = min(images[0].shape[1:])
    model = models.mask_rcnn_resnet50_fpn(num_classes=NUM_CLASSES, min_size=min_size, **options)
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


def _mmdetection_peer(model: nn.Module, setting: Setting) -> nn.Module:
    from fastseg.checkpoints.mmdetection_mask_rcnn import with_our_names

    peer = mmdetection_model("mask_rcnn/mask-rcnn_r50_fpn_1x_coco")
    fill(peer, model, with_our_names)
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
