"""Replays a model's forward pass from CUDA graphs, one per input shape.

A detection model launches hundreds of small kernels; from a graph they cost a quarter of the host
time (about 1 instead of 4 microseconds each). Models here have static shapes and never wait for
the GPU, so the whole forward pass is one graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor], Any]  # (pixels, sizes) -> dataclass of tensors


def capture_cuda_graph(forward: Forward, pixels: Tensor, sizes: Tensor, pool: Any) -> Callable:
    """Captures `forward(pixels, sizes)`; the returned function replays it on the same memory.

    Args:
        forward: the function, free of host synchronisation.
        pixels: input that every replay reads, so it must stay allocated.
        sizes: the same.
        pool: memory pool that the graph's tensors come from.

    Returns:
        A function without arguments that replays the graph and returns its outputs, which the next
        replay of any graph of the pool overwrites.
    """
    stream = torch.cuda.Stream(pixels.device)
    stream.wait_stream(torch.cuda.current_stream(pixels.device))
    with torch.cuda.stream(stream):
        forward(pixels, sizes)  # libraries allocate their workspaces outside the capture
    torch.cuda.current_stream(pixels.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads may use CUDA meanwhile: the reader of the next images, say.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        outputs = forward(pixels, sizes)

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


class GraphedForward:
    """A forward pass that is captured when an input shape comes for the second time.

    Capturing costs a few forward passes, so a shape that comes once (the rest of a directory, an
    odd photo) runs as it is. The graphs used longest ago make room for new ones. All graphs share
    one memory pool: they never run at the same time and their outputs are copied at once.

    Args:
        forward: (pixels [B, 3, H, W], sizes [B, 2]) -> dataclass of tensors.
        max_graphs: how many shapes are kept.
        capture: the capturing function, with `capture_cuda_graph`'s arguments.
    """

    def __init__(
        self,
        forward: Forward,
        *,
        max_graphs: int = 8,
        capture: Callable[..., Callable[[], Any]] = capture_cuda_graph,
    ) -> None:
        if max_graphs < 1:
            raise ValueError(f"max_graphs must be at least 1, got {max_graphs}")
        self._forward = forward
        self._max_graphs = max_graphs
        self._capture = capture
        self._pool: Any = None
        self._seen: set[tuple] = set()
        self._graphs: OrderedDict[tuple, tuple[Tensor, Tensor, Callable[[], Any]]] = OrderedDict()

    def __call__(self, pixels: Tensor, sizes: Tensor) -> Any:
        """Same result as `forward(pixels, sizes)`, in memory of its own."""
        key = (tuple(pixels.shape), pixels.stride(), pixels.dtype, pixels.device)
        if key in self._graphs:
            self._graphs.move_to_end(key)
        elif key in self._seen:
            self._add(key, pixels, sizes)
        else:
            self._seen.add(key)
            return self._forward(pixels, sizes)
        static_pixels, static_sizes, replay = self._graphs[key]
        static_pixels.copy_(pixels)
        static_sizes.copy_(sizes)
        outputs = replay()
        names = [field.name for field in fields(outputs)]
        return replace(outputs, **{name: getattr(outputs, name).clone() for name in names})

    def _add(self, key: tuple, pixels: Tensor, sizes: Tensor) -> None:
        if len(self._graphs) == self._max_graphs:
            self._graphs.popitem(last=False)
        if not self._graphs and pixels.is_cuda:  # a pool ends with the last graph in it
            self._pool = torch.cuda.graph_pool_handle()
        static_pixels, static_sizes = pixels.clone(), sizes.clone()
        try:
            replay = self._capture(self._forward, static_pixels, static_sizes, self._pool)
        except RuntimeError as error:
            raise RuntimeError(
                f"the model cannot be captured in a CUDA graph for input {tuple(pixels.shape)} "
                f"({error}); use cuda_graphs=False"
            ) from error
        self._graphs[key] = (static_pixels, static_sizes, replay)
