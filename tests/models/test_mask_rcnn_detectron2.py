"""Mask R-CNN against stored results of detectron2's.

FASTSEG_GOLDEN=FOLDER: also against those of a larger network, with the folder's maskrcnn_d2.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import detectron2_golden
import pytest
import torch
from made_up_images import padded_batch
from safetensors.torch import load_file
from torch import Tensor

from fastseg import Instances, load_model
from fastseg.models import ImageBatch, MaskRCNN
from fastseg.ops import rle_decode


def batch_of(model: MaskRCNN, images: list[Tensor], original_sizes: list) -> ImageBatch:
    """Images as they are, in the model's type, which are not resized but have other sizes then."""
    dtype = model.rpn.head.cls_logits.weight.dtype
    batch = padded_batch([model.transform.normalize(image.to(dtype) / 255) for image in images])
    height, width = batch.pixels.shape[2:]
    padding = (0, -width % 32, 0, -height % 32)
    pixels = torch.nn.functional.pad(batch.pixels.to(dtype), padding)
    return ImageBatch(pixels, batch.sizes, [tuple(size) for size in original_sizes])


@pytest.fixture(scope="module", params=sorted(detectron2_golden.GOLDEN))
def golden_model_and_batch(request):
    """In double precision but for boxes, as the peer ran, so that rounding decides nothing."""
    golden = detectron2_golden.GOLDEN[request.param]
    model = load_model(detectron2_golden.weights(golden), **golden["options"]).double()
    images = detectron2_golden.images(golden["sizes"])
    return golden, model, batch_of(model, images, golden["original_sizes"])


def test_proposals_equal_detectron2s(golden_model_and_batch):
    golden, model, batch = golden_model_and_batch
    with torch.inference_mode():
        pyramid = model.backbone(batch.pixels)
        proposals = model.rpn(pyramid, batch.sizes, tuple(batch.pixels.shape[2:]))
    for boxes, count, expected in zip(
        proposals.boxes, proposals.counts, golden["proposals"], strict=True
    ):
        assert count == len(expected) == 100
        torch.testing.assert_close(boxes, torch.tensor(expected), rtol=0, atol=1e-3)


def assert_same_instances(
    ours: Instances, theirs: dict[str, Tensor], rles: list, *, boxes: float, scores: float
) -> None:
    assert ours.labels.tolist() == theirs["labels"].tolist()
    torch.testing.assert_close(ours.boxes, theirs["boxes"], rtol=0, atol=boxes)
    torch.testing.assert_close(ours.scores.float(), theirs["scores"], rtol=0, atol=scores)
    masks = rle_decode([{**rle, "counts": rle["counts"].encode()} for rle in rles])
    assert masks.float().mean() > 0.01
    assert (ours.masks() != masks).float().mean() < 1e-4


def test_results_equal_detectron2s(golden_model_and_batch):
    golden, model, batch = golden_model_and_batch
    with torch.inference_mode():
        results = model.postprocess(model(batch.pixels, batch.sizes), batch)
    for ours, theirs in zip(results, golden["results"], strict=True):
        assert len(ours) == 30
        rles = [{"size": ours.image_size, "counts": counts} for counts in theirs["masks"]]
        tensors = {name: torch.tensor(theirs[name]) for name in ("boxes", "scores", "labels")}
        assert_same_instances(ours, tensors, rles, boxes=1e-3, scores=1e-5)


@pytest.mark.skipif(
    "FASTSEG_GOLDEN" not in os.environ,
    reason="FASTSEG_GOLDEN does not name a folder with maskrcnn_d2",
)
def test_large_results_equal_detectron2s():
    """From the file that detectron2 wrote, in single precision, whose rounding random weights
    multiply.
    """
    folder = Path(os.environ["FASTSEG_GOLDEN"]) / "maskrcnn_d2"
    tensors = load_file(folder / "fixture.safetensors")
    meta = json.loads((folder / "meta.json").read_text())
    model = load_model(folder / "model.pkl")
    images = [tensors[f"in/img{i}"].flip(-1).permute(2, 0, 1) for i in range(2)]
    batch = batch_of(model, images, [tensors[f"in/out_size{i}"].tolist() for i in range(2)])
    with torch.inference_mode():
        results = model.postprocess(model(batch.pixels, batch.sizes), batch)
    for i, ours in enumerate(results):
        theirs = {name: tensors[f"out/{i}.{name}"] for name in ("boxes", "scores")}
        theirs["labels"] = tensors[f"out/{i}.classes"]
        rles = meta["expected"]["results"][i]["masks"]
        assert_same_instances(ours, theirs, rles, boxes=2e-2, scores=2e-4)
