"""Swin against torchvision's and transformers', and its windows against a reference with loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastseg import backbones
from fastseg.backbones.swin import (
    DropPath,
    PatchMerging,
    SwinBlock,
    SwinTransformer,
    WindowAttention,
    separated_by_shift,
)
from fastseg.checkpoints import load_swin


def small_swin(**options) -> SwinTransformer:
    options = {
        "embed_channels": 16,
        "depths": (2, 2, 2, 2),
        "num_heads": (1, 2, 4, 8),
        "window_size": 4,
        **options,
    }
    return randomised(SwinTransformer(**options)).eval()


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    """Parameters far from their initial values, of which many are zero or one."""
    for name, parameter in model.named_parameters():
        if "table" in name:
            parameter.normal_(std=1.0)
        elif parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
        else:
            parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
    return model


def assert_stages_close(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        # Measured on a CPU: 6e-7 of the largest value, sums in another order.
        torch.testing.assert_close(x, y, rtol=1e-5, atol=2e-6 * y.abs().max().item())


@pytest.mark.parametrize(
    ("window_size", "depths", "size"),
    [
        (2, (2, 2, 4, 2), (150, 171)),
        (7, (2, 2), (131, 157)),
        (5, (1, 3), (64, 100)),
    ],
)
def test_stages_equal_torchvision(window_size, depths, size):
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    torch.manual_seed(0)
    num_heads = [2**i for i in range(len(depths))]
    peer = swin.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=16,
        depths=list(depths),
        num_heads=num_heads,
        window_size=[window_size, window_size],
        num_classes=3,
    )
    randomised(peer).eval()
    model = load_swin(peer.state_dict()).eval()
    pixels = torch.randn(2, 3, *size, requires_grad=True)

    stages = model(pixels)
    # It cuts off what does not fill a patch.
    x, expected = F.pad(pixels, (0, -size[1] % 4, 0, -size[0] % 4)), []
    for i, layer in enumerate(peer.features):
        x = layer(x)
        if i % 2:
            expected.append(F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))
    assert_stages_close(stages, expected)
    grads = [
        torch.autograd.grad(sum((s * s.roll(1, 1)).sum() for s in outputs), pixels)[0]
        for outputs in (stages, expected)
    ]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5 * grads[1].abs().max().item())


@pytest.mark.parametrize(
    ("window_size", "size"),
    [(7, (224, 224)), (7, (130, 95)), (7, (33, 50)), (4, (97, 128)), (12, (61, 5))],
)
def test_stages_equal_transformers(window_size, size):
    """Its backbone, which Mask2Former uses, shifts the windows of small maps as well."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.SwinConfig(
        embed_dim=16,
        depths=[2, 2, 4, 2],
        num_heads=[1, 2, 4, 8],
        window_size=window_size,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    peer = randomised(transformers.SwinBackbone(config)).eval()
    model = load_swin(peer.state_dict()).eval()
    pixels = torch.randn(2, 3, *size)
    with torch.inference_mode():
        assert_stages_close(model(pixels), peer(pixels).feature_maps)


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("size", [(8, 12), (7, 9), (4, 4), (3, 10), (2, 1)])
def test_attention_is_within_the_windows_of_the_paper(size, shift):
    """Each token attends to those that have the same window in the plane, without any roll."""
    torch.manual_seed(2)
    block = randomised(SwinBlock(channels=6, num_heads=2, window_size=4, shift=shift)).double()
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    separated = None
    if shift:
        separated = separated_by_shift(*size, window_size=4, shift=shift, device=x.device)
    ours = block.window_attention(x, separated)

    padded = F.pad(x, (0, 0, 0, -size[1] % 4, 0, -size[0] % 4))
    height, width = padded.shape[1:3]
    places = [(row, column) for row in range(height) for column in range(width)]
    attn = block.attn
    q, k, v = attn.qkv(padded).reshape(2, len(places), 3, 2, 3).unbind(2)
    table = attn.relative_position_bias_table.reshape(7, 7, 2)
    expected = torch.zeros(2, height, width, 6, dtype=torch.float64)
    for at, (row, column) in enumerate(places):
        window = ((row - shift) // 4, (column - shift) // 4)
        inside = [
            i for i, (r, c) in enumerate(places) if ((r - shift) // 4, (c - shift) // 4) == window
        ]
        bias = torch.stack(
            [table[row - places[i][0] + 3, column - places[i][1] + 3] for i in inside]
        )
        logits = (q[:, at, None] * k[:, inside]).sum(3) * 3**-0.5 + bias
        mixed = (logits.softmax(1)[..., None] * v[:, inside]).sum(1).flatten(1)
        expected[:, row, column] = attn.proj(mixed)
    torch.testing.assert_close(ours, expected[:, : size[0], : size[1]])


def test_patch_merging_takes_neighbours_down_first():
    merging = PatchMerging(channels=2)
    seen = []
    merging.norm = nn.Identity()
    merging.reduction.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    merging(torch.arange(12.0).reshape(1, 2, 3, 2))
    assert seen[0].tolist() == [[[[0, 1, 6, 7, 2, 3, 8, 9], [4, 5, 10, 11, 0, 0, 0, 0]]]]


@pytest.mark.parametrize(
    ("name", "channels", "blocks", "window_size"),
    [
        ("swin_t", 96, 12, 7),
        ("swin_s", 96, 24, 7),
        ("swin_b", 128, 24, 12),
        ("swin_l", 192, 24, 12),
    ],
)
def test_builders_on_the_meta_device(name, channels, blocks, window_size):
    with torch.device("meta"):
        model = getattr(backbones, name)()
    model.to("meta")  # While memory is poisoned, the norms' is real.
    stages = model(torch.zeros(2, 3, 65, 130, device="meta"))
    assert model.out_channels == [channels, 2 * channels, 4 * channels, 8 * channels]
    sizes = [(17, 33), (9, 17), (5, 9), (3, 5)]
    assert [stage.shape for stage in stages] == [
        (2, count, *size) for count, size in zip(model.out_channels, sizes, strict=True)
    ]
    assert all(stage.is_meta for stage in stages)
    found = [module for module in model.modules() if isinstance(module, SwinBlock)]
    assert len(found) == blocks
    assert {block.window_size for block in found} == {window_size}
    assert {block.attn.qkv.in_features // block.attn.num_heads for block in found} == {32}
    rates = [block.drop_path.rate for block in found]
    assert rates[0] == 0
    assert rates[-1] == 0.3
    assert rates == sorted(set(rates))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_images_of_a_batch_are_independent(batch):
    torch.manual_seed(3)
    model = small_swin()
    pixels = torch.randn(batch, 3, 70, 45)
    with torch.inference_mode():
        stages = model(pixels)
        alone = [model(image[None]) for image in pixels]
    assert [stage.shape[0] for stage in stages] == [batch] * 4
    for i, single in enumerate(alone):
        assert_stages_close([stage[i : i + 1] for stage in stages], single)


def test_gradients_reach_every_parameter():
    torch.manual_seed(4)
    model = small_swin().train()
    sum((stage**3).sum() for stage in model(torch.randn(2, 3, 61, 40))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_attention_gradients():
    torch.manual_seed(5)
    attention = randomised(WindowAttention(channels=4, num_heads=2, window_size=2)).double()
    windows = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    separated = torch.rand(3, 4, 4) < 0.3
    separated &= ~torch.eye(4, dtype=torch.bool)
    table = attention.relative_position_bias_table

    def run(windows, table):
        parameters = {"relative_position_bias_table": table}
        return torch.func.functional_call(attention, parameters, (windows, separated))

    assert torch.autograd.gradcheck(run, (windows, table))


def test_compiles_into_one_graph():
    torch.manual_seed(6)
    torch.compiler.reset()
    model = small_swin(num_heads=(1, 2), depths=(2, 2))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    for size in ((64, 48), (37, 90)):
        pixels = torch.randn(2, 3, *size)
        with torch.inference_mode():
            assert_stages_close(compiled(pixels), model(pixels))


def test_compiled_training_step():
    torch.manual_seed(7)
    torch.compiler.reset()
    model = small_swin(num_heads=(1, 2), depths=(2, 2))
    pixels = torch.randn(2, 3, 37, 50)
    grads = []
    for network in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        sum((stage**3).sum() for stage in network(pixels)).backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_bfloat16_and_autocast():
    torch.manual_seed(8)
    model = small_swin()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(pixels)
        low = model.bfloat16()(pixels.bfloat16())
    assert {stage.dtype for stage in low} == {torch.bfloat16}
    for stages in (mixed, low):
        for x, y in zip(stages, expected, strict=True):
            assert (x.float() - y).abs().mean() < 0.05 * y.abs().mean()


def test_output_is_channels_last():
    stages = small_swin()(torch.zeros(1, 3, 64, 64))
    assert all(stage.is_contiguous(memory_format=torch.channels_last) for stage in stages)


def test_drop_path_leaves_out_images():
    torch.manual_seed(9)
    layer = DropPath(rate=0.25)
    x = torch.ones(4000, 2, 3)
    y = layer(x)
    assert (y == y[:, :1, :1]).all()
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs(y.mean().item() - 1) < 0.05
    assert layer.eval()(x) is x


def test_drop_path_is_for_training():
    torch.manual_seed(10)
    model = small_swin(drop_path=0.9)
    pixels = torch.randn(2, 3, 64, 64)
    assert_stages_close(model(pixels), model(pixels))
    model.train()
    assert not torch.allclose(model(pixels)[-1], model(pixels)[-1], atol=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": (1, 2)}, "one number per stage"),
        ({"num_heads": (3, 2, 4, 8)}, "channels=16 do not divide into num_heads=3"),
        ({"window_size": 1}, "window_size must be at least 2, got 1"),
        ({"drop_path": 1.0}, r"drop_path must be at least 0 and less than 1, got 1\.0"),
        ({"drop_path": -0.1}, r"drop_path must be at least 0 and less than 1, got -0\.1"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        small_swin(**options)
