"""Files that hold no state dict are refused with their name and the reason."""

from __future__ import annotations

import pytest
import torch

from fastseg.checkpoints.files import read_file, tensors_of


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_file(tmp_path / "nothing.pth")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n12345", b"just text, no tensors"])
def test_file_of_another_kind(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pth is neither a safetensors nor a PyTorch file"):
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
    with pytest.raises(ValueError, match=r"model\.pth cannot be read"):
        read_file(path)


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of a checkpoint was run')",)


def test_code_in_a_pickle_is_not_run(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"weight": torch.zeros(1), "extra": Harmful()}, path)
    with pytest.raises(ValueError, match="save the model's state_dict"):
        read_file(path)


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


def test_integers_keep_their_type():
    tensors = tensors_of({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.tensor(3)}, "it")
    assert tensors["a"].dtype == torch.float32
    assert tensors["b"].dtype == torch.int64
