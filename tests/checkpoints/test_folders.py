"""Folders of transformers: which file is read, parts of one, and what its configuration says."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from fastseg.checkpoints.folders import read_checkpoint

TENSORS = {"a.weight": torch.arange(3.0), "b.weight": torch.ones(2, 2)}


def assert_read(path, config=None):
    tensors, found = read_checkpoint(path)
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[key], TENSORS[key]) for key in TENSORS)
    assert found == (config or {})


def write_parts(folder, places, index="model.safetensors.index.json"):
    for part in set(places.values()):
        content = {key: TENSORS[key] for key, place in places.items() if place == part}
        if part.endswith(".bin"):
            torch.save(content, folder / part)
        else:
            save_file(content, folder / part)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_folder_with_one_file(tmp_path):
    torch.save({"other": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert_read(tmp_path)
    assert_read(tmp_path / "model.safetensors")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_folder_with_parts(tmp_path, kind):
    stem = "model" if kind == "safetensors" else "pytorch_model"
    places = {key: f"{stem}-0000{i}-of-00002.{kind}" for i, key in enumerate(TENSORS)}
    write_parts(tmp_path, places, f"{stem}.{kind}.index.json")
    assert_read(tmp_path)
    assert_read(tmp_path / f"{stem}.{kind}.index.json")


def test_configuration(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = {"id2label": {"1": "dog", "0": "cat", "3": "bird"}, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = {"classes": ["cat", "dog", "N/A"], "num_heads": 4}
    assert_read(tmp_path, expected)
    images = {
        "size": {"shortest_edge": 640, "longest_edge": 2560},
        "size_divisor": 64,
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": None,
        "resample": 2,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    expected |= {
        "min_size": 640,
        "max_size": 2560,
        "size_divisible": 64,
        "image_mean": [0.4, 0.5, 0.6],
    }
    assert_read(tmp_path, expected)
    # A file alone is only itself.
    assert_read(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ({"size": 800, "max_size": 1333}, {"min_size": 800, "max_size": 1333}),
        ({"size": {"height": 384, "width": 384}}, {}),
        ({"size": {"shortest_edge": 800}}, {}),
    ],
)
def test_sizes_of_images(tmp_path, images, expected):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    assert_read(tmp_path, expected)


def test_heads_of_maskformer(tmp_path):
    """Its own configuration has a number that it does not use."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    config = {"num_attention_heads": 8, "decoder_config": {"decoder_attention_heads": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_read(tmp_path, {"num_heads": 4})


@pytest.mark.parametrize("labels", [None, {"0": "LABEL_0", "1": "LABEL_1"}, {}, {"a": "b"}, ["a"]])
def test_placeholders_are_no_names(tmp_path, labels):
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    assert_read(tmp_path)


def test_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match=r"has none of model\.safetensors, [^;]*$"):
        read_checkpoint(tmp_path)
    for name in ("epoch_2.pth", "epoch_1.pth", "log.txt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"; name one of its files .*: epoch_1.pth, epoch_2.pth$"):
        read_checkpoint(tmp_path)


def test_models_of_a_hub_are_not_downloaded():
    with pytest.raises(FileNotFoundError, match=r"downloads none: 'facebook/mask2former'"):
        read_checkpoint("facebook/mask2former")


def test_parts_that_are_missing(tmp_path):
    write_parts(tmp_path, {"a.weight": "1.safetensors", "b.weight": "2.safetensors"})
    (tmp_path / "2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"2\.safetensors"):
        read_checkpoint(tmp_path)
    save_file({"a.weight": torch.ones(1)}, tmp_path / "2.safetensors")
    with pytest.raises(ValueError, match=r"index\.json names lack b\.weight"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"weight_map": {"a": "../a.safetensors"}}', "a file in another folder"),
        ('{"weight_map": ["a"]}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
        ("{}", "has no weight_map"),
        ("[]", "holds list instead of a dictionary"),
        ("{", "is not valid JSON"),
        ("\xff", "is not valid JSON"),
    ],
)
def test_index_that_cannot_be_used(tmp_path, content, reason):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=rf"index\.json {reason}|index\.json names {reason}"):
        read_checkpoint(tmp_path)
