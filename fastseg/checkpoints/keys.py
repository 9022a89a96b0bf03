"""What the names and shapes of a state dict tell about the network that they fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.backbones.resnet import BasicBlock, Bottleneck, ResNet
from fastseg.layers.batch_norm import ConvLayer, FrozenBatchNorm2d, NormLayer
from fastseg.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d


def renamed(
    state_dict: Mapping[str, Tensor], rules: Sequence[tuple[str, str]]
) -> dict[str, Tensor]:
    """The same tensors under new names.

    Args:
        state_dict: tensors by name.
        rules: pairs of a regular expression and its replacement, applied one after the other.
    """
    result = {}
    for key, tensor in state_dict.items():
        for old, new in rules:
            key = re.sub(old, new, key)
        result[key] = tensor
    return result


def box_head_rules(
    convolutions: Sequence[str], fully_connected: Sequence[str], *, conv: str = "", norm: str
) -> list[tuple[str, str]]:
    """Rules for ``renamed``: the box head of Mask R-CNN, whose layers our ``ConvFCHead`` counts.

    Args:
        convolutions: what matches the beginning of each one's keys.
        fully_connected: the same of fully connected layers; without convolutions there are two.
        conv: what follows for the convolution itself.
        norm: what follows for its normalisation.
    """
    ours = "roi_heads.box_head."
    rules = []
    for i, theirs in enumerate(convolutions):
        rules += [(theirs + norm, f"{ours}{i}.1."), (theirs + conv, f"{ours}{i}.0.")]
    for i, theirs in enumerate(fully_connected):
        # A flatten comes first, and ReLUs are counted.
        name = str(len(convolutions) + 1 + 2 * i) if convolutions else f"fc{6 + i}"
        rules.append((theirs, f"{ours}{name}."))
    return rules


def numbers(state_dict: Mapping[str, Tensor], pattern: str) -> list[int]:
    """The numbers that the pattern's group matches in keys, in order."""
    return sorted({int(m[1]) for key in state_dict if (m := re.match(pattern, key))})


def with_joined_rows(
    state_dict: Mapping[str, Tensor], parts: Sequence[str], whole: str
) -> dict[str, Tensor]:
    """Tensors that hold query, key and value apart joined to one, row below row.

    Args:
        state_dict: tensors by name.
        parts: what stands in the names of the parts, in the order of their rows.
        whole: what stands there instead in the name of the joined tensor.
    """
    result = dict(state_dict)
    for key in state_dict:
        names = [key.replace(parts[0], part) for part in parts]
        if parts[0] in key and all(name in result for name in names):
            rows = [result.pop(name) for name in names]
            result[key.replace(parts[0], whole)] = torch.cat(rows)
    return result


class Keys:
    """What the names and shapes of a state dict tell.

    Args:
        state_dict: tensors by name.
        batch_norm_eps: eps of the normalisations that ``norm_layer`` makes.
    """

    def __init__(self, state_dict: Mapping[str, Tensor], batch_norm_eps: float) -> None:
        self.state_dict = state_dict
        self.batch_norm_eps = batch_norm_eps

    def any(self, beginning: str) -> bool:
        """Whether some key begins so."""
        return any(key.startswith(beginning) for key in self.state_dict)

    def size(self, key: str, dim: int, *, default: int) -> int:
        """Size of a tensor along one dimension; the default where it is missing."""
        tensor = self.state_dict.get(key)
        return default if tensor is None or tensor.dim() <= dim else tensor.shape[dim]

    def count(self, pattern: str) -> int:
        """One more than the highest number that the pattern's group matches; 1 for no match."""
        matches = (re.match(pattern, key) for key in self.state_dict)
        return 1 + max((int(match[1]) for match in matches if match), default=0)

    def sizes(self, pattern: str, *, default: tuple[int, ...]) -> tuple[int, ...]:
        """First dimension of each matching tensor, in the order of the matched numbers."""
        found = {
            int(match[1]): tensor.shape[0]
            for key, tensor in self.state_dict.items()
            if (match := re.fullmatch(pattern, key))
        }
        return tuple(found[i] for i in sorted(found)) or default

    def norm_layer(self, name: str) -> NormLayer | None:
        """The kind of normalisation with that name; None where there is none.

        Batch normalisation that was trained counts batches; frozen does not.
        """
        if f"{name}.running_mean" not in self.state_dict:
            return None
        counts_batches = f"{name}.num_batches_tracked" in self.state_dict
        layer = nn.BatchNorm2d if counts_batches else FrozenBatchNorm2d
        return partial(layer, eps=self.batch_norm_eps)

    def conv_layer(self, name: str) -> ConvLayer:
        """The kind of convolution with that name: nn.Conv2d, or deformable, v1 or v2."""
        offsets = self.size(f"{name}.conv_offset.weight", 0, default=0)
        if not offsets:
            return nn.Conv2d
        kernel = self.size(f"{name}.weight", 2, default=3) ** 2
        # Two coordinates for each tap of each group, and in v2 a mask. Where both would do (6, for
        # three groups of v1 or two of v2) it is v2, which all but few use.
        modulated = offsets % (3 * kernel) == 0
        if modulated:
            return partial(ModulatedDeformConv2d, offset_groups=offsets // (3 * kernel))
        return partial(DeformConv2d, offset_groups=offsets // (2 * kernel))


def resnet(
    keys: Keys,
    prefix: str,
    *,
    stride_in_1x1: bool = False,
    norm_layer: NormLayer | None = None,
) -> ResNet:
    """The backbone: kind, number and width of blocks, cardinality, kind of convolutions.

    Args:
        keys: of a state dict under our names.
        prefix: the backbone's name.
        stride_in_1x1: which no tensor shows, see ``Bottleneck``.
        norm_layer: makes the normalisations; by default what the keys tell.
    """
    bottleneck = f"{prefix}.layer1.0.conv3.weight" in keys.state_dict
    width = keys.size(f"{prefix}.conv1.weight", 0, default=64)
    group_width = keys.size(f"{prefix}.layer1.0.conv2.weight", 1, default=width)
    stage_width = keys.size(f"{prefix}.layer1.0.conv2.weight", 0, default=width)
    planes = stage_width
    options: dict[str, Any] = {}
    if bottleneck:
        planes = keys.size(f"{prefix}.layer1.0.conv3.weight", 0, default=4 * width) // 4
        options = {
            "groups": stage_width // group_width,
            "width_per_group": group_width * 64 // planes,
            "stride_in_1x1": stride_in_1x1,
            "conv_layers": [
                keys.conv_layer(f"{prefix}.layer{stage}.0.conv2") for stage in (1, 2, 3, 4)
            ],
        }
    return ResNet(
        block=Bottleneck if bottleneck else BasicBlock,
        depths=[
            keys.count(rf"{re.escape(prefix)}\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)
        ],
        width=width,
        planes=planes,
        norm_layer=norm_layer or keys.norm_layer(f"{prefix}.bn1") or FrozenBatchNorm2d,
        **options,
    )
