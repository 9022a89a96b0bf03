"""Which forward passes are captured and replayed; whole models are in test_predictor.py."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from fastseg.cuda_graphs import GraphedForward


@dataclass
class Sums:
    total: torch.Tensor


class Captures:
    """Stands in for CUDA: a "graph" reruns the function on the same static inputs."""

    def __init__(self):
        self.shapes = []
        self.pools = []

    def __call__(self, forward, pixels, sizes, pool):
        self.shapes.append(tuple(pixels.shape))
        self.pools.append(pool)
        outputs = forward(pixels, sizes)

        def replay():
            outputs.total.copy_(forward(pixels, sizes).total)  # in place, as a graph writes
            return outputs

        return replay


def forward_sum(pixels, sizes):
    return Sums(pixels.sum((1, 2, 3)) + sizes.sum(1))


def batch_of(value, height, batch=1):
    return torch.full((batch, 3, height, 4), float(value)), torch.full((batch, 2), height)


def test_a_shape_is_captured_when_it_comes_again():
    captures = Captures()
    graphed = GraphedForward(forward_sum, capture=captures)
    for value, height in ((1, 8), (2, 9), (3, 8), (4, 8), (5, 9), (6, 7)):
        inputs = batch_of(value, height)
        assert torch.equal(graphed(*inputs).total, forward_sum(*inputs).total)
    assert captures.shapes == [(1, 3, 8, 4), (1, 3, 9, 4)]


def test_a_replay_leaves_earlier_outputs_and_the_inputs_alone():
    graphed = GraphedForward(forward_sum, capture=Captures())
    inputs = [batch_of(value, 8) for value in range(4)]
    outputs = [graphed(*one) for one in inputs]
    for (pixels, sizes), output in zip(inputs, outputs, strict=True):
        assert torch.equal(output.total, forward_sum(pixels, sizes).total)


def test_layout_and_dtype_make_graphs_of_their_own():
    captures = Captures()
    graphed = GraphedForward(forward_sum, capture=captures)
    pixels, sizes = batch_of(1, 8, batch=2)
    for variant in (pixels, pixels.double(), pixels.to(memory_format=torch.channels_last)):
        for _ in range(2):
            graphed(variant, sizes)
    assert len(captures.shapes) == 3


def test_the_graph_used_longest_ago_makes_room():
    captures = Captures()
    graphed = GraphedForward(forward_sum, max_graphs=2, capture=captures)
    for height in (5, 5, 6, 6, 5, 7, 7, 5, 6):  # 7 takes the place of 6, and then 6 that of 7
        inputs = batch_of(1, height)
        assert torch.equal(graphed(*inputs).total, forward_sum(*inputs).total)
    assert [shape[2] for shape in captures.shapes] == [5, 6, 7, 6]
    with pytest.raises(ValueError, match="max_graphs must be at least 1, got 0"):
        GraphedForward(forward_sum, max_graphs=0)


@pytest.mark.parametrize(("max_graphs", "pools"), [(1, [0, 1, 2]), (2, [0, 0, 0])])
def test_graphs_share_a_pool_that_ends_with_the_last_of_them(max_graphs, pools, monkeypatch):
    handles = itertools.count()
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    captures = Captures()
    graphed = GraphedForward(forward_sum, max_graphs=max_graphs, capture=captures)
    for height in (5, 5, 6, 6, 7, 7):
        graphed(*batch_of(1, height))
    assert captures.pools == pools


@pytest.mark.gpu
@pytest.mark.parametrize("max_graphs", [1, 2])
def test_captured_graphs_make_room_on_the_gpu(max_graphs):
    graphed = GraphedForward(forward_sum, max_graphs=max_graphs)
    for value, height in enumerate((5, 5, 6, 6, 7, 7, 5, 6)):
        inputs = [x.cuda() for x in batch_of(value, height)]
        assert torch.equal(graphed(*inputs).total, forward_sum(*inputs).total)


def test_a_model_that_cannot_be_captured_is_an_error_with_the_way_out():
    def capture(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = GraphedForward(forward_sum, capture=capture)
    graphed(*batch_of(1, 8))
    with pytest.raises(RuntimeError, match=r"\(1, 3, 8, 4\).*not permitted.*cuda_graphs=False"):
        graphed(*batch_of(1, 8))
