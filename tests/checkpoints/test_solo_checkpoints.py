"""Checkpoints of the SOLO family: whose they are, what is inferred, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastseg import load_model, models
from fastseg.backbones.resnet import BasicBlock, Bottleneck, ResNet
from fastseg.layers.batch_norm import FrozenBatchNorm2d
from fastseg.layers.deform_conv import DeformConv2d, ModulatedDeformConv2d
from fastseg.layers.fpn import BackboneWithFPN, FeaturePyramidNetwork
from fastseg.layers.solo_head import DecoupledSOLOHead, SOLOHead
from fastseg.layers.solov2_head import MaskFeatureHead, SOLOv2Head
from fastseg.models import SOLO

KINDS = ("solov2", "solo", "decoupled_solo", "decoupled_solo_light")


def small_model(kind: str, *, norm_layer=nn.BatchNorm2d, block=BasicBlock, **body) -> SOLO:
    """A network in which every size differs from the usual."""
    backbone = ResNet(block=block, depths=(1, 2, 1, 1), norm_layer=norm_layer, **body)
    fpn = FeaturePyramidNetwork(in_channels=backbone.out_channels, out_channels=24)
    sizes = {"in_channels": 24, "num_classes": 3, "channels": 64}
    sizes["conv_layers"] = (nn.Conv2d,) * 3
    if kind == "solov2":
        features = MaskFeatureHead(in_channels=24, channels=32, out_channels=96)
        head = SOLOv2Head(mask_features=features, **sizes)
    elif kind == "solo":
        head = SOLOHead(num_grids=(10, 8, 6, 5, 3), **sizes)
    else:
        head = DecoupledSOLOHead(
            num_grids=(10, 8, 6, 5, 3), light=kind == "decoupled_solo_light", **sizes
        )
    return SOLO(backbone=BackboneWithFPN(body=backbone, fpn=fpn), head=head)


# Our names -> mmdetection's and the original's, written down apart from the rules under test.
BACKBONE = [
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", r"neck.lateral_convs.\1.conv."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", r"neck.fpn_convs.\1.conv."),
    (r"^(head\..*(?:convs\.\d|levels\.\d\.\d|features\.predictor))\.0\.", r"\1.conv."),
    (r"^(head\..*(?:convs\.\d|levels\.\d\.\d|features\.predictor))\.1\.", r"\1.gn."),
]
MMDETECTION = [
    *BACKBONE,
    (r"^head\.mask_features\.levels\.(\d)\.(\d)\.",
     r"mask_head.mask_feature_head.convs_all_levels.\1.conv\2."),
    (r"^head\.mask_features\.predictor\.", "mask_head.mask_feature_head.conv_pred."),
    (r"^head\.class_convs\.", "mask_head.cls_convs."),
    (r"^head\.class_predictor\.", "mask_head.conv_cls."),
    (r"^head\.kernel_predictor\.", "mask_head.conv_kernel."),
    (r"^head\.column_convs\.", "mask_head.mask_convs_x."),
    (r"^head\.row_convs\.", "mask_head.mask_convs_y."),
    (r"^head\.mask_predictors\.", "mask_head.conv_mask_list."),
    (r"^head\.column_predictors\.", "mask_head.conv_mask_list_x."),
    (r"^head\.row_predictors\.", "mask_head.conv_mask_list_y."),
    (r"^head\.", "mask_head."),
]  # fmt: skip
ORIGINAL = [
    *BACKBONE,
    (r"^head\.mask_features\.levels\.(\d)\.(\d)\.",
     r"mask_feat_head.convs_all_levels.\1.conv\2."),
    (r"^head\.mask_features\.predictor\.", "mask_feat_head.conv_pred.0."),
    (r"^head\.class_convs\.", "bbox_head.cate_convs."),
    (r"^head\.class_predictor\.", "bbox_head.solo_cate."),
    (r"^head\.kernel_predictor\.", "bbox_head.solo_kernel."),
    (r"^head\.mask_convs\.", "bbox_head.ins_convs."),
    (r"^head\.column_convs\.", "bbox_head.ins_convs_x."),
    (r"^head\.row_convs\.", "bbox_head.ins_convs_y."),
    (r"^head\.mask_predictors\.", "bbox_head.solo_ins_list."),
    (r"^head\.column_predictors\.", "bbox_head.dsolo_ins_list_x."),
    (r"^head\.row_predictors\.", "bbox_head.dsolo_ins_list_y."),
    (r"^head\.", "bbox_head."),
]  # fmt: skip
ADELAIDET = [
    (r"^backbone\.body\.(conv1|bn1)\.", r"backbone.bottom_up.stem.\1."),
    (r"^backbone\.body\.layer1\.", "backbone.bottom_up.res2."),
    (r"^backbone\.body\.layer2\.", "backbone.bottom_up.res3."),
    (r"^backbone\.body\.layer3\.", "backbone.bottom_up.res4."),
    (r"^backbone\.body\.layer4\.", "backbone.bottom_up.res5."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^head\.mask_features\.levels\.(\d)\.(\d)\.", r"mask_head.convs_all_levels.\1.conv\2."),
    (r"^head\.mask_features\.predictor\.", "mask_head.conv_pred."),
    (r"^head\.class_predictor\.", "ins_head.cate_pred."),
    (r"^head\.kernel_predictor\.", "ins_head.kernel_pred."),
]


def under_names(state_dict: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state_dict.items():
        for ours, theirs in rules:
            key = re.sub(ours, theirs, key)
        renamed[key] = tensor
    return renamed


def adelaidet(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """AdelaiDet's names: towers are numbered through with their ReLUs, levels begin at 2."""
    renamed = under_names(state_dict, ADELAIDET)
    for ours, theirs in (("class", "cate"), ("kernel", "kernel")):
        for i in range(3):
            for child in range(2):
                old, new = f"head.{ours}_convs.{i}.{child}.", f"{theirs}_tower.{3 * i + child}."
                renamed = {k.replace(old, f"ins_head.{new}"): v for k, v in renamed.items()}
    for i in range(4):
        for ours, theirs in (("inner_blocks", "lateral"), ("layer_blocks", "output")):
            old, new = f"backbone.fpn.{ours}.{i}.0.", f"backbone.fpn_{theirs}{i + 2}."
            renamed = {k.replace(old, new): v for k, v in renamed.items()}
    renamed["backbone.bottom_up.stem.conv1.weight"] = renamed[
        "backbone.bottom_up.stem.conv1.weight"
    ].flip(1)  # it takes blue first
    return renamed


def assert_same(loaded: SOLO, expected: SOLO) -> None:
    assert str(loaded) == str(expected)
    for key, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert not loaded.training
    assert torch.equal(loaded.min_areas, expected.min_areas)


@pytest.mark.parametrize("names", ["ours", "mmdetection", "original"])
@pytest.mark.parametrize("kind", KINDS)
def test_structure_is_read_off_the_tensors(kind, names):
    expected = small_model(kind)
    rules = {"ours": [], "mmdetection": MMDETECTION, "original": ORIGINAL}[names]
    if names == "original" and kind.startswith("decoupled"):
        rules = [(ours, theirs.replace(".solo_cate.", ".dsolo_cate.")) for ours, theirs in rules]
    state_dict = under_names(expected.state_dict(), rules)
    assert names == "ours" or not set(state_dict) & set(expected.state_dict())
    assert_same(load_model(state_dict), expected)


@pytest.mark.parametrize(
    "body",
    [
        {"norm_layer": FrozenBatchNorm2d},
        {"block": Bottleneck},
        {"block": Bottleneck, "groups": 4, "width_per_group": 8},
        {"width": 16},
        {"block": Bottleneck, "width": 16},
        {"block": Bottleneck, "width": 32, "groups": 4, "width_per_group": 8},
    ],
    ids=str,
)
def test_backbone_is_read_off_the_tensors(body):
    expected = small_model("solov2", **body)
    assert_same(load_model(under_names(expected.state_dict(), MMDETECTION)), expected)


DEFORMABLE = (DeformConv2d, ModulatedDeformConv2d, partial(DeformConv2d, offset_groups=2))


@pytest.mark.parametrize("names", ["mmdetection", "original", "neighbours"])
@pytest.mark.parametrize("layer", DEFORMABLE, ids=("v1", "v2", "v1_two_groups"))
def test_deformable_convolutions_are_read_off_the_tensors(layer, names):
    """Also from before mmcv 1.0, where `conv2_offset` stands beside `conv2`."""
    stages = (nn.Conv2d, nn.Conv2d, layer, layer)
    expected = small_model("solov2", block=Bottleneck, conv_layers=stages)
    expected.head = SOLOv2Head(
        in_channels=24,
        num_classes=3,
        channels=64,
        conv_layers=(nn.Conv2d, layer),
        mask_features=MaskFeatureHead(
            in_channels=24, channels=32, out_channels=96, conv_layer=layer
        ),
    )
    state_dict = under_names(
        expected.state_dict(), MMDETECTION if names == "mmdetection" else ORIGINAL
    )
    if names == "neighbours":
        state_dict = under_names(state_dict, [(r"\.conv_offset\.", "_offset.")])
        assert any(".conv2_offset." in key for key in state_dict)
    assert_same(load_model(state_dict), expected)


def test_adelaidet():
    options = {"block": Bottleneck, "norm_layer": FrozenBatchNorm2d}
    expected = small_model("solov2", stride_in_1x1=True, **options)
    state_dict = adelaidet(expected.state_dict())
    loaded = load_model(state_dict)
    assert_same(loaded, expected)
    assert loaded.transform.image_mean == (123.675 / 255, 116.28 / 255, 103.53 / 255)
    assert loaded.transform.image_std == (1 / 255,) * 3
    with_stride_in_3x3 = small_model("solov2", **options)
    assert str(load_model(state_dict, stride_in_1x1=False)) == str(with_stride_in_3x3)


@pytest.mark.parametrize("layer", DEFORMABLE[:2], ids=("v1", "v2"))
def test_pickle_of_adelaidet_with_deformable_convolutions(tmp_path, layer):
    """detectron2 keeps the offsets' convolution beside the deformable one, arrays in a .pkl."""
    stages = (nn.Conv2d, layer, layer, layer)
    options = {"block": Bottleneck, "norm_layer": FrozenBatchNorm2d, "conv_layers": stages}
    expected = small_model("solov2", stride_in_1x1=True, **options)
    state_dict = under_names(adelaidet(expected.state_dict()), [(r"\.conv_offset\.", "_offset.")])
    assert "backbone.bottom_up.res3.0.conv2_offset.weight" in state_dict
    content = {"model": {key: tensor.numpy() for key, tensor in state_dict.items()}}
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({**content, "__author__": "AdelaiDet"}))
    assert_same(load_model(path), expected)


@pytest.mark.parametrize(
    "name",
    [
        "solov2_resnet50_fpn",
        "solov2_light_resnet18_fpn",
        "solov2_light_resnet50_dcn_fpn",
        "solo_resnet50_fpn",
        "decoupled_solo_resnet50_fpn",
        "decoupled_solo_light_resnet50_fpn",
    ],
)
def test_options_of_the_zoo(name):
    """Light networks take smaller images; 80 classes are COCO's."""
    with torch.device("meta"):
        built = getattr(models, name)()
    zeros = {
        key: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
        for key, tensor in built.state_dict().items()
    }
    loaded = load_model(under_names(zeros, MMDETECTION))
    assert loaded.transform == built.transform
    assert loaded.class_names[:2] == ("person", "bicycle")
    assert len(loaded.class_names) == 80


def test_files_with_configuration_and_overrides(tmp_path):
    expected = small_model("solov2")
    config = {"arch": "solo", "classes": ["a", "b", "c"], "score_thr": 0.3, "min_size": 320}
    path = tmp_path / "model.safetensors"
    save_file(expected.state_dict(), path, metadata={"config": json.dumps(config)})
    loaded = load_model(path, score_thr=0.2, batch_norm_eps=0.5)
    assert loaded.class_names == ("a", "b", "c")
    assert (loaded.score_thr, loaded.transform.min_size) == (0.2, 320)
    assert loaded.backbone.body.bn1.eps == 0.5

    content = {"meta": {"epoch": 12}, "state_dict": under_names(expected.state_dict(), MMDETECTION)}
    torch.save(content, tmp_path / "epoch_12.pth")
    assert_same(load_model(tmp_path / "epoch_12.pth"), expected)


@pytest.mark.parametrize(
    "meta",
    [
        {"CLASSES": ("a", "b", "c"), "mmdet_version": "2.25.0"},
        {"dataset_meta": {"classes": ("a", "b", "c"), "palette": [(1, 2, 3)] * 3}},
        {"dataset_meta": {"CLASSES": ["a", "b", "c"]}},
    ],
    ids=["mmdetection 2", "mmdetection 3", "mmdetection 3.0rc"],
)
def test_class_names_of_mmdetection(tmp_path, meta):
    state_dict = under_names(small_model("solov2").state_dict(), MMDETECTION)
    content = {"meta": meta, "state_dict": state_dict}
    torch.save(content, tmp_path / "model.pth")
    for source in (content, tmp_path / "model.pth"):
        assert load_model(source).class_names == ("a", "b", "c")
        assert load_model(source, class_names=tuple("xyz")).class_names == ("x", "y", "z")


def test_training_file_of_mmengine(tmp_path):
    """It holds the log's objects, which torch.load refuses, beside the weights."""
    logging = pytest.importorskip("mmengine.logging", reason="its files are read")
    expected = small_model("solov2")
    hub = logging.MessageHub.get_instance("test_solo_checkpoints")
    hub.update_scalar("train/loss", 0.5)
    content = {
        "meta": {"epoch": 12},
        "state_dict": under_names(expected.state_dict(), MMDETECTION),
        "message_hub": hub.state_dict(),
    }
    torch.save(content, tmp_path / "epoch_12.pth")
    assert_same(load_model(tmp_path / "epoch_12.pth"), expected)


@pytest.mark.parametrize("meta", [None, {}, {"CLASSES": 3}, {"dataset_meta": {"classes": [1]}}])
def test_checkpoints_without_class_names(meta):
    state_dict = under_names(small_model("solov2").state_dict(), MMDETECTION)
    assert load_model({"meta": meta, "state_dict": state_dict}).class_names is None


def test_every_hyper_parameter_arrives():
    loaded = load_model(
        small_model("solov2").state_dict(),
        strides=(1, 2, 3, 4, 5),
        min_size=64,
        max_size=90,
        size_divisible=64,
        score_thr=0.11,
        max_candidates=12,
        mask_thr=0.13,
        nms_pre=14,
        filter_thr=0.15,
        max_per_img=16,
        kernel="linear",
        sigma=1.7,
    )
    transform = loaded.transform
    assert (transform.min_size, transform.max_size, transform.size_divisible) == (64, 90, 64)
    assert (loaded.score_thr, loaded.max_candidates) == (0.11, 12)
    selection = loaded.selection
    assert (selection.mask_thr, selection.nms_pre, selection.filter_thr) == (0.13, 14, 0.15)
    assert (selection.max_per_img, selection.kernel, selection.sigma) == (16, "linear", 1.7)
    assert loaded.min_areas[[0, -1]].tolist() == [1, 5]


def test_what_does_not_fit_is_named():
    state_dict = under_names(small_model("solov2").state_dict(), MMDETECTION)
    load = partial(load_model, state_dict)
    with pytest.raises(TypeError, match="box_score_thresh"):
        load(box_score_thresh=0.1)
    state_dict["mask_head.conv_cls.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match=re.escape("head.class_predictor.bias is [5] instead")):
        load()
    del state_dict["mask_head.conv_kernel.bias"]
    with pytest.raises(ValueError, match=r"missing keys: head\.kernel_predictor\.bias"):
        load()
