"""What torchvision, detectron2 and mmdetection do differently with one and the same Mask R-CNN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Boxes whose sides are at least this long are not empty: the smallest normal float32.
NOT_EMPTY = 2.0**-126


@dataclass(frozen=True, kw_only=True)
class Conventions:
    """The rules by which a library runs Mask R-CNN; torchvision's by default.

    Attributes:
        background_first: label 0 is the background, which has boxes and masks as well; else it is
            the last of the class scores alone, and labels begin with the first class.
        round_anchors: anchors have integer coordinates.
        ratio_major_anchors: of several anchor sizes on one level, those of one aspect ratio follow
            each other; else those of one size.
        fixed_strides: anchors are 4, 8, 16, ... pixels apart; else the padded image's size divided
            by the level's and rounded down, which is less on P6 of an odd-sized P5.
        rank_by_logits: proposals are ranked by logits, which tell apart what is 1 as a probability.
        limit_shrinking: boxes shrink no more than they grow, by 1000 / 16.
        min_proposal_size: least width and height of a proposal in pixels.
        min_detection_size: of a detection, before NMS.
        min_result_size: of a detection, in pixels of the original image.
        sampling_ratio: see ``fastseg.ops.roi_align``, as are the next two.
        aligned: regions are shifted by half a pixel.
        level_rule: how a region finds its level of the pyramid.
        paste_mode: how masks get into the image, see ``fastseg.ops.paste_masks``.
        round_image_sizes: heights and widths are rounded to the nearest integer rather than down.
    """

    background_first: bool = True
    round_anchors: bool = True
    ratio_major_anchors: bool = True
    fixed_strides: bool = False
    rank_by_logits: bool = False
    limit_shrinking: bool = False
    min_proposal_size: float = 1e-3
    min_detection_size: float = 1e-2
    min_result_size: float = 0.0
    sampling_ratio: int = 2
    aligned: bool = False
    level_rule: str = "torchvision"
    paste_mode: Literal["torchvision", "detectron2"] = "torchvision"
    round_image_sizes: bool = False

    def num_labels(self, num_scores: int) -> int:
        """How many classes have boxes and masks.

        Args:
            num_scores: number of class scores, background included.
        """
        return num_scores if self.background_first else num_scores - 1

    @property
    def name(self) -> str:
        """Whose they are."""
        return next(name for name, one in CONVENTIONS.items() if one == self)


TORCHVISION = Conventions()
DETECTRON2 = Conventions(
    background_first=False,
    round_anchors=False,
    ratio_major_anchors=False,
    fixed_strides=True,
    rank_by_logits=True,
    min_proposal_size=NOT_EMPTY,
    min_detection_size=0.0,
    min_result_size=NOT_EMPTY,
    sampling_ratio=0,
    aligned=True,
    level_rule="detectron2",
    paste_mode="detectron2",
    round_image_sizes=True,
)
MMDETECTION = Conventions(
    background_first=False,
    round_anchors=False,
    fixed_strides=True,
    limit_shrinking=True,
    min_proposal_size=NOT_EMPTY,
    min_detection_size=0.0,
    sampling_ratio=0,
    aligned=True,
    level_rule="mmdet",
    paste_mode="detectron2",
    round_image_sizes=True,
)
CONVENTIONS = {
    "torchvision": TORCHVISION,
    "detectron2": DETECTRON2,
    "mmdetection": MMDETECTION,
}


def conventions_of(library: str) -> Conventions:
    """The conventions of a library by its name.

    Raises:
        ValueError: the name is unknown.
    """
    if library not in CONVENTIONS:
        raise ValueError(f"conventions must be one of {', '.join(CONVENTIONS)}, got {library!r}")
    return CONVENTIONS[library]
