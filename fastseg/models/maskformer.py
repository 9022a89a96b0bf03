"""MaskFormer (Cheng et al., NeurIPS 2021), from which Mask2Former comes."""

from __future__ import annotations

from typing import Any

from fastseg.models.mask2former import Mask2Former


class MaskFormer(Mask2Former):
    """MaskFormer: Mask2Former with another pixel decoder and transformer decoder.

    Everything else, arguments included, is ``Mask2Former``'s. ``predict_layers`` has no predictions
    of the learned queries, which are zeros before the first layer, and panoptic segments also have
    the pixels outside of their masks that no other query wins.

    Args:
        object_mask_threshold: queries with a lower probability have no part in a panoptic map.
        **arguments: the others of ``Mask2Former``.
    """

    inside_only = False

    def __init__(self, *, object_mask_threshold: float = 0.7, **arguments: Any) -> None:
        super().__init__(object_mask_threshold=object_mask_threshold, **arguments)
