"""Drawing of panoptic and semantic results: colours, outlines, names, and what stays clear."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.categories import ADE20K, CITYSCAPES, COCO_PANOPTIC
from fastseg.segmentation import PanopticSegmentation, Segment, SemanticSegmentation
from fastseg.visualize import draw
from fastseg.visualize.colors import segment_colors
from fastseg.visualize.regions import _depths, short_name

BARE = {"labels": False, "contours": False, "scale": 1}
NAMES = ("cat", "dog", "grass-merged", "sky-other-merged")


def grey(height, width, value=90):
    return np.full((height, width, 3), value, np.uint8)


def panoptic(ids, *labels, things=2, names=NAMES):
    """Segments 1, 2 ... of these labels; the first labels are things."""
    ids = torch.as_tensor(ids, dtype=torch.int32)
    segments = [
        Segment(n, label, label < things, 0.9, int((ids == n).sum()))
        for n, label in enumerate(labels, 1)
    ]
    return PanopticSegmentation(ids, segments, names)


def stripes(count, height=20, width=30):
    """`count` upright stripes, numbered from 1, `width` pixels each."""
    return torch.arange(1, count + 1).repeat_interleave(width).expand(height, -1).contiguous()


def picture(image, result, **options):
    return np.asarray(draw(image, result, **options))


def test_tint_covers_the_segments_and_void_stays_clear():
    ids = stripes(3)
    ids[:, 30:60] = 0
    ids[5, 5] = 0
    image = np.random.default_rng(0).integers(0, 256, (20, 90, 3), dtype=np.uint8)
    result = panoptic(ids, 0, 1, 2)
    result = PanopticSegmentation(result.ids, [result.segments[0], result.segments[2]], NAMES)
    colors = segment_colors([0, 2], ["cat", "grass"], [True, False])
    drawn = picture(image, result, alpha=0.5, **BARE)
    assert np.array_equal(drawn[ids == 0], image[ids == 0])
    for color, number in ((colors[1], 1), (colors[2], 3)):
        expected = 0.5 * image[ids == number] + 0.5 * color
        assert np.abs(drawn[ids == number] - expected).max() <= 1.5
    assert np.array_equal(picture(image, result, alpha=0, **BARE), image)
    opaque = picture(image, result, alpha=1, **BARE)
    assert (opaque[ids == 3] == colors[2]).all()
    with_rim = picture(image, result, labels=False)
    scale = len(with_rim) // 20
    clear = np.kron(ids == 0, np.ones((scale, scale), bool))
    enlarged = Image.fromarray(image).resize((90 * scale, 20 * scale), Image.Resampling.BICUBIC)
    assert np.array_equal(with_rim[clear], np.asarray(enlarged)[clear])


def test_a_class_has_its_colour_in_every_image_and_task():
    one = picture(grey(20, 60), panoptic(stripes(2), 1, 3), alpha=1, **BARE)
    other = picture(grey(20, 90), panoptic(stripes(3), 3, 2, 1), alpha=1, **BARE)
    assert np.array_equal(one[0, 0], other[0, 89])
    assert np.array_equal(one[0, 59], other[0, 0])
    labels = torch.tensor([[3, 2, 3]])
    semantic = picture(grey(1, 3), SemanticSegmentation(labels, NAMES), alpha=1, **BARE)
    assert np.array_equal(semantic[0], [other[0, 0], other[0, 45], other[0, 0]])


def test_things_of_a_class_have_different_shades_and_stuff_has_one():
    colors = segment_colors([0] * 12, ["person"] * 12, [True] * 12)[1:].astype(int)
    distance = np.abs(colors[:, None] - colors).sum(axis=2) + 1000 * np.eye(12, dtype=int)
    assert distance.min() > 4
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 25
    stuff = segment_colors([5, 5], ["banner"] * 2, [False] * 2)[1:]
    assert np.array_equal(stuff[0], stuff[1])
    sky, grass = segment_colors([1, 2], ["sky", "grass"], [False] * 2)[1:].tolist()
    assert sky[2] == max(sky) and grass[1] == max(grass)


@pytest.mark.parametrize("data_set", [COCO_PANOPTIC, ADE20K, CITYSCAPES], ids=len)
def test_classes_of_known_data_sets_can_be_told_apart(data_set):
    labels = list(range(len(data_set)))
    names = [short_name(name) for name in data_set.names]
    things = [label in data_set.things for label in labels]
    colors = segment_colors(labels, names, things)[1:]
    assert len(np.unique(colors, axis=0)) > 0.9 * len(labels), "a few are of one kind"
    assert colors.max(axis=1).min() > 90


def test_outlines_are_inside_each_segments_edge():
    result = panoptic(stripes(2), 0, 2)
    drawn = picture(grey(20, 60), result, labels=False, alpha=0, scale=1)
    left, right = segment_colors([0, 2], ["cat", "grass"], [True, False])[1:]
    assert (drawn[:, 29] == left).all() and (drawn[:, 30] == right).all()
    assert (drawn[:, :29] == 90).all() and (drawn[:, 31:] == 90).all()
    wide = picture(grey(40, 2000), panoptic(stripes(2, 40, 1000), 0, 2), labels=False, alpha=0)
    assert np.flatnonzero((wide[20] != 90).any(axis=1)).tolist() == list(range(997, 1003))


def test_labels_that_are_no_class_and_ids_that_are_no_segment_stay_clear():
    labels = torch.tensor([[0, 255, 1], [-1, 70, 2]])
    options = {"alpha": 1, **BARE}
    drawn = picture(grey(2, 3), SemanticSegmentation(labels, NAMES), **options)
    assert (drawn != 90).any(axis=2).tolist() == [[True, False, True], [False, False, True]]
    without_names = picture(grey(2, 3), SemanticSegmentation(labels), **options)
    assert (without_names != 90).any(axis=2).sum() == 5, "only -1 can be no class"
    as_bytes = SemanticSegmentation(torch.tensor([[0, 255]], dtype=torch.uint8), NAMES)
    assert (picture(grey(1, 2), as_bytes, **options) != 90).any(axis=2).tolist() == [[True, False]]
    ids = torch.tensor([[1, 7, -3], [2**31 - 1, 0, 1]])
    odd = picture(grey(2, 3), panoptic(ids, 0), **options)
    assert (odd != 90).any(axis=2).tolist() == [[True, False, False], [False, False, True]]
    nothing = picture(grey(2, 3), panoptic(ids), **options)
    assert (nothing == 90).all()


def test_ids_of_three_bytes_and_many_segments():
    ids = torch.arange(1, 301).reshape(10, 30) * 50000
    segments = [Segment(n, 1, True, 0.5, 1) for n in ids.flatten().tolist()]
    drawn = picture(grey(10, 30), PanopticSegmentation(ids, segments), alpha=1, **BARE)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 100
    assert (drawn != 90).any(axis=2).all()


def test_names_stand_inside_their_segments_where_they_fit():
    ids = torch.ones(600, 1200, dtype=torch.int32)
    ids[100:500, 100:500] = 2
    ids[40:44, 900:904] = 3
    result = panoptic(ids, 2, 0, 1)
    options = {"contours": False, "alpha": 0, "scale": 1}
    changed = (picture(grey(600, 1200), result, **options) != 90).any(axis=2)
    assert changed[(ids == 2).numpy()].any()
    assert not changed[(ids == 3).numpy()].any(), "too small for a name"
    around = (ids == 1).numpy()
    rows, columns = np.nonzero(changed & around)
    assert 500 < columns.mean() < 1200 and 100 < rows.mean() < 500, "where the grass is widest"
    inner = changed.copy()
    inner[around] = False
    rows, columns = np.nonzero(inner)
    assert abs(rows.mean() - 300) < 20 and abs(columns.mean() - 300) < 20
    assert not (picture(grey(600, 1200), result, labels=False, **options) != 90).any()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("sky-other-merged", "sky"),
        ("tree-merged", "tree"),
        ("window-other", "window"),
        ("door-stuff", "door"),
        ("wall-brick", "wall-brick"),
        ("other", "other"),
    ],
)
def test_short_names(name, shown):
    assert short_name(name) == shown


def test_depth_is_the_distance_to_what_is_different():
    generator = np.random.default_rng(0)
    for _ in range(20):
        cells = np.kron(generator.integers(0, 3, (3, 4)), np.ones((4, 3), int)).astype(np.uint8)
        depth = _depths(cells)
        padded = np.pad(cells.astype(int), 1, constant_values=-1)
        rows, columns = np.indices(padded.shape)
        for (row, column), value in np.ndenumerate(cells):
            distance = np.abs(rows - row - 1) + np.abs(columns - column - 1)
            assert depth[row, column] == (value and distance[padded != value].min())


@pytest.mark.parametrize(
    "result",
    [panoptic(torch.ones(8, 4), 0), SemanticSegmentation(torch.zeros(8, 4, dtype=torch.long))],
)
def test_an_image_of_another_size_is_refused(result):
    with pytest.raises(ValueError, match="the image is 4x8, the result belongs to one of 8x4"):
        draw(grey(4, 8), result)
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, got 2"):
        draw(grey(8, 4), result, alpha=2)


def test_small_images_are_enlarged():
    assert draw(grey(20, 60), panoptic(stripes(2), 0, 2)).size == (1020, 340)
