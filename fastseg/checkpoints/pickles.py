"""Reads pickled arrays and training logs without running anything that a pickle asks for."""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

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


class PickledType:
    """numpy.dtype of a pickle, whose own ``__setstate__`` crashes on damaged files.

    Attributes:
        text: such as "<f4"; "" for other types than numbers.
    """

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        known = isinstance(code, str) and re.fullmatch(r"[fiub][1248]", code)
        self.text = f"<{code}" if known and code != "f1" else ""

    def __setstate__(self, state: Any) -> None:
        if self.text and isinstance(state, tuple) and state[1:2] == (">",):
            self.text = f">{self.text[1:]}"


class PickledArray:
    """numpy.ndarray or a scalar of a pickle, see ``PickledType``.

    Attributes:
        array: None for other elements than numbers.
    """

    def __init__(self, *arguments: Any) -> None:
        self.array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, columns_first, raw = state
        self.fill(raw, kind, shape, "F" if columns_first else "C")

    def fill(self, raw: Any, kind: Any, shape: Any, order: Any) -> None:
        """Copies elements from their bytes.

        Raises:
            ValueError: there are more or fewer than the shape has.
        """
        if isinstance(kind, PickledType) and kind.text and isinstance(raw, (bytes, bytearray)):
            elements = np.frombuffer(bytes(raw), dtype=kind.text)
            self.array = elements.reshape(shape, order=order)


def pickled_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> PickledArray:
    """An array as protocol 5 stores it."""
    result = PickledArray()
    result.fill(raw, kind, shape, order)
    return result


def pickled_scalar(kind: Any, raw: Any) -> PickledArray:
    """A number of numpy's, as an array without dimensions."""
    return pickled_buffer(raw, kind, (), "C")


def latin1_bytes(text: str, encoding: str) -> bytes:
    """The bytes of an array, which protocols before 3 can only store as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def no_bytes() -> bytes:
    """The bytes of an empty array in such a protocol."""
    return b""


# What a pickle of arrays may name. numpy 2 calls its modules otherwise than numpy 1.
NUMPY_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): latin1_bytes,
    ("__builtin__", "bytes"): no_bytes,
    ("numpy", "ndarray"): Ignored,
    ("numpy", "dtype"): PickledType,
}
for _package in ("numpy.core", "numpy._core"):
    NUMPY_FUNCTIONS[f"{_package}.multiarray", "_reconstruct"] = PickledArray
    NUMPY_FUNCTIONS[f"{_package}.multiarray", "scalar"] = pickled_scalar
    NUMPY_FUNCTIONS[f"{_package}.numeric", "_frombuffer"] = pickled_buffer


class ArrayUnpickler(pickle.Unpickler):
    """Makes numbers, text, containers and numpy arrays, and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        """What the pickle names, if it is among ``NUMPY_FUNCTIONS``."""
        if (module, name) not in NUMPY_FUNCTIONS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        # Each time anew, for a pickle may set attributes of what it has named.
        return partial(NUMPY_FUNCTIONS[module, name])


def read_pickle(path: Path) -> Any:
    """Content of a pickle (not of ``torch.save``), arrays as tensors, without executing anything.

    Args:
        path: the file, for example a .pkl of detectron2.

    Raises:
        ValueError: it is damaged or asks for more than arrays.
    """
    try:
        with path.open("rb") as file:
            check_sizes(file, path.stat().st_size)
            file.seek(0)
            # Text of Python 2, whose arrays are text as well.
            return with_tensors(ArrayUnpickler(file, encoding="latin1").load())
    except Exception as error:  # pickle.load may raise anything for damaged files
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as arrays alone, it may be damaged or hold other objects: "
            f"{reason}"
        ) from error


def check_sizes(file: BinaryIO, size: int) -> None:
    """Refuses a damaged pickle before memory is reserved by the numbers in it.

    Args:
        file: the pickle.
        size: bytes in it.

    Raises:
        ValueError: an instruction is unknown or reaches beyond the end.
    """
    for instruction, argument, _ in pickletools.genops(file):
        if instruction.name in ("PUT", "LONG_BINPUT", "FRAME") and (argument or 0) > size:
            raise ValueError(f"{instruction.name} {argument} in a file of {size} bytes")


def with_tensors(content: Any) -> Any:
    """The same dictionaries with tensors for arrays of numbers."""
    if isinstance(content, Mapping):
        return {key: with_tensors(value) for key, value in content.items()}
    if isinstance(content, PickledArray) and content.array is not None:
        native = content.array.astype(content.array.dtype.newbyteorder("="))
        return torch.from_numpy(native)
    return content
