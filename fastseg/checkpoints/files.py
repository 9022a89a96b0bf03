"""Checkpoint files and dictionaries as plain float32 state dicts."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from fastseg.checkpoints.mmdetection_config import options_in
from fastseg.checkpoints.pickles import TORCH_FILE_OBJECTS, read_pickle

# Training scripts put the state dict under one of these, beside optimiser state and arguments.
WRAPPERS = ("model", "state_dict")
# What torch.compile puts into keys, and torch's AveragedModel beside them.
COMPILED = "_orig_mod."
AVERAGED = "n_averaged"
# A file of torch.save: a zip archive, or before torch 1.6 pickles of which the first is a number.
TORCH_BEGINNINGS = (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
# What repositories of models hold in a file's place until it is fetched.
GIT_LFS = b"version h"


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a .safetensors file, a PyTorch file or a pickle of numpy arrays.

    Which of them it is its first bytes tell. Nothing in a file is executed: PyTorch's are read with
    ``weights_only=True``, pickles by ``read_pickle``.

    Args:
        path: the file.

    Returns:
        The state dict, and the ``config`` entry of a safetensors file's metadata, or what another
        file says in its place, see ``config_of``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of these, is damaged, or holds more than tensors.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:9] == b"{":
        return read_safetensors(path)
    if head[:4] in TORCH_BEGINNINGS:
        content = read_torch(path)
    elif head[:1] == b"\x80":
        content = read_pickle(path)
    elif head == GIT_LFS:
        raise ValueError(f"{path} only points to the file, which `git lfs pull` downloads")
    else:
        raise ValueError(
            f"{path} is neither a safetensors nor a PyTorch file nor a pickle: "
            f"it begins with {head[:8]!r}"
        )
    return tensors_of(content, str(path)), config_of(content)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict and configuration of a safetensors file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state_dict = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(metadata.get("config", "{}"))
    except (safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"the config entry of {path} is {type(config).__name__}, not a dictionary")
    return tensors_of(state_dict, str(path)), config


def read_torch(path: Path) -> Any:
    """Content of a file of ``torch.save``, without executing anything in it."""
    # torch < 2.5 cannot be told what else is harmless, and refuses such a file.
    safe_globals = getattr(torch.serialization, "safe_globals", contextlib.nullcontext)
    try:
        with safe_globals(list(TORCH_FILE_OBJECTS)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} cannot be read as a state dict, it may be damaged or hold something else. "
            f"torch.load said: {error}"
        ) from error
    except pickle.UnpicklingError as error:
        # The rest of torch's message is advice to run what is in the file.
        found = re.search(r"WeightsUnpickler error: (.*?)(?:\. Please|$)", str(error), re.MULTILINE)
        raise ValueError(
            f"{path} cannot be read as tensors alone; save the model's state_dict() instead. "
            f"torch.load said: {found[1] if found else error}"
        ) from error


def tensors_of(content: Any, source: str) -> dict[str, Tensor]:
    """The state dict in a checkpoint's content: float32, on the CPU.

    What DistributedDataParallel, torch.compile and AveragedModel add to the keys is taken away.

    Args:
        content: a state dict, or a dict that holds one under "model" or "state_dict".
        source: what to call it in errors.

    Raises:
        ValueError: there is no state dict.
    """
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{source} holds no state dict but {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{source} holds no state dict: its entry {key!r} is {type(value).__name__}"
            )
    tensors = {key.replace(COMPILED, ""): value for key, value in content.items()}
    tensors.pop(AVERAGED, None)
    # DistributedDataParallel puts it before every key.
    prefix = "module." if all(key.startswith("module.") for key in tensors) else ""
    return {
        key.removeprefix(prefix): value.detach().to(
            "cpu", torch.float32 if value.is_floating_point() else value.dtype
        )
        for key, value in tensors.items()
    }


def config_of(content: Any) -> dict[str, Any]:
    """What a checkpoint's content says beside its tensors: mmdetection's names and pixels.

    Args:
        content: a checkpoint's content; mmdetection has "CLASSES" (up to version 2) or
            "dataset_meta" with "classes" and for panoptic data "thing_classes" under "meta".

    Returns:
        {"classes": [names]}, of panoptic data also {"thing_classes": [labels], "task": "panoptic"},
        if there are names; and the options that ``mmdetection_config.options_in`` finds.
    """
    meta = content.get("meta") if isinstance(content, Mapping) else None
    if not isinstance(meta, Mapping):
        return {}
    options = options_in(meta)
    dataset = meta.get("dataset_meta")
    for place, key, things_key in (
        (meta, "CLASSES", "THING_CLASSES"),
        (dataset, "CLASSES", "THING_CLASSES"),
        (dataset, "classes", "thing_classes"),
    ):
        names = names_in(place, key)
        if names is None:
            continue
        things = names_in(place, things_key)
        if not things or not set(things) < set(names):
            return {**options, "classes": names}
        labels = [label for label, name in enumerate(names) if name in things]
        return {**options, "classes": names, "thing_classes": labels, "task": "panoptic"}
    return options


def names_in(place: Any, key: str) -> list[str] | None:
    """A list of names in a dictionary; None if there is none."""
    names = place.get(key) if isinstance(place, Mapping) else None
    if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
        return list(names)
    return None
