"""The command line: files written, exit status, and what happens when something is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import fastseg
from fastseg import predictor as predictor_module
from fastseg.cli import SAMPLES, main

SAMPLE_NAMES = [path.stem for path in sorted(SAMPLES.glob("*.png"))]


@pytest.fixture(scope="module")
def demo(tmp_path_factory, run_python):
    """One run over the samples with every output."""
    directory = tmp_path_factory.mktemp("demo")
    words = ["segment", "--demo", "--format", "png,coco,masks", "--output", str(directory)]
    done = run_python("-m", "fastseg", *words, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return directory, done


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with one good image, `cells.png`."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(SAMPLES / "fluorescence_large.png", tmp_path / "cells.png")
    return tmp_path


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def test_demo_writes_an_overlay_and_a_label_image_per_sample(demo):
    directory, _ = demo
    images = [f"{name}{suffix}" for name in SAMPLE_NAMES for suffix in (".masks.png", ".png")]
    assert names_in(directory) == sorted([*images, "results.json", "images.json"])
    overlay = Image.open(directory / "fluorescence_dense.png")
    assert overlay.size == (1024, 1024)
    colorful = np.ptp(np.asarray(overlay), axis=2) > 30  # the sample is grey
    assert 0.05 < colorful.mean() < 0.5


def test_show_opens_the_overlays(folder, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["segment", "cells.png", "--output", "out", "--device", "cpu", "--show"]) == 0
    assert opened == [(folder / "out" / "cells.png").as_uri()]


def test_demo_prints_a_table_and_no_noise(demo):
    directory, done = demo
    for name in SAMPLE_NAMES:
        assert f"{name}.png" in done.stdout
    assert "nucleus" in done.stdout
    assert str(directory) in done.stdout.replace("\n", "")
    assert done.stderr == ""


def test_coco_files_load_in_pycocotools_and_agree_with_the_label_images(demo):
    directory, _ = demo
    dataset = COCO(directory / "images.json")
    results = dataset.loadRes(str(directory / "results.json"))
    assert [category["name"] for category in dataset.loadCats(dataset.getCatIds())] == ["nucleus"]
    for image_id in dataset.getImgIds():
        (image,) = dataset.loadImgs(image_id)
        entries = results.loadAnns(results.getAnnIds(imgIds=image_id))
        name = image["file_name"].rsplit("/", 1)[1].replace(".png", ".masks.png")
        labels = np.asarray(Image.open(directory / name))
        assert labels.dtype == np.uint16
        assert labels.shape == (image["height"], image["width"])
        assert labels.max() <= len(entries)
        covered = coco_mask.decode(coco_mask.merge([entry["segmentation"] for entry in entries]))
        assert np.array_equal(labels > 0, covered > 0)
        assert all(entry["score"] > 0.5 for entry in entries)


def test_unreadable_images_are_named_at_the_end_and_cost_nothing(folder, capsys):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff not a photo")
    (folder / "empty").mkdir()
    words = ["segment", "broken.jpg", "missing.png", "empty", "cells.png", "--output", "out"]
    assert main(words) == 1
    captured = capsys.readouterr()
    assert "fastseg: 3 could not be processed" in captured.err
    for name in ("broken.jpg", "missing.png", "empty"):
        assert name in captured.err
    assert "Traceback" not in captured.err
    assert "cells.png" in captured.out
    assert names_in(folder / "out") == ["cells.png", "images.json", "results.json"]
    images = json.loads((folder / "out/images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["cells.png"]
    assert json.loads((folder / "out/results.json").read_text())


def test_only_unreadable_images_leave_valid_empty_results(folder, capsys):
    assert main(["segment", "missing.png", "--output", "out"]) == 1
    assert json.loads((folder / "out/results.json").read_text()) == []
    assert "missing.png: no such file" in capsys.readouterr().err


def test_outputs_never_replace_the_images_they_come_from(folder, capsys):
    before = (folder / "cells.png").read_bytes()
    assert main(["segment", "cells.png", "--output", "."]) == 0
    assert (folder / "cells.png").read_bytes() == before
    assert names_in(folder) == ["cells-2.png", "cells.png", "images.json", "results.json"]


def test_directories_are_read_and_each_image_is_taken_once(folder, capsys):
    (folder / "photos").mkdir()
    for name in ("7.png", "12.png"):
        shutil.copy(folder / "cells.png", folder / "photos" / name)
    words = ["segment", "photos", "photos/7.png", "--output", "out", "--format", "coco"]
    assert main([*words, "--batch-size", "2"]) == 0
    assert names_in(folder / "out") == ["images.json", "results.json"]
    images = json.loads((folder / "out/images.json").read_text())["images"]
    assert {image["file_name"]: image["id"] for image in images} == {
        "photos/7.png": 7,
        "photos/12.png": 12,
    }


def test_demo_with_other_weights_takes_the_photo_too(folder, capsys):
    weights = next(Path(fastseg.__file__).parent.glob("weights/*.safetensors"))
    words = ["segment", "--demo", "--weights", str(weights), "--format", "coco", "--output", "out"]
    assert main(words) == 0
    images = json.loads((folder / "out/images.json").read_text())["images"]
    assert [Path(image["file_name"]).stem for image in images] == [*SAMPLE_NAMES, "photo_dogs"]


def test_score_decides_what_is_kept(folder, capsys):
    counts = []
    for score in ("0.05", "0.9"):
        words = ["segment", "cells.png", "--score", score, "--output", "out", "--format", "coco"]
        assert main(words) == 0
        entries = json.loads((folder / "out/results.json").read_text())
        assert all(entry["score"] > float(score) for entry in entries)
        counts.append(len(entries))
    assert counts[0] > counts[1] > 0


def test_ctrl_c_keeps_what_is_done(folder, capsys, monkeypatch):
    def interrupted(self, inputs):
        yield next(iter(stream(self, inputs)))
        raise KeyboardInterrupt

    stream = predictor_module.Predictor.stream
    monkeypatch.setattr(predictor_module.Predictor, "stream", interrupted)
    shutil.copy(folder / "cells.png", folder / "more.png")
    assert main(["segment", "cells.png", "more.png", "--output", "out"]) == 130
    assert names_in(folder / "out") == ["cells.png", "images.json", "results.json"]
    assert json.loads((folder / "out/results.json").read_text())
    assert "interrupted after 1 of 2 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segment"], "name an image or a directory, or use --demo"),
        (["segment", "--demo", "--weights", "missing.pth"], "missing.pth"),
        (["segment", "--demo", "--device", "abacus"], "abacus"),
        (["segment", "--demo", "--device", "xpu"], "must be the CPU or a CUDA GPU, got 'xpu'"),
        (["segment", "a.png", "--format", "png,gif"], "'gif' is none of png, coco, masks"),
        (["segment", "a.png", "--score", "2"], "must be between 0 and 1, got 2"),
        (["segment", "a.png", "--score", "high"], "must be between 0 and 1, got high"),
        (["segment", "a.png", "--batch-size", "0"], "must be an integer of at least 1, got 0"),
        (["segment", "a.png", "--batch-size", "1.5"], "at least 1, got 1.5"),
        (["paint"], "paint"),
        ([], "usage: fastseg"),
    ],
)
def test_wrong_usage_is_explained_with_status_2(folder, capsys, words, message):
    try:
        status = main(words)
    except SystemExit as stop:  # argparse's way
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert names_in(folder) == ["cells.png"]


def test_an_output_that_cannot_be_written_is_an_error_without_traceback(folder, capsys):
    (folder / "out").write_text("a file")
    assert main(["segment", "cells.png", "--output", "out"]) == 1
    assert "fastseg: error:" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"fastseg {fastseg.__version__}\n"


def test_importing_the_command_needs_no_torch(run_python):
    code = "import sys, fastseg, fastseg.cli; sys.exit('torch' in sys.modules)"
    assert run_python("-c", code).returncode == 0
