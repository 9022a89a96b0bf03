"""Reads pickled arrays and training logs without running anything that a pickle asks for."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Ignored:
    """Takes the place of an object whose content does not matter, and keeps nothing of it."""

    def __new__(cls, *arguments: Any, **options: Any) -> Ignored:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def stand_in(module: str, name: str) -> type[Ignored]:
    """A class that a pickle finds under that name."""
    return type(name, (Ignored,), {"__module__": module, "__qualname__": name})


# mmengine stores its log beside the weights: buffers of arrays, and their methods through getattr.
LOG_OBJECTS = tuple(
    stand_in(module, name)
    for module, name in (
        ("mmengine.logging.history_buffer", "HistoryBuffer"),
        ("mmengine.config.config", "ConfigDict"),
        ("builtins", "getattr"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "scalar"),
    )
)
# What may be named in a file of ``torch.save`` beside tensors. torchvision's training script stores
# its arguments in a Namespace, which is plain data.
TORCH_FILE_OBJECTS = (argparse.Namespace, *LOG_OBJECTS)


def latin1_bytes(text: str, encoding: str) -> bytes:
    """The bytes of an array, which protocols before 3 can only store as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def no_bytes() -> bytes:
    """The bytes of an empty array in such a protocol."""
    return b""


def numpy_functions() -> dict[tuple[str, str], Any]:
    """What a pickle of arrays may name; numpy 2 calls its modules otherwise than numpy 1."""
    found: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("_codecs", "encode"): latin1_bytes,
        ("__builtin__", "bytes"): no_bytes,
        ("numpy", "ndarray"): stand_in("numpy", "ndarray"),
        ("numpy", "dtype"): np.dtype,
    }
    scalar = np.float32(0).__reduce__()[0]
    for package in ("numpy.core", "numpy._core"):
        found[f"{package}.multiarray", "_reconstruct"] = array_to_fill
        found[f"{package}.multiarray", "scalar"] = scalar
        found[f"{package}.numeric", "_frombuffer"] = array_on_buffer
    return found


def array_to_fill(kind: Any, shape: Any, typecode: Any) -> Any:
    """An array that gets shape, type and elements afterwards, as pickles before protocol 5 do."""
    return np.empty(0, dtype=np.int8)


def array_on_buffer(buffer: Any, dtype: np.dtype[Any], shape: Any, order: Any) -> Any:
    """An array as protocol 5 stores it: its bytes in one piece."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


NUMPY_FUNCTIONS = numpy_functions()


class ArrayUnpickler(pickle.Unpickler):
    """Makes numbers, text, containers and numpy arrays, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle names, if it is among ``NUMPY_FUNCTIONS``."""
        if (module, name) not in NUMPY_FUNCTIONS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return NUMPY_FUNCTIONS[module, name]


def read_pickle(path: Path) -> Any:
    """Content of a pickle (not of ``torch.save``), arrays as tensors, without executing anything.

    Args:
        path: the file, for example a .pkl of detectron2.

    Raises:
        ValueError: it is damaged or asks for more than arrays.
    """
    try:
        with path.open("rb") as file:
            # Text of Python 2, whose arrays are text as well.
            return with_tensors(ArrayUnpickler(file, encoding="latin1").load())
    except Exception as error:  # pickle.load may raise anything for damaged files
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as arrays alone, it may be damaged or hold other objects: "
            f"{reason}"
        ) from error


def with_tensors(content: Any) -> Any:
    """The same dictionaries with tensors for arrays of numbers, which are copied."""
    if isinstance(content, Mapping):
        return {key: with_tensors(value) for key, value in content.items()}
    if isinstance(content, (np.ndarray, np.generic)) and content.dtype.kind in "fiub":
        native = np.asarray(content, dtype=content.dtype.newbyteorder("="))
        return torch.tensor(native)
    return content
