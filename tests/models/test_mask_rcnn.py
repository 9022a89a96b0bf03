"""Mask R-CNN against torchvision's, with the same random weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from host_tensors import nothing_from_the_host
from made_up_images import images
from torch import nn

from fastseg import load_model, models
from fastseg.layers import roi_heads
from fastseg.models import MaskRCNN

pytest.importorskip("torchvision", reason="torchvision is the peer that is compared with")
from torchvision_peer import (
    HYPER_PARAMETERS,
    NUM_CLASSES,
    assert_same_detections,
    torchvision_mask_rcnn,
    with_hyper_parameters,
)

BUILDERS = {
    "resnet18": models.mask_rcnn_resnet18_fpn,
    "resnet50": partial(models.mask_rcnn_resnet50_fpn, norm_layer=nn.BatchNorm2d),
    "resnet50_v2": models.mask_rcnn_resnet50_fpn_v2,
    "resnet101": models.mask_rcnn_resnet101_fpn,
    "resnext101_32x8d": models.mask_rcnn_resnext101_32x8d_fpn,
}


def predict(model: MaskRCNN, batch_images: list[torch.Tensor]) -> list:
    with torch.inference_mode():
        batch = model.preprocess(batch_images)
        return model.postprocess(model(batch.pixels, batch.sizes), batch)


@pytest.fixture(scope="module")
def peer():
    return torchvision_mask_rcnn("resnet18")


@pytest.fixture(scope="module")
def model(peer):
    return load_model(peer.state_dict(), **HYPER_PARAMETERS)


@pytest.mark.parametrize("name", BUILDERS)
def test_builders_equal_torchvision(name):
    peer = torchvision_mask_rcnn(name)
    with torch.device("meta"):
        model = BUILDERS[name](num_classes=NUM_CLASSES, **HYPER_PARAMETERS)
    model.load_state_dict(peer.state_dict(), assign=True)
    batch = images((100, 150), (160, 131))

    results = predict(model, batch)

    with torch.inference_mode():
        expected = peer(batch)
    for ours, theirs in zip(results, expected, strict=True):
        assert len(ours) == 100
        assert len(set(ours.labels.tolist())) > 1
        assert_same_detections(ours, theirs)


@pytest.mark.parametrize(
    "sizes",
    [
        [(128, 128)],
        [(97, 311)],
        [(480, 200)],
        [(61, 60)],
        [(200, 240), (90, 300), (301, 150)],
    ],
)
def test_image_sizes_and_mixed_batches_equal_torchvision(model, peer, sizes):
    # Seeds with which no overlap of proposals lies within rounding of a threshold of NMS.
    batch = images(*sizes, seed=sum(map(sum, sizes)) + 1)
    results = predict(model, batch)
    with torch.inference_mode():
        expected = peer(batch)
    for size, ours, theirs in zip(sizes, results, expected, strict=True):
        assert ours.image_size == size
        assert len(ours) == 100
        assert_same_detections(ours, theirs)


@pytest.mark.parametrize(
    "changes",
    [
        {"box_score_thresh": 0.3},
        {"box_nms_thresh": 0.2, "box_detections_per_img": 17},
        {"rpn_nms_thresh": 0.4, "rpn_score_thresh": 0.5},
        {"rpn_pre_nms_top_n_test": 40, "rpn_post_nms_top_n_test": 30},
        {"min_size": (64, 96), "max_size": 110, "size_divisible": 64},
        {"fixed_size": (160, 96)},
        {"fixed_size": (64, 32)},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
        {"bbox_reg_weights": (8.0, 9.0, 4.0, 3.0)},
    ],
    ids=str,
)
def test_hyper_parameters_equal_torchvision(peer, changes):
    options = {**HYPER_PARAMETERS, **changes}
    peer = with_hyper_parameters(peer, **options)
    model = load_model(peer.state_dict(), **options)
    batch = images((100, 150), (140, 100))
    results = predict(model, batch)
    with torch.inference_mode():
        expected = peer(batch)
    for ours, theirs in zip(results, expected, strict=True):
        assert len(ours) > 0
        assert_same_detections(ours, theirs)


def test_image_without_instances(model, peer):
    options = {**HYPER_PARAMETERS, "box_score_thresh": 0.99999}
    strict = load_model(peer.state_dict(), **options)
    (result,) = predict(strict, images((100, 100)))
    assert len(result) == 0
    assert result.boxes.shape == (0, 4)
    assert result.rles == []


def test_image_of_nan_has_no_instances(model):
    batch_images = images((100, 150), (90, 90))
    (alone,) = predict(model, batch_images[1:])
    batch_images[0].fill_(torch.nan)
    broken, sound = predict(model, batch_images)
    assert len(broken) == 0
    assert len(sound) == len(alone) == 100


def test_padding_of_detections_is_zero(model):
    batch = model.preprocess(images((100, 150), (90, 90)))
    model.roi_heads.score_thresh = 0.5
    try:
        with torch.inference_mode():
            detections = model(batch.pixels, batch.sizes)
    finally:
        model.roi_heads.score_thresh = HYPER_PARAMETERS["box_score_thresh"]
    assert detections.boxes.shape == (2, 100, 4)
    assert detections.masks.shape == (2, 100, 28, 28)
    for i, count in enumerate(detections.counts.tolist()):
        assert 0 < count < 100
        assert (detections.scores[i, :count] > 0.5).all()
        for field in (detections.boxes, detections.scores, detections.labels, detections.masks):
            assert not field[i, count:].any()


def test_rows_that_the_cpu_skips_change_nothing(model, monkeypatch):
    batch = model.preprocess(images((100, 150), (90, 90)))
    with torch.inference_mode():
        skipped = model(batch.pixels, batch.sizes)
        monkeypatch.setattr(roi_heads, "rows_in_use", lambda counts, num_rows: num_rows)
        full = model(batch.pixels, batch.sizes)
    assert full.labels.tolist() == skipped.labels.tolist()
    torch.testing.assert_close(full.boxes, skipped.boxes, rtol=0, atol=1e-3)
    torch.testing.assert_close(full.masks, skipped.masks, rtol=0, atol=1e-4)


def test_shapes_do_not_depend_on_data(model):
    """On the meta device there is no data, so that any read of it raises."""
    shapes = models.mask_rcnn_resnet18_fpn(num_classes=NUM_CLASSES).to("meta")
    with torch.inference_mode(), nothing_from_the_host():
        detections = shapes(
            torch.empty(2, 3, 96, 128, device="meta"),
            torch.empty(2, 2, dtype=torch.int64, device="meta"),
        )
    assert detections.boxes.shape == (2, 100, 4)
    assert detections.scores.shape == (2, 100)
    assert detections.labels.shape == (2, 100)
    assert detections.masks.shape == (2, 100, 28, 28)
    assert detections.counts.shape == (2,)


def test_compiles_without_a_graph_break(model):
    batch = model.preprocess(images((100, 150), (90, 90)))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        expected = model(batch.pixels, batch.sizes)
        detections = compiled(batch.pixels, batch.sizes)
    assert detections.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(detections.boxes, expected.boxes, rtol=0, atol=1e-3)


def test_gradients_do_not_change_the_result(model):
    batch = model.preprocess(images((100, 150)))
    with torch.inference_mode():
        expected = model(batch.pixels, batch.sizes)
    detections = model(batch.pixels, batch.sizes)
    assert detections.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(detections.boxes, expected.boxes, rtol=0, atol=1e-3)


def test_layout_of_weights_and_pixels_changes_nothing(model, peer):
    channels_last = load_model(peer.state_dict(), **HYPER_PARAMETERS)
    channels_last.to(memory_format=torch.channels_last)
    batch = model.preprocess(images((100, 150), (90, 90)))
    with torch.inference_mode():
        expected = model(batch.pixels, batch.sizes)
        detections = channels_last(
            batch.pixels.contiguous(memory_format=torch.channels_last), batch.sizes
        )
    assert detections.labels.tolist() == expected.labels.tolist()
    torch.testing.assert_close(detections.boxes, expected.boxes, rtol=0, atol=1e-3)


def test_training_mode_is_refused(model):
    batch = model.preprocess(images((100, 150)))
    model.train()
    try:
        with pytest.raises(RuntimeError, match="eval"):
            model(batch.pixels, batch.sizes)
    finally:
        model.eval()


def test_number_of_anchors_must_fit_the_network():
    with pytest.raises(ValueError, match="give 6 anchors"):
        models.mask_rcnn_resnet18_fpn(anchor_sizes=((32, 48), (64, 96), (128,), (256,), (512,)))


def test_number_of_class_names_must_fit_the_network():
    with pytest.raises(ValueError, match="2 names for 91 classes"):
        models.mask_rcnn_resnet18_fpn(class_names=("background", "cell"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cuda_graph_replays_the_same_detections(peer, dtype):
    model = load_model(peer.state_dict(), **HYPER_PARAMETERS).to("cuda", dtype)
    batch = model.preprocess(images((100, 150), (90, 90)))
    with torch.inference_mode():
        for _ in range(3):
            eager = model(batch.pixels, batch.sizes)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = model(batch.pixels, batch.sizes)
        graph.replay()
    assert captured.labels.tolist() == eager.labels.tolist()
    torch.testing.assert_close(captured.boxes, eager.boxes, rtol=0, atol=1e-2)


@pytest.mark.gpu
def test_cuda_equals_the_cpu(model, peer, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    batch_images = images((100, 150), (90, 90))
    expected = predict(model, batch_images)
    results = predict(load_model(peer.state_dict(), **HYPER_PARAMETERS).cuda(), batch_images)
    for ours, exact in zip(results, expected, strict=True):
        assert ours.labels.tolist() == exact.labels.tolist()
        torch.testing.assert_close(ours.boxes.cpu(), exact.boxes, rtol=0, atol=1e-2)
