"""Gives a network the tensors of a state dict, or says what does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def fill(model: nn.Module, state_dict: Mapping[str, Tensor], source: str) -> None:
    """Makes the tensors of a state dict the model's; names and shapes must be the model's.

    Args:
        model: with parameters of any content, or on the meta device.
        state_dict: tensors by name.
        source: what to call them in errors.

    Raises:
        ValueError: keys are unknown or missing, or shapes differ; all are listed.
    """
    own = model.state_dict()
    problems = []
    if unknown := sorted(set(state_dict) - set(own)):
        problems.append(f"unknown keys: {listing(unknown)}")
    if missing := sorted(set(own) - set(state_dict)):
        problems.append(f"missing keys: {listing(missing)}")
    wrong = [
        f"{key} is {list(state_dict[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state_dict and state_dict[key].shape != own[key].shape
    ]
    if wrong:
        problems.append(f"wrong shapes: {listing(wrong)}")
    if problems:
        raise ValueError(f"{source} does not fit {type(model).__name__}; " + "; ".join(problems))
    model.load_state_dict(dict(state_dict), assign=True)


def listing(names: list[str], limit: int = 30) -> str:
    """Names separated by commas; the count of those beyond the limit."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
