"""Whether two providers computed the same thing. No speed-up is reported where they did not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

# Says how the peer's result differs from ours beyond what is allowed; None when it does not.
Agreement = Callable[[Any, Any], str | None]


def close(rtol: float = 1e-4, atol: float = 1e-4) -> Agreement:
    """Every element within atol + rtol * |peer|; results are tensors or nested sequences of them.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance.
    """

    def compare(ours: Any, peers: Any) -> str | None:
        for path, our, peer in _pairs(ours, peers):
            if our is None:
                return f"{path}: {peer}"
            wrong = ~torch.isclose(our, peer, rtol=rtol, atol=atol)
            if wrong.any():
                first = tuple(wrong.nonzero()[0].tolist())
                values = f"{our[first].item():.6g} against {peer[first].item():.6g}"
                return f"{path}{list(first)}: {values}, {wrong.sum().item()} of {wrong.numel()}"
        return None

    return compare


def relative_norm(limit: float) -> Agreement:
    """||ours - peer|| <= limit * ||peer||, for peers that compute coordinates in low precision.

    Args:
        limit: the largest relative difference allowed, a share of the peer's norm.
    """

    def compare(ours: Any, peers: Any) -> str | None:
        for path, our, peer in _pairs(ours, peers):
            if our is None:
                return f"{path}: {peer}"
            error, norm = torch.norm(our - peer).item(), torch.norm(peer).item()
            if not error <= limit * norm:  # so that NaN disagrees, and zeros agree
                return f"{path}: differs by {error:.3g}, allowed {limit:g} of {norm:.3g}"
        return None

    return compare


def nearly_all_equal(share: float = 1e-4) -> Agreement:
    """Equal values but for a share of them, for labels of pixels, of which some tie.

    Args:
        share: of the elements of each tensor.
    """

    def compare(ours: Any, peers: Any) -> str | None:
        for path, our, peer in _pairs(ours, peers):
            if our is None:
                return f"{path}: {peer}"
            differ, limit = int((our != peer).sum()), share * our.numel()
            if differ > limit:
                return f"{path}: {differ} of {our.numel()} differ, {limit:.0f} may"
        return None

    return compare


def equal(ours: Any, peers: Any) -> str | None:
    """Equal values of any type, for results that are exact: indices, bits, run lengths."""
    if isinstance(ours, Tensor) or isinstance(peers, Tensor):
        return close(0, 0)(ours, peers)
    if ours == peers:
        return None
    if isinstance(ours, list) and isinstance(peers, list) and len(ours) == len(peers):
        first = next(i for i, pair in enumerate(zip(ours, peers, strict=True)) if not _same(*pair))
        return f"differs first at item {first} of {len(ours)}"
    return "results differ"


def _same(ours: Any, peer: Any) -> bool:
    return bool(ours == peer)


def _pairs(ours: Any, peers: Any, path: str = "result") -> Iterator[tuple[str, Tensor | None, Any]]:
    """Pairs of tensors in float64, or (path, None, difference) where the structure differs."""
    if isinstance(ours, Tensor) and isinstance(peers, Tensor):
        if ours.shape != peers.shape:
            yield path, None, f"shape {tuple(ours.shape)} against {tuple(peers.shape)}"
        else:
            yield path, ours.detach().double(), peers.detach().double()
        return
    if isinstance(ours, (list, tuple)) and isinstance(peers, (list, tuple)):
        if len(ours) != len(peers):
            yield path, None, f"length {len(ours)} against {len(peers)}"
            return
        for i, (our, peer) in enumerate(zip(ours, peers, strict=True)):
            yield from _pairs(our, peer, f"{path}[{i}]")
        return
    yield path, None, f"{type(ours).__name__} against {type(peers).__name__}"
