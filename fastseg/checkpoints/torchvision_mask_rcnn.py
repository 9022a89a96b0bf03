"""Checkpoints of Mask R-CNN from torchvision, whose names are ours but for its oldest."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fastseg.checkpoints.coco_classes import COCO_CLASS_NAMES

# torchvision's maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth, whose name ends in its SHA-256.
PUBLISHED_V1_SHA256 = "bf2d0c1e"
# Names of parameters up to torchvision 0.12, which its first published weights have.
OLD_NAMES = (
    (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
)
OLD_MASK_HEAD = re.compile(r"^roi_heads\.mask_head\.mask_fcn(\d+)\.(weight|bias)$")


def with_current_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names that torchvision has used since 0.13."""

    def current(key: str) -> str:
        for old, new in OLD_NAMES:
            key = re.sub(old, new, key)
        return OLD_MASK_HEAD.sub(
            lambda match: f"roi_heads.mask_head.{int(match[1]) - 1}.0.{match[2]}", key
        )

    return {current(key): tensor for key, tensor in state_dict.items()}


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
        stacklevel=4,
    )
    return 1e-5


def sha256(path: Path) -> str:
    """Hexadecimal checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
