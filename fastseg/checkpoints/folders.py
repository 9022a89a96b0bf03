"""Checkpoints in folders, as transformers saves them: weights beside their configuration."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastseg.checkpoints.files import read_file, tensors_of
from fastseg.checkpoints.fill import listing

INDEX = ".index.json"
# The first that a folder has is read.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Of other files that may be checkpoints.
SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl", ".bin")
# What transformers calls a class without a name.
NAMELESS = re.compile(r"LABEL_\d+")


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file, or a folder of transformers.

    Args:
        path: a file that ``read_file`` reads, a folder with such a file or parts of one under
            transformers' names, or the index of the parts.

    Returns:
        The state dict, and what the checkpoint says beside it: see ``read_file``, and for a folder
        ``folder_config``.

    Raises:
        FileNotFoundError: there is no such file or folder; nothing is downloaded.
        ValueError: the folder has no weights, or a file cannot be read.
    """
    path = Path(path)
    if not path.exists():
        message = "no such file or folder of weights, and fastseg downloads none"
        raise FileNotFoundError(errno.ENOENT, message, str(path))
    if not (path.is_dir() or path.name.endswith(INDEX)):
        return read_file(path)
    folder = path if path.is_dir() else path.parent
    tensors, config = read_weights(weights_in(path))
    return tensors, {**config, **folder_config(folder)}


def named_tensors(
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
) -> tuple[dict[str, Tensor], str]:
    """Tensors that are nobody else's, and what to call their source in errors.

    Args:
        path_or_state_dict: what ``read_checkpoint`` reads, or a state dict, of which copies are
            made.
    """
    if not isinstance(path_or_state_dict, Mapping):
        return read_checkpoint(path_or_state_dict)[0], str(path_or_state_dict)
    source = "the state dict"
    tensors = tensors_of(path_or_state_dict, source)
    return {key: tensor.clone() for key, tensor in tensors.items()}, source


def weights_in(path: Path) -> Path:
    """The file or index of a folder; an index itself."""
    if not path.is_dir():
        return path
    for name in WEIGHTS:
        if (path / name).is_file():
            return path / name
    others = sorted(one.name for one in path.iterdir() if one.suffix in SUFFIXES)
    named = f"; name one of its files instead: {listing(others)}" if others else ""
    raise ValueError(f"the folder {path} has none of {', '.join(WEIGHTS)}{named}")


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a file or of all parts that an index names."""
    if not path.name.endswith(INDEX):
        return read_file(path)
    places = read_json(path).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(v, str) for v in places.values()):
        raise ValueError(f"{path} has no weight_map from names of tensors to names of files")
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    for part in sorted(set(places.values())):
        if Path(part).name != part:
            raise ValueError(f"{path} names a file in another folder: {part}")
        more, config = read_file(path.parent / part)
        tensors.update(more)
    if missing := sorted(set(places) - set(tensors)):
        raise ValueError(f"the files that {path} names lack {', '.join(missing[:30])}")
    return tensors, config


def folder_config(folder: Path) -> dict[str, Any]:
    """What transformers' config.json and preprocessor_config.json say, if they are there.

    Args:
        folder: with the files.

    Returns:
        "classes": names of the classes, unless they are placeholders;
        "num_heads": heads of the attentions;
        "image_mean", "image_std", "size_divisible", and where images keep their aspect "min_size"
        and "max_size". The hub's files of Mask2Former give a fixed height and width instead, which
        is not how the models were trained and is left alone.

    Raises:
        ValueError: a file is damaged, or the model is one for videos.
    """
    model = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "video" in str(model.get("model_type")):
        raise ValueError(f"{folder} is a model for videos: {model['model_type']}")
    found: dict[str, Any] = {}
    if names := class_names(model.get("id2label")):
        found["classes"] = names
    # MaskFormer's decoder is a DETR of its own configuration.
    decoder = model.get("decoder_config")
    heads = model.get("num_attention_heads")
    if isinstance(decoder, Mapping):
        heads = decoder.get("decoder_attention_heads")
    if isinstance(heads, int):
        found["num_heads"] = heads
    images = folder / "preprocessor_config.json"
    return {**found, **(image_config(read_json(images)) if images.is_file() else {})}


def class_names(labels: Any) -> list[str] | None:
    """Names indexed by label; "N/A" for a number without name; None without names."""
    if not isinstance(labels, Mapping) or not all(str(label).isdecimal() for label in labels):
        return None
    names = {int(label): str(name) for label, name in labels.items()}
    if all(NAMELESS.fullmatch(name) for name in names.values()):
        return None
    return [names.get(label, "N/A") for label in range(len(names))]


def image_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters in a preprocessor_config.json, of transformers 4 or 5."""
    found = {key: content[key] for key in ("image_mean", "image_std") if content.get(key)}
    if content.get("size_divisor"):
        found["size_divisible"] = content["size_divisor"]
    size: Any = content.get("size")
    if not isinstance(size, Mapping):
        size = {"shortest_edge": size, "longest_edge": content.get("max_size")}
    shortest, longest = size.get("shortest_edge"), size.get("longest_edge")
    if isinstance(shortest, int) and isinstance(longest, int):
        found |= {"min_size": shortest, "max_size": longest}
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__} instead of a dictionary")
    return content
