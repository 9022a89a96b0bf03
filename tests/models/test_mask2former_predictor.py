"""Mask2Former behind `Predictor` and the command line: three tasks from image files to results."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastseg.backbones import resnet18
from fastseg.cli import main
from fastseg.evaluation import evaluate_panoptic
from fastseg.instances import Instances
from fastseg.layers.masked_attention_decoder import MaskedAttentionDecoder
from fastseg.layers.pixel_decoder import MSDeformAttnPixelDecoder
from fastseg.models import Mask2Former
from fastseg.predictor import Predictor
from fastseg.segmentation import PanopticSegmentation, SemanticSegmentation
from fastseg.visualize import draw

NAMES = ("person", "dog", "car", "sky", "grass")
SIZES = ((60, 91), (120, 75), (60, 91))  # height, width


def small_model(task: str = "panoptic") -> Mask2Former:
    """A narrow model whose random weights have opinions; three classes are things."""
    torch.manual_seed(0)
    backbone = resnet18()
    widths = {"channels": 64, "mask_channels": 32}
    model = Mask2Former(
        backbone=backbone,
        pixel_decoder=MSDeformAttnPixelDecoder(
            in_channels=backbone.out_channels, num_heads=4, num_layers=1, ffn_channels=64, **widths
        ),
        decoder=MaskedAttentionDecoder(
            in_channels=64,
            num_classes=len(NAMES),
            num_queries=12,
            num_heads=4,
            num_layers=3,
            ffn_channels=64,
            **widths,
        ),
        task=task,
        min_size=96,
        max_size=160,
        object_mask_threshold=0.3,
        overlap_threshold=0.2,
        thing_classes=(0, 1, 2),
        class_names=NAMES,
    )
    with torch.no_grad():
        model.decoder.query_features.weight.mul_(4)
        model.decoder.query_embed.weight.mul_(4)
        model.decoder.class_predictor.weight.mul_(32)
        model.decoder.mask_embed[2].weight.mul_(8)
        for layer in (model.decoder.class_predictor, model.decoder.mask_embed[2]):
            centre(layer, model)
    return model


def centre(layer: torch.nn.Linear, model: Mask2Former) -> None:
    """Makes a layer's outputs 0 on average, so that queries differ in what they find."""
    inputs = []
    hook = layer.register_forward_hook(lambda _, given, __: inputs.append(given[0]))
    model(torch.rand(1, 3, 96, 96) * 2 - 1, torch.tensor([[96, 96]]))
    hook.remove()
    layer.bias.copy_(-layer.weight @ inputs[-1].flatten(0, -2).mean(0))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of smooth random images."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES, 1):
        coarse = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("instance", Instances),
        ("panoptic", PanopticSegmentation),
        ("semantic", SemanticSegmentation),
    ],
)
def test_each_task_gives_its_kind_of_result_at_the_images_size(task, kind, photos):
    predictor = Predictor(small_model(), "cpu", task=task, batch_size=2)
    results = predictor(photos)
    assert [type(result) for result in results] == [kind] * len(SIZES)
    assert [result.image_size for result in results] == list(SIZES)
    assert {result.class_names for result in results} == {NAMES}
    one = Predictor(small_model(task), "cpu")(photos / "1.png")
    assert type(one) is kind, "without a task the model's own"
    for path, result in zip(sorted(photos.iterdir()), results, strict=True):
        assert draw(path, result, scale=1).size == result.image_size[::-1]


def test_segments_describe_the_map(photos):
    results = Predictor(small_model(), "cpu", task="panoptic")(photos)
    assert sum(len(result) for result in results) > 3
    for result in results:
        for segment, mask in zip(result.segments, result.masks(), strict=True):
            assert segment.area == mask.sum() > 0
            assert segment.is_thing == (segment.label < 3)
            assert 0.3 < segment.score <= 1
        assert result.ids.unique().tolist() == sorted(
            {segment.id for segment in result.segments} | set(result.ids[result.ids == 0].tolist())
        )
        stuff = [segment.label for segment in result.segments if not segment.is_thing]
        assert len(stuff) == len(set(stuff)), "stuff of a class is one segment"


def test_panoptic_files_of_the_command_are_read_by_the_evaluation(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("fastseg.load_model", lambda path: small_model(), raising=False)
    words = ["segment", str(photos), "--weights", "any", "--device", "cpu"]
    assert main([*words, "--output", str(tmp_path), "--format", "png,coco,masks"]) == 0
    listing = json.loads((tmp_path / "images.json").read_text())
    assert [(one["name"], one["isthing"]) for one in listing["categories"]] == [
        ("person", 1),
        ("dog", 1),
        ("car", 1),
        ("sky", 0),
        ("grass", 0),
    ]
    results = json.loads((tmp_path / "panoptic.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps({**results, **listing, **results}))
    numbers = evaluate_panoptic(
        tmp_path / "truth.json", tmp_path / "panoptic", tmp_path / "panoptic.json"
    )
    assert numbers["All"]["pq"] == 1 and numbers["All"]["n"] > 1


def test_semantic_files_of_the_command_are_the_predicted_labels(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("fastseg.load_model", lambda path: small_model(), raising=False)
    words = ["segment", str(photos), "--weights", "any", "--device", "cpu"]
    assert main([*words, "--task", "semantic", "--output", str(tmp_path)]) == 0
    results = Predictor(small_model(), "cpu", task="semantic")(photos)
    for number, result in enumerate(results, 1):
        with Image.open(tmp_path / f"{number}.masks.png") as image:
            assert np.array_equal(np.asarray(image), result.labels.numpy())
    classes = json.loads((tmp_path / "classes.json").read_text())
    assert list(classes.values()) == list(NAMES)


def test_half_precision_finds_about_the_same_classes(photos):
    exact, rounded = (
        Predictor(small_model(), "cpu", dtype, task="semantic")(photos / "1.png")
        for dtype in (None, torch.bfloat16)
    )
    assert (exact.labels == rounded.labels).float().mean() > 0.8
