"""Errors of deformable convolution name the argument and the value."""

from __future__ import annotations

import pytest
import torch
from deform_conv_arguments import LAYOUTS, random_arguments

from fastseg import _C
from fastseg.ops import deform_conv2d


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(8, 9, 7)}, "input must be floating point with 4 dimensions"),
        ({"input": torch.zeros(2, 8, 9, 7, dtype=torch.int64)}, "input must be floating point"),
        ({"offset": torch.zeros(2, 18, 9, 8)}, r"offset must have shape \[2, 18, 9, 7\], got"),
        ({"offset": torch.zeros(1, 18, 9, 7)}, r"offset must have shape \[2, 18, 9, 7\], got"),
        ({"offset": torch.zeros(2, 20, 9, 7)}, r"offset must have 2 \* 9 channels"),
        ({"offset": torch.zeros(2, 54, 9, 7)}, "groups that divide the 8 channels"),
        ({"mask": torch.zeros(2, 18, 9, 7)}, r"mask must have shape \[2, 9, 9, 7\]"),
        ({"weight": torch.zeros(6, 3, 3, 3)}, "must divide the 8 of input"),
        ({"weight": torch.zeros(6, 0, 3, 3)}, "must divide the 8 of input"),
        ({"weight": torch.zeros(6, 2, 3, 3)}, "with a D that 4 groups divide"),
        ({"weight": torch.zeros(6, 8, 3, 3).double()}, "weight must be torch.float32 as input"),
        ({"bias": torch.zeros(5)}, r"bias must have shape \[6\], got \(5,\)"),
        ({"bias": torch.zeros(6).half()}, "bias must be torch.float32 as input"),
        ({"stride": 0}, "stride must be one or two ints of at least 1, got 0"),
        ({"padding": (-1, 0)}, r"padding must be one or two ints of at least 0, got \(-1, 0\)"),
        ({"dilation": (1, 1, 1)}, "dilation must be one or two ints"),
        ({"padding": 0, "dilation": 5}, "the output would have -1 x -3 pixels"),
        ({"mask": torch.zeros(2, 9, 9, 7, device="meta")}, "mask must be on cpu as input"),
        ({"bias": torch.zeros(6, device="meta")}, "bias must be on cpu as input, got meta"),
    ],
)
def test_bad_input_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**({**random_arguments(), "padding": 1} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": None}, "offset must be a tensor, got NoneType"),
        ({"stride": 1.5}, "stride must be one or two ints, got 1.5"),
        ({"dilation": (1, "2")}, r"dilation must be one or two ints, got \(1, '2'\)"),
    ],
)
def test_other_objects_are_named(change: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        deform_conv2d(**({**random_arguments(), "padding": 1} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": torch.zeros(1, 10, 71)}, r"columns must have shape \[\*, \*, 72\]"),
        ({"columns": torch.zeros(3, 10, 24)}, "groups that divide 8 channels"),
        ({"first": 60}, "pixels 60 to 70 exceed the 63"),
        (
            {
                "input": torch.zeros(2, 8, 9, 7),
                "offset": torch.zeros(2, 18, 9, 7),
                "first": 120,
            },
            "pixels 120 to 130 exceed the 126",
        ),
        ({"offset_groups": 3}, "offset_groups must divide the 8 channels"),
        ({"offset": torch.zeros(1, 18, 9, 7).double()}, "offset must be float32"),
    ],
)
def test_bad_tiles_are_named(change: dict, message: str) -> None:
    arguments = {
        "input": torch.zeros(1, 8, 9, 7),
        "offset": torch.zeros(1, 18, 9, 7),
        "mask": None,
        "columns": torch.zeros(1, 10, 72),
        "geometry": ((3, 3), (1, 1), (1, 1), (1, 1)),
        "offset_groups": 1,
        "first": 0,
    } | change
    arguments["input"] = LAYOUTS["channels_last"](arguments["input"])
    with pytest.raises(ValueError, match=message):
        _C.deform_conv_sample(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"left": torch.zeros(3, 5, 7)}, r"right must have shape \[5, 2, 7\]"),
        ({"left": torch.zeros(2, 4, 7)}, r"left must have shape \[3, \*, 7\]"),
        ({"right": torch.zeros(4, 2, 7).double()}, "right must be float32"),
        ({"sums": torch.zeros(3, 2, 7).half()}, "sums must be float32 or float64, got float16"),
        ({"sums": torch.zeros(3, 2, 14)[:, :, ::2]}, "groups must lie side by side"),
    ],
)
def test_bad_groups_are_named(change: dict, message: str) -> None:
    arguments = {
        "left": torch.zeros(3, 4, 7),
        "right": torch.zeros(4, 2, 7),
        "sums": torch.zeros(3, 2, 7),
        "add": False,
    }
    with pytest.raises(ValueError, match=message):
        _C.deform_conv_groups(**(arguments | change))
