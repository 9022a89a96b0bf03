"""Models of peers with our weights."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def mmdetection_model(config: str) -> nn.Module:
    """A model of mmdetection's zoo; torchvision's RoIAlign and NMS stand for mmcv's compiled ones.

    Args:
        config: its file below mmdetection's configs, as in "solov2/solov2_r50_fpn_1x_coco".
    """
    if "mmcv._ext" not in sys.modules:
        extension = _NoOperators("mmcv._ext")
        extension.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
        extension.nms = _nms
        extension.roi_align_forward = _roi_align
        sys.modules["mmcv._ext"] = extension
    mmdet = importlib.import_module("mmdet")
    importlib.import_module("mmdet.models")
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope("mmdet")
    configs = Path(mmdet.__file__).parent / ".mim" / "configs"
    loaded = Config.fromfile(configs / f"{config}.py").model
    loaded.backbone.init_cfg = None
    model: nn.Module = mmdet.registry.MODELS.build(loaded)
    return model


class _NoOperators(types.ModuleType):
    """Stands for mmcv's compiled module, whose other functions are looked up but not called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


def _nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    from torchvision.ops import nms

    return nms(boxes, scores, iou_threshold)


def _roi_align(
    maps: Tensor, rois: Tensor, output: Tensor, _y: Tensor, _x: Tensor, **options: Any
) -> None:
    from torchvision.ops import roi_align

    size = (options["aligned_height"], options["aligned_width"])
    arguments = (options["spatial_scale"], options["sampling_ratio"], options["aligned"])
    output.copy_(roi_align(maps, rois, size, *arguments))


def fill(
    peer: nn.Module,
    model: nn.Module,
    with_our_names: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]],
) -> None:
    """Gives a peer our weights.

    Args:
        peer: the model to be filled.
        model: ours.
        with_our_names: the peer's tensors under our names, as `load_model` has them: tensors may be
            joined row by row, and some of the peer's left out.
    """
    keys = list(peer.state_dict())
    # Each of the peer's tensors is stood for by its number, to see where in ours it goes.
    numbers = with_our_names({key: torch.tensor([i]) for i, key in enumerate(keys)})
    ours = model.state_dict()
    weights = {}
    for name, parts in numbers.items():
        tensor = ours.pop(name)
        rows = [tensor] if len(parts) == 1 else tensor.chunk(len(parts))
        weights.update(zip([keys[i] for i in parts.tolist()], rows, strict=True))
    if ours:
        raise RuntimeError(f"the peer has no tensors for {', '.join(ours)}")
    peer.load_state_dict(weights, strict=False)
