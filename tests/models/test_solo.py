"""The SOLO family by itself: shapes, thresholds, padding, layouts, and use through Predictor."""

from __future__ import annotations

import json

import pytest
import torch
from host_tensors import nothing_from_the_host
from made_up_images import images
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file
from torch import Tensor, nn

from fastseg import Predictor, models
from fastseg.backbones import resnet18
from fastseg.cli import main
from fastseg.layers import mask_selection
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.grid_candidates import points_nms, top_candidates
from fastseg.layers.grid_heads import coordinates
from fastseg.layers.solo_head import DecoupledSOLOHead, SOLOHead
from fastseg.layers.solov2_head import MaskFeatureHead, SOLOv2Head
from fastseg.models import SOLO

NUM_CLASSES = 4
HEADS = ("solov2", "solo", "decoupled_solo", "decoupled_solo_light")
OPTIONS = {"min_size": 96, "max_size": 160, "filter_thr": 0.01}


def small_model(name: str, **options) -> SOLO:
    """A narrow model with random weights that find something in noise."""
    torch.manual_seed(0)
    body = resnet18()
    fpn = FeaturePyramidNetwork(in_channels=body.out_channels, out_channels=32)
    sizes = {"in_channels": 32, "num_classes": NUM_CLASSES, "channels": 32}
    sizes["conv_layers"] = (nn.Conv2d,) * 2
    if name == "solov2":
        features = MaskFeatureHead(in_channels=32, channels=32, out_channels=32)
        head = SOLOv2Head(mask_features=features, **sizes)
    elif name == "solo":
        head = SOLOHead(**sizes)
    else:
        head = DecoupledSOLOHead(light=name.endswith("light"), **sizes)
    with torch.no_grad():
        for key, parameter in head.named_parameters():
            if parameter.dim() == 4:
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
            elif "predictor" in key and key.endswith("bias") and parameter.dim() == 1:
                parameter.fill_(0.0 if "class" not in key else -2.0)
    model = SOLO(backbone=BackboneWithFPN(body=body, fpn=fpn), head=head, **{**OPTIONS, **options})
    return model


@pytest.fixture(scope="module", params=HEADS)
def model(request) -> SOLO:
    return small_model(request.param)


def predict(model: SOLO, inputs: list[Tensor]) -> list:
    with torch.inference_mode():
        batch = model.preprocess(inputs)
        return model.postprocess(model(batch.pixels, batch.sizes), batch)


LIGHT_SIZES = {"light_resnet50_dcn": 512, "solov2_light": 448, "decoupled_solo_light": 512}
BUILDERS = [name for name in models.__all__ if "solo" in name]


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_have_static_shapes(name):
    """On the meta device there is no data, so that any read of it raises."""
    with torch.device("meta"):
        built = getattr(models, name)(num_classes=5)
    built.to("meta")  # the table of least areas, which is made on the CPU
    with torch.inference_mode(), nothing_from_the_host():
        detections = built(
            torch.empty(2, 3, 96, 128, device="meta"),
            torch.empty(2, 2, dtype=torch.int64, device="meta"),
        )
    assert detections.scores.shape == (2, 100)
    assert detections.labels.shape == (2, 100)
    assert detections.masks.shape == (2, 100, 24, 32)
    assert detections.counts.shape == (2,)
    size = next((size for kind, size in LIGHT_SIZES.items() if kind in name), 800)
    assert built.transform.min_size == size


def test_all_rows_of_the_zoo_are_there():
    for name in (
        *(f"solov2_resnet{depth}_fpn" for depth in (18, 34, 50, 101)),
        *(f"solov2_light_resnet{depth}_fpn" for depth in (18, 34, 50)),
        "solov2_light_resnet50_dcn_fpn",
        "solov2_resnet101_dcn_fpn",
        "solov2_resnext101_dcn_fpn",
        *(
            f"{kind}_resnet{depth}_fpn"
            for kind in ("solo", "decoupled_solo")
            for depth in (50, 101)
        ),
        "decoupled_solo_light_resnet50_fpn",
    ):
        assert name in BUILDERS


def test_initial_probabilities_are_low():
    built = models.solov2_light_resnet18_fpn(num_classes=5)
    with torch.inference_mode():
        logits = built.predict_grids(torch.randn(1, 3, 64, 64)).class_logits
    assert torch.cat([level.flatten() for level in logits]).sigmoid().mean() < 0.02


def test_results_lie_in_their_images(model):
    sizes = [(101, 150), (87, 63)]
    for size, result in zip(sizes, predict(model, images(*sizes)), strict=True):
        assert result.image_size == size
        assert 3 < len(result) <= 100
        assert (result.scores.diff() <= 0).all()
        assert ((result.scores >= 0.01) & (result.scores <= 1)).all()
        assert ((result.labels >= 0) & (result.labels < NUM_CLASSES)).all()
        for (x1, y1, x2, y2), mask in zip(result.boxes.tolist(), result.masks(), strict=True):
            if mask.any():
                rows, columns = mask.nonzero(as_tuple=True)
                assert (columns.min(), rows.min()) == (x1, y1)
                assert (columns.max() + 1, rows.max() + 1) == (x2, y2)
            else:
                assert (x1, y1, x2, y2) == (0, 0, 0, 0)


def test_masks_of_cells_equal_masks_in_training(model):
    """The cells of all levels together are those of the levels one by one."""
    batch = model.preprocess(images((101, 150)))
    grids = model.head.num_grids
    with torch.no_grad():
        predictions = model.predict_grids(batch.pixels)
        first = 0
        for level, num_grid in enumerate(grids):
            cells = torch.tensor([0, num_grid + 3, num_grid**2 - 1])
            masks = model.head.mask_probabilities(predictions, first + cells[None])[0]
            one = model.head.training_masks(predictions, level, 0, cells)
            if masks.shape == one.shape:
                torch.testing.assert_close(masks, one)
            elif isinstance(model.head, SOLOHead):
                one = nn.functional.interpolate(one[None], size=masks.shape[1:], mode="bilinear")
                torch.testing.assert_close(masks, one[0])
            else:  # a product of resized maps is not the resized product, but near
                one = nn.functional.interpolate(one[None], size=masks.shape[1:], mode="bilinear")
                assert (masks - one[0]).abs().mean() < 0.05
            first += num_grid**2


@pytest.mark.parametrize("name", HEADS)
def test_image_without_instances(name):
    (result,) = predict(small_model(name, score_thr=0.99999), images((100, 100)))
    assert len(result) == 0
    assert result.boxes.shape == (0, 4)
    assert result.rles == []


def test_padding_is_zero(model):
    batch = model.preprocess(images((100, 150), (90, 90)))
    with torch.inference_mode():
        detections = model(batch.pixels, batch.sizes)
    assert detections.scores.shape == (2, 100)
    for i, count in enumerate(detections.counts.tolist()):
        assert 0 < count <= 100
        for field in (detections.scores, detections.labels, detections.masks):
            assert not field[i, count:].any()


def test_image_of_nan_has_no_instances(model):
    inputs = images((100, 150), (100, 150))
    _, expected = predict(model, inputs)
    inputs[0].fill_(torch.nan)
    broken, sound = predict(model, inputs)
    assert len(broken) == 0
    assert sound.labels.tolist() == expected.labels.tolist()
    assert sound.scores.tolist() == expected.scores.tolist()


def test_rows_that_the_cpu_skips_change_nothing(model, monkeypatch):
    from fastseg.models import solo

    batch = model.preprocess(images((100, 150), (90, 90)))
    with torch.inference_mode():
        skipped = model(batch.pixels, batch.sizes)
        monkeypatch.setattr(solo, "rows_in_use", lambda counts, num_rows: num_rows)
        complete = model(batch.pixels, batch.sizes)
    assert complete.counts.tolist() == skipped.counts.tolist()
    assert complete.labels.tolist() == skipped.labels.tolist()
    torch.testing.assert_close(complete.scores, skipped.scores, rtol=0, atol=1e-5)


def test_layout_and_gradients_change_nothing(model):
    batch = model.preprocess(images((100, 150), (90, 90)))
    with torch.inference_mode():
        expected = model(batch.pixels, batch.sizes)
    model.to(memory_format=torch.channels_last)
    detections = model(batch.pixels.contiguous(memory_format=torch.channels_last), batch.sizes)
    assert detections.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(detections.scores, expected.scores, rtol=0, atol=1e-4)


def test_compiles_without_a_graph_break():
    model = small_model("solov2")
    batch = model.preprocess(images((100, 150), (90, 90)))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        expected = model(batch.pixels, batch.sizes)
        detections = compiled(batch.pixels, batch.sizes)
    assert detections.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(detections.scores, expected.scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs(dtype):
    results = Predictor(small_model("solov2"), "cpu", dtype)(images((100, 150)))
    assert len(results[0]) > 3
    assert results[0].scores.dtype == torch.float32


def test_hyper_parameters_limit_the_results():
    inputs = images((100, 150))
    (all_of_them,) = predict(small_model("solov2"), inputs)
    (few,) = predict(small_model("solov2", max_per_img=3), inputs)
    assert len(few) == 3
    assert few.labels.tolist() == all_of_them.labels[:3].tolist()
    threshold = all_of_them.scores[4].item()
    (good,) = predict(small_model("solov2", filter_thr=threshold), inputs)
    assert len(good) == 5
    (one,) = predict(small_model("solov2", max_candidates=1), inputs)
    assert len(one) <= 1
    (first,) = predict(small_model("solov2", nms_pre=2), inputs)
    assert len(first) <= 2


def test_training_mode_is_refused_and_keeps_statistics():
    trained = small_model("solov2")
    batch = trained.preprocess(images((100, 150)))
    trained.backbone.body.bn1 = nn.BatchNorm2d(64)
    assert trained.train() is trained
    assert not trained.backbone.body.bn1.training
    assert trained.head.training
    with pytest.raises(RuntimeError, match="eval"):
        trained(batch.pixels, batch.sizes)


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match="2 names for 4 classes"):
        small_model("solov2", class_names=("cat", "dog"))
    with pytest.raises(ValueError, match="strides has 4 numbers for 5 levels"):
        small_model("solov2", strides=(8, 8, 16, 32))


@pytest.fixture
def weights(tmp_path):
    """A file of the model `small_model("solov2")`, with its options and class names."""
    config = {"arch": "solo", "classes": list("abcd"), **OPTIONS}
    path = tmp_path / "model.safetensors"
    save_file(small_model("solov2").state_dict(), path, metadata={"config": json.dumps(config)})
    return path


def test_predictor(weights):
    made = small_model("solov2")
    inputs = images((101, 150), (87, 63))
    expected = [predict(made, [image])[0] for image in inputs]
    results = Predictor(weights, "cpu")(inputs)
    for ours, other in zip(results, expected, strict=True):
        assert ours.labels.tolist() == other.labels.tolist()
        assert ours.rles == other.rles
        assert set(ours.names) <= set("abcd")


def test_command_line(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (image,) = images((101, 150))
    Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save("noise.png")
    words = ["--weights", str(weights), "--score", "0.05", "--device", "cpu", "--output", "out"]
    assert main(["segment", "noise.png", *words]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(found) > 3
    assert coco_mask.decode(found[0]["segmentation"]).shape == (101, 150)
    categories = json.loads((tmp_path / "out" / "images.json").read_text())["categories"]
    assert [one["name"] for one in categories] == list("abcd")
    assert (tmp_path / "out" / "noise.png").exists()


@pytest.mark.parametrize("convert", [False, True])
def test_maps_are_channels_last(convert):
    """Whether or not the weights are: other maps would be copied for every convolution."""
    model = small_model("solov2")
    if convert:
        model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        predictions = model.predict_grids(torch.rand(1, 3, 160, 96))
    for maps in (predictions.mask_features, *predictions.kernels, *predictions.class_logits):
        assert maps.is_contiguous(memory_format=torch.channels_last)


def test_pyramid_is_the_same_with_and_without_gradients():
    """Without, maps are added up in place."""
    pyramid = small_model("solov2").backbone.fpn
    channels = [block[0].in_channels for block in pyramid.inner_blocks]
    for sizes in ([(16, 24), (8, 12), (4, 6), (2, 3)], [(17, 23), (9, 12), (5, 6), (1, 1)]):
        stages = [torch.rand(2, c, *size) for c, size in zip(channels, sizes, strict=True)]
        expected = pyramid(stages)
        with torch.no_grad():
            actual = pyramid(stages)
        assert len(actual) == 5 and torch.equal(actual[4], expected[3][:, :, ::2, ::2])
        assert all(map(torch.equal, actual, expected))


def test_points_nms_keeps_the_best_of_four():
    scores = torch.rand(1, 2, 6, 6)
    kept = points_nms(scores)
    for c in range(2):
        for y in range(6):
            for x in range(6):
                window = scores[0, c, max(y - 1, 0) : y + 1, max(x - 1, 0) : x + 1]
                best = scores[0, c, y, x] == window.max()
                assert kept[0, c, y, x] == (scores[0, c, y, x] if best else 0)


def test_candidates_are_sorted_pairs_above_the_threshold():
    logits = [torch.randn(2, 3, 5, 5), torch.randn(2, 3, 4, 4)]
    found = top_candidates(logits, score_thr=0.6, max_candidates=200)
    assert found.scores.shape == (2, 123)
    for image in range(2):
        scores = [points_nms(level.sigmoid())[image].flatten(1) for level in logits]
        scores = torch.cat(scores, dim=1)
        count = found.counts[image]
        assert count == (scores > 0.6).sum() > 5
        expected = scores[scores > 0.6].sort(descending=True).values
        assert torch.equal(found.scores[image, :count], expected)
        labels, cells = found.labels[image, :count], found.cells[image, :count]
        assert torch.equal(scores[labels, cells], expected)
        assert not found.scores[image, count:].any()


def test_coordinates_run_from_minus_one_to_one():
    x, y = coordinates(torch.zeros(1, 8, 3, 5))[0]
    assert x[1].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert y[:, 2].tolist() == [-1, 0, 1]


def test_selection_drops_small_masks_and_lowers_duplicates():
    masks = torch.zeros(1, 4, 10, 10)
    masks[0, 0, :5] = masks[0, 1, :5] = 0.9  # the same twice
    masks[0, 2, 6:] = 0.8
    masks[0, 3, 0, :4] = 1.0  # 4 pixels are not more than 4
    candidates = top_candidates([torch.full((1, 1, 2, 2), 2.0)], score_thr=0.1, max_candidates=4)
    selection = mask_selection.MaskSelection(filter_thr=0.1)
    found = selection(masks, candidates, torch.full((1, 4), 4))
    p = torch.tensor(2.0).sigmoid()
    decayed = 0.9 * p * torch.exp(torch.tensor(-2.0))
    assert found.counts.tolist() == [3]
    torch.testing.assert_close(found.scores[0, :3], torch.stack((0.9 * p, 0.8 * p, decayed)))
    assert torch.equal(found.masks[0, 1], masks[0, 2])


@pytest.mark.gpu
@pytest.mark.parametrize("name", HEADS)
def test_cuda_graph_replays_what_the_cpu_finds(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    inputs = images((100, 150), (90, 90))
    expected = predict(small_model(name), inputs)
    on_gpu = small_model(name).cuda()
    batch = on_gpu.preprocess(inputs)
    with torch.inference_mode():
        for _ in range(3):
            on_gpu(batch.pixels, batch.sizes)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = on_gpu(batch.pixels, batch.sizes)
        graph.replay()
        results = on_gpu.postprocess(captured, batch)
    for ours, exact in zip(results, expected, strict=True):
        assert len(ours) == len(exact)
        torch.testing.assert_close(ours.scores.cpu(), exact.scores, rtol=0, atol=1e-2)
