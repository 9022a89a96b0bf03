"""Swin's checkpoints under each peer's names."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastseg import backbones
from fastseg.backbones.swin import PatchMerging, SwinTransformer
from fastseg.checkpoints import load_swin
from fastseg.checkpoints.swin import with_our_names


@torch.no_grad()
def randomised(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.normal_()
    return model


def small_swin() -> SwinTransformer:
    torch.manual_seed(0)
    model = SwinTransformer(embed_channels=8, depths=(2, 2, 1), num_heads=(1, 2, 4), window_size=5)
    return randomised(model)


def assert_same_tensors(model: SwinTransformer, expected: dict[str, torch.Tensor]):
    state_dict = model.state_dict()
    assert set(state_dict) == set(expected)
    for key, tensor in state_dict.items():
        assert torch.equal(tensor, expected[key]), key


# From our names to a peer's.
MMDETECTION = (
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"^layers\.", "stages."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)
TRANSFORMERS_BLOCK = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^layers\.", "encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^norm0\.", "hidden_states_norms.stage1."),
    (r"^norm1\.", "hidden_states_norms.stage2."),
    (r"^norm2\.", "hidden_states_norms.stage3."),
)
TRANSFORMERS_4 = (
    *TRANSFORMERS_BLOCK,
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.qkv\.", ".attention.self.{query,key,value}."),
    (r"\.attn\.relative", ".attention.self.relative"),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
TRANSFORMERS_5 = (
    *TRANSFORMERS_BLOCK,
    (r"\.attn\.proj\.", ".attention.o_proj."),
    (r"\.attn\.qkv\.", ".attention.{q_proj,k_proj,v_proj}."),
    (r"\.attn\.relative", ".attention.relative_position_bias.relative"),
    (r"^(embeddings|encoder)\.", r"swin.\1."),
)
UNFOLDED = re.compile(r"\.downsample\.(reduction\.weight|norm\.)")


def in_names_of(peer, model: SwinTransformer) -> dict[str, torch.Tensor]:
    """A model's tensors as the peer stores them."""
    result = {}
    for key, tensor in model.state_dict().items():
        if peer is MMDETECTION and UNFOLDED.search(key):
            # [..., right, down, C] -> [..., C, down, right].
            *rows, inputs = tensor.shape
            tensor = torch.stack(
                [tensor.reshape(*rows, 4, inputs // 4)[..., i, :] for i in (0, 2, 1, 3)], -1
            ).reshape(*rows, inputs)
        for old, new in peer:
            key = re.sub(old, new, key)
        if found := re.search(r"\{(.*)\}", key):
            for name, part in zip(found[1].split(","), tensor.chunk(3), strict=True):
                result[key.replace(found[0], name)] = part
        else:
            result[key] = tensor
    return result


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize(
    "peer",
    [(), MMDETECTION, TRANSFORMERS_4, TRANSFORMERS_5],
    ids=["authors", "mmdetection", "transformers 4", "transformers 5"],
)
def test_backbones_load(peer, prefix):
    model = small_swin()
    tensors = {prefix + key: tensor for key, tensor in in_names_of(peer, model).items()}
    if prefix:
        tensors["head.class_embed.weight"] = torch.zeros(3)
    assert_same_tensors(load_swin(tensors, prefix=prefix), model.state_dict())


def test_merging_of_mmdetection_equals_unfold():
    torch.manual_seed(1)
    merging = randomised(PatchMerging(channels=3))
    norm, reduction = randomised(nn.LayerNorm(12)), randomised(nn.Linear(12, 6, bias=False))
    tensors = {
        "patch_embed.projection.weight": torch.zeros(1),
        "stages.0.blocks.0.norm1.weight": torch.zeros(1),
        "stages.0.downsample.norm.weight": norm.weight.detach(),
        "stages.0.downsample.norm.bias": norm.bias.detach(),
        "stages.0.downsample.reduction.weight": reduction.weight.detach(),
    }
    ours = with_our_names(tensors, source="the test")
    beginning = "layers.0.downsample."
    merging.load_state_dict(
        {
            key.removeprefix(beginning): tensor
            for key, tensor in ours.items()
            if key.startswith(beginning)
        }
    )
    x = torch.randn(2, 6, 8, 3)
    unfolded = F.unfold(x.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)
    expected = reduction(norm(unfolded)).reshape(2, 3, 4, 6)
    torch.testing.assert_close(merging(x), expected)


def test_what_the_authors_store_beside_weights_is_left_out():
    model = small_swin()
    tensors = {
        **model.state_dict(),
        "layers.0.blocks.0.attn.relative_position_index": torch.zeros(25, 25),
        "layers.0.blocks.1.attn_mask": torch.zeros(4, 25, 25),
        "norm.weight": torch.zeros(32),
        "head.bias": torch.zeros(10),
    }
    assert_same_tensors(load_swin({"model": tensors}), model.state_dict())


def test_norms_of_a_classifier_begin_as_ones_and_zeros():
    model = small_swin()
    tensors = {k: v for k, v in model.state_dict().items() if not re.match(r"norm\d", k)}
    loaded = load_swin(tensors)
    for i, channels in enumerate(model.out_channels):
        norm = loaded.get_submodule(f"norm{i}")
        assert torch.equal(norm.weight, torch.ones(channels))
        assert torch.equal(norm.bias, torch.zeros(channels))
    assert_same_tensors(
        loaded, {**tensors, **{k: v for k, v in loaded.state_dict().items() if k not in tensors}}
    )


def test_loaded_backbone_runs_and_trains():
    model = small_swin()
    loaded = load_swin(model.state_dict(), drop_path=0.5)
    pixels = torch.randn(1, 3, 50, 40)
    assert loaded.training
    assert loaded.layers[2].blocks[0].drop_path.rate == 0.5
    for ours, theirs in zip(loaded.eval()(pixels), model.eval()(pixels), strict=True):
        assert torch.equal(ours, theirs)
    loaded(pixels)[-1].square().sum().backward()
    assert loaded.patch_embed.proj.weight.grad.abs().sum() > 0


@torch.inference_mode()
def test_stages_equal_timm():
    timm_swin = pytest.importorskip("timm.models.swin_transformer")
    torch.manual_seed(2)
    peer = timm_swin.SwinTransformer(
        img_size=(96, 160),
        window_size=4,
        embed_dim=16,
        depths=(2, 2, 2),
        num_heads=(1, 2, 4),
        num_classes=3,
    ).eval()
    model = load_swin(peer.state_dict()).eval()
    pixels = torch.randn(2, 3, 96, 160)
    x = peer.patch_embed(pixels)
    for layer, ours in zip(peer.layers, model(pixels), strict=True):
        x = layer(x)
        expected = F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["SwinBackbone", "SwinForImageClassification"])
def test_files_of_transformers_load(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 2],
        num_heads=[1, 2],
        window_size=4,
        out_features=["stage1", "stage2"],
    )
    peer = randomised(getattr(transformers, kind)(config))
    peer.save_pretrained(tmp_path)
    loaded = load_swin(tmp_path / "model.safetensors")
    assert_same_tensors(loaded, load_swin(peer.state_dict()).state_dict())
    assert_same_tensors(load_swin(tmp_path), loaded.state_dict())
    attention = peer.swin.encoder.layers[0].blocks[0].attention
    rows = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert torch.equal(loaded.layers[0].blocks[0].attn.qkv.weight, torch.cat(rows))


@pytest.mark.parametrize("name", ["swin_t", "swin_s", "swin_b"])
def test_zoo_of_torchvision_fits(name):
    tv_models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        peer = getattr(tv_models, name)()
        model = getattr(backbones, name)(window_size=7)
    assert_shapes_fit(peer, model)


@pytest.mark.parametrize(
    ("name", "peer_name"),
    [
        ("swin_t", "swin_tiny_patch4_window7_224"),
        ("swin_b", "swin_base_patch4_window12_384"),
        ("swin_l", "swin_large_patch4_window12_384"),
    ],
)
def test_zoo_of_timm_fits(name, peer_name):
    timm_swin = pytest.importorskip("timm.models.swin_transformer")
    with torch.device("meta"):
        peer = getattr(timm_swin, peer_name)(pretrained=False)
        model = getattr(backbones, name)()
    assert_shapes_fit(peer, model)


def assert_shapes_fit(peer: nn.Module, model: SwinTransformer):
    theirs = with_our_names(peer.state_dict(), source="the peer")
    ours = {k: v for k, v in model.state_dict().items() if not re.match(r"norm\d", k)}
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}


def test_unknown_and_missing_keys_are_listed():
    tensors = small_swin().state_dict()
    del tensors["layers.1.blocks.0.attn.qkv.bias"]
    del tensors["norm1.weight"]
    tensors["absolute_pos_embed"] = torch.zeros(1)
    tensors["layers.0.blocks.0.mlp.fc1.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match="does not fit SwinTransformer") as error:
        load_swin(tensors)
    for part in (
        "unknown keys: absolute_pos_embed;",
        "missing keys: layers.1.blocks.0.attn.qkv.bias, norm1.weight;",
        "layers.0.blocks.0.mlp.fc1.bias is [5] instead of [32]",
    ):
        assert part in str(error.value)


def test_half_a_qkv_is_listed():
    tensors = in_names_of(TRANSFORMERS_4, small_swin())
    del tensors["encoder.layers.0.blocks.1.attention.self.key.bias"]
    with pytest.raises(ValueError, match="missing keys: layers") as error:
        load_swin(tensors)
    unknown = "layers.0.blocks.1.attn.q.bias, layers.0.blocks.1.attn.v.bias"
    assert f"unknown keys: {unknown}; missing keys: layers.0.blocks.1.attn.qkv.bias" in str(
        error.value
    )


def test_swin_v2_is_refused():
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    peer = swin.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=96,
        depths=[2, 2],
        num_heads=[3, 6],
        window_size=[7, 7],
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
    )
    with pytest.raises(ValueError, match=r"unknown keys: layers\.0\.blocks\.0\.attn\.cpb_mlp"):
        load_swin(peer.state_dict())


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"no Swin backbone under the prefix ''.*conv1\.weight"):
        load_swin(backbones.resnet18().state_dict())
    with pytest.raises(ValueError, match=r"no Swin backbone under the prefix 'backbone\.'"):
        load_swin(small_swin().state_dict(), prefix="backbone.")


def test_the_caller_keeps_its_tensors():
    model = small_swin()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loaded = load_swin(model.state_dict())
    randomised(loaded)
    assert_same_tensors(model, before)
