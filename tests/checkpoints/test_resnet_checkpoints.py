"""ResNet backbones from each peer's checkpoints: the stages that the peer computes."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fastseg.checkpoints import load_resnet
from fastseg.models import mask2former_resnet50, mask_rcnn_resnet50_fpn, solov2_resnet50_fpn


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Normalisations as after training; the last of a branch is small, so that sums stay so."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.1, 0.5)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def pixels() -> Tensor:
    return torch.randn(1, 3, 65, 96, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def torchvision_stages(model: nn.Module) -> list[Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(pixels()))))
    stages = []
    for stage in range(1, 5):
        x = model.get_submodule(f"layer{stage}")(x)
        stages.append(x)
    return stages


@torch.inference_mode()
def assert_same_stages(model: nn.Module, expected: list[Tensor]):
    for ours, theirs in zip(model.eval()(pixels()), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm_layer", [None, nn.BatchNorm2d], ids=["frozen", "batch"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_classifiers_of_torchvision(name, norm_layer, tmp_path):
    peer = randomised(getattr(torchvision.models, name)(weights=None))
    torch.save(peer.state_dict(), tmp_path / "classifier.pth")
    options = {} if norm_layer is None else {"norm_layer": norm_layer}
    model = load_resnet(tmp_path / "classifier.pth", **options)
    assert model.training
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == bool(options)
    assert_same_stages(model, torchvision_stages(peer))


def test_classifiers_of_timm():
    timm = pytest.importorskip("timm", reason="its checkpoints are read")
    peer = randomised(timm.create_model("resnet26", pretrained=False))
    with torch.inference_mode():
        expected = peer.forward_intermediates(pixels(), intermediates_only=True)[1:]
    assert_same_stages(load_resnet(peer.state_dict()), expected)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_classifiers_of_transformers(kind):
    transformers = pytest.importorskip("transformers", reason="its checkpoints are read")
    config = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048],
        depths=[2, 1, 2, 1],
        layer_type=kind,
    )
    peer = randomised(transformers.ResNetForImageClassification(config))
    with torch.inference_mode():
        expected = peer(pixels(), output_hidden_states=True).hidden_states[1:]
    assert_same_stages(load_resnet(peer.state_dict()), list(expected))
    backbone = {key.removeprefix("resnet."): t for key, t in peer.state_dict().items()}
    assert_same_stages(load_resnet(backbone), list(expected))


# From our names to detectron2's.
DETECTRON2 = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"bn(\d)\.", r"conv\1.norm."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
    *((rf"^layer{i}\.", f"res{i + 1}.") for i in range(1, 5)),
)


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_backbones_of_detectron2(prefix):
    peer = randomised(torchvision.models.resnet50(weights=None))
    tensors = {"proposal_generator.weight": torch.zeros(1)} if prefix else {}
    for key, tensor in peer.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            for old, new in DETECTRON2:
                key = re.sub(old, new, key)
            tensors[prefix + key.replace("fc.", "stem.fc.")] = tensor
    model = load_resnet({"model": tensors}, prefix=prefix)
    assert_same_stages(model, torchvision_stages(peer))
    moved = load_resnet({"model": tensors}, prefix=prefix, stride_in_1x1=True)
    assert moved.layer2[0].conv1.stride == (2, 2)


@pytest.mark.parametrize(
    ("build", "name", "norm_layer"),
    [
        (mask_rcnn_resnet50_fpn, "backbone.body", None),
        (solov2_resnet50_fpn, "backbone.body", nn.BatchNorm2d),
        (mask2former_resnet50, "backbone", None),
    ],
    ids=["Mask R-CNN", "SOLOv2", "Mask2Former"],
)
def test_models_begin_with_it(build, name, norm_layer):
    peer = randomised(torchvision.models.resnet50(weights=None))
    options = {} if norm_layer is None else {"norm_layer": norm_layer}
    body = build().get_submodule(name)
    body.load_state_dict(load_resnet(peer.state_dict(), **options).state_dict())
    assert_same_stages(body, torchvision_stages(peer))


def test_other_checkpoints_are_refused():
    with pytest.raises(ValueError, match=r"no ResNet backbone under the prefix 'body\.'.*conv1"):
        load_resnet(torchvision.models.resnet18().state_dict(), prefix="body.")
    incomplete = torchvision.models.resnet18().state_dict()
    del incomplete["layer3.1.bn2.bias"]
    with pytest.raises(ValueError, match=r"missing keys: layer3\.1\.bn2\.bias"):
        load_resnet(incomplete)
