"""Loads a model from a checkpoint: recognise the format, build the network, fill it."""

from __future__ import annotations

import hashlib
import inspect
import os
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastseg.checkpoints import torchvision_mask_rcnn
from fastseg.checkpoints.coco_classes import COCO_CLASS_NAMES
from fastseg.checkpoints.files import read_file, tensors_of
from fastseg.checkpoints.formats import TORCHVISION_MASK_RCNN, recognise
from fastseg.models.mask_rcnn import MaskRCNN

DEFAULT_WEIGHTS = "nuclei_mask_rcnn_resnet18_fpn128_torchvision.safetensors"
# A hyper-parameter is an argument of MaskRCNN that has a default; the others are the network.
HYPER_PARAMETERS = {
    name
    for name, parameter in inspect.signature(MaskRCNN).parameters.items()
    if parameter.default is not inspect.Parameter.empty
} | {"batch_norm_eps"}
# What a checkpoint's configuration says beside hyper-parameters; the tensors tell it as well.
STRUCTURE = {
    "arch",
    "backbone",
    "fpn_channels",
    "box_representation",
    "mask_layers",
    "mask_dim_reduced",
    "num_classes",
}
# torchvision's maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth, whose name ends in its SHA-256.
PUBLISHED_V1_SHA256 = "bf2d0c1e"


def load_model(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any], **hyper_parameters: Any
) -> MaskRCNN:
    """Loads Mask R-CNN from a checkpoint of torchvision (v1 or v2 layout, any ResNet).

    Class count, widths, depths and layout are read off the tensors. Half-precision tensors become
    float32. Weights of 91 classes without class names are taken for COCO's.

    torchvision runs its published V1 weights with a batch normalisation eps of 0 and everything
    else with 1e-5, which no tensor shows. The published file is known by its checksum or its
    old-style names; where the weights may be it under new names, a warning asks for
    ``batch_norm_eps``.

    Args:
        path_or_state_dict: a .safetensors or .pth file or a state dict; also one under the key
            "model" or "state_dict".
        **hyper_parameters: arguments of ``MaskRCNN`` by torchvision's names (``min_size``,
            ``box_score_thresh``, ``rpn_nms_thresh``, ...), which take precedence over the
            ``config`` entry of a safetensors file, and ``batch_norm_eps``.

    Returns:
        The model in evaluation mode, float32, on the CPU.

    Raises:
        TypeError: a hyper-parameter is unknown.
        ValueError: the file cannot be read, is of another format, or its keys or shapes do not
            fit.
    """
    unknown = sorted(set(hyper_parameters) - HYPER_PARAMETERS)
    if unknown:
        raise TypeError(
            f"load_model() got an unknown hyper-parameter {', '.join(unknown)}; "
            f"there are {', '.join(sorted(HYPER_PARAMETERS))}"
        )
    config: dict[str, Any] = {}
    path = None
    if isinstance(path_or_state_dict, Mapping):
        source = "the state dict"
        tensors = tensors_of(path_or_state_dict, source)
        tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    else:
        path = Path(path_or_state_dict)
        source = str(path)
        tensors, config = read_file(path)

    found = recognise(tensors)
    if found != TORCHVISION_MASK_RCNN:
        raise ValueError(
            f"{source} looks like {found or 'no known format'}; "
            f"load_model() reads {TORCHVISION_MASK_RCNN}. "
            f"Its keys begin with {', '.join(list(tensors)[:5])}"
        )
    state_dict = torchvision_mask_rcnn.with_current_names(tensors)
    options = {**from_config(config, source), **hyper_parameters}
    if "class_names" not in options and is_coco_sized(state_dict):
        options["class_names"] = COCO_CLASS_NAMES
    eps = options.pop("batch_norm_eps", None)
    if eps is None:
        eps = default_eps(state_dict, old_names=set(state_dict) != set(tensors), path=path)
    # Without storage: making random weights to overwrite takes longer than reading the file.
    with torch.device("meta"):
        model = torchvision_mask_rcnn.build(
            state_dict, batch_norm_eps=eps, hyper_parameters=options
        )
    fill(model, state_dict, source)
    return model


def default_model(**hyper_parameters: Any) -> MaskRCNN:
    """The model that ships with fastseg: cell nuclei in microscopy images.

    ResNet-18-FPN of 128 channels, trained on the public-domain (CC0) images of the 2018 Data
    Science Bowl; segm AP 0.58 on the validation images.

    Args:
        **hyper_parameters: as of ``load_model``.
    """
    with resources.as_file(resources.files("fastseg") / "weights" / DEFAULT_WEIGHTS) as path:
        return load_model(path, **hyper_parameters)


def from_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Hyper-parameters in the ``config`` entry of a safetensors file."""
    if config.get("arch", "mask_rcnn") != "mask_rcnn":
        raise ValueError(f"{source} says that it is {config['arch']!r}, not 'mask_rcnn'")
    options = {key: value for key, value in config.items() if key not in STRUCTURE}
    if "classes" in options:
        options["class_names"] = options.pop("classes")
    unknown = sorted(set(options) - HYPER_PARAMETERS)
    if unknown:
        raise ValueError(f"the config entry of {source} has unknown names: {', '.join(unknown)}")
    return options


def is_coco_sized(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the weights have as many classes as COCO's category ids, 91."""
    bias = state_dict.get("roi_heads.box_predictor.cls_score.bias")
    return bias is not None and len(bias) == len(COCO_CLASS_NAMES)


def default_eps(state_dict: Mapping[str, Tensor], *, old_names: bool, path: Path | None) -> float:
    """The eps of batch normalisation that torchvision would run these weights with.

    Args:
        state_dict: tensors under current names.
        old_names: whether the checkpoint had names from before torchvision 0.13.
        path: the checkpoint's file, if there is one.
    """
    maybe_published_v1 = (
        is_coco_sized(state_dict)
        and "backbone.body.layer3.5.conv3.weight" in state_dict
        and "backbone.body.layer3.6.conv3.weight" not in state_dict
        and "backbone.body.bn1.num_batches_tracked" not in state_dict
        and "roi_heads.box_head.fc6.weight" in state_dict
    )
    if not maybe_published_v1:
        return 1e-5
    if old_names or (path is not None and sha256(path).startswith(PUBLISHED_V1_SHA256)):
        return 0.0
    warnings.warn(
        "these weights may be torchvision's published Mask R-CNN ResNet-50-FPN V1 saved anew, "
        "which need batch_norm_eps=0.0; taking 1e-5. Pass batch_norm_eps to choose",
        stacklevel=3,
    )
    return 1e-5


def sha256(path: Path) -> str:
    """Hexadecimal checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fill(model: MaskRCNN, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Makes the tensors of a state dict the model's; names and shapes must be the model's."""
    own = model.state_dict()
    problems = []
    if unknown := sorted(set(state_dict) - set(own)):
        problems.append(f"unknown keys: {listing(unknown)}")
    if missing := sorted(set(own) - set(state_dict)):
        problems.append(f"missing keys: {listing(missing)}")
    wrong = [
        f"{key} is {list(state_dict[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    if wrong:
        problems.append(f"wrong shapes: {listing(wrong)}")
    if problems:
        raise ValueError(f"{source} does not fit Mask R-CNN; " + "; ".join(problems))
    model.load_state_dict(dict(state_dict), assign=True)


def listing(names: list[str], limit: int = 30) -> str:
    """Names separated by commas; the count of those beyond the limit."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
