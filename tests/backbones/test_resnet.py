"""ResNets against torchvision's, stage by stage."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fastseg import backbones
from fastseg.backbones.resnet import BasicBlock, ResNet

tv_models = pytest.importorskip(
    "torchvision.models", reason="torchvision is the peer that is compared with"
)
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d  # noqa: E402

NAMES = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnext101_32x8d",
    "resnext101_64x4d",
]


def torchvision_stages(peer: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    x = peer.maxpool(peer.relu(peer.bn1(peer.conv1(pixels))))
    stages = []
    for layer in (peer.layer1, peer.layer2, peer.layer3, peer.layer4):
        x = layer(x)
        stages.append(x)
    return stages


@torch.no_grad()
def randomise_norms(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, TorchvisionFrozenBatchNorm2d)):
            for tensor, low in (
                (module.weight, 0.2),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                tensor.copy_(low + torch.rand(len(tensor)))


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("name", NAMES)
def test_stages_equal_torchvision(name, frozen):
    torch.manual_seed(0)
    peer_norm = TorchvisionFrozenBatchNorm2d if frozen else nn.BatchNorm2d
    peer = getattr(tv_models, name)(weights=None, norm_layer=peer_norm).eval()
    randomise_norms(peer)
    options = {} if frozen else {"norm_layer": nn.BatchNorm2d}
    model = getattr(backbones, name)(**options).eval()
    weights = {key: value for key, value in peer.state_dict().items() if not key.startswith("fc.")}
    model.load_state_dict(weights)
    pixels = torch.randn(2, 3, 37, 51)

    with torch.inference_mode():
        stages, expected = model(pixels), torchvision_stages(peer, pixels)
    for ours, theirs, channels in zip(stages, expected, model.out_channels, strict=True):
        assert ours.shape[1] == channels
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_training_mode_uses_batch_statistics():
    torch.manual_seed(0)
    model = backbones.resnet18(norm_layer=nn.BatchNorm2d)
    before = model.bn1.running_mean.clone()
    pixels = torch.randn(2, 3, 32, 32)
    training = model(pixels)[0]
    assert not torch.equal(model.bn1.running_mean, before)
    assert not torch.allclose(training, model.eval()(pixels)[0], atol=1e-2)


def test_gradients_reach_the_first_convolution():
    model = backbones.resnet18()
    model(torch.randn(1, 3, 32, 32))[-1].sum().backward()
    assert model.conv1.weight.grad.abs().sum() > 0


def test_basic_blocks_have_one_group():
    with pytest.raises(ValueError, match="groups=2"):
        ResNet(block=BasicBlock, depths=(1, 1, 1, 1), groups=2)


def test_stride_in_1x1_moves_the_stride():
    model = backbones.resnet50(stride_in_1x1=True)
    for stage, stride in (("layer1", 1), ("layer2", 2), ("layer3", 2), ("layer4", 2)):
        first = model.get_submodule(stage)[0]
        assert first.conv1.stride == (stride, stride)
        assert first.conv2.stride == (1, 1)
    assert [x.shape[-1] for x in model(torch.zeros(1, 3, 64, 64))] == [16, 8, 4, 2]


def test_basic_blocks_refuse_options_of_bottlenecks():
    with pytest.raises(ValueError, match="stride_in_1x1"):
        ResNet(block=BasicBlock, depths=(1, 1, 1, 1), stride_in_1x1=True)
