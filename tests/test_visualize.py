"""Drawing: what is coloured, what stays, and that neighbours can be told apart."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg import ops
from fastseg.instances import Instances
from fastseg.ops import rle_encode
from fastseg.visualize import draw, instance_colors, palette

# Differences in OKLab: about 0.02 is just noticeable beside each other.
CLEARLY_DIFFERENT = 0.1


def oklab(colors):
    """Ottosson's transform, 8-bit sRGB -> OKLab."""
    encoded = np.asarray(colors) / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    red, green, blue = linear.T
    long = np.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue)
    medium = np.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue)
    short = np.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue)
    return np.stack(
        [
            0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
            1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
            0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
        ],
        axis=1,
    )


def instances_of(masks, boxes=None, names=("background", "cell")):
    count, height, width = masks.shape
    if boxes is None:
        boxes = torch.zeros(count, 4)
        for index, mask in enumerate(masks):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            corners = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            boxes[index] = torch.stack(corners)
    return Instances(
        boxes=boxes,
        scores=torch.linspace(0.9, 0.6, count),
        labels=torch.ones(count, dtype=torch.int64),
        rles=rle_encode(masks),
        image_size=(height, width),
        class_names=names,
    )


def grid_of_squares(side, square):
    """Touching squares, numbered row by row."""
    masks = torch.zeros(side * side, side * square, side * square, dtype=torch.bool)
    for index in range(side * side):
        top, left = index // side * square, index % side * square
        masks[index, top : top + square, left : left + square] = True
    return masks


def grey(height, width, value=90):
    return np.full((height, width, 3), value, np.uint8)


def test_300_colours_are_distinct_and_bright_but_not_white():
    colors = palette(300)
    lab = oklab(colors)
    distances = np.linalg.norm(lab[:, None] - lab, axis=2) + np.eye(300)
    assert distances.min() > 0.01
    assert np.linalg.norm(np.diff(lab, axis=0), axis=1).min() > CLEARLY_DIFFERENT
    assert lab[:, 0].min() > 0.6 and lab[:, 0].max() < 0.9
    assert np.array_equal(palette(10), colors[:10])


def test_neighbours_get_clearly_different_colours():
    masks = grid_of_squares(17, 4)
    boxes = instances_of(masks).boxes.numpy()
    order = np.random.default_rng(0).permutation(len(boxes))  # scores do not follow places
    colors = np.empty((len(boxes), 3), np.uint8)
    colors[order] = instance_colors(boxes[order])
    assert len(np.unique(colors, axis=0)) == len(colors)
    lab = oklab(colors).reshape(17, 17, 3)
    assert np.linalg.norm(np.diff(lab, axis=0), axis=2).min() > CLEARLY_DIFFERENT
    assert np.linalg.norm(np.diff(lab, axis=1), axis=2).min() > CLEARLY_DIFFERENT


def test_colours_of_no_and_of_identical_boxes():
    assert instance_colors(np.zeros((0, 4))).shape == (0, 3)
    assert len(np.unique(instance_colors(np.zeros((40, 4))), axis=0)) == 40


def test_small_images_are_enlarged_and_large_ones_kept():
    for side, expected in ((256, 1024), (360, 1080), (600, 1200), (900, 900)):
        nothing = instances_of(torch.zeros(0, side, 8, dtype=torch.bool))
        assert draw(grey(side, 8), nothing).size == (8 * expected // side, expected)
    assert draw(grey(4, 8), instances_of(torch.ones(1, 4, 8).bool()), scale=3).size == (24, 12)


def test_without_instances_the_image_stays_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    nothing = instances_of(torch.zeros(0, 9, 11, dtype=torch.bool))
    assert np.array_equal(np.asarray(draw(image, nothing, scale=1)), image)


def test_tint_covers_the_mask_and_nothing_else():
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 5:12, 7:19] = True
    mask[0, 8, 10] = False  # a hole
    image = grey(20, 30)
    only_tint = {"labels": False, "boxes": False, "contours": False, "scale": 1}
    picture = np.asarray(draw(image, instances_of(mask), alpha=0.5, **only_tint))
    color = instance_colors(instances_of(mask).boxes.numpy())[0]
    inside = mask[0].numpy()
    assert np.array_equal(picture[~inside], image[~inside])
    assert np.abs(picture[inside] - (0.5 * image[inside] + 0.5 * color)).max() <= 1
    opaque = np.asarray(draw(image, instances_of(mask), alpha=1, **only_tint))
    assert (opaque[inside] == color).all()
    untouched = draw(image, instances_of(mask), alpha=0, **only_tint)
    assert np.array_equal(np.asarray(untouched), image)


def test_contour_is_the_rim_of_the_mask():
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 5:12, 7:19] = True
    options = {"labels": False, "boxes": False, "alpha": 0, "scale": 1}
    picture = np.asarray(draw(grey(20, 30), instances_of(mask), **options))
    changed = (picture != 90).any(axis=2)
    rim = mask[0].clone()
    rim[6:11, 8:18] = False
    assert np.array_equal(changed, rim.numpy())


def test_enlarged_tint_follows_the_mask_to_a_fraction_of_a_pixel():
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    mask[0] = (rows - 18) ** 2 + (columns - 22) ** 2 < 150
    options = {"labels": False, "boxes": False, "contours": False, "alpha": 1, "scale": 4}
    picture = np.asarray(draw(grey(40, 40, 0), instances_of(mask), **options))
    drawn = picture.any(axis=2)
    exact = np.kron(mask[0].numpy(), np.ones((4, 4), bool))
    assert (drawn & exact).sum() / (drawn | exact).sum() > 0.95


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_a_single_pixel_stays_visible(scale):
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 4, 4] = True
    picture = draw(grey(9, 9, 0), instances_of(mask), labels=False, boxes=False, scale=scale)
    assert np.asarray(picture).max() > 60


def test_boxes_are_drawn_inside_the_image_wherever_they_lie():
    masks = torch.zeros(4, 20, 30, dtype=torch.bool)
    nan, inf = float("nan"), float("inf")
    boxes = torch.tensor(
        [[5.0, 4, 15, 12], [-50, -50, 500, 500], [nan, nan, nan, inf], [9, 9, 3, 3]]
    )
    picture = np.asarray(draw(grey(20, 30), instances_of(masks, boxes), labels=False, scale=1))
    changed = (picture != 90).any(axis=2)
    frame = np.zeros((20, 30), bool)
    frame[[0, -1]] = True
    frame[:, [0, -1]] = True
    inner = np.zeros((20, 30), bool)
    inner[4:12, 5:15] = True
    inner[5:11, 6:14] = False
    assert (changed >= (frame | inner)).all()
    assert not changed[7, 9]  # inside the first box


def test_labels_appear_on_large_objects_and_not_on_small_ones():
    masks = torch.zeros(2, 600, 600, dtype=torch.bool)
    masks[0, 100:400, 100:400] = True
    masks[1, 500:510, 500:510] = True
    instances = instances_of(masks)
    options = {"boxes": False, "contours": False, "alpha": 0, "scale": 1}
    bare = np.asarray(draw(grey(600, 600), instances, labels=False, **options))
    labelled = np.asarray(draw(grey(600, 600), instances, **options))
    rows, columns = np.nonzero((bare != labelled).any(axis=2))
    assert rows.min() >= 85 and rows.max() < 100  # a line above the large box
    assert columns.min() >= 100 and columns.max() < 250
    assert labelled.min() < 40  # dark letters


def test_names_of_other_alphabets_and_pil_input_do_no_harm():
    mask = torch.ones(1, 300, 300, dtype=torch.bool)
    names = ("background", "细胞 [b] ñ")
    picture = draw(Image.new("L", (300, 300)), instances_of(mask, names=names))
    assert picture.size == (900, 900)


def test_masks_are_decoded_one_at_a_time(monkeypatch):
    decoded = []

    def counting(rles, device=None):
        decoded.append(rles)
        return decode(rles)

    decode = ops.rle_decode
    monkeypatch.setattr(ops, "rle_decode", counting)
    draw(grey(24, 24), instances_of(grid_of_squares(6, 4)), scale=1)
    assert len(decoded) == 36
    assert all(isinstance(rle, dict) for rle in decoded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, "alpha must be between 0 and 1, got 1.5"),
        ({"scale": 0}, "scale must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        draw(grey(4, 4), instances_of(torch.ones(1, 4, 4).bool()), **options)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match="the image is 4x8, the result belongs to one of 8x4"):
        draw(grey(4, 8), instances_of(torch.ones(1, 8, 4).bool()))
