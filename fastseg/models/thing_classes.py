"""Which labels of the data sets' panoptic classes are things, that is countable."""

from __future__ import annotations

# fmt: off
ADE20K_STUFF = frozenset((
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59,
    60, 61, 63, 68, 77, 79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128,
    131, 140, 141, 145,
))
# fmt: on


def default_thing_classes(num_classes: int) -> tuple[int, ...]:
    """Labels of things, for a data set known by its number of classes.

    Args:
        num_classes: 133 for COCO panoptic, 150 for ADE20K, 19 for Cityscapes. All classes of any
            other number are things.
    """
    if num_classes == 133:
        return tuple(range(80))
    if num_classes == 150:
        return tuple(label for label in range(150) if label not in ADE20K_STUFF)
    if num_classes == 19:
        return tuple(range(11, 19))
    return tuple(range(num_classes))
