"""Mask R-CNN of detectron2 and mmdetection: what is inferred, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastseg import load_model, models
from fastseg.backbones.resnet import BasicBlock, Bottleneck, ResNet
from fastseg.categories import COCO
from fastseg.layers.batch_norm import FrozenBatchNorm2d
from fastseg.layers.box_head import ConvFCHead, FastRCNNPredictor, TwoMLPHead
from fastseg.layers.conventions import DETECTRON2, MMDETECTION
from fastseg.layers.deform_conv import DeformConv2d
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.mask_head import MaskHead, MaskPredictor
from fastseg.layers.region_proposal_network import RPNHead
from fastseg.models import MaskRCNN

STEM = "backbone.body.conv1.weight"
# Our names -> the peers', written down apart from the rules under test.
DETECTRON2_NAMES = [
    (r"^backbone\.body\.(conv1|bn1)\.", r"backbone.bottom_up.stem.\1."),
    (r"^backbone\.body\.layer(\d)\.", lambda m: f"backbone.bottom_up.res{int(m[1]) + 1}."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", lambda m: f"backbone.fpn_output{int(m[1]) + 2}."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.1\.",
     lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}.norm."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.1\.",
     lambda m: f"backbone.fpn_output{int(m[1]) + 2}.norm."),
    (r"^rpn\.head\.conv\.(\d)\.0\.", r"proposal_generator.rpn_head.conv.conv\1."),
    (r"^rpn\.head\.cls_logits\.", "proposal_generator.rpn_head.objectness_logits."),
    (r"^rpn\.head\.bbox_pred\.", "proposal_generator.rpn_head.anchor_deltas."),
    (r"^roi_heads\.box_head\.fc6\.", "roi_heads.box_head.fc1."),
    (r"^roi_heads\.box_head\.fc7\.", "roi_heads.box_head.fc2."),
    (r"^roi_heads\.box_head\.(\d)\.0\.", lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}."),
    (r"^roi_heads\.box_head\.(\d)\.1\.", lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}.norm."),
    (r"^roi_heads\.box_head\.3\.", "roi_heads.box_head.fc1."),
    (r"^roi_heads\.box_head\.5\.", "roi_heads.box_head.fc2."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.",
     lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}."),
    (r"^roi_heads\.mask_head\.(\d)\.1\.",
     lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}.norm."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "roi_heads.mask_head.deconv."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_heads.mask_head.predictor."),
]  # fmt: skip
# One convolution of the RPN stands alone in both peers.
ONE_RPN_CONV = {
    "detectron2": (r"\.rpn_head\.conv\.conv0\.", ".rpn_head.conv."),
    "mmdetection": (r"^rpn_head\.rpn_conv\.0\.conv\.", "rpn_head.rpn_conv."),
}
MMDETECTION_NAMES = [
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.1\.", r"neck.lateral_convs.\1.bn."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.1\.", r"neck.fpn_convs.\1.bn."),
    (r"^rpn\.head\.conv\.(\d)\.0\.", r"rpn_head.rpn_conv.\1.conv."),
    (r"^rpn\.head\.cls_logits\.", "rpn_head.rpn_cls."),
    (r"^rpn\.head\.bbox_pred\.", "rpn_head.rpn_reg."),
    (r"^roi_heads\.box_head\.fc6\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"^roi_heads\.box_head\.fc7\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"^roi_heads\.box_head\.(\d)\.0\.", r"roi_head.bbox_head.shared_convs.\1.conv."),
    (r"^roi_heads\.box_head\.(\d)\.1\.", r"roi_head.bbox_head.shared_convs.\1.bn."),
    (r"^roi_heads\.box_head\.3\.", "roi_head.bbox_head.shared_fcs.0."),
    (r"^roi_heads\.box_head\.5\.", "roi_head.bbox_head.shared_fcs.1."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "roi_head.bbox_head.fc_cls."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "roi_head.bbox_head.fc_reg."),
    (r"^roi_heads\.mask_head\.(\d)\.0\.", r"roi_head.mask_head.convs.\1.conv."),
    (r"^roi_heads\.mask_head\.(\d)\.1\.", r"roi_head.mask_head.convs.\1.bn."),
    (r"^roi_heads\.mask_predictor\.conv5_mask\.", "roi_head.mask_head.upsample."),
    (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "roi_head.mask_head.conv_logits."),
]
NAMES = {"detectron2": DETECTRON2_NAMES, "mmdetection": MMDETECTION_NAMES}
BLUE_FIRST = {"detectron2": True, "mmdetection": False}


def small_model(
    library: str,
    *,
    convolutions: bool = False,
    shared: bool = False,
    num_labels: int = 3,
    block: Any = Bottleneck,
    head_norm: Any = None,
    rpn_depth: int = 1,
    **body: Any,
) -> MaskRCNN:
    """A network in which every size differs from the usual."""
    body.setdefault("norm_layer", FrozenBatchNorm2d)
    if block is Bottleneck:
        body.setdefault("stride_in_1x1", library == "detectron2")
    backbone = ResNet(block=block, depths=(1, 2, 1, 1), width=8, **body)
    pyramid = FeaturePyramidNetwork(
        in_channels=backbone.out_channels, out_channels=8, norm_layer=head_norm
    )
    box_head = (
        ConvFCHead(in_channels=8, conv_channels=(6, 10), fc_features=(12, 9), norm_layer=head_norm)
        if convolutions
        else TwoMLPHead(in_channels=8, representation_size=9)
    )
    mask_head = MaskHead(in_channels=8, conv_channels=(6, 7, 5), norm_layer=head_norm)
    return MaskRCNN(
        backbone=BackboneWithFPN(body=backbone, fpn=pyramid),
        rpn_head=RPNHead(in_channels=8, num_anchors=3, conv_depth=rpn_depth),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(
            in_features=9, num_classes=num_labels + 1, num_boxes=1 if shared else num_labels
        ),
        mask_head=mask_head,
        mask_predictor=MaskPredictor(
            in_channels=5, dim_reduced=11, num_classes=1 if shared else num_labels
        ),
        conventions=library,
    )


def checkpoint(library: str, model: MaskRCNN) -> dict[str, Tensor]:
    """The model's weights as the library would have them."""
    state_dict = dict(model.state_dict())
    if BLUE_FIRST[library]:
        state_dict[STEM] = state_dict[STEM].flip(1)
    renamed = {}
    for key, tensor in state_dict.items():
        for old, new in NAMES[library]:
            key = re.sub(old, new, key)
        renamed[key] = tensor
    if sum("rpn_head" in key and "conv" in key for key in renamed) == 2:
        old, new = ONE_RPN_CONV[library]
        renamed = {re.sub(old, new, key): tensor for key, tensor in renamed.items()}
    assert not any(key.startswith(("rpn.", "backbone.body.")) for key in renamed)
    return renamed


def assert_same(loaded: MaskRCNN, expected: MaskRCNN) -> None:
    assert str(loaded) == str(expected)
    assert loaded.conventions == expected.conventions
    state_dict = loaded.state_dict()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(state_dict[key], tensor), key
    assert not loaded.training


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_layer": nn.BatchNorm2d},
        {"block": BasicBlock},
        {"shared": True},
        {"rpn_depth": 3},
        {"convolutions": True, "head_norm": FrozenBatchNorm2d},
        {"convolutions": True, "head_norm": nn.BatchNorm2d, "norm_layer": nn.BatchNorm2d},
        {"conv_layers": (nn.Conv2d, nn.Conv2d, DeformConv2d, DeformConv2d)},
    ],
    ids=str,
)
@pytest.mark.parametrize("library", NAMES)
def test_structure_is_read_off_the_tensors(library, options):
    expected = small_model(library, **options)
    assert_same(load_model(checkpoint(library, expected)), expected)


@pytest.mark.parametrize("library", NAMES)
def test_resnext(library):
    """detectron2's divides pixels by a deviation, and has the stride where everyone has it."""
    expected = small_model(library, groups=2, width_per_group=16, stride_in_1x1=False)
    loaded = load_model(checkpoint(library, expected))
    assert_same(loaded, expected)
    assert loaded.transform.image_mean == pytest.approx((0.485, 0.456, 0.406))
    assert loaded.transform.image_std == pytest.approx((0.229, 0.224, 0.225))


def test_files_of_detectron2(tmp_path):
    expected = small_model("detectron2")
    tensors = checkpoint("detectron2", expected)
    zoo = {key: tensor.numpy() for key, tensor in tensors.items()}
    (tmp_path / "model_final.pkl").write_bytes(
        pickle.dumps({"model": zoo, "__author__": "Detectron2 Model Zoo"})
    )
    training = {"model": tensors, "optimizer": {}, "scheduler": {}, "iteration": 9}
    torch.save(training, tmp_path / "model_0000009.pth")
    for name in ("model_final.pkl", "model_0000009.pth"):
        loaded = load_model(tmp_path / name)
        assert_same(loaded, expected)
        assert loaded.transform.image_mean == pytest.approx((0.485, 0.456, 0.406))
        assert loaded.transform.image_std == (1 / 255,) * 3


def test_pixels_in_files_of_detectron2():
    """Its first versions kept mean, deviation and anchors beside the weights."""
    expected = small_model("detectron2")
    tensors = checkpoint("detectron2", expected) | {
        "pixel_mean": torch.tensor([51.0, 102.0, 204.0]).view(3, 1, 1),
        "pixel_std": torch.tensor([25.5, 51.0, 255.0]).view(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(3, 4),
    }
    loaded = load_model(tensors)
    assert_same(loaded, expected)
    assert loaded.transform.image_mean == pytest.approx((0.8, 0.4, 0.2))
    assert loaded.transform.image_std == pytest.approx((1.0, 0.2, 0.1))

    red_first = load_model(tensors, bgr=False)
    assert torch.equal(red_first.backbone.body.conv1.weight.flip(1), loaded.state_dict()[STEM])
    assert red_first.transform.image_mean == pytest.approx((0.2, 0.4, 0.8))


CAFFE = """
model = dict(
    data_preprocessor=dict(
        bgr_to_rgb=False, mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], pad_mask=True),
    backbone=dict(type='ResNet', depth=50, norm_cfg=dict(type='BN'), style='caffe'))
work_dir = './work'
"""
CAFFE_2 = """
img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Normalize', mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)]
model = dict(backbone=dict(depth=50, style='caffe'))
"""
USUAL = CAFFE.replace("caffe", "pytorch").replace("False", "True")
USUAL = USUAL.replace("103.53, 116.28, 123.675", "123.675, 116.28, 103.53")
USUAL = USUAL.replace("1.0, 1.0, 1.0", "58.395, 57.12, 57.375")


@pytest.mark.parametrize("meta", [{"cfg": CAFFE}, {"config": CAFFE_2}], ids=["3", "2"])
def test_caffe_style_of_mmdetection(tmp_path, meta):
    expected = small_model("mmdetection", stride_in_1x1=True)
    tensors = checkpoint("mmdetection", expected)
    tensors["backbone.conv1.weight"] = tensors["backbone.conv1.weight"].flip(1)
    meta = {**meta, "dataset_meta": {"classes": ("a", "b", "c")}}
    torch.save({"meta": meta, "state_dict": tensors}, tmp_path / "epoch_12.pth")
    loaded = load_model(tmp_path / "epoch_12.pth")
    assert_same(loaded, expected)
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.transform.image_mean == pytest.approx((0.485, 0.456, 0.406))
    assert loaded.transform.image_std == (1 / 255,) * 3

    assert_same(load_model(tensors, stride_in_1x1=True, bgr=True), expected)


@pytest.mark.parametrize(
    "text",
    [
        None,
        USUAL,
        "model = dict(",
        "import os; os._exit(1)",
        "model = dict(backbone=dict(depth=50, style=make()))",
        CAFFE_2.replace(", style='caffe'", "").replace("std=[1.0, 1.0, 1.0]", "std=[2, 2, 2]", 1),
        "(" * 5000,
        "norm = dict(mean=['a', 'b', 'c'], std=[1, 1, 1], to_rgb=False)",
    ],
    ids=["none", "usual", "broken", "code", "no literal", "contradicting", "deep", "no numbers"],
)  # fmt: skip
def test_configurations_that_change_nothing(text):
    expected = small_model("mmdetection")
    content = {"meta": {"cfg": text}, "state_dict": checkpoint("mmdetection", expected)}
    loaded = load_model(content)
    assert_same(loaded, expected)
    assert loaded.transform.image_std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("library", NAMES)
def test_numbers_of_classes_of_known_data_sets(library):
    coco = load_model(checkpoint(library, small_model(library, num_labels=80)))
    assert coco.class_names == COCO.names
    assert coco.roi_heads.score_thresh == 0.05
    lvis = load_model(checkpoint(library, small_model(library, num_labels=1203, shared=True)))
    assert lvis.class_names is None
    assert lvis.roi_heads.score_thresh == 1e-4
    assert lvis.roi_heads.detections_per_img == 300
    assert load_model(checkpoint(library, small_model(library))).class_names is None


@pytest.mark.parametrize("library", NAMES)
def test_own_files_need_the_conventions(tmp_path, library):
    """What was saved again has our names, which do not tell where the background is."""
    expected = small_model(library)
    path = tmp_path / "model.safetensors"
    options = {"conventions": library, "stride_in_1x1": library == "detectron2"}
    save_file(expected.state_dict(), path, metadata={"config": json.dumps(options)})
    assert_same(load_model(path), expected)
    assert_same(load_model(expected.state_dict(), **options), expected)
    with pytest.raises(ValueError, match=r"bbox_pred.bias is .12. instead of .16."):
        load_model(expected.state_dict())


@pytest.mark.parametrize(
    ("library", "key", "name"),
    [
        ("detectron2", "roi_heads.box_head.0.fc1.weight", "detectron2 Cascade Mask"),
        ("detectron2", "roi_heads.keypoint_head.score_lowres.weight", "detectron2 Keypoint"),
        ("detectron2", "sem_seg_head.predictor.weight", "detectron2 Panoptic FPN"),
        ("detectron2", "roi_heads.mask_head.point_head.fc1.weight", "detectron2 PointRend"),
        ("mmdetection", "roi_head.bbox_head.0.fc_cls.weight", "mmdetection Cascade"),
        ("mmdetection", "roi_head.mask_iou_head.fc_mask_iou.weight", "Mask Scoring"),
        ("mmdetection", "roi_head.point_head.fcs.0.conv.weight", "mmdetection PointRend"),
        ("mmdetection", "semantic_head.conv_logits.weight", "mmdetection Panoptic FPN"),
    ],
)
def test_relatives_are_named(library, key, name):
    tensors = checkpoint(library, small_model(library)) | {key: torch.zeros(1)}
    with pytest.raises(ValueError, match=name):
        load_model(tensors)


def test_unknown_conventions():
    with pytest.raises(ValueError, match=r"conventions must be one of torchvision.*'caffe'"):
        models.mask_rcnn_resnet18_fpn(conventions="caffe")


def test_builders_have_the_conventions():
    with torch.device("meta"):
        ours = models.mask_rcnn_resnet50_fpn(num_classes=81, conventions="detectron2")
        mmdetections = models.mask_rcnn_resnet50_fpn_v2(num_classes=81, conventions="mmdetection")
    assert ours.conventions is DETECTRON2
    assert mmdetections.conventions is MMDETECTION
    for model in (ours, mmdetections):
        assert model.roi_heads.box_predictor.bbox_pred.out_features == 320
        assert model.roi_heads.mask_predictor.mask_fcn_logits.out_channels == 80
