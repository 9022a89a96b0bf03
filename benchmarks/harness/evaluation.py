"""COCO evaluations from two files, by fastseg and its peers.

`python -m benchmarks.harness.evaluation` evaluates 5000 images with 100 detections each, in a new
process for each provider, and prints seconds and peak memory. Nothing here imports torch, which
would hide what the providers themselves need.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 480, 640
OBJECTS = 7  # per image, as in COCO


def write_files(folder: Path, images: int, detections: int) -> tuple[Path, Path]:
    """Writes annotations and results whose masks are wavy ellipses and shifted copies of them.

    Args:
        folder: where `truth.json` and `results.json` go.
        images: how many.
        detections: per image; some find an object, the others are of other places or classes.

    Returns:
        The paths of the two files.
    """
    rng = np.random.default_rng(0)
    pool = [_shape(rng) for _ in range(300)]
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(images):
        chosen = rng.integers(0, len(pool), OBJECTS)
        classes = rng.geometric(0.08, OBJECTS) % 80 + 1  # some are frequent, most are rare
        for shape, category in zip(chosen, classes, strict=True):
            entry = {"image_id": image, "category_id": int(category), "iscrowd": 0}
            annotations.append({**entry, "id": len(annotations) + 1, **pool[shape][0]})
        for number in range(detections):
            known = number < 2 * OBJECTS
            shape = chosen[number % OBJECTS] if known else rng.integers(0, len(pool))
            category = classes[number % OBJECTS] if known else rng.geometric(0.08) % 80 + 1
            results.append(
                {
                    "image_id": image,
                    "category_id": int(category),
                    "score": round(float(rng.random()) ** 2, 6),
                    "segmentation": pool[shape][rng.integers(0, 3)]["segmentation"],
                }
            )
    truth = {
        "images": [{"id": one, "height": HEIGHT, "width": WIDTH} for one in range(images)],
        "categories": [{"id": one, "name": f"class {one}"} for one in range(1, 81)],
        "annotations": annotations,
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    return folder / "truth.json", folder / "results.json"


def _shape(rng: np.random.Generator) -> list[dict[str, Any]]:
    """An object and two copies of it, shifted by some pixels."""
    from fastseg import mask

    height, width = (rng.pareto(1.5, 2).clip(0.05, 4) * 80).astype(int) + 4
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = 0.8 + 0.15 * np.sin(5 * np.arctan2(y, x)) + 0.05 * np.sin(40 * x * y)
    inside = np.hypot(x, y) < radius
    top, left = rng.integers(8, HEIGHT - height - 8), rng.integers(8, WIDTH - width - 8)
    entries = []
    for down, right in [(0, 0), *rng.integers(-8, 9, (2, 2))]:
        pixels = np.zeros((HEIGHT, WIDTH), bool)
        pixels[top + down : top + down + height, left + right : left + right + width] = inside
        rle = mask.encode(pixels)
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        box = [float(side) for side in mask.toBbox(rle)]
        entries.append({"segmentation": segmentation, "area": float(inside.sum()), "bbox": box})
    return entries


def fastseg(truth: Path, results: Path, metric: str) -> list[float]:
    """The twelve numbers, by fastseg."""
    from fastseg.evaluation import COCOEvaluator

    evaluator = COCOEvaluator(truth, metric)
    evaluator.update(results)
    return list(evaluator.compute()[metric].values())


def pycocotools(truth: Path, results: Path, metric: str) -> list[float]:
    """The twelve numbers, by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset = COCO(str(truth))
    return _summarize(COCOeval(dataset, dataset.loadRes(str(results)), metric))


def faster_coco_eval(truth: Path, results: Path, metric: str) -> list[float]:
    """The twelve numbers, by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    dataset = COCO(str(truth))
    return _summarize(COCOeval_faster(dataset, dataset.loadRes(str(results)), metric))


def hotcoco(truth: Path, results: Path, metric: str) -> list[float]:
    """The twelve numbers, by hotcoco."""
    from hotcoco import COCO, COCOeval

    dataset = COCO(str(truth))
    return _summarize(COCOeval(dataset, dataset.load_res(str(results)), metric))


def _summarize(evaluation: Any) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in list(evaluation.stats)[:12]]


PROVIDERS: dict[str, Callable[[Path, Path, str], list[float]]] = {
    one.__name__: one for one in (fastseg, pycocotools, faster_coco_eval, hotcoco)
}


def _run(provider: str, truth: Path, results: Path, metric: str) -> None:
    """In a process of its own: prints seconds, peak memory in MB and AP."""
    __import__(provider)
    start = time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        numbers = PROVIDERS[provider](truth, results, metric)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{provider:<18} {seconds:8.2f} s {peak:7.0f} MB   AP {numbers[0]:.6f}")


def main() -> None:
    """Compares all providers, or runs one of them on existing files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--metric", default="segm", choices=("bbox", "segm", "boundary"))
    parser.add_argument("--against", default=",".join(PROVIDERS), help="providers by comma")
    parser.add_argument("--files", nargs=2, type=Path, help="annotations and results to use")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        truth, results = options.files or write_files(
            Path(folder), options.images, options.detections
        )
        for provider in options.against.split(","):
            code = "import sys; from pathlib import Path; "
            code += "from benchmarks.harness.evaluation import _run; "
            code += "_run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])"
            words = [provider, str(truth), str(results), options.metric]
            subprocess.run([sys.executable, "-c", code, *words], check=False)


if __name__ == "__main__":
    main()
