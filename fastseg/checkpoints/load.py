"""Loads a model from a checkpoint: recognise the format, build the network, fill it."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from fastseg.checkpoints import (
    adelaidet_solov2,
    detectron2_mask_rcnn,
    mask2former,
    mask_rcnn,
    mmdetection_mask_rcnn,
    mmdetection_solo,
    original_solo,
    solo,
    torchvision_mask_rcnn,
)
from fastseg.checkpoints.coco_classes import COCO_CATEGORY_NAMES
from fastseg.checkpoints.files import config_of, names_in, tensors_of
from fastseg.checkpoints.fill import fill
from fastseg.checkpoints.folders import read_checkpoint
from fastseg.checkpoints.formats import (
    ADELAIDET_SOLOV2,
    DETECTRON2_MASK_RCNN,
    FASTSEG_SOLO,
    MMDETECTION_MASK_RCNN,
    MMDETECTION_SOLO,
    ORIGINAL_SOLO,
    READABLE,
    TORCHVISION_MASK_RCNN,
    recognise,
)
from fastseg.checkpoints.keys import renamed
from fastseg.checkpoints.without_storage import without_storage
from fastseg.layers.deform_conv import with_inner_offsets
from fastseg.models.mask2former import Mask2Former
from fastseg.models.mask_rcnn import MaskRCNN
from fastseg.models.solo import SOLO

DEFAULT_WEIGHTS = "nuclei_mask_rcnn_resnet18_fpn128_torchvision.safetensors"
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
# What a data set's description says that only some models need.
IF_NEEDED = {"thing_classes", "task"}
STEM = "backbone.body.conv1.weight"


@dataclass(frozen=True)
class Reader:
    """How checkpoints of one format become a model.

    Attributes:
        arch: what the ``config`` entry of a safetensors file calls such a model.
        hyper_parameters: names of the options.
        network: tensors, options and the file's path -> the model without storage, and the tensors
            under its names.
    """

    arch: str
    hyper_parameters: frozenset[str]
    network: Callable[
        [dict[str, Tensor], dict[str, Any], Path | None],
        tuple[MaskRCNN | SOLO | Mask2Former, dict[str, Tensor]],
    ]


def load_model(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any], **hyper_parameters: Any
) -> MaskRCNN | SOLO | Mask2Former:
    """Loads a model from a checkpoint, whose format is recognised by its keys.

    Mask R-CNN on any ResNet with a feature pyramid of torchvision (v1 or v2 layout), detectron2 and
    mmdetection becomes ``MaskRCNN``, with labels as the library numbers them. SOLO, Decoupled SOLO
    and SOLOv2 of mmdetection and of their original repository, SOLOv2 of AdelaiDet and checkpoints
    of ``SOLO`` itself become ``SOLO``. Mask2Former and MaskFormer on ResNet or Swin of their
    original repositories, mmdetection, mmsegmentation and transformers and checkpoints of
    ``Mask2Former`` and ``MaskFormer`` themselves become these.

    Class count, widths, depths and layout are read off the tensors. Half-precision tensors become
    float32. Class names are those in the file: in the ``config`` entry of a safetensors file, or
    where mmdetection and transformers put them. Weights of 91 classes (torchvision's Mask R-CNN) or
    80 (the others' and SOLO) without class names are taken for COCO's.

    Of Mask2Former and MaskFormer, 80 classes are taken for COCO's and ``task="instance"``, 133 for
    COCO's and ``task="panoptic"``, 150 for ADE20K's and 19 for Cityscapes' and ``task="semantic"``;
    any other number, and other names in the file, is ``task="instance"``, from mmsegmentation
    always ``task="semantic"``. No tensor shows the task, nor whether weights are Mask2Former's for
    videos. Of ADE20K and Cityscapes images also have the size with which the original tests: a
    shorter side of 640 (512 for semantic maps on other backbones than Swin-B and -L) and 1024.

    torchvision runs its published V1 weights with a batch normalisation eps of 0 and everything
    else with 1e-5, which no tensor shows. The published file is known by its checksum or its
    old-style names; where the weights may be it under new names, a warning asks for
    ``batch_norm_eps``.

    No tensor shows which order of channels and which pixels a network was trained with.
    mmdetection's files say it in their configuration, which is read; without it they are RGB, with
    PyTorch's usual mean and deviation. detectron2's are BGR minus a mean, on a ResNeXt also divided
    by a deviation, unless the file has these numbers.

    Args:
        path_or_state_dict: a .safetensors, .pth or .pkl file, a folder of transformers (or the
            index of its parts), or a state dict; also one under the key "model" or "state_dict".
            Nothing in a file is executed.
        **hyper_parameters: arguments of ``MaskRCNN``, ``SOLO`` or ``Mask2Former`` by their peers'
            names (``min_size``, ``box_score_thresh``, ``filter_thr``, ``task``, ...), which take
            precedence over what the file says; ``batch_norm_eps``; and ``stride_in_1x1``: where
            bottlenecks have their stride, which no tensor shows; by default in the 1x1 convolution
            for AdelaiDet and detectron2's Mask R-CNN, but for its ResNeXt, and in the 3x3
            convolution else, unless mmdetection's file says "caffe". For the peers' SOLO and Mask
            R-CNN (but torchvision's) also ``bgr``: the first convolution takes blue first
            (``image_mean`` and ``image_std`` are red first even so). For SOLOv2 also ``num_grids``:
            per level, the cells along each side of its grid. For Mask2Former also ``num_heads``, of
            all attentions; by default what the pixel decoder's attention has with four points per
            head and scale; of MaskFormer no tensor shows it, and the default is 8.

    Returns:
        The model in evaluation mode, float32, on the CPU. Where it is trained on, Swin has the
        stochastic depth of the originals, 0.3.

    Raises:
        TypeError: a hyper-parameter is unknown.
        ValueError: the file cannot be read, is of another format, or its keys or shapes do not
            fit.
    """
    path = None
    if isinstance(path_or_state_dict, Mapping):
        source = "the state dict"
        tensors = tensors_of(path_or_state_dict, source)
        tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        config = config_of(path_or_state_dict)
    else:
        path = Path(path_or_state_dict)
        source = str(path)
        tensors, config = read_checkpoint(path)

    found = recognise(tensors)
    reader = READERS.get(found or "")
    if reader is None:
        beginning = f", its keys begin with {', '.join(list(tensors)[:5])}"
        raise ValueError(
            f"{source} looks like {found or 'no known format' + beginning}; "
            f"load_model() reads {READABLE}"
        )
    unknown = sorted(set(hyper_parameters) - reader.hyper_parameters)
    if unknown:
        raise TypeError(
            f"load_model() got an unknown hyper-parameter {', '.join(unknown)}; "
            f"for {found} there are {', '.join(sorted(reader.hyper_parameters))}"
        )
    options = {**from_config(config, source, reader), **hyper_parameters}
    # Making random weights to overwrite takes longer than reading the file.
    with without_storage():
        model, state_dict = reader.network(tensors, options, path)
    fill(model, state_dict, source)
    return model


def mask_rcnn_network(
    tensors: dict[str, Tensor], options: dict[str, Any], path: Path | None
) -> tuple[MaskRCNN, dict[str, Tensor]]:
    """Mask R-CNN from torchvision's tensors, or ours."""
    state_dict = torchvision_mask_rcnn.with_current_names(tensors)
    eps = options.pop("batch_norm_eps", None)
    if eps is None:
        eps = torchvision_mask_rcnn.default_eps(
            state_dict, old_names=set(state_dict) != set(tensors), path=path
        )
    conventions = options.get("conventions", "torchvision")
    options = {**mask_rcnn.defaults(state_dict, conventions), **options}
    model = mask_rcnn.build(
        state_dict,
        batch_norm_eps=eps,
        stride_in_1x1=options.pop("stride_in_1x1", False),
        hyper_parameters=options,
    )
    return model, state_dict


def peers_mask_rcnn_network(
    tensors: dict[str, Tensor],
    options: dict[str, Any],
    path: Path | None,
    *,
    with_our_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
    defaults: Callable[[Mapping[str, Tensor], Mapping[str, Any]], dict[str, Any]],
) -> tuple[MaskRCNN, dict[str, Tensor]]:
    """Mask R-CNN from detectron2's or mmdetection's tensors.

    Args:
        tensors: the checkpoint's.
        options: hyper-parameters.
        path: the checkpoint's file, which does not matter.
        with_our_names: gives the tensors our names.
        defaults: tensors and options -> hyper-parameters unless the options say them.
    """
    state_dict = with_our_names(tensors)
    options = {**defaults(tensors, options), **options}
    options = {**mask_rcnn.defaults(state_dict, options["conventions"]), **options}
    if options.pop("bgr", False) and (stem := state_dict.get(STEM)) is not None:
        state_dict[STEM] = stem.flip(1)
    model = mask_rcnn.build(
        state_dict,
        batch_norm_eps=options.pop("batch_norm_eps", 1e-5),
        stride_in_1x1=options.pop("stride_in_1x1", False),
        hyper_parameters=options,
    )
    return model, state_dict


def solo_network(
    tensors: dict[str, Tensor],
    options: dict[str, Any],
    path: Path | None,
    *,
    rules: Sequence[tuple[str, str]],
    stride_in_1x1: bool = False,
    bgr: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[SOLO, dict[str, Tensor]]:
    """A model of the SOLO family from a peer's tensors.

    Args:
        tensors: the checkpoint's.
        options: hyper-parameters.
        path: the checkpoint's file, which does not matter.
        rules: from the peer's names to ours.
        stride_in_1x1: unless the options say it.
        bgr: the first convolution takes blue first, unless the options say it.
        defaults: hyper-parameters unless the options say them.
    """
    state_dict = renamed(with_inner_offsets(tensors), rules)
    if options.pop("bgr", bgr) and (stem := state_dict.get(STEM)) is not None:
        state_dict[STEM] = stem.flip(1)
    options = {**solo.defaults(state_dict), **(defaults or {}), **options}
    bias = state_dict.get("head.class_predictor.bias")
    if bias is not None and len(bias) == len(COCO_CATEGORY_NAMES):
        options.setdefault("class_names", COCO_CATEGORY_NAMES)
    model = solo.build(
        state_dict,
        batch_norm_eps=options.pop("batch_norm_eps", 1e-5),
        stride_in_1x1=options.pop("stride_in_1x1", stride_in_1x1),
        num_grids=options.pop("num_grids", None),
        hyper_parameters=options,
    )
    return model, state_dict


def mask2former_network(
    tensors: dict[str, Tensor],
    options: dict[str, Any],
    path: Path | None,
    *,
    names: mask2former.Names | None,
) -> tuple[Mask2Former, dict[str, Tensor]]:
    """Mask2Former or MaskFormer from a peer's tensors.

    Args:
        tensors: the checkpoint's.
        options: hyper-parameters.
        path: the checkpoint's file, if there is one.
        names: the peer's; None for ours.
    """
    source = "the state dict" if path is None else str(path)
    state_dict = tensors
    if names is not None:
        state_dict = mask2former.with_our_names(tensors, names, source)
        options = {**names.defaults, **options}
    options = {**mask2former.defaults(state_dict, options), **options}
    if (
        len(state_dict.get("decoder.class_predictor.bias", ())) == 41
        and "class_names" not in options
    ):
        warnings.warn(
            f"{source} has 40 classes without names, as Mask2Former for videos (YouTube-VIS) has; "
            "its weights have the same tensors and do not segment images well. Pass class_names if "
            "it is for images",
            stacklevel=3,
        )
    model = mask2former.build(
        state_dict,
        batch_norm_eps=options.pop("batch_norm_eps", 1e-5),
        stride_in_1x1=options.pop("stride_in_1x1", False),
        num_heads=options.pop("num_heads", None),
        hyper_parameters=options,
    )
    return model, state_dict


def hyper_parameters_of(model: type[nn.Module], *more: str) -> frozenset[str]:
    """Names of a model's arguments that have a default (the others are the network), and more."""
    parameters = inspect.signature(model).parameters.values()
    names = {p.name for p in parameters if p.default is not inspect.Parameter.empty}
    return frozenset(names | set(more))


MASK_RCNN_HYPER_PARAMETERS = hyper_parameters_of(MaskRCNN, "batch_norm_eps", "stride_in_1x1")
SOLO_HYPER_PARAMETERS = hyper_parameters_of(SOLO, "batch_norm_eps", "stride_in_1x1", "num_grids")
PEERS_SOLO_HYPER_PARAMETERS = SOLO_HYPER_PARAMETERS | {"bgr"}
MASK2FORMER_HYPER_PARAMETERS = hyper_parameters_of(
    Mask2Former, "batch_norm_eps", "stride_in_1x1", "num_heads"
)
READERS: dict[str, Reader] = {
    TORCHVISION_MASK_RCNN: Reader("mask_rcnn", MASK_RCNN_HYPER_PARAMETERS, mask_rcnn_network),
    **{
        found: Reader(
            "mask_rcnn",
            MASK_RCNN_HYPER_PARAMETERS | {"bgr"},
            partial(
                peers_mask_rcnn_network,
                with_our_names=peer.with_our_names,
                defaults=peer.defaults,
            ),
        )
        for found, peer in (
            (DETECTRON2_MASK_RCNN, detectron2_mask_rcnn),
            (MMDETECTION_MASK_RCNN, mmdetection_mask_rcnn),
        )
    },
    FASTSEG_SOLO: Reader("solo", SOLO_HYPER_PARAMETERS, partial(solo_network, rules=())),
    MMDETECTION_SOLO: Reader(
        "solo", PEERS_SOLO_HYPER_PARAMETERS, partial(solo_network, rules=mmdetection_solo.RULES)
    ),
    ORIGINAL_SOLO: Reader(
        "solo", PEERS_SOLO_HYPER_PARAMETERS, partial(solo_network, rules=original_solo.RULES)
    ),
    ADELAIDET_SOLOV2: Reader(
        "solo",
        PEERS_SOLO_HYPER_PARAMETERS,
        partial(
            solo_network,
            rules=adelaidet_solov2.RULES,
            stride_in_1x1=True,
            bgr=True,
            defaults=adelaidet_solov2.HYPER_PARAMETERS,
        ),
    ),
    **{
        found: Reader(
            "maskformer" if "MaskFormer" in found else "mask2former",
            MASK2FORMER_HYPER_PARAMETERS,
            partial(mask2former_network, names=names),
        )
        for found, names in mask2former.NAMES.items()
    },
}


def default_model(**hyper_parameters: Any) -> MaskRCNN:
    """The model that ships with fastseg: cell nuclei in microscopy images.

    ResNet-18-FPN of 128 channels, trained on the public-domain (CC0) images of the 2018 Data
    Science Bowl; segm AP 0.58 on the validation images.

    Args:
        **hyper_parameters: as of ``load_model``.
    """
    with resources.as_file(resources.files("fastseg") / "weights" / DEFAULT_WEIGHTS) as path:
        return cast(MaskRCNN, load_model(path, **hyper_parameters))


def from_config(config: Mapping[str, Any], source: str, reader: Reader) -> dict[str, Any]:
    """Hyper-parameters in the ``config`` entry of a safetensors file."""
    if config.get("arch", reader.arch) != reader.arch:
        raise ValueError(f"{source} says that it is {config['arch']!r}, not {reader.arch!r}")
    ignored = STRUCTURE | (IF_NEEDED - reader.hyper_parameters)
    options = {key: value for key, value in config.items() if key not in ignored}
    if "classes" in options:
        options["class_names"] = options.pop("classes")
        if options["class_names"] is not None and names_in(config, "classes") is None:
            raise ValueError(f"{source} says that its classes are {config['classes']!r}, not names")
    unknown = sorted(set(options) - reader.hyper_parameters)
    if unknown:
        raise ValueError(f"the config entry of {source} has unknown names: {', '.join(unknown)}")
    return options
