"""Swin backbones from checkpoints of classifiers, backbones and detectors."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastseg.backbones.swin import SwinTransformer
from fastseg.checkpoints.fill import fill
from fastseg.checkpoints.folders import named_tensors
from fastseg.checkpoints.formats import recognise
from fastseg.checkpoints.keys import Keys, renamed, with_joined_rows

AUTHORS = "the authors' Swin"
TIMM = "timm Swin"
TORCHVISION = "torchvision Swin"
TRANSFORMERS = "transformers Swin"
MMDETECTION = "mmdetection Swin"

# As in `fastseg.checkpoints.formats`. The authors merge patches at a stage's end, timm at the next
# one's beginning.
FORMATS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (TORCHVISION, ("features.0.0.", "features.1.0.attn.")),
    (TRANSFORMERS, ("swin.embeddings.patch_embeddings.",)),
    (TRANSFORMERS, ("model.embeddings.patch_embeddings.", "hidden_states_norms.")),
    (TRANSFORMERS, ("embeddings.patch_embeddings.", "encoder.layers.0.blocks.")),
    (MMDETECTION, ("patch_embed.projection.", "stages.0.blocks.")),
    (AUTHORS, ("patch_embed.proj.", "layers.0.downsample.")),
    (TIMM, ("patch_embed.proj.", "layers.1.downsample.")),
)
# Rules for `fastseg.checkpoints.keys.renamed`.
RULES: dict[str, tuple[tuple[str, str], ...]] = {
    AUTHORS: (),
    TIMM: tuple((rf"^layers\.{i + 1}\.downsample\.", f"layers.{i}.downsample.") for i in range(8)),
    TORCHVISION: (
        (r"^features\.0\.0\.", "patch_embed.proj."),
        (r"^features\.0\.2\.", "patch_embed.norm."),
        *((rf"^features\.{2 * i + 1}\.", f"layers.{i}.blocks.") for i in range(8)),
        *((rf"^features\.{2 * i + 2}\.", f"layers.{i}.downsample.") for i in range(8)),
        (r"\.mlp\.0\.", ".mlp.fc1."),
        (r"\.mlp\.3\.", ".mlp.fc2."),
    ),
    # Files on the hub have the names of version 4, models of version 5 have their own.
    TRANSFORMERS: (
        (r"^(?:swin|model)\.", ""),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^embeddings\.norm\.", "patch_embed.norm."),
        (r"^encoder\.layers\.", "layers."),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.(?:self|relative_position_bias)\.relative_", ".attn.relative_"),
        (r"\.attention\.self\.(q|k|v)(?:uery|ey|alue)\.", r".attn.\1."),
        (r"\.attention\.(q|k|v)_proj\.", r".attn.\1."),
        (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
        *((rf"^hidden_states_norms\.stage{i + 1}\.", f"norm{i}.") for i in range(8)),
        (r"^hidden_states_norms\.(\d)\.", r"norm\1."),  # MaskFormer's
    ),
    MMDETECTION: (
        (r"^patch_embed\.projection\.", "patch_embed.proj."),
        (r"^stages\.", "layers."),
        (r"\.attn\.w_msa\.", ".attn."),
        (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
        (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
    ),
}
# A classifier's last layers, and what follows from the size of a window or image.
UNUSED = re.compile(
    r"(?:norm|layernorm|head|classifier)\.|.*\b(?:relative_position_index|attn_mask)$"
)


def load_swin(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
    *,
    prefix: str = "",
    drop_path: float = 0.0,
) -> SwinTransformer:
    """Loads a Swin backbone from a checkpoint, whose format is recognised by its keys.

    Reads classifiers of the authors, timm, torchvision and transformers, transformers' backbone,
    and the backbones of Mask2Former and mmdetection. Widths, depths and window are read off the
    tensors. A classifier has no norms of the stages' outputs; they begin as ones and zeros.

    Args:
        path_or_state_dict: a .safetensors, .pth or .pkl file, a folder of transformers or a state
            dict; also one under the key "model" or "state_dict".
        prefix: what a detector's checkpoint puts before the names of its backbone: "backbone." in
            Mask2Former and mmdetection, "model.pixel_level_module.encoder." in transformers'
            Mask2Former. Other keys are left alone.
        drop_path: see ``SwinTransformer``.

    Returns:
        The backbone in training mode, float32, on the CPU.

    Raises:
        ValueError: the file cannot be read, is of another format, or its keys or shapes do not
            fit.
    """
    tensors, source = named_tensors(path_or_state_dict)
    state_dict = with_our_names(tensors, source=source, prefix=prefix)
    # Without storage: making random weights to overwrite takes longer than reading the file.
    with torch.device("meta"):
        model = build(state_dict, drop_path=drop_path)
    if not any(re.match(r"norm\d", key) for key in state_dict):
        for i, channels in enumerate(model.out_channels):
            state_dict[f"norm{i}.weight"] = torch.ones(channels)
            state_dict[f"norm{i}.bias"] = torch.zeros(channels)
    fill(model, state_dict, source)
    return model


def with_our_names(
    tensors: Mapping[str, Tensor], *, source: str, prefix: str = ""
) -> dict[str, Tensor]:
    """A backbone's tensors under the names and in the layout of ``SwinTransformer``.

    Args:
        tensors: a checkpoint's.
        source: what to call it in errors.
        prefix: see ``load_swin``.

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
            f"{source} has no Swin backbone under the prefix {prefix!r}; load_swin() reads "
            f"{', '.join(RULES)}. Its keys begin with {', '.join(list(tensors)[:5])}"
        )
    state_dict = {
        key: tensor for key, tensor in renamed(own, RULES[found]).items() if not UNUSED.match(key)
    }
    if found == TRANSFORMERS:
        return with_joined_rows(state_dict, (".attn.q.", ".attn.k.", ".attn.v."), ".attn.qkv.")
    if found == MMDETECTION:
        return with_authors_merging(state_dict)
    return state_dict


def with_authors_merging(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reorders the inputs of mmdetection's patch mergings.

    nn.Unfold has the four neighbours of each channel, right first and then down; the authors have
    all channels of each neighbour, down first and then right.
    """
    return {
        key: tensor.unflatten(-1, (-1, 2, 2)).transpose(-3, -1).flatten(-3)
        if re.search(r"\.downsample\.(?:reduction\.weight|norm\.)", key)
        else tensor
        for key, tensor in state_dict.items()
    }


def build(state_dict: Mapping[str, Tensor], *, drop_path: float = 0.0) -> SwinTransformer:
    """Makes the network that the tensors fit; does not load them.

    A tensor that is missing counts as having the size that it has in Swin-T.

    Args:
        state_dict: tensors under our names.
        drop_path: see ``SwinTransformer``.
    """
    keys = Keys(state_dict, batch_norm_eps=0.0)
    table = "layers.{}.blocks.0.attn.relative_position_bias_table"
    stages = keys.count(r"layers\.(\d+)\.")
    return SwinTransformer(
        embed_channels=keys.size("patch_embed.proj.weight", 0, default=96),
        depths=[keys.count(rf"layers\.{i}\.blocks\.(\d+)\.") for i in range(stages)],
        num_heads=[keys.size(table.format(i), 1, default=3 * 2**i) for i in range(stages)],
        window_size=(math.isqrt(keys.size(table.format(0), 0, default=13**2)) + 1) // 2,
        drop_path=drop_path,
    )
