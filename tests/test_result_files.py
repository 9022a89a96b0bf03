"""Names, ids and atomic writing of result files."""

import numpy as np
import pytest
import torch

from fastseg.instances import Instances
from fastseg.ops import rle_encode
from fastseg.result_files import atomic_path, coco_results, image_ids, label_image, output_stems


def test_stems_clash_neither_with_each_other_nor_with_inputs(tmp_path):
    inputs = [tmp_path / "in" / name for name in ("a.png", "a.jpg", "A.bmp", "b.png", "a-2.png")]
    assert output_stems(inputs, tmp_path, (".png",)) == ["a", "a-2", "A-3", "b", "a-2-2"]
    assert output_stems(inputs[3:], tmp_path / "in", (".png",)) == ["b-2", "a-2-2"]
    masks = [tmp_path / "x.jpg", tmp_path / "x.masks.jpg"]
    assert output_stems(masks, tmp_path, (".png", ".masks.png")) == ["x", "x.masks-2"]


def test_image_ids_are_the_file_numbers_where_all_have_one(tmp_path):
    def ids(*names):
        return image_ids([tmp_path / name for name in names])

    assert ids("000000139.jpg", "000000285.jpg") == [139, 285]
    assert ids("139.jpg", "0139.png") == [1, 2]
    assert ids("139.jpg", "cat.jpg") == [1, 2]
    assert ids("²3.jpg") == [1]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), coco_results(tmp_path):
        raise RuntimeError
    assert path.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_in_label_images_the_better_score_wins():
    masks = torch.zeros(3, 2, 4, dtype=torch.bool)
    masks[0, 0, :3] = True
    masks[1, 0, 2:] = True
    scores = torch.tensor([0.6, 0.8, 0.7])
    labels = torch.ones(3, dtype=torch.int64)
    instances = Instances(torch.zeros(3, 4), scores, labels, rle_encode(masks), (2, 4))
    expected = [[1, 1, 2, 2], [0, 0, 0, 0]]
    assert np.asarray(label_image(instances)).tolist() == expected
