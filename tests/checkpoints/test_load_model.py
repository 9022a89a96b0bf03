"""Loading of torchvision's Mask R-CNN checkpoints: what is inferred, and what is refused."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastseg import default_model, load_model, models
from fastseg.backbones.resnet import BasicBlock, Bottleneck, ResNet, resnet50
from fastseg.checkpoints import torchvision_mask_rcnn
from fastseg.layers.batch_norm import FrozenBatchNorm2d
from fastseg.layers.box_head import ConvFCHead, FastRCNNPredictor, TwoMLPHead
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.mask_head import MaskHead, MaskPredictor
from fastseg.layers.region_proposal_network import RPNHead
from fastseg.models import MaskRCNN


def small_model(
    *,
    norm_layer=FrozenBatchNorm2d,
    block=BasicBlock,
    depths=(1, 2, 1, 1),
    num_classes=3,
    head_norm=None,
    conv_box_head=False,
    **body,
) -> MaskRCNN:
    """A network in torchvision's layout in which every size differs from the usual."""
    backbone = ResNet(block=block, depths=depths, norm_layer=norm_layer, **body)
    box_head = (
        ConvFCHead(in_channels=8, conv_channels=(6, 10), fc_features=(12, 9), norm_layer=head_norm)
        if conv_box_head
        else TwoMLPHead(in_channels=8, representation_size=9)
    )
    return MaskRCNN(
        backbone=BackboneWithFPN(
            body=backbone,
            fpn=FeaturePyramidNetwork(
                in_channels=backbone.out_channels, out_channels=8, norm_layer=head_norm
            ),
        ),
        rpn_head=RPNHead(in_channels=8, num_anchors=2, conv_depth=3),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(in_features=9, num_classes=num_classes),
        mask_head=MaskHead(in_channels=8, conv_channels=(6, 7, 5), norm_layer=head_norm),
        mask_predictor=MaskPredictor(in_channels=5, dim_reduced=11, num_classes=num_classes),
        aspect_ratios=(0.5, 2.0),
    )


@pytest.fixture
def state_dict() -> dict[str, Tensor]:
    return small_model().state_dict()


def load_small(source, **options) -> MaskRCNN:
    return load_model(source, aspect_ratios=(0.5, 2.0), **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_layer": nn.BatchNorm2d, "depths": (2, 1, 1, 3)},
        {"block": Bottleneck},
        {"block": Bottleneck, "groups": 4, "width_per_group": 8},
        {"block": Bottleneck, "width_per_group": 128},
        {"head_norm": nn.BatchNorm2d, "norm_layer": nn.BatchNorm2d, "conv_box_head": True},
        {"head_norm": nn.BatchNorm2d},
        {"conv_box_head": True, "num_classes": 91},
    ],
)
def test_structure_is_read_off_the_tensors(options):
    expected = small_model(**options)
    model = load_small(expected.state_dict(), batch_norm_eps=1e-5)
    assert str(model) == str(expected)
    for key, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    assert not model.training


def test_model_does_not_share_memory_with_the_state_dict(state_dict):
    model = load_small(state_dict)
    state_dict["backbone.body.conv1.weight"].fill_(7)
    assert not (model.backbone.body.conv1.weight == 7).any()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_body_equals_torchvisions_keys(block):
    detection = pytest.importorskip(
        "torchvision.models.detection", reason="torchvision is the peer that is compared with"
    )
    name = "resnet18" if block is BasicBlock else "resnet50"
    backbone = detection.backbone_utils.resnet_fpn_backbone(backbone_name=name, weights=None)
    state_dict = detection.MaskRCNN(backbone, num_classes=5).state_dict()
    assert load_model(state_dict).state_dict().keys() == state_dict.keys()


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_torch_files(tmp_path, state_dict, wrapper):
    content = state_dict
    if wrapper is not None:
        content = {wrapper: state_dict, "epoch": 3, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "model.pth")
    model = load_small(tmp_path / "model.pth")
    assert torch.equal(
        model.roi_heads.mask_head[2][0].bias, state_dict["roi_heads.mask_head.2.0.bias"]
    )
    assert str(load_small(str(tmp_path / "model.pth"))) == str(model)


def test_old_torch_files(tmp_path, state_dict):
    torch.save(state_dict, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    assert len(load_small(tmp_path / "model.pth").state_dict()) == len(state_dict)


def test_half_precision_becomes_float32(tmp_path, state_dict):
    half = {key: tensor.half() for key, tensor in state_dict.items()}
    save_file(half, tmp_path / "model.safetensors")
    model = load_small(tmp_path / "model.safetensors")
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, half[key].float())


def test_config_of_a_safetensors_file_and_overrides(tmp_path, state_dict):
    config = {
        "arch": "mask_rcnn",
        "num_classes": 3,
        "classes": ["background", "cat", "dog"],
        "aspect_ratios": [0.5, 2.0],
        "anchor_sizes": [[8], [16], [32], [64], [128]],
        "min_size": 320,
        "box_nms_thresh": 0.4,
    }
    path = tmp_path / "model.safetensors"
    save_file(state_dict, path, metadata={"config": json.dumps(config)})
    model = load_model(path, box_nms_thresh=0.3)
    assert model.class_names == ("background", "cat", "dog")
    assert model.transform.min_size == 320
    assert model.roi_heads.nms_thresh == 0.3
    cells = model.rpn.anchors.cell_anchors0.view(torch.float32)
    assert cells.abs().max() == 6  # 8 * sqrt(2) / 2, rounded


def test_config_with_unknown_names_is_refused(tmp_path, state_dict):
    path = tmp_path / "model.safetensors"
    save_file(state_dict, path, metadata={"config": json.dumps({"box_fancy": 1})})
    with pytest.raises(ValueError, match="box_fancy"):
        load_small(path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([1], "is list, not a dictionary"),
        ({"classes": 5}, "says that its classes are 5, not names"),
        ({"classes": "abc"}, "says that its classes are 'abc', not names"),
    ],
)
def test_config_of_another_kind_is_refused(tmp_path, state_dict, config, message):
    path = tmp_path / "model.safetensors"
    save_file(state_dict, path, metadata={"config": json.dumps(config)})
    with pytest.raises(ValueError, match=message):
        load_small(path)
    with pytest.raises(ValueError, match="class_names must be a name for each class, got 'abc'"):
        load_small(state_dict, class_names="abc")


def test_config_of_another_model_is_refused(tmp_path, state_dict):
    path = tmp_path / "model.safetensors"
    save_file(state_dict, path, metadata={"config": json.dumps({"arch": "solov2"})})
    with pytest.raises(ValueError, match="solov2"):
        load_small(path)


def test_every_hyper_parameter_arrives(state_dict):
    model = load_small(
        state_dict,
        min_size=(400, 500),
        max_size=900,
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
        rpn_pre_nms_top_n_test=11,
        rpn_post_nms_top_n_test=12,
        rpn_nms_thresh=0.13,
        rpn_score_thresh=0.14,
        box_score_thresh=0.15,
        box_nms_thresh=0.16,
        box_detections_per_img=17,
        bbox_reg_weights=(1.0, 2.0, 3.0, 4.0),
        batch_norm_eps=0.5,
    )
    assert (model.transform.min_size, model.transform.max_size) == (500, 900)
    assert model.transform.image_mean == (0.1, 0.2, 0.3)
    assert model.transform.image_std == (0.4, 0.5, 0.6)
    assert (model.rpn.pre_nms_top_n, model.rpn.post_nms_top_n) == (11, 12)
    assert (model.rpn.nms_thresh, model.rpn.score_thresh) == (0.13, 0.14)
    assert (model.roi_heads.score_thresh, model.roi_heads.nms_thresh) == (0.15, 0.16)
    assert model.roi_heads.detections_per_img == 17
    assert model.roi_heads.bbox_reg_weights == (1.0, 2.0, 3.0, 4.0)
    assert model.backbone.body.bn1.eps == 0.5


@pytest.mark.parametrize("name", ["box_threshold", "backbone", "rpn_pre_nms_top_n_train"])
def test_unknown_hyper_parameter_is_named(state_dict, name):
    with pytest.raises(TypeError, match=name):
        load_small(state_dict, **{name: 1})
    with pytest.raises(TypeError, match=name):
        default_model(**{name: 1})


def test_unknown_and_missing_keys_are_listed(state_dict):
    del state_dict["backbone.body.layer2.1.conv2.weight"]
    del state_dict["roi_heads.box_head.fc6.weight"]
    state_dict["roi_heads.box_head.fc8.weight"] = torch.zeros(1)
    with pytest.raises(ValueError) as error:
        load_small(state_dict)
    unknown, missing = re.search(
        "unknown keys: (.*); missing keys: (.*)", str(error.value)
    ).groups()
    assert unknown == "roi_heads.box_head.fc8.weight"
    assert missing.split("; ")[0] == (
        "backbone.body.layer2.1.conv2.weight, roi_heads.box_head.fc6.weight"
    )


def test_wrong_shapes_are_listed(state_dict):
    key = "roi_heads.mask_predictor.mask_fcn_logits.bias"
    state_dict[key] = torch.zeros(8)
    with pytest.raises(ValueError, match=re.escape(f"{key} is [8] instead of [3]")):
        load_small(state_dict)


def test_long_lists_are_cut(state_dict):
    state_dict |= {f"extra{i:02}": torch.zeros(1) for i in range(40)}
    with pytest.raises(ValueError, match="extra29 and 10 more"):
        load_small(state_dict)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["conv1.weight", "layer1.0.conv1.weight", "fc.weight"], "ResNet image classifier"),
        (["rpn.head.conv.0.0.weight", "roi_heads.box_head.fc6.weight"], "Faster R-CNN"),
        (
            [
                "backbone.body.0.0.weight",
                "rpn.head.conv.0.0.weight",
                "roi_heads.mask_head.0.0.bias",
            ],
            "another backbone",
        ),
        (
            ["proposal_generator.rpn_head.conv.weight", "roi_heads.mask_head.deconv.weight"],
            "detectron2 Mask R-CNN",
        ),
        (["rpn_head.rpn_cls.weight", "roi_head.mask_head.upsample.weight"], "mmdetection Mask"),
        (["sem_seg_head.pixel_decoder.mask_features.weight"], "Mask2Former"),
        (["whatever.weight"], "no known format"),
    ],
)
def test_other_formats_are_named(keys, name):
    with pytest.raises(ValueError, match=name):
        load_model({key: torch.zeros(1) for key in keys})


@pytest.mark.parametrize(
    ("builder", "name"),
    [
        ("fasterrcnn_resnet50_fpn", "torchvision Faster R-CNN"),
        ("fasterrcnn_mobilenet_v3_large_fpn", "torchvision Faster R-CNN"),
        ("keypointrcnn_resnet50_fpn", "torchvision Keypoint R-CNN"),
        ("retinanet_resnet50_fpn", "torchvision RetinaNet or FCOS"),
        ("fcos_resnet50_fpn", "torchvision RetinaNet or FCOS"),
        ("ssd300_vgg16", "no known format"),
    ],
)
def test_other_models_of_torchvision_are_named(builder, name):
    detection = pytest.importorskip(
        "torchvision.models.detection", reason="torchvision is the peer that is compared with"
    )
    with torch.device("meta"):
        peer = getattr(detection, builder)(weights=None, weights_backbone=None)
    state_dict = {key: torch.zeros(1) for key in peer.state_dict()}
    with pytest.raises(ValueError, match=name):
        load_model(state_dict)


def test_names_of_old_torchvision(state_dict):
    model = load_small(state_dict)
    old = {}
    for key, tensor in state_dict.items():
        key = re.sub(r"(backbone\.fpn\.\w+\.\d+)\.0\.", r"\1.", key)
        key = re.sub(
            r"roi_heads\.mask_head\.(\d+)\.0\.",
            lambda match: f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}.",
            key,
        )
        old[key] = tensor
    assert old.keys() != state_dict.keys()
    loaded = load_small(old).state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded[key], tensor), key


def test_names_of_wrapped_models(state_dict):
    model = small_model()
    averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
    compiled = torch.compile(nn.DataParallel(torch.compile(model))).state_dict()
    model.roi_heads.mask_head = torch.compile(model.roi_heads.mask_head)
    for wrapped in (averaged, compiled, nn.DataParallel(model).state_dict()):
        assert wrapped.keys() != state_dict.keys()
        assert load_small(wrapped).state_dict().keys() == state_dict.keys()


def published_v1() -> dict[str, Tensor]:
    """A state dict in the shape of torchvision's published V1 weights, on the meta device."""
    with torch.device("meta"):
        model = models.mask_rcnn_resnet50_fpn()
    return {key: torch.zeros(tensor.shape) for key, tensor in model.state_dict().items()}


def test_eps_of_torchvisions_published_v1_weights(tmp_path, monkeypatch):
    state_dict = published_v1()

    with pytest.warns(UserWarning, match="batch_norm_eps"):
        model = load_model(state_dict)
    assert model.backbone.body.layer4[2].bn3.eps == 1e-5
    assert model.class_names[:3] == ("background", "person", "bicycle")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(state_dict, batch_norm_eps=0.0).backbone.body.bn1.eps == 0.0
        old = dict(state_dict)
        for name in ("weight", "bias"):
            old[f"rpn.head.conv.{name}"] = old.pop(f"rpn.head.conv.0.0.{name}")
        assert load_model(old).backbone.body.bn1.eps == 0.0

        path = tmp_path / "maskrcnn.pth"
        torch.save(state_dict, path)
        checksum = torchvision_mask_rcnn.sha256(path)[:8]
        monkeypatch.setattr(torchvision_mask_rcnn, "PUBLISHED_V1_SHA256", checksum)
        assert load_model(path).backbone.body.bn1.eps == 0.0


def test_eps_of_trained_batch_normalisation():
    trained = partial(nn.BatchNorm2d, eps=1e-5)
    with torch.device("meta"):
        model = models.mask_rcnn_resnet50_fpn(norm_layer=trained)
        assert type(model.backbone.body) is type(resnet50())
    state_dict = {key: torch.zeros(tensor.shape) for key, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model(state_dict).backbone.body.bn1.eps == 1e-5
