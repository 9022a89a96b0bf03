"""Files that transformers saves and weights of mmdetection give what their models give."""

from __future__ import annotations

import importlib
import warnings

import mmdetection_peer
import pytest
import torch
from torch import Tensor, nn

from fastseg import categories, load_model, models
from fastseg.layers.mask_classification import MaskPredictions
from fastseg.models import ImageBatch, Mask2Former

STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SWIN = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 2, 1, 1]}
LABELS = {0: "cat", 1: "dog", 2: "sky"}


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Weights with which every part of the network shows in its output."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.dim() > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        else:
            tensor.add_(0.1 * torch.randn_like(tensor))


def peer_of_transformers(kind: str, backbone: str) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="the peer that is compared with")
    torch.manual_seed(0)
    if backbone == "swin":
        body = transformers.SwinConfig(**SWIN, **STAGES)
    else:
        body = transformers.ResNetConfig(**RESNET, **STAGES)
    sizes = {"mask_feature_size": 32, "id2label": LABELS, "backbone_config": body}
    if kind == "Mask2Former":
        config = transformers.Mask2FormerConfig(
            feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=48,
            dim_feedforward=40,
            encoder_layers=2,
            decoder_layers=4,
            num_attention_heads=4,
            num_queries=6,
            **sizes,
        )
        peer = transformers.Mask2FormerForUniversalSegmentation(config)
    else:
        decoder = transformers.DetrConfig(
            d_model=32,
            decoder_layers=2,
            decoder_attention_heads=4,
            decoder_ffn_dim=40,
            num_queries=6,
        )
        config = transformers.MaskFormerConfig(fpn_feature_size=32, decoder_config=decoder, **sizes)
        peer = transformers.MaskFormerForInstanceSegmentation(config)
    randomise(peer)
    return peer.eval()


@torch.no_grad()
def give_opinions(head: nn.Module) -> None:
    """Attention that is not alike everywhere, and predictions unlike each other."""
    for name, tensor in head.named_parameters():
        if tensor.dim() == 2 and "query_" not in name:
            tensor.normal_(std=(1.5 / tensor.shape[1]) ** 0.5)


def assert_same_predictions(ours: MaskPredictions, classes: Tensor, masks: Tensor) -> None:
    # What the README promises; measured are at most 4e-6 and 6e-5.
    torch.testing.assert_close(ours.class_logits, classes, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.mask_logits, masks, rtol=0, atol=1e-3)
    assert classes.std() > 0.1
    assert masks.std() > 0.5


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize("kind", ["Mask2Former", "MaskFormer"])
def test_folder_that_transformers_saves(tmp_path, kind, backbone):
    peer = peer_of_transformers(kind, backbone)
    peer.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.class_names == ("cat", "dog", "sky")
    assert {
        module.num_heads for module in model.decoder.modules() if hasattr(module, "num_heads")
    } == {4}
    pixels = torch.randn(2, 3, 96, 128)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = peer(pixels)
        ours = model(pixels, torch.tensor([[96, 128]] * 2))
    assert_same_predictions(ours, expected.class_queries_logits, expected.masks_queries_logits)

    # The file has the names of version 4, the model its own; parts of a file are the file.
    runtime = load_model(peer.state_dict(), num_heads=4).state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, runtime[key]), key
    peer.save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").exists()
    for key, tensor in load_model(tmp_path / "parts").state_dict().items():
        assert torch.equal(tensor, runtime[key]), key


@pytest.mark.parametrize(
    "config",
    [
        "mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco-panoptic",
        "maskformer/maskformer_swin-l-p4-w12_64xb1-ms-300e_coco",
    ],
)
def test_swin_of_mmdetection(config):
    """Mask2Former on ResNet-50: see tests/models/test_mask2former_mmdetection.py."""
    peer = mmdetection_peer.mmdet_model(
        config,
        backbone__embed_dims=24,
        backbone__depths=(2, 2, 2, 2),
        backbone__num_heads=(1, 2, 4, 8),
        backbone__drop_path_rate=0.0,
        panoptic_head__in_channels=[24, 48, 96, 192],
        panoptic_head__transformer_decoder__num_layers=3,
    )
    randomise(peer)
    model = load_model(peer.state_dict())
    assert (model.task, model.class_names[-1], len(model.thing_classes)) == (
        "panoptic",
        "rug-merged",
        80,
    )
    assert_same_layers(peer, model)


def test_maskformer_with_an_encoder_of_mmdetection():
    """ResNet-50 for COCO, whose pixel decoder has a transformer."""
    peer = mmdetection_peer.mmdet_model("maskformer/maskformer_r50_ms-16xb1-75e_coco")
    give_opinions(peer.panoptic_head)
    model = load_model(peer.state_dict())
    assert str(model) == str(models.maskformer_resnet50(num_classes=133))
    assert_same_layers(peer, model)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (
            "mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024",
            {"backbone__norm_cfg__type": "BN"},
        ),
        ("mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512", {}),
        (
            "maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512",
            {"backbone__norm_cfg__type": "BN"},
        ),
        ("maskformer/maskformer_swin-t_upernet_8xb2-160k_ade20k-512x512", {}),
    ],
)
def test_mmsegmentation(config, changes):
    """Its batch normalisation over several devices does not run on the CPU."""
    peer = mmdetection_peer.mmseg_model(config, **changes)
    give_opinions(peer.decode_head)
    model = load_model(peer.state_dict())
    known = categories.CITYSCAPES if "cityscapes" in config else categories.ADE20K
    assert (model.task, model.class_names) == ("semantic", known.names)
    assert_same_layers(peer, model)


@pytest.mark.parametrize("size", [(96, 128), (90, 120)])
def test_labels_of_mmsegmentation(monkeypatch, size):
    """From the same logits, without and with padding, in an image of another size."""
    peer = mmdetection_peer.mmseg_model(
        "mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024", backbone__norm_cfg__type="BN"
    )
    model = load_model(peer.state_dict())
    predictions = MaskPredictions(3 * torch.randn(1, 100, 20), 5 * torch.randn(1, 100, 24, 32))
    outputs = [predictions.class_logits], [predictions.mask_logits]
    monkeypatch.setattr(peer.decode_head, "forward", lambda *_: outputs)
    batch = ImageBatch(torch.randn(1, 3, 96, 128), torch.tensor([size]), [(75, 100)])
    metainfo = {
        "ori_shape": (75, 100),
        "img_shape": size,
        "pad_shape": (96, 128),
        "padding_size": [0, 128 - size[1], 0, 96 - size[0]],
    }
    sample = importlib.import_module("mmseg.structures").SegDataSample(metainfo=metainfo)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        [theirs] = peer.predict(batch.pixels, [sample])
    [ours] = model.postprocess(predictions, batch)
    expected = theirs.pred_sem_seg.data[0]
    assert len(expected.unique()) > 5
    assert (ours.labels == expected).float().mean() > 0.999


def assert_same_layers(peer: nn.Module, model: Mask2Former) -> None:
    pixels = torch.randn(2, 3, 96, 128)
    samples = mmdetection_peer.samples_of(pixels, [(96, 128)] * 2)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = peer.panoptic_head if hasattr(peer, "panoptic_head") else peer.decode_head
        classes, masks = head(peer.extract_feat(pixels), samples)
        layers = model.predict_layers(pixels)
    assert len(layers) == len(classes)
    for ours, class_logits, mask_logits in zip(layers, classes, masks, strict=True):
        assert_same_predictions(ours, class_logits, mask_logits)
