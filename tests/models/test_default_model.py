"""The default weights on real images, against results of torchvision's own class."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg import Instances, default_model
from fastseg.models import MaskRCNN

pytest.importorskip("torchvision", reason="torchvision is the peer that is compared with")
from torchvision_peer import assert_same_detections, decode

IMAGES = Path(__file__).parents[1] / "data" / "nuclei"
# Detections of torchvision 0.29.1 with the default weights, as COCO results per image.
RESULTS = json.loads((IMAGES / "torchvision_results.json").read_text())


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    return default_model()


def read_image(path: Path) -> torch.Tensor:
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def predict(model: MaskRCNN, images: list[torch.Tensor]) -> list[Instances]:
    with torch.inference_mode():
        batch = model.preprocess(images)
        return model.postprocess(model(batch.pixels, batch.sizes), batch)


def assert_equals_coco_results(ours: Instances, expected: list[dict]) -> None:
    """Same instances in the same order; returns nothing, fails with the first difference."""
    results = ours.to_coco(0)
    assert len(results) == len(expected)
    for mine, theirs in zip(results, expected, strict=True):
        assert mine["category_id"] == theirs["category_id"]
        assert mine["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert mine["bbox"] == pytest.approx(theirs["bbox"], abs=1e-3)
    masks = decode(ours.rles)
    different = (masks != decode([result["segmentation"] for result in expected])).sum().item()
    assert different <= 1e-5 * masks.numel()


@pytest.mark.parametrize("name", RESULTS)
def test_images_give_torchvisions_instances(model, name):
    (instances,) = predict(model, [read_image(IMAGES / name)])
    assert instances.names[0] == "nucleus"
    assert_equals_coco_results(instances, RESULTS[name])


def test_hyper_parameters_come_from_the_file(model):
    assert model.transform.min_size == 512
    assert model.transform.max_size == 1024
    assert model.roi_heads.detections_per_img == 300
    assert model.class_names == ("background", "nucleus")
    assert default_model(min_size=300).transform.min_size == 300


def test_batch_of_unlike_images_equals_torchvision(model):
    images = [read_image(IMAGES / name) for name in ("gray_360x360.png", "color_256x320.png")]
    results = predict(model, images)
    with torch.inference_mode():
        expected = torchvision_nuclei_model(model)(images)
    for ours, theirs in zip(results, expected, strict=True):
        assert_same_detections(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_finds_the_same_nuclei(dtype):
    # A mask edge moves by a fraction of a pixel, and scores by 0.01: only clear nuclei count.
    images = [read_image(IMAGES / "gray_360x360.png")]
    (exact,) = predict(default_model(), images)
    (half,) = predict(default_model().to(dtype), images)
    assert half.boxes.dtype == half.scores.dtype == torch.float32
    clear, found = exact.above(0.9), half.above(0.8)
    assert len(clear) > 15
    masks, others = (decode(result.rles).flatten(1).float() for result in (clear, found))
    intersection = masks @ others.T
    iou = intersection / (masks.sum(1)[:, None] + others.sum(1) - intersection)
    assert (iou.max(dim=1).values > 0.9).all()


@pytest.mark.slow
@pytest.mark.skipif(
    "FASTSEG_NUCLEI" not in os.environ,
    reason="FASTSEG_NUCLEI does not name a folder with images/, instances.json and split.json",
)
def test_average_precision_on_the_validation_images(model):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    folder = Path(os.environ["FASTSEG_NUCLEI"])
    truth = COCO(str(folder / "instances.json"))
    names = set(json.loads((folder / "split.json").read_text())["val"])
    image_ids = [image["id"] for image in truth.dataset["images"] if image["file_name"] in names]
    results = []
    for image_id in image_ids:
        image = read_image(folder / "images" / truth.imgs[image_id]["file_name"])
        results += predict(model, [image])[0].to_coco(image_id)

    for result in results:
        del result["bbox"]
    evaluation = COCOeval(truth, truth.loadRes(results), "segm")
    evaluation.params.imgIds = image_ids
    evaluation.params.maxDets = [1, 100, 400]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]
    assert len(results) == 4241
    assert precision.mean() == pytest.approx(0.5809, abs=0.0005)


def torchvision_nuclei_model(ours: MaskRCNN) -> torch.nn.Module:
    """torchvision's class in the shape of the default model, with its weights."""
    from torchvision.models import resnet18
    from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import FrozenBatchNorm2d

    stages = OrderedDict((f"layer{i + 1}", str(i)) for i in range(4))
    body = resnet18(weights=None, norm_layer=FrozenBatchNorm2d)
    peer = TorchvisionMaskRCNN(
        BackboneWithFPN(body, stages, [64, 128, 256, 512], 128),
        min_size=512,
        max_size=1024,
        rpn_anchor_generator=AnchorGenerator(
            ((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5
        ),
        box_head=TwoMLPHead(128 * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, 2),
        mask_head=MaskRCNNHeads(128, (128, 128, 128, 128), 1),
        mask_predictor=MaskRCNNPredictor(128, 128, 2),
        box_detections_per_img=300,
    )
    peer.load_state_dict(ours.state_dict())
    return peer.eval()
