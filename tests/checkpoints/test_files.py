"""Files that hold no state dict are refused with their name and the reason."""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch

from fastseg.checkpoints.files import read_file, read_torch, tensors_of
from fastseg.checkpoints.pickles import Ignored, read_pickle

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns_first": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "half": np.ones(2, np.float16),
    "big_endian": np.array([1, 2], ">f4"),
    "counter": np.array(7),
    "scalar": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
}


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_file(tmp_path / "nothing.pth")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n12345", b"just text, no tensors"])
def test_file_of_another_kind(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pth is neither a safetensors nor a PyTorch"):
        read_file(path)


def test_pointer_of_git_lfs(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 99\n")
    with pytest.raises(ValueError, match=r"model\.safetensors only points .*git lfs pull"):
        read_file(path)


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((1000).to_bytes(8, "little") + b'{"weight": ')
    with pytest.raises(ValueError, match="not a valid safetensors file"):
        read_file(path)


def test_truncated_torch_file(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"model\.pth cannot be read .* it may be damaged"):
        read_file(path)


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_code_in_a_pickle_is_not_run(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(1), "extra": Harmful()}, path)
    with pytest.raises(ValueError, match="save the model's state_dict") as error:
        read_file(path)
    assert "GLOBAL exec" in str(error.value)
    assert "weights_only" not in str(error.value)  # torch advises to run it


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "but list"),
        ({}, "but dict"),
        ({"weight": torch.zeros(1), "epoch": 3}, "'epoch' is int"),
        ({"model": {"weight": 1}}, "'weight' is int"),
    ],
)
def test_content_without_a_state_dict(content, reason):
    with pytest.raises(ValueError, match=f"the file holds no state dict.*{reason}"):
        tensors_of(content, "the file")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_of_arrays(tmp_path, protocol):
    path = tmp_path / "model.pkl"
    content = {"model": ARRAYS, "__author__": "peer", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol))
    tensors, config = read_file(path)
    assert config == {}
    assert set(tensors) == set(ARRAYS)
    for key, array in ARRAYS.items():
        assert np.array_equal(tensors[key].numpy(), array), key
        assert tensors[key].dtype == (torch.int64 if key == "counter" else torch.float32)


def test_pickle_of_numpy_1(tmp_path):
    """numpy 1 wrote numpy.core where numpy 2 writes numpy._core."""
    path = tmp_path / "model.pkl"
    content = pickle.dumps({"a": np.arange(3.0)}, 2)
    for package in (b"numpy.core", b"numpy._core"):
        path.write_bytes(re.sub(rb"numpy\._?core", package, content))
        assert read_file(path)[0]["a"].tolist() == [0, 1, 2]


def test_truncated_pickle(tmp_path):
    path = tmp_path / "model.pkl"
    content = pickle.dumps({"model": ARRAYS})
    for length in range(9, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"model\.pkl cannot be read as arrays alone"):
            read_file(path)


@pytest.mark.parametrize(
    ("harmful", "reason"),
    [
        (Harmful(), "builtins.exec"),
        (torch.zeros(1), "torch._utils._rebuild_tensor_v2"),
        (np.load, "numpy.load"),
        (np.ndarray.dump, "getattr"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_of_arrays_is_not_run(tmp_path, harmful, reason, protocol):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": ARRAYS, "extra": harmful}, protocol))
    reason = reason.replace("builtins", "__builtin__") if protocol == 2 else reason
    with pytest.raises(ValueError, match=f"arrays alone.*it asks for .*{re.escape(reason)}"):
        read_file(path)


@pytest.mark.parametrize("value", [np.array(["a"]), np.array([None]), np.ones(1, complex)])
def test_arrays_of_no_numbers(tmp_path, value):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": value}}))
    with pytest.raises(ValueError, match="'a' is PickledArray"):
        read_file(path)


def test_damaged_pickle(tmp_path):
    """numpy's own functions crash on many of these."""
    path = tmp_path / "model.pkl"
    random = np.random.default_rng(0)
    refused = 0
    for i in range(1000):
        content = bytearray(pickle.dumps({"model": ARRAYS}, 2 + i % 4))
        for place in random.integers(2, len(content), 1 + i % 3):
            content[place] = random.integers(256)
        path.write_bytes(content)
        try:
            read_pickle(path)
        except ValueError as error:
            assert "model.pkl cannot be read as arrays alone" in str(error)
            refused += 1
    assert 200 < refused < 950


def training_log():
    """The log as mmengine keeps it, of objects that torch.load refuses."""
    logging = pytest.importorskip("mmengine.logging", reason="its files are read")
    hub = logging.MessageHub.get_instance("test_files")
    for loss in (0.5, 0.25):
        hub.update_scalar("train/loss", loss)
    hub.update_info("seed", np.int64(3))
    return hub.state_dict()


def test_training_log_of_mmengine_is_left_out(tmp_path):
    path = tmp_path / "epoch_12.pth"
    content = {
        "meta": {"epoch": 12, "dataset_meta": {"classes": ("a", "b")}},
        "state_dict": OrderedDict(weight=torch.ones(2)),
        "message_hub": training_log(),
        "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
    }
    torch.save(content, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    tensors, config = read_file(path)
    assert torch.equal(tensors["weight"], torch.ones(2))
    assert config == {"classes": ["a", "b"]}


def test_stand_ins_run_nothing(tmp_path):
    """getattr of a log makes nothing that could be called in earnest."""

    class Method:
        def __reduce__(self):
            return getattr, ("text", "upper")

    path = tmp_path / "model.pth"
    torch.save({"weight": torch.ones(1), "log": Method()}, path)
    assert type(read_torch(path)["log"]).__mro__[1] is Ignored
    torch.save({"state_dict": {"weight": torch.ones(1)}, "log": Method()}, path)
    assert read_file(path)[0]["weight"] == 1


def test_integers_keep_their_type():
    tensors = tensors_of({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(3)}, "it")
    assert tensors["a"].dtype == torch.float32
    assert tensors["b"].dtype == torch.int64
