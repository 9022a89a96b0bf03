"""Draws results over their images: tinted masks, contours, boxes and labels.

Small images are enlarged first, so that lines and text stay fine beside them.
"""

from __future__ import annotations

from PIL import Image

from fastseg.images import ImageInput, load_image
from fastseg.instances import Instances
from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation
from fastseg.visualize.canvas import enlarged
from fastseg.visualize.colors import instance_colors, palette
from fastseg.visualize.instances import draw_instances
from fastseg.visualize.regions import draw_panoptic, draw_semantic

__all__ = ["draw", "instance_colors", "palette"]

_COMFORTABLE_SIDE = 1024  # pixels; smaller images are enlarged to about this by default


def draw(
    image: ImageInput,
    result: Instances | PanopticSegmentation | SemanticSegmentation,
    *,
    labels: bool = True,
    boxes: bool = True,
    contours: bool = True,
    alpha: float = 0.5,
    scale: int | None = None,
) -> Image.Image:
    """Draws a result over the image it was found in.

    Each of `Instances` has a colour of its own, unlike those of its neighbours. A label shows class
    and score, only the score where the object is small, and is left out where it would cover
    another.

    In panoptic and semantic results each class has its colour, the same in all images, and things
    of one class have shades of it. Names stand inside their segments where they fit. Pixels that
    belong to nothing stay as they are.

    Args:
        image: the image, of any kind that `Predictor` takes.
        result: what was found in this image.
        labels: write names, of objects also scores.
        boxes: draw the boxes of `Instances`.
        contours: draw outlines.
        alpha: opacity of the tint, 0 to 1.
        scale: whole factor by which the picture is enlarged; default: to about 1024 pixels.

    Returns:
        RGB image, `scale` times as large as the input.

    Raises:
        ValueError: if the result belongs to an image of another size, or an argument is out of its
            range.
    """
    pixels = load_image(image)
    size = tuple(pixels.shape[1:])
    if size != result.image_size:
        raise ValueError(
            f"the image is {size[0]}x{size[1]}, the result belongs to one of "
            f"{result.image_size[0]}x{result.image_size[1]}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if scale is None:
        scale = max(1, round(_COMFORTABLE_SIDE / max(size)))
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    canvas = enlarged(pixels, scale)
    if isinstance(result, Instances):
        return draw_instances(
            canvas,
            result,
            labels=labels,
            boxes=boxes,
            contours=contours,
            alpha=alpha,
            scale=scale,
        )
    if isinstance(result, PanopticSegmentation):
        return draw_panoptic(
            canvas, result, labels=labels, contours=contours, alpha=alpha, scale=scale
        )
    return draw_semantic(canvas, result, labels=labels, contours=contours, alpha=alpha, scale=scale)
