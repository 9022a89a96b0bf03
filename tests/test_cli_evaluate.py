"""`fastseg evaluate`: what it prints, draws and writes, and how it says what is wrong."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastseg import mask
from fastseg.cli import main
from fastseg.evaluation import COCOEvaluator

DATA = Path(__file__).parent / "data"
NUMBERS = json.loads((DATA / "evaluation/expected.json").read_text())


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working directory with annotations and results of three kinds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("fake100", "fake100_segm", "fake100_bbox", "lvis", "lvis_results"):
        text = gzip.decompress((DATA / f"evaluation/{name}.json.gz").read_bytes())
        (tmp_path / f"{name}.json").write_bytes(text)
    return tmp_path


def evaluate(*words):
    return main(["evaluate", *words])


COCO_FILES = ("--gt", "fake100.json", "--results", "fake100_segm.json")


def test_summary_in_the_words_of_pycocotools(capsys):
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset = COCO("fake100.json")
    peer = COCOeval(dataset, dataset.loadRes("fake100_segm.json"), "segm")
    peer.evaluate()
    peer.accumulate()
    capsys.readouterr()
    peer.summarize()
    expected = capsys.readouterr().out.splitlines()
    assert evaluate(*COCO_FILES, "--summary") == 0
    assert capsys.readouterr().out.splitlines() == ["segm", *expected]


def test_table_of_categories_and_json(folder, capsys):
    assert evaluate(*COCO_FILES, "--metric", "segm,boundary", "--json", "numbers.json") == 0
    printed = capsys.readouterr().out
    rows = [line.split("│")[1:-1] for line in printed.splitlines() if line.startswith("│")]
    table = {row[0].strip(): [float(cell) for cell in row[1:]] for row in rows}
    assert table["person"] == [0.27, 0.191]
    assert len(table) == 70, "categories that do not occur are left out"
    numbers = json.loads((folder / "numbers.json").read_text())
    evaluator = COCOEvaluator("fake100.json", ("segm", "boundary"))
    evaluator.update("fake100_segm.json")
    for metric, expected in evaluator.compute().items():
        per_category = numbers[metric].pop("per_category")
        assert numbers[metric] == expected
        assert per_category["11"] is None and per_category["1"] > 0.1
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == []


def test_options_reach_the_evaluator(folder):
    words = ["--max-dets", "1,5", "--class-agnostic", "--detection-area", "box"]
    assert evaluate(*COCO_FILES, *words, "--json", "numbers.json") == 0
    evaluator = COCOEvaluator(
        "fake100.json", "segm", (1, 5), use_categories=False, detection_area="box"
    )
    evaluator.update("fake100_segm.json")
    numbers = json.loads((folder / "numbers.json").read_text())["segm"]
    assert numbers.pop("per_category").keys() == {"-1"}
    assert numbers == evaluator.compute()["segm"]


def test_lvis(folder, capsys):
    files = ["--gt", "lvis.json", "--results", "lvis_results.json"]
    words = ["--metric", "lvis", "--detection-area", "box", "--json", "numbers.json", "--summary"]
    assert evaluate(*files, *words) == 0
    numbers = json.loads((folder / "numbers.json").read_text())
    for metric in ("bbox", "segm"):
        for name, value in NUMBERS["lvis"][metric].items():
            assert numbers[metric][name] == pytest.approx(value, abs=1e-12)
    printed = capsys.readouterr().out
    assert "maxDets=300 | frequency=c ] = 0.424" in printed
    assert evaluate(*files, "--metric", "lvis,segm", "--max-dets", "10", "--summary") == 0
    assert capsys.readouterr().out.startswith("segm\n")


def test_video(folder, capsys):
    rle = {"size": [2, 2], "counts": "04"}
    track = {"video_id": 1, "category_id": 1, "segmentations": [rle, rle, None]}
    truth = {
        "videos": [{"id": 1, "height": 2, "width": 2, "length": 3}],
        "categories": [{"id": 1, "name": "fish"}],
        "annotations": [{**track, "id": 1, "areas": [4, 4, None], "segmentations": [rle] * 3}],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps([{**track, "score": 1}]))
    files = ("--gt", "truth.json", "--results", "results.json")
    assert evaluate(*files, "--metric", "video") == 0
    printed = capsys.readouterr().out
    assert "all | maxDets=100 ] = 0.400" in printed and "fish" in printed


def test_panoptic(folder, capsys):
    place = DATA / "panoptic"
    expected = json.loads((place / "expected.json").read_text())["pq"]
    files = ["--gt", str(place / "ground_truth.json"), "--results", str(place / "results.json")]
    folders = ["--gt-folder", str(place / "ground_truth")]
    folders += ["--results-folder", str(place / "results")]
    words = ["--metric", "panoptic", "--json", "numbers.json"]
    assert evaluate(*files, *folders, *words) == 0
    numbers = json.loads((folder / "numbers.json").read_text())
    printed = capsys.readouterr().out
    assert f"{numbers['All']['pq']:.3f}" in printed and "person" in printed
    assert numbers["All"]["pq"] == pytest.approx(expected["All"]["pq"], abs=1e-12)
    assert evaluate(*files, *folders, "--metric", "panoptic", "--summary") == 0
    assert "person" not in capsys.readouterr().out


def test_semantic(folder, capsys):
    for place in ("truth", "results"):
        (folder / place).mkdir()
    truth = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    Image.fromarray(truth).save("truth/a.png")
    Image.fromarray(np.array([[0, 1, 1], [1, 0, 0]], np.uint8)).save("results/a.masks.png")
    Image.fromarray(np.zeros((2, 3, 3), np.uint8)).save("results/a.png")  # an overlay
    files = ("--gt", "truth", "--results", "results", "--metric", "semantic")
    assert evaluate(*files, "--num-classes", "2", "--json", "numbers.json") == 0
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["confusion_matrix"] == [[2, 0], [1, 2]]
    assert numbers["miou"] == pytest.approx(2 / 3)
    printed = capsys.readouterr().out
    assert "0.667" in printed and "class 1" in printed
    (folder / "results/classes.json").write_text('{"0": "road", "1": "sky", "2": "sea"}')
    assert evaluate(*files, "--json", "numbers.json") == 0
    printed = capsys.readouterr().out
    assert "road" in printed and "sky" in printed and "sea" not in printed
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["per_class"]["2"] == {"iou": None, "accuracy": None}
    assert evaluate(*files, "--zero-is-void", "--summary") == 0
    assert "sky" not in capsys.readouterr().out
    assert evaluate(*files, "--num-classes", "1") == 2
    assert "results/a.masks.png: ground_truth must be in [0, 1) or 255" in capsys.readouterr().err


def test_cityscapes(folder, capsys):
    (folder / "truth/ulm").mkdir(parents=True)
    ids = np.full((40, 40), 7, np.uint16)
    ids[:, :20] = 26001
    Image.fromarray(ids).save("truth/ulm/ulm_1_gtFine_instanceIds.png")
    rle = mask.encode(np.asfortranarray((ids == 26001).astype(np.uint8)))
    entry = {"image_id": 5, "category_id": 26, "score": 0.5, "segmentation": rle}
    entry["segmentation"]["counts"] = rle["counts"].decode()
    (folder / "results.json").write_text(json.dumps([entry]))
    images = {"images": [{"id": 5, "file_name": "photos/ulm_1_leftImg8bit.png"}]}
    (folder / "images.json").write_text(json.dumps(images))
    files = ("--gt", "truth", "--results", "results.json", "--metric", "cityscapes")
    assert evaluate(*files, "--json", "numbers.json") == 0
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["AP"] == numbers["per_class"]["car"]["AP50"] == 1
    assert numbers["per_class"]["bus"]["AP"] is None
    assert "car" in capsys.readouterr().out
    assert evaluate(*files, "--summary") == 0
    assert "car" not in capsys.readouterr().out


def test_plot(folder):
    pytest.importorskip("matplotlib")
    for name in ("curves.png", "curves.svg"):
        assert evaluate(*COCO_FILES, "--metric", "segm,bbox", "--plot", name, "--summary") == 0
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "curves.svg").read_text()


def test_plot_without_matplotlib(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert evaluate(*COCO_FILES, "--plot", "curves.png") == 2
    assert "--plot needs matplotlib: pip install matplotlib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "keypoints"], "'keypoints' is none of bbox, segm, boundary, lvis"),
        (["--metric", "lvis,video"], "lvis,video do not go together"),
        (["--metric", "panoptic,segm"], "panoptic,segm do not go together"),
        (["--metric", "bbox,semantic"], "bbox,semantic do not go together"),
        (["--max-dets", "ten"], "must be positive integers by comma, got ten"),
        (["--max-dets", "0"], "must be positive integers by comma, got 0"),
    ],
)
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        evaluate(*COCO_FILES, *words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gt", "missing.json"], "missing.json"),
        (["--results", "missing.json"], "missing.json"),
        (["--results", "fake100.json"], "fake100.json: JSON: expected an array at byte 0"),
        (["--results", "fake100_bbox.json"], "results[0] (image 42) has no segmentation"),
        (["--metric", "lvis"], "has no list of neg_category_ids"),
        (["--metric", "video,bbox"], "video has the metric segm alone"),
        (["--metric", "lvis", "--max-dets", "1,10"], "lvis has one limit of detections"),
        (["--metric", "video", "--class-agnostic"], "--class-agnostic is not for video"),
        (["--metric", "panoptic", "--plot", "x.png"], "precision and recall, not for panoptic"),
        (
            ["--metric", "semantic"],
            "give --num-classes: there is no fake100_segm.json/classes.json",
        ),
        (["--metric", "semantic", "--num-classes", "3"], "fake100.json is no folder"),
        (["--metric", "cityscapes"], "images.json"),
        (["--plot", "curves.xyz"], "xyz"),
    ],
)
def test_what_cannot_be_evaluated(words, message, capsys, folder):
    assert evaluate(*COCO_FILES, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastseg: error: ") and message in error
    assert not list(folder.glob("*.xyz")) and not list(folder.glob(".*"))


def test_results_in_place_of_ground_truth_are_told(folder, capsys):
    (folder / "panoptic.json").write_text(json.dumps({"annotations": []}))
    words = ["--gt", "panoptic.json", "--results", "panoptic.json", "--metric", "panoptic"]
    assert evaluate(*words) == 2
    assert "is of another kind: it has no 'categories'" in capsys.readouterr().err


def test_unknown_categories_are_told(folder, capsys):
    results = json.loads((folder / "fake100_segm.json").read_text())
    results[0]["category_id"] = 999
    (folder / "fake100_segm.json").write_text(json.dumps(results))
    assert evaluate(*COCO_FILES, "--summary") == 0
    error = capsys.readouterr().err
    assert error == (
        "fastseg: warning: 1 results are left out: the ground truth lacks categories 999\n"
    )


def test_torch_is_not_needed(run_python, folder):
    words = ["evaluate", "--gt", str(folder / COCO_FILES[1]), "--results"]
    words.append(str(folder / COCO_FILES[3]))
    code = f"from fastseg.cli import main; status = main({words!r}); "
    done = run_python("-c", "import sys; " + code + "sys.exit(status or 'torch' in sys.modules)")
    assert done.returncode == 0, done.stderr
