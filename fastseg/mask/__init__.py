"""Drop-in for `pycocotools.mask`, and more on run lengths: NumPy in, NumPy out, no torch.

The functions of pycocotools have its argument order, result types and bytes. They are more liberal
in what they take (any integer type, any memory order, counts as bytes, str or a list of ints,
tuples, boxes as lists; a pixel that is not 0 is inside), use all processors, and differ only where
pycocotools crashes or gives what depends on uninitialised memory:

- ValueError for malformed strings, counts that go past the end of the mask or, where pixels past
  their end matter, stop before it, and for 2^32 pixels or more;
- ValueError for masks of unlike sizes decoded or merged together (pycocotools merges them to a mask
  of size [0, 0]; `iou` gives -1, as there);
- ValueError for coordinates that are NaN, infinite or beyond 429,496,728, for an odd number of
  them, and for polygons in masks of more than 2^24 columns;
- merged masks have no runs of length 0; masks made of such runs alone have the box [0, 0, 0, 0];
- `area` takes more than 255 RLEs, and `frPyObjects` an empty list or one polygon alone.

The other functions work on shapes without decoding them: they read runs, at a cost of the runs and
the columns, in parallel over masks. Each takes one RLE or a list of any sizes and gives new RLEs
without runs of length 0. They raise ValueError for strings that are malformed or do not fill the
mask exactly, and for masks of more than 2^24 columns.
"""

from fastseg.mask.coco import RLE, area, decode, encode, frPyObjects, iou, merge, toBbox
from fastseg.mask.shapes import (
    boundary,
    complement,
    connected_components,
    crop,
    flip,
    remove_small_regions,
    resize,
    subtract,
    to_polygons,
)

__all__ = [
    "RLE",
    "area",
    "boundary",
    "complement",
    "connected_components",
    "crop",
    "decode",
    "encode",
    "flip",
    "frPyObjects",
    "iou",
    "merge",
    "remove_small_regions",
    "resize",
    "subtract",
    "toBbox",
    "to_polygons",
]
