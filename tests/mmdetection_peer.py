"""Models of mmdetection and mmsegmentation with random but well-behaved weights.

mmdetection runs here without its compiled operators: mmcv-lite has none, and torchvision's
deformable convolution, RoIAlign and NMS take the place of mmcv's.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.machinery
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn


class _NoOperators(types.ModuleType):
    """Stands for mmcv's compiled module: its functions exist, and raise when they are called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*arguments: Any, **options: Any) -> None:
            raise RuntimeError(f"mmcv._ext.{name} is not there")

        return missing


def import_mmdet() -> types.ModuleType:
    """mmdet, or skips the tests that ask for it."""
    # At its first import a cache is written, which two processes at once would break.
    with open(Path(tempfile.gettempdir()) / "fastseg-tests-mmengine.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pytest.importorskip("mmcv", reason="mmdetection is the peer that is compared with")
    if "mmcv._ext" not in sys.modules:
        extension = _NoOperators("mmcv._ext")
        extension.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
        sys.modules["mmcv._ext"] = extension
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mmdet = pytest.importorskip("mmdet", reason="mmdetection is the peer that is compared with")
        importlib.import_module("mmdet.models")
    _deform_with_torchvision()
    _pool_with_torchvision()
    return mmdet


def _deform_with_torchvision() -> None:
    from mmcv.ops import deform_conv, modulated_deform_conv
    from torchvision.ops import deform_conv2d

    def modulated(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
        return deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)

    def plain(x, offset, weight, stride, padding, dilation, *rest):
        return deform_conv2d(x, offset, weight, None, stride, padding, dilation)

    modulated_deform_conv.modulated_deform_conv2d = modulated
    deform_conv.deform_conv2d = plain


def _pool_with_torchvision() -> None:
    from torchvision.ops import nms, roi_align

    def pool(
        input,
        rois,
        output,
        _argmax_y,
        _argmax_x,
        *,
        aligned_height,
        aligned_width,
        spatial_scale,
        sampling_ratio,
        pool_mode,
        aligned,
    ):
        assert pool_mode == 1, "the mean of samples"
        size = (aligned_height, aligned_width)
        output.copy_(roi_align(input, rois, size, spatial_scale, sampling_ratio, aligned))

    operators = sys.modules["mmcv._ext"]
    operators.roi_align_forward = pool
    operators.nms = lambda boxes, scores, iou_threshold, offset: nms(boxes, scores, iou_threshold)


def mmdet_model(config: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model of mmdetection's zoo.

    Args:
        config: its file below mmdet's configs, as in "solov2/solov2_r50_fpn_1x_coco".
        seed: of the weights.
        **changes: overrides of the configuration, keyed by dotted path with "__" for ".".
    """
    return _model(import_mmdet(), config, seed, changes)


def mmseg_model(config: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A model of mmsegmentation's zoo; arguments as of ``mmdet_model``."""
    import_mmdet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Without requiring them, it needs ftfy and regex.
        for name in ("mmseg", "mmseg.models"):
            pytest.importorskip(name, reason="mmsegmentation is the peer that is compared with")
    return _model(sys.modules["mmseg"], config, seed, changes)


def _model(peer: types.ModuleType, config: str, seed: int, changes: dict[str, Any]) -> nn.Module:
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope(peer.__name__)
    configs = Path(peer.__file__).parent / ".mim" / "configs"
    registry = importlib.import_module(f"{peer.__name__}.registry")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = Config.fromfile(configs / f"{config}.py")
        loaded.model.backbone.init_cfg = None
        loaded.merge_from_dict(
            {"model." + key.replace("__", "."): value for key, value in changes.items()}
        )
        torch.manual_seed(seed)
        model = registry.MODELS.build(loaded.model)
    randomise(model)
    return model.eval()


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Statistics and affine parameters as after training, and heads with opinions.

    The last normalisation of a residual branch is scaled down: a deep network that adds branches
    of full variance multiplies rounding errors until the comparison means nothing.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            module.weight.copy_(0.5 + torch.rand(len(module.weight)))
            module.bias.copy_(0.2 * torch.randn(len(module.bias)))
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.1 * torch.randn(len(module.running_mean)))
            module.running_var.copy_(0.5 + torch.rand(len(module.running_var)))
            if name.endswith(("bn3", "layer1.0.bn2", "layer1.1.bn2")):
                module.weight.mul_(0.2)
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 4:
            spread = 0.3 if "conv_offset" in name else 1.0
            weight.normal_(std=spread * (2 / weight[0].numel()) ** 0.5)
            if getattr(module, "bias", None) is not None:
                module.bias.normal_(std=0.1)


def spread_outputs(model: nn.Module, pixels: Tensor, **deviations: tuple[float, float]) -> None:
    """Scales predictors until their outputs on these pixels have given deviations and means.

    Args:
        model: mmdetection's.
        pixels: a normalised batch.
        **deviations: deviation and mean of the outputs by name of a layer of the mask head.
    """
    outputs: dict[nn.Module, list[Tensor]] = {}

    def keep(layer: nn.Module, _: Any, output: Tensor) -> None:
        outputs.setdefault(layer, []).append(output.flatten())

    layers = {model.mask_head.get_submodule(name): goal for name, goal in deviations.items()}
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    with torch.no_grad():
        model(pixels, mode="tensor")
        for layer, (deviation, mean) in layers.items():
            values = torch.cat(outputs[layer])
            factor = deviation / values.std()
            layer.weight.mul_(factor)
            layer.bias.sub_(values.mean()).mul_(factor).add_(mean)
    for hook in hooks:
        hook.remove()


def samples_of(
    pixels: Tensor,
    sizes: list[tuple[int, int]],
    originals: list[tuple[int, int]] | None = None,
) -> list[Any]:
    """What mmdetection is told of each image of a batch; arguments as of ``mmdet_results``."""
    from mmdet.structures import DetDataSample

    return [
        DetDataSample(
            metainfo={
                "img_shape": size,
                "ori_shape": original,
                "batch_input_shape": tuple(pixels.shape[2:]),
                "pad_shape": tuple(pixels.shape[2:]),
                "scale_factor": (size[1] / original[1], size[0] / original[0]),
            }
        )
        for size, original in zip(sizes, originals or sizes, strict=True)
    ]


def mmdet_results(
    model: nn.Module, pixels: Tensor, sizes: list[tuple[int, int]], originals: list[tuple[int, int]]
) -> list[dict[str, Tensor]]:
    """scores, labels, boxes and bool masks at the original sizes, per image.

    Args:
        model: mmdetection's.
        pixels: a normalised, padded batch.
        sizes: (height, width) of each image without padding.
        originals: (height, width) of each image before resizing.
    """
    samples = samples_of(pixels, sizes, originals)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        results = model.predict(pixels, samples)
    return [
        {
            name: getattr(one.pred_instances, name)
            for name in ("scores", "labels", "bboxes", "masks")
        }
        for one in results
    ]


def mmdet_losses(
    model: nn.Module, pixels: Tensor, targets: list[Any]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses by name, and the gradients of their sum by parameter.

    Args:
        model: mmdetection's.
        pixels: a normalised, padded batch.
        targets: per image ``fastseg.losses.InstanceTargets``.
    """
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    samples = []
    for one in targets:
        height, width = one.masks.shape[1:]
        padding = (0, pixels.shape[3] - width, 0, pixels.shape[2] - height)
        masks = nn.functional.pad(one.masks, padding).numpy().astype(np.uint8)
        sample = DetDataSample(
            metainfo={"img_shape": (height, width), "batch_input_shape": tuple(pixels.shape[2:])}
        )
        sample.gt_instances = InstanceData(
            bboxes=one.boxes, labels=one.labels, masks=BitmapMasks(masks, *pixels.shape[2:])
        )
        samples.append(sample)
    model.train()
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = model.loss(pixels, samples)
    sum(losses.values()).backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.eval()
    return {name: loss.detach() for name, loss in losses.items()}, gradients
