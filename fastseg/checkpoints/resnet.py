"""ResNet backbones from checkpoints of classifiers, backbones and detectors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.backbones.resnet import ResNet
from fastseg.checkpoints import detectron2_resnet
from fastseg.checkpoints.fill import fill
from fastseg.checkpoints.folders import named_tensors
from fastseg.checkpoints.formats import recognise
from fastseg.checkpoints.keys import Keys, renamed, resnet
from fastseg.checkpoints.transformers_mask2former import RESNET as TRANSFORMERS_NAMES
from fastseg.checkpoints.without_storage import without_storage
from fastseg.layers.batch_norm import FrozenBatchNorm2d, NormLayer

TORCHVISION = "torchvision, timm or mmdetection ResNet"
DETECTRON2 = "detectron2 ResNet"
TRANSFORMERS = "transformers ResNet"

# As in `fastseg.checkpoints.formats`.
FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (TORCHVISION, ("conv1.weight", "layer1.0.conv1.")),
    (DETECTRON2, ("stem.conv1.", "res2.0.conv1.")),
    (TRANSFORMERS, ("resnet.embedder.embedder.", "resnet.encoder.stages.0.")),
    (TRANSFORMERS, ("embedder.embedder.", "encoder.stages.0.")),
)
# Rules for `fastseg.checkpoints.keys.renamed`; names begin with "backbone.".
RULES: dict[str, tuple[tuple[str, str], ...]] = {
    TORCHVISION: (),
    DETECTRON2: detectron2_resnet.RULES,
    TRANSFORMERS: ((r"^backbone\.resnet\.", "backbone."), *TRANSFORMERS_NAMES),
}
# A classifier's last layer.
UNUSED = re.compile(r"backbone\.(?:fc|classifier|stem\.fc|linear)\.")


def load_resnet(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
    *,
    prefix: str = "",
    norm_layer: NormLayer = FrozenBatchNorm2d,
    stride_in_1x1: bool = False,
) -> ResNet:
    """Loads a ResNet or ResNeXt backbone from a checkpoint, whose format its keys tell.

    Reads classifiers of torchvision, timm and transformers, and the backbones of detectron2 and
    mmdetection. Kind and number of blocks, widths and cardinality are read off the tensors.

    Args:
        path_or_state_dict: a .safetensors, .pth or .pkl file, a folder of transformers or a state
            dict; also one under the key "model" or "state_dict".
        prefix: what a detector's checkpoint puts before the names of its backbone: "backbone." in
            mmdetection, "backbone.bottom_up." in detectron2, "backbone.body." in torchvision.
            Other keys are left alone.
        norm_layer: makes the normalisations from a channel count: ``FrozenBatchNorm2d``, or
            ``nn.BatchNorm2d``.
        stride_in_1x1: see ``Bottleneck``; true for weights that stem from Caffe2, such as
            detectron2's "MSRA" and mmdetection's "caffe".

    Returns:
        The backbone in training mode, float32, on the CPU.

    Raises:
        ValueError: the file cannot be read, is of another format, or its keys or shapes do not
            fit.
    """
    tensors, source = named_tensors(path_or_state_dict)
    named = with_our_names(tensors, source=source, prefix=prefix)
    # Without storage: making random weights to overwrite takes longer than reading the file.
    with without_storage():
        model = resnet(
            Keys(named, batch_norm_eps=0.0),
            "backbone",
            stride_in_1x1=stride_in_1x1,
            norm_layer=norm_layer,
        )
    state_dict = {
        key.removeprefix("backbone."): tensor
        for key, tensor in named.items()
        if not key.endswith(".num_batches_tracked")
    }
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            state_dict[f"{name}.num_batches_tracked"] = torch.tensor(0)
    fill(model, state_dict, source)
    return model


def with_our_names(
    tensors: Mapping[str, Tensor], *, source: str, prefix: str = ""
) -> dict[str, Tensor]:
    """A backbone's tensors as ``ResNet`` calls them, each name after "backbone.".

    Args:
        tensors: a checkpoint's.
        source: what to call it in errors.
        prefix: see ``load_resnet``.

    Raises:
        ValueError: of no known format.
    """
    own = {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }
    found = recognise(own, FORMATS)
    if found is None:
        raise ValueError(
            f"{source} has no ResNet backbone under the prefix {prefix!r}; load_resnet() reads "
            f"{', '.join(RULES)}. Its keys begin with {', '.join(list(tensors)[:5])}"
        )
    named = renamed({f"backbone.{key}": tensor for key, tensor in own.items()}, RULES[found])
    return {key: tensor for key, tensor in named.items() if not UNUSED.match(key)}
