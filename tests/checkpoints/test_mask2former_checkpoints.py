"""Checkpoints of Mask2Former and MaskFormer: whose, what is inferred, and what is refused."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from functools import partial

import pytest
import torch
from mask2former_names import (
    MASKFORMER_PEERS,
    MMDETECTION,
    ORIGINAL,
    PEERS,
    TRANSFORMERS_4,
    under_names,
)
from mask2former_small import (
    assert_same,
    small_backbone,
    small_maskformer,
    small_model,
)
from safetensors.torch import save_file
from torch import nn

from fastseg import load_model, models
from fastseg.backbones.resnet import BasicBlock, ResNet
from fastseg.checkpoints import mask2former
from fastseg.checkpoints.formats import READABLE
from fastseg.checkpoints.load import READERS
from fastseg.layers.batch_norm import FrozenBatchNorm2d
from fastseg.models import MaskFormer


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
@pytest.mark.parametrize("peer", PEERS)
def test_structure_is_read_off_the_tensors(peer, backbone):
    expected = small_model(small_backbone(backbone))
    state_dict = under_names(expected.state_dict(), PEERS[peer])
    common = set(state_dict) & set(expected.state_dict())
    assert peer == "ours" or not any("decoder" in key for key in common)
    assert_same(load_model(state_dict), expected)


@pytest.mark.parametrize("peer", PEERS)
def test_other_width_in_the_decoder(peer):
    """It gives the decoder projections of its inputs."""
    expected = small_model(small_backbone("resnet"), channels=48)
    assert "decoder.input_projections.0.weight" in expected.state_dict()
    assert_same(load_model(under_names(expected.state_dict(), PEERS[peer])), expected)


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
@pytest.mark.parametrize("peer", MASKFORMER_PEERS)
def test_maskformer(peer, backbone):
    expected = small_maskformer(small_backbone(backbone))
    state_dict = under_names(expected.state_dict(), MASKFORMER_PEERS[peer])
    common = set(state_dict) & set(expected.state_dict())
    assert peer == "ours" or not any("decoder" in key for key in common)
    loaded = load_model(state_dict)
    assert isinstance(loaded, MaskFormer)
    assert_same(loaded, expected)
    assert load_model(state_dict, num_heads=4).decoder.layers[1].cross_attn.num_heads == 4


@pytest.mark.parametrize(
    ("encoded", "channels"), [(True, 32), (True, 48), (False, 32), (False, 48)]
)
@pytest.mark.parametrize("peer", [peer for peer in MASKFORMER_PEERS if "transf" not in peer])
def test_maskformer_with_an_encoder(peer, encoded, channels):
    """Which the decoder sees, or not; transformers does not have it."""
    expected = small_maskformer(small_backbone("resnet"), channels=channels, encoded=encoded)
    state_dict = under_names(expected.state_dict(), MASKFORMER_PEERS[peer])
    common = set(state_dict) & set(expected.state_dict())
    assert peer == "ours" or not any("decoder" in key for key in common)
    loaded = load_model(state_dict)
    assert_same(loaded, expected)
    assert loaded.pixel_decoder.returns_encoded == encoded
    assert load_model(state_dict, num_heads=4).pixel_decoder.layers[1].self_attn.num_heads == 4


def test_maskformer_whose_decoder_is_as_wide_as_the_backbone():
    backbone = small_backbone("swin")
    expected = small_maskformer(backbone, channels=backbone.out_channels[-1])
    assert "decoder.input_projection.weight" not in expected.state_dict()
    for rules in MASKFORMER_PEERS.values():
        assert_same(load_model(under_names(expected.state_dict(), rules)), expected)


@pytest.mark.parametrize(
    ("peer", "beside"),
    [
        ("original", {"criterion.empty_weight": torch.ones(4)}),
        ("original", {"backbone.layers.0.blocks.0.attn.relative_position_index": torch.ones(9, 9)}),
        ("mmdetection 3", {"backbone.bn1.num_batches_tracked": torch.tensor(3)}),
        ("transformers 4", {"criterion.empty_weight": torch.ones(4)}),
        (
            "transformers 4",
            {
                "model.pixel_level_module.encoder.encoder.layers.1.blocks.0.attention.self."
                "relative_position_index": torch.ones(9, 9)
            },
        ),
        ("transformers 5", {"model.pixel_level_module.encoder.swin.layernorm.bias": torch.ones(8)}),
    ],
)
def test_what_is_not_needed_is_left_out(peer, beside):
    backbone = "resnet" if "bn1" in next(iter(beside)) else "swin"
    expected = small_model(small_backbone(backbone))
    state_dict = under_names(expected.state_dict(), PEERS[peer])
    assert_same(load_model({**state_dict, **beside}), expected)


def test_trained_normalisation_of_ours_stays():
    expected = small_model(small_backbone("resnet", norm_layer=nn.BatchNorm2d))
    assert_same(load_model(expected.state_dict()), expected)
    # The peers' does not train: mmdetection and the original freeze it.
    loaded = load_model(under_names(expected.state_dict(), MMDETECTION))
    assert isinstance(loaded.backbone.bn1, FrozenBatchNorm2d)


def test_basic_blocks():
    backbone = ResNet(block=BasicBlock, depths=(1, 1, 1, 1), width=8)
    expected = small_model(backbone)
    for rules in (ORIGINAL, MMDETECTION, TRANSFORMERS_4):
        assert_same(load_model(under_names(expected.state_dict(), rules)), expected)


BUILDERS = [name for name in models.__all__ if name.startswith(("mask2former_", "maskformer_"))]


@pytest.mark.parametrize("name", BUILDERS)
def test_every_network_of_the_zoo_is_recognised(name):
    assert len(BUILDERS) == 12
    with torch.device("meta"):
        built = getattr(models, name)(num_classes=7)
        read = mask2former.build(
            built.state_dict(),
            batch_norm_eps=1e-5,
            stride_in_1x1=False,
            num_heads=None,
            hyper_parameters={},
        )
    assert str(read) == str(built)


def test_number_of_heads():
    """Twice the heads with half the points have attention weights of the same shape."""
    expected = small_model(small_backbone("resnet"))
    loaded = load_model(expected.state_dict(), num_heads=4)
    attention = loaded.pixel_decoder.layers[0].self_attn
    assert (attention.num_heads, attention.num_points) == (4, 2)
    assert loaded.decoder.layers[0].cross_attn.num_heads == 4


def test_own_file_with_configuration(tmp_path):
    expected = small_model(small_backbone("swin"))
    config = {"arch": "mask2former", "classes": ["a", "b", "c"], "task": "panoptic"}
    path = tmp_path / "model.safetensors"
    save_file(expected.state_dict(), path, metadata={"config": json.dumps(config)})
    loaded = load_model(path)
    assert_same(loaded, expected)
    assert (loaded.class_names, loaded.task) == (("a", "b", "c"), "panoptic")
    config["arch"] = "solo"
    save_file(expected.state_dict(), path, metadata={"config": json.dumps(config)})
    with pytest.raises(ValueError, match="says that it is 'solo', not 'mask2former'"):
        load_model(path)


def test_pickle_of_the_original(tmp_path):
    expected = small_model(small_backbone("resnet"))
    state_dict = under_names(expected.state_dict(), ORIGINAL)
    content = {"model": {key: tensor.numpy() for key, tensor in state_dict.items()}}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({**content, "__author__": "the authors"}))
    assert_same(load_model(path), expected)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model_final\.pkl cannot be read"):
        load_model(path)


def test_folder_of_transformers(tmp_path):
    expected = small_model(small_backbone("swin"))
    tensors = under_names(expected.state_dict(), TRANSFORMERS_4)
    tensors = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    places = {}
    for i, key in enumerate(tensors):
        places[key] = f"model-0000{1 + i % 3}-of-00003.safetensors"
    for part in set(places.values()):
        save_file({k: v for k, v in tensors.items() if places[k] == part}, tmp_path / part)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "model_type": "mask2former",
        "id2label": {"0": "cat", "1": "dog", "2": "sky"},
        "num_attention_heads": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    images = {"size": {"shortest_edge": 640, "longest_edge": 2560}, "size_divisor": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    loaded = load_model(tmp_path)
    assert_same(loaded, expected)
    assert loaded.class_names == ("cat", "dog", "sky")
    assert (loaded.transform.min_size, loaded.transform.max_size) == (640, 2560)
    assert load_model(tmp_path / "model.safetensors.index.json", min_size=1).transform.min_size == 1


def test_models_for_videos(tmp_path):
    """Their tensors are those of images: 40 classes without names are YouTube-VIS'."""
    model = small_model(small_backbone("resnet"), num_classes=40)
    state_dict = under_names(model.state_dict(), ORIGINAL)
    with pytest.warns(UserWarning, match="40 classes without names, as Mask2Former for videos"):
        load_model(state_dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(state_dict, class_names=[str(i) for i in range(40)])
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "video_mask2former"}')
    with pytest.raises(ValueError, match="is a model for videos: video_mask2former"):
        load_model(tmp_path)


@pytest.mark.parametrize("peer", PEERS)
def test_what_does_not_fit_is_named(peer):
    state_dict = under_names(small_model(small_backbone("swin")).state_dict(), PEERS[peer])
    load = partial(load_model, state_dict)
    with pytest.raises(TypeError, match="score_thr"):
        load(score_thr=0.1)
    of_features = re.compile(r".*(?:feat|static_query|query_features|queries_features)\.weight")
    [features] = [key for key in state_dict if of_features.fullmatch(key)]
    state_dict["extra.weight"] = torch.zeros(1)
    state_dict[features.replace("weight", "bias")] = torch.zeros(1)
    [classes] = [key for key in state_dict if re.search(r"(cls|class)_(embed|pred.*)\.bias", key)]
    state_dict[classes] = torch.zeros(9)
    del state_dict[next(key for key in state_dict if key.endswith("level_embed.weight"))]
    with pytest.raises(ValueError, match="does not fit Mask2Former") as error:
        load()
    for part in (
        "unknown keys: decoder.query_features.bias, extra.weight;",
        "missing keys: decoder.level_embed.weight;",
        "decoder.class_predictor.bias is [9] instead of [4]",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (("bbox_attention.q_proj.weight", "mask_head.conv1.conv.weight"), "DETR with masks"),
        (("class_labels_classifier.bias", "bbox_predictor.layers.0.bias"), "transformers DETR"),
        (("class_embed.0.bias", "bbox_embed.0.layers.0.bias"), "Deformable DETR"),
        (("model.pixel_level_module.a", "model.task_encoder.b"), "transformers OneFormer"),
        (("query.weight", "class_predictor.bias", "mask_head.fc1.bias"), "transformers EoMT"),
        (("pixel_level_module.encoder.a",), "without class predictor"),
        (("sem_seg_head.pixel_decoder.a", "sem_seg_head.predictor.decoder.b"), "Mask DINO"),
        (("backbone.a", "decode_head.conv_seg.bias"), "another model of mmsegmentation"),
        (("backbone.conv1.weight", "classifier.4.bias"), "torchvision DeepLab or FCN"),
        (("something.else",), "no known format, its keys begin with something.else"),
    ],
)
def test_other_networks_are_refused_by_name(keys, name):
    with pytest.raises(ValueError, match=f"looks like .*{name}.*load_model.. reads .*Mask2Former"):
        load_model({key: torch.zeros(1) for key in keys})


def test_refusals_name_every_format_that_is_read():
    """As "MODEL of PEER and of PEER; MODEL of ..."."""
    named = [part.split(" of ") for part in READABLE.split("; ")]
    for name in READERS:
        peer, _, model = name.removesuffix(" on a ResNet").removeprefix("the ").partition(" ")
        assert any(model in part[0] and peer in " ".join(part[1:]) for part in named), name
