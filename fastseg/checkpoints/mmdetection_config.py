"""What mmdetection's configuration, which its checkpoints hold as text, says of the pixels."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

# Red first, pixels from 0 to 255: the usual, of which nothing is said.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
ORDERS = ("bgr_to_rgb", "to_rgb")  # of versions 3 and 2; images are read blue first
LONGEST_TEXT = 1 << 20


def options_in(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters in a checkpoint's "meta" that differ from PyTorch's usual ones.

    The text is Python: assignments of dictionaries. It is parsed, and nothing in it is executed.

    Args:
        meta: has the text under "cfg" (version 3) or "config" (version 2).

    Returns:
        "image_mean" and "image_std" (red first, for pixels from 0 to 1), "bgr" and "stride_in_1x1",
        each only where the text says it, once and for all, and it is not the usual.
    """
    text = meta.get("cfg", meta.get("config"))
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        return {}
    try:
        dictionaries = list(dictionaries_in(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, Any] = {}
    styles = [one["style"] for one in dictionaries if "style" in one and "depth" in one]
    if styles and all(style == "caffe" for style in styles):
        found["stride_in_1x1"] = True
    pixels = {
        (*one["mean"], *one["std"], one.get(ORDERS[0], one.get(ORDERS[1])))
        for one in dictionaries
        if is_normalisation(one)
    }
    if len(pixels) != 1:
        return found
    *numbers, is_rgb = pixels.pop()
    mean, std = numbers[:3], numbers[3:]
    if not is_rgb:
        found["bgr"] = True
        mean, std = mean[::-1], std[::-1]
    if (tuple(mean), tuple(std)) != (MEAN, STD):
        found["image_mean"] = tuple(value / 255 for value in mean)
        found["image_std"] = tuple(value / 255 for value in std)
    return found


def is_normalisation(one: Mapping[str, Any]) -> bool:
    """Whether a dictionary has three means, three deviations and the order of channels."""
    triples = [one.get("mean"), one.get("std")]
    return any(isinstance(one.get(order), bool) for order in ORDERS) and all(
        isinstance(triple, (list, tuple))
        and len(triple) == 3
        and all(type(value) in (int, float) for value in triple)
        for triple in triples
    )


def dictionaries_in(tree: ast.AST) -> Iterator[dict[str, Any]]:
    """Every dictionary, written ``dict(key=value)`` or ``{"key": value}``, with its plain values.

    Args:
        tree: parsed Python.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "dict":
            pairs = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        elif isinstance(node, ast.Dict):
            pairs = {
                key.value: value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant) and isinstance(key.value, str)
            }
        else:
            continue
        found = {}
        for key, value in pairs.items():
            try:
                found[key] = ast.literal_eval(value)
            except ValueError:  # not plain, such as another dictionary
                continue
        yield found
