"""Saves a model so that ``load_model`` gives it back, class names, task and options included."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import save
from torch import nn

from fastseg.backbones.resnet import Bottleneck
from fastseg.checkpoints.formats import recognise
from fastseg.checkpoints.load import READERS, load_model
from fastseg.layers.batch_norm import FrozenBatchNorm2d
from fastseg.layers.decoder_layer import DecoderLayer
from fastseg.layers.solov2_head import SOLOv2Head
from fastseg.models.mask2former import Mask2Former
from fastseg.models.mask_rcnn import MaskRCNN
from fastseg.models.maskformer import MaskFormer
from fastseg.models.solo import SOLO
from fastseg.result_files import atomic_path

SUFFIX = ".safetensors"
Model: TypeAlias = MaskRCNN | SOLO | Mask2Former
MODELS = (MaskRCNN, SOLO, Mask2Former, MaskFormer)
# What no tensor shows of a layer.
UNSEEN = ("stride", "padding", "dilation", "groups", "eps", "num_heads", "num_points", "num_grids")


def save_model(model: Model, path: str | os.PathLike[str]) -> None:
    """Writes a model to a .safetensors file, from which ``load_model`` makes the same model again.

    Beside the weights, in their type, the file says the names of the classes, the task and all
    other hyper-parameters as they are now. The file appears complete or not at all.

    Args:
        model: a ``MaskRCNN``, ``SOLO``, ``Mask2Former`` or ``MaskFormer``, on any device, in
            training mode or not.
        path: of the file, which ends in .safetensors; one that exists is replaced.

    Raises:
        TypeError: the model is of another class, such as a wrapper of one.
        ValueError: the path has another ending, or ``load_model`` would make another model of the
            file; the message says what differs.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"path must end in {SUFFIX}, got {str(path)!r}")
    if type(model) not in MODELS:
        inside = list(model.children()) if isinstance(model, nn.Module) else []
        wrapped = any(type(part) in MODELS for part in inside)
        raise TypeError(
            f"model must be {', '.join(one.__name__ for one in MODELS[:-1])} or "
            f"{MODELS[-1].__name__}, got {type(model).__name__}"
            + (", which only wraps one: pass the model inside it" if wrapped else "")
        )
    tensors = {key: one.detach().cpu().contiguous() for key, one in model.state_dict().items()}
    reader = READERS.get(recognise(tensors) or "")
    if reader is None:
        raise ValueError(f"load_model() would not recognise this {type(model).__name__}")
    options = {**model.hyper_parameters(), **network_options(model, reader.hyper_parameters)}
    check_same(load_model(tensors, **options), model)

    config = {"arch": reader.arch, "classes": options.pop("class_names"), **options}
    content = save(tensors, metadata={"format": "pt", "config": json.dumps(config)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def network_options(model: Model, names: Collection[str]) -> dict[str, Any]:
    """What no tensor shows of a network, as options of ``load_model``.

    Args:
        model: one of ``MODELS``.
        names: the options that there are for such a model.
    """
    found: dict[str, Any] = {}
    for part in model.modules():
        if isinstance(part, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            found.setdefault("batch_norm_eps", part.eps)
        elif isinstance(part, Bottleneck) and part.downsample is not None:
            # The first stage has no stride anywhere.
            found["stride_in_1x1"] = found.get("stride_in_1x1", False) or part.conv1.stride[0] > 1
        elif isinstance(part, SOLOv2Head):
            found["num_grids"] = part.num_grids
        elif isinstance(part, DecoderLayer):
            found.setdefault("num_heads", part.cross_attn.num_heads)
    return {name: value for name, value in found.items() if name in names}


def check_same(loaded: Model, model: Model) -> None:
    """ValueError where a model that was loaded is not the one that was saved."""
    before, after = described(model), described(loaded)
    for what, value in before.items():
        if after.get(what) != value:
            raise ValueError(
                f"load_model() would not give this {type(model).__name__} back: its {what} is "
                f"{value}, of the loaded one {after.get(what)}"
            )


def described(model: Model) -> dict[str, str]:
    """What makes a model beside its tensors, as JSON by name."""
    found = {
        f"{name}.{key}": getattr(part, key)
        for name, part in model.named_modules()
        for key in UNSEEN
        if isinstance(getattr(part, key, None), (int, float, tuple))
    }
    found |= model.hyper_parameters()
    return {what: json.dumps(value) for what, value in found.items()}
