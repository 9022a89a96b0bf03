"""Mask2Former and MaskFormer by themselves: shapes, layouts, types, results, errors."""

from __future__ import annotations

import pytest
import torch
from host_tensors import nothing_from_the_host
from made_up_images import images
from torch import Tensor, nn

from fastseg import Predictor, models
from fastseg.backbones import SwinTransformer, resnet18
from fastseg.layers.base_pixel_decoder import BasePixelDecoder
from fastseg.layers.encoder_pixel_decoder import TransformerEncoderPixelDecoder
from fastseg.layers.mask_classification import MaskClassifier, MaskPredictions
from fastseg.layers.masked_attention_decoder import MaskedAttentionDecoder
from fastseg.layers.pixel_decoder import MSDeformAttnPixelDecoder, pixel_centers
from fastseg.layers.transformer_decoder import TransformerDecoder
from fastseg.models import ImageBatch, Mask2Former, MaskFormer

NUM_CLASSES = 5
NUM_QUERIES = 12
KINDS = ("mask2former_resnet", "mask2former_swin", "maskformer_resnet", "maskformer_swin")
OPTIONS = {"min_size": 96, "max_size": 160}


def small_model(kind: str, **options) -> Mask2Former:
    """A narrow model with random weights that have opinions."""
    torch.manual_seed(0)
    if kind.endswith("resnet"):
        backbone = resnet18()
    else:
        backbone = SwinTransformer(
            embed_channels=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 2), window_size=5
        )
    widths = {"channels": 64, "mask_channels": 32}
    sizes = {"num_classes": NUM_CLASSES, "num_queries": NUM_QUERIES, "num_heads": 4, **widths}
    decoder: MaskClassifier
    if kind.startswith("maskformer"):
        model_class: type[Mask2Former] = MaskFormer
        in_channels = backbone.out_channels
        pixel_decoder = BasePixelDecoder(in_channels=in_channels, **widths)
        level_channels = in_channels[-1]
        if kind.endswith("resnet"):
            pixel_decoder = TransformerEncoderPixelDecoder(
                in_channels=in_channels, num_heads=4, num_layers=2, ffn_channels=96, **widths
            )
            level_channels = widths["channels"]
        decoder = TransformerDecoder(
            in_channels=level_channels, num_layers=2, ffn_channels=96, **sizes
        )
    else:
        model_class = Mask2Former
        pixel_decoder = MSDeformAttnPixelDecoder(
            in_channels=backbone.out_channels,
            num_heads=4,
            num_layers=2,
            ffn_channels=80,
            **widths,
        )
        decoder = MaskedAttentionDecoder(in_channels=64, num_layers=4, ffn_channels=96, **sizes)
    model = model_class(
        backbone=backbone, pixel_decoder=pixel_decoder, decoder=decoder, **{**OPTIONS, **options}
    )
    with torch.no_grad():
        model.decoder.class_predictor.weight.mul_(8)
        model.decoder.mask_embed[2].weight.mul_(4)
        for module in model.modules():  # offsets that differ from query to query
            if hasattr(module, "sampling_offsets"):
                module.sampling_offsets.weight.normal_(std=0.2)
                module.attention_weights.weight.normal_(std=0.2)
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request) -> Mask2Former:
    return small_model(request.param)


def predict(model: Mask2Former, inputs: list[Tensor], task: str | None = None) -> list:
    with torch.inference_mode():
        batch = model.preprocess(inputs)
        return model.postprocess(model(batch.pixels, batch.sizes), batch, task)


BUILDERS = [name for name in models.__all__ if name.startswith(("mask2former_", "maskformer_"))]


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_have_static_shapes(name):
    """On the meta device there is no data, so that any read of it raises."""
    with torch.device("meta"):
        built = getattr(models, name)(num_classes=5)
    number = 200 if name == "mask2former_swin_l" else 100
    with torch.inference_mode(), nothing_from_the_host():
        found = built(
            torch.empty(2, 3, 96, 128, device="meta"),
            torch.empty(2, 2, dtype=torch.int64, device="meta"),
        )
    assert found.class_logits.shape == (2, number, 6)
    assert found.mask_logits.shape == (2, number, 24, 32)


def test_all_rows_of_the_zoo_are_there():
    backbones = ("resnet50", "resnet101", "swin_t", "swin_s", "swin_b", "swin_l")
    assert sorted(BUILDERS) == sorted(
        f"{kind}_{backbone}" for kind in ("mask2former", "maskformer") for backbone in backbones
    )


def test_parameters_number_as_the_papers():
    """In millions, tables 1 of Mask2Former and 2 of MaskFormer (panoptic, 133 classes)."""
    for name, millions in (
        ("mask2former_resnet50", 44),
        ("mask2former_resnet101", 63),
        ("mask2former_swin_t", 47),
        ("mask2former_swin_s", 69),
        ("mask2former_swin_b", 107),
        ("mask2former_swin_l", 216),
        ("maskformer_resnet50", 45),
        ("maskformer_resnet101", 64),
        ("maskformer_swin_t", 42),
        ("maskformer_swin_b", 102),
    ):
        with torch.device("meta"):
            built = getattr(models, name)(num_classes=133)
        tensors = [*built.parameters(), *built.backbone.buffers()]
        assert abs(sum(x.numel() for x in tensors) / 1e6 - millions) < 1, name


def test_layers_begin_with_the_queries_and_end_with_the_result(model):
    batch = model.preprocess(images((100, 150), (90, 90)))
    with torch.inference_mode():
        layers = model.predict_layers(batch.pixels)
        last = model(batch.pixels, batch.sizes)
    number = len(model.decoder.layers)
    assert len(layers) == (number if isinstance(model, MaskFormer) else number + 1)
    assert torch.equal(layers[-1].class_logits, last.class_logits)
    assert torch.equal(layers[-1].mask_logits, last.mask_logits)
    assert not torch.equal(layers[-2].mask_logits, last.mask_logits)
    if not isinstance(model, MaskFormer):  # learned queries have seen no image
        assert torch.equal(layers[0].class_logits[0], layers[0].class_logits[1])


@pytest.mark.parametrize("kind", ["mask2former_swin", "maskformer_resnet"])
def test_gradients_reach_every_parameter(kind):
    trained = small_model(kind).train()
    layers = trained.predict_layers(trained.preprocess(images((100, 150))).pixels)
    loss = sum(x.class_logits.square().mean() + x.mask_logits.square().mean() for x in layers)
    loss.backward()
    assert [name for name, x in trained.named_parameters() if x.grad is None] == []
    assert all(x.grad.isfinite().all() for x in trained.parameters())


def test_attention_is_masked_by_the_queries_own_masks():
    """Pixels outside a query's mask do not change what the first layer makes of it."""
    decoder = small_model("mask2former_resnet").decoder
    levels = [torch.randn(1, 64, side, side) for side in (2, 4, 8)]
    features = torch.randn(1, 32, 16, 16)
    with torch.no_grad():
        learned = decoder.decode(levels, features)[0]
        mask = decoder.classify(learned, features).mask_logits
        mask = nn.functional.interpolate(mask, (2, 2), mode="bilinear") >= 0
        changed = levels[0] + torch.where(mask[0, 3], 0, 9.0)
        # Only the cross-attention of one query is compared: self-attention mixes them.
        keys, values = decoder.memory([levels[0], *levels[1:]])
        other_keys, other_values = decoder.memory([changed, *levels[1:]])
        packed = decoder.attention_mask(
            learned, nn.functional.interpolate(features, (2, 2), mode="bilinear")
        )
        layer, x = decoder.layers[0], decoder.query_features.weight[None]
        place = decoder.query_embed.weight
        one = layer.attend_pixels(x, place, keys[0], values[0], packed)
        other = layer.attend_pixels(x, place, other_keys[0], other_values[0], packed)
    assert 0 < mask[0, 3].sum() < 4
    torch.testing.assert_close(one[0, 3], other[0, 3])
    differs = (one - other).abs().amax(2)[0] > 1e-3
    expected = (mask[0] & ~mask[0, 3]).flatten(1).any(1) | ~mask[0].flatten(1).any(1)
    assert torch.equal(differs, expected)


def test_layout_changes_nothing(model):
    batch = model.preprocess(images((100, 150), (90, 90)))
    with torch.inference_mode():
        expected = model(batch.pixels, batch.sizes)
    model.to(memory_format=torch.channels_last)
    found = model(batch.pixels.contiguous(memory_format=torch.channels_last), batch.sizes)
    assert_close(found, expected, 1e-3)


def test_images_of_a_batch_do_not_mix(model):
    batch = model.preprocess(images((100, 150), (100, 150), (100, 150)))
    batch.pixels[1] = torch.nan
    with torch.inference_mode():
        found = model(batch.pixels, batch.sizes)
        alone = model(batch.pixels[2:], batch.sizes[2:])
    third = MaskPredictions(found.class_logits[2:], found.mask_logits[2:])
    assert_close(third, alone, 1e-3)


def assert_close(ours: MaskPredictions, expected: MaskPredictions, atol: float) -> None:
    """Within a tolerance, but for few pixels that fell on the other side of an attention mask."""
    torch.testing.assert_close(ours.class_logits, expected.class_logits, rtol=0, atol=atol)
    torch.testing.assert_close(ours.mask_logits, expected.mask_logits, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", ["mask2former_swin", "maskformer_resnet"])
def test_compiles_without_a_graph_break(kind):
    model = small_model(kind)
    batch = model.preprocess(images((100, 150), (90, 90)))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        expected = model(batch.pixels, batch.sizes)
        assert_close(compiled(batch.pixels, batch.sizes), expected, 1e-3)


@pytest.mark.parametrize("kind", ["mask2former_resnet", "maskformer_swin"])
def test_exports(kind):
    model = small_model(kind)
    batch = model.preprocess(images((100, 150)))

    class Tensors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
            found = self.model(pixels, sizes)
            return found.class_logits, found.mask_logits

    with torch.no_grad():
        expected = model(batch.pixels, batch.sizes)
        exported = torch.export.export(Tensors(), (batch.pixels, batch.sizes)).module()
        found = MaskPredictions(*exported(batch.pixels, batch.sizes))
    assert_close(found, expected, 1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mask2former_resnet", "maskformer_swin"])
def test_half_precision(kind, dtype):
    model = small_model(kind)
    batch = model.preprocess(images((100, 150)))
    with torch.inference_mode():
        expected = model(batch.pixels, batch.sizes)
        with torch.autocast("cpu", dtype):
            mixed = model(batch.pixels, batch.sizes)
        half = model.to(dtype)(batch.pixels.to(dtype), batch.sizes)
    for found in (mixed, half):
        assert found.mask_logits.dtype == found.class_logits.dtype == dtype
        same = (found.mask_logits > 0) == (expected.mask_logits > 0)
        assert same.float().mean() > 0.9
        (instances,) = model.postprocess(found, batch)
        assert len(instances) == NUM_QUERIES * NUM_CLASSES
        assert instances.scores.dtype == torch.float32


def test_instances(model):
    sizes = [(101, 150), (87, 63)]
    for size, result in zip(sizes, predict(model, images(*sizes)), strict=True):
        assert result.image_size == size
        assert len(result) == NUM_QUERIES * NUM_CLASSES
        assert (result.scores.diff() <= 0).all()
        assert ((result.scores >= 0) & (result.scores <= 1)).all()
        for (x1, y1, x2, y2), mask in zip(result.boxes.tolist(), result.masks(), strict=True):
            if mask.any():
                rows, columns = mask.nonzero(as_tuple=True)
                assert (columns.min(), rows.min()) == (x1, y1)
                assert (columns.max() + 1, rows.max() + 1) == (x2, y2)
            else:
                assert (x1, y1, x2, y2) == (0, 0, 0, 0)


def made_up(mask_logits: Tensor, **probabilities: float) -> MaskPredictions:
    """Query i has the class that comes i-th with that probability, and "no object" else."""
    logits = torch.full((1, len(mask_logits), NUM_CLASSES + 1), -30.0)
    for query, (name, probability) in enumerate(probabilities.items()):
        logits[0, query, int(name[-1])] = torch.tensor(probability).log()
        logits[0, query, -1] = torch.tensor(1 - probability).log()
    return MaskPredictions(logits, mask_logits[None])


def test_scores_of_instances_follow_the_definition():
    masks = torch.full((3, 8, 8), -3.0)
    masks[0, :4] = 2.0
    masks[1, :, 4:] = 0.5
    batch = ImageBatch(torch.zeros(1, 3, 32, 32), torch.tensor([[24, 32]]), [(24, 32)])
    model = small_model("mask2former_resnet", top_k=3)
    predictions = made_up(masks, class2=0.9, class4=0.6, class1=0.8)
    (found,) = model.postprocess(predictions, batch)
    resized = nn.functional.interpolate(masks[None], (32, 32), mode="bilinear")[0, :, :24]
    expected = []
    for logits, probability in zip(resized, (0.9, 0.6, 0.8), strict=True):
        inside = logits > 0
        quality = (logits.sigmoid() * inside).sum() / (inside.sum() + 1e-6)
        expected.append(probability * quality.item())
    assert found.labels.tolist() == [2, 4, 1]
    assert found.scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert found.scores[2] == 0  # its mask is empty
    assert torch.equal(found.masks(), resized > 0)


def test_top_k_counts_pairs_and_panoptic_models_keep_things():
    inputs = images((100, 150))
    (best,) = predict(small_model("mask2former_resnet", top_k=7), inputs)
    assert len(best) == 7
    (everything,) = predict(small_model("mask2former_resnet"), inputs)
    panoptic = small_model("mask2former_resnet", task="panoptic", thing_classes=[1, 3])
    (things,) = predict(panoptic, inputs, "instance")
    kept = torch.isin(everything.labels, torch.tensor([1, 3]))
    assert things.labels.tolist() == everything.labels[kept].tolist()
    assert torch.equal(things.scores, everything.scores[kept])


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_semantic_models_resize_scores_and_others_masks(task):
    model = small_model("mask2former_resnet", task=task)
    batch = model.preprocess(images((101, 150)))
    size = [side // 4 for side in batch.pixels.shape[2:]]
    masks = nn.functional.interpolate(6 * torch.randn(1, 12, 6, 9), size, mode="bilinear")
    predictions = MaskPredictions(2 * torch.randn(1, 12, NUM_CLASSES + 1), masks)
    (found,) = model.postprocess(predictions, batch, "semantic")
    (height, width), original = batch.sizes[0].tolist(), (101, 150)
    classes = predictions.class_logits[0].softmax(1)[:, :-1]
    x = nn.functional.interpolate(
        predictions.mask_logits, tuple(batch.pixels.shape[2:]), mode="bilinear"
    )[:, :, :height, :width]
    if task == "panoptic":
        x = nn.functional.interpolate(x, original, mode="bilinear")
    x = torch.einsum("qk,bqhw->bkhw", classes, x.sigmoid())
    if task == "semantic":
        x = nn.functional.interpolate(x, original, mode="bilinear")
    assert (found.labels == x[0].argmax(0)).float().mean() > 0.9995
    assert len(found.labels.unique()) > 2


@pytest.mark.parametrize("kind", ["mask2former_resnet", "maskformer_swin"])
def test_predictor_gives_what_the_model_gives(kind):
    model = small_model(kind, object_mask_threshold=0.1, overlap_threshold=0.05)
    inputs = images((101, 150), (87, 63))
    with torch.inference_mode():
        (maps,) = zip(*[predict(model, [one], "panoptic") for one in inputs], strict=True)
    found = Predictor(model, "cpu", task="panoptic")(inputs)
    assert sum(len(one) for one in found) > 2
    for ours, expected, image in zip(found, maps, inputs, strict=True):
        assert torch.equal(ours.ids, expected.ids)
        assert ours.ids.shape == image.shape[1:]
        assert ours.segments == expected.segments
        areas = [int((ours.ids == one.id).sum()) for one in ours.segments]
        assert areas == [one.area for one in ours.segments]


def test_image_of_nan_has_no_masks(model):
    (found,) = predict(model, [torch.full((3, 100, 150), torch.nan)])
    assert found.masks().sum() == 0


def test_training_mode_is_refused_and_keeps_statistics():
    trained = small_model("mask2former_resnet")
    batch = trained.preprocess(images((100, 150)))
    trained.backbone.bn1 = nn.BatchNorm2d(64)
    assert trained.train() is trained
    assert not trained.backbone.bn1.training
    assert trained.decoder.training
    with pytest.raises(RuntimeError, match=r"Mask2Former is in training mode.*predict_layers"):
        trained(batch.pixels, batch.sizes)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="2 names for 5 classes"):
        small_model("mask2former_resnet", class_names=("cat", "dog"))
    with pytest.raises(ValueError, match=r"thing_classes must be from 0 to 4, got \[5\]"):
        small_model("mask2former_resnet", thing_classes=[5])
    with pytest.raises(ValueError, match=r"task must be one of instance, .*, got 'depth'"):
        small_model("mask2former_resnet", task="depth")
    with pytest.raises(ValueError, match="got 'boxes'"):
        predict(small_model("mask2former_resnet"), images((96, 96)), "boxes")
    with pytest.raises(ValueError, match="channels=64 do not divide into num_heads=7"):
        MaskedAttentionDecoder(num_classes=2, channels=64, num_heads=7)


def test_things_of_known_data_sets():
    for number, things in ((80, 80), (133, 80), (150, 100), (19, 8), (7, 7)):
        with torch.device("meta"):
            built = models.mask2former_resnet50(num_classes=number)
        assert len(built.thing_classes) == things
    assert built.tasks == ("instance", "panoptic", "semantic")


def test_pixel_centers():
    centers = pixel_centers([(1, 2), (2, 1)], torch.device("cpu"))
    assert centers.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_cuda_graph_replays_what_the_cpu_finds(kind, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    inputs = images((100, 150), (90, 90))
    (expected, *_) = predict(small_model(kind), inputs)
    on_gpu = small_model(kind).cuda()
    batch = on_gpu.preprocess(inputs)
    with torch.inference_mode():
        for _ in range(3):
            on_gpu(batch.pixels, batch.sizes)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = on_gpu(batch.pixels, batch.sizes)
        graph.replay()
        (found, *_) = on_gpu.postprocess(captured, batch)
    torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=0, atol=1e-2)
