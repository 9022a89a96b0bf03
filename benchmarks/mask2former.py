"""Whole Mask2Former against transformers' and mmdetection's with the same random weights."""

from __future__ import annotations

import importlib
import importlib.machinery
import re
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.agreement import Agreement
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator

Result = tuple[Tensor, Tensor, list[dict[str, Any]]]  # scores, labels, COCO run lengths
Rules = Sequence[tuple[str, str]]
# From our names to the peers'.
MMDETECTION: Rules = (
    (r"^decoder\.layers\.(\d+)\.(cross|self)_attn\.", r"decoder.layers.\1.\2_attn.attn."),
    (r"^decoder\.layers\.(\d+)\.cross_norm\.", r"decoder.layers.\1.norms.0."),
    (r"^decoder\.layers\.(\d+)\.self_norm\.", r"decoder.layers.\1.norms.1."),
    (r"^decoder\.layers\.(\d+)\.norm\.", r"decoder.layers.\1.norms.2."),
    (r"\.layers\.(\d+)\.norm1\.", r".layers.\1.norms.0."),
    (r"\.layers\.(\d+)\.norm2\.", r".layers.\1.norms.1."),
    (r"\.linear1\.", ".ffn.layers.0.0."),
    (r"\.linear2\.", ".ffn.layers.1."),
    (r"^decoder\.norm\.", "decoder.post_norm."),
    (r"^decoder\.(layers|post_norm)\.", r"panoptic_head.transformer_decoder.\1."),
    (r"^decoder\.class_predictor\.", "panoptic_head.cls_embed."),
    (r"^decoder\.mask_embed\.1\.", "panoptic_head.mask_embed.2."),
    (r"^decoder\.mask_embed\.2\.", "panoptic_head.mask_embed.4."),
    (r"^decoder\.query_features\.", "panoptic_head.query_feat."),
    (r"^decoder\.", "panoptic_head."),
    (r"^pixel_decoder\.layers\.", "pixel_decoder.encoder.layers."),
    (r"^pixel_decoder\.level_embed$", "pixel_decoder.level_encoding.weight"),
    (r"\.input_projections\.(\d)\.", r".input_convs.\1."),
    (r"\.lateral\.", ".lateral_convs.0."),
    (r"\.output\.", ".output_convs.0."),
    (r"convs\.(\d)\.0\.", r"convs.\1.conv."),
    (r"convs\.(\d)\.1\.", r"convs.\1.gn."),
    (r"\.mask_features\.", ".mask_feature."),
    (r"^pixel_decoder\.", "panoptic_head.pixel_decoder."),
)
TRANSFORMERS: Rules = (
    (r"^backbone\.conv1\.", "backbone.embedder.embedder.convolution."),
    (r"^backbone\.bn1\.", "backbone.embedder.embedder.normalization."),
    *((rf"^backbone\.layer{i}\.", f"backbone.encoder.stages.{i - 1}.layers.") for i in range(1, 5)),
    *((rf"\.conv{i}\.", f".layer.{i - 1}.convolution.") for i in range(1, 4)),
    *((rf"\.bn{i}\.", f".layer.{i - 1}.normalization.") for i in range(1, 4)),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"^backbone\.", "model.pixel_level_module.encoder."),
    (r"\.layers\.(\d+)\.norm1\.", r".layers.\1.self_attn_layer_norm."),
    (r"\.layers\.(\d+)\.norm2\.", r".layers.\1.final_layer_norm."),
    (r"\.layers\.(\d+)\.(cross|self)_norm\.", r".layers.\1.\2_attn_layer_norm."),
    (r"\.layers\.(\d+)\.norm\.", r".layers.\1.final_layer_norm."),
    (r"\.linear(\d)\.", r".fc\1."),
    (r"^pixel_decoder\.layers\.", "pixel_decoder.encoder.layers."),
    (r"\.lateral\.", ".adapter_1."),
    (r"\.output\.", ".layer_1."),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_projection."),
    (r"^pixel_decoder\.", "model.pixel_level_module.decoder."),
    (r"^decoder\.class_predictor\.", "class_predictor."),
    (r"^decoder\.mask_embed\.(\d)\.", r"decoder.decoder.mask_predictor.mask_embedder.\1.0."),
    (r"^decoder\.query_embed\.", "decoder.queries_embedder."),
    (r"^decoder\.query_features\.", "decoder.queries_features."),
    (r"^decoder\.norm\.", "decoder.decoder.layernorm."),
    (r"^decoder\.layers\.", "decoder.decoder.layers."),
    (r"^decoder\.", "model.transformer_module."),
)
# Not in ours: the loss's class weights, and counters of batch normalisation.
UNUSED = re.compile(r"criterion\.empty_weight|.*\.num_batches_tracked")
NUM_CLASSES = 80


def cases(setting: Setting) -> Iterator[Case]:
    """ResNet-50 on 800x1333 images: pixels to predictions, and image to run lengths."""
    height, width = (64, 96) if setting.quick else (800, 1333)
    images = _images(1, height, width, setting.device)
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
    return _filled(Mask2FormerForUniversalSegmentation(config), model, TRANSFORMERS, setting)


def _mmdetection(model: nn.Module, setting: Setting) -> nn.Module:
    """It needs none of mmcv's compiled operators here."""
    if "mmcv._ext" not in sys.modules:
        extension = _NoOperators("mmcv._ext")
        extension.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
        sys.modules["mmcv._ext"] = extension
    mmdet = importlib.import_module("mmdet")
    importlib.import_module("mmdet.models")
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    configs = Path(mmdet.__file__).parent / ".mim" / "configs" / "mask2former"
    loaded = Config.fromfile(configs / "mask2former_r50_8xb2-lsj-50e_coco.py").model
    loaded.backbone.init_cfg = None
    return _filled(mmdet.registry.MODELS.build(loaded), model, MMDETECTION, setting)


class _NoOperators(types.ModuleType):
    """Stands for mmcv's compiled module, whose functions are looked up but not called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _filled(peer: nn.Module, model: nn.Module, rules: Rules, setting: Setting) -> nn.Module:
    """The peer with our weights."""
    weights = {}
    for key, tensor in model.state_dict().items():
        for ours, theirs in rules:
            key = re.sub(ours, theirs, key)
        parts = [f".self_attn.{part}_proj." for part in "qkv"]
        apart = key.replace(".self_attn.in_proj_", parts[0])
        if rules is TRANSFORMERS and apart != key:
            for part, rows in zip(parts, tensor.chunk(3), strict=True):
                weights[apart.replace(parts[0], part)] = rows
        else:
            weights[key] = tensor
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    wrong = [*(key for key in missing if not UNUSED.fullmatch(key)), *unexpected]
    if wrong:
        raise RuntimeError(f"keys that do not fit the peer: {wrong}")
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


def _images(count: int, height: int, width: int, device: torch.device) -> list[Tensor]:
    """Noise in patches, so that neighbouring pixels are alike as in a photo."""
    coarse = torch.rand(count, 3, 24, 40, generator=generator())
    fine = nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    return list(fine.to(device))


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
