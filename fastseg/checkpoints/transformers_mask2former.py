"""Checkpoints of Mask2Former and MaskFormer from transformers.

Files have the names of version 4, which version 5 renames when it loads and saves; state dicts of
its models have its own.
"""

from __future__ import annotations

BACKBONE = "model.pixel_level_module.encoder."
PIXEL_DECODER = r"^model\.pixel_level_module\.decoder\."
DECODER = r"^model\.transformer_module\."
# Rules for `fastseg.checkpoints.keys.renamed`. The first ones are for a ResNet.
RESNET = (
    (r"^backbone\.embedder\.embedder\.convolution\.", "backbone.conv1."),
    (r"^backbone\.embedder\.embedder\.normalization\.", "backbone.bn1."),
    *(
        (
            rf"^backbone\.encoder\.stages\.{stage}\.layers\.(\d+)\.",
            rf"backbone.layer{stage + 1}.\1.",
        )
        for stage in range(4)
    ),
    *((rf"\.layer\.{i}\.convolution\.", f".conv{i + 1}.") for i in range(3)),
    *((rf"\.layer\.{i}\.normalization\.", f".bn{i + 1}.") for i in range(3)),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
)
RULES = (
    (
        PIXEL_DECODER + r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.",
        r"pixel_decoder.layers.\1.norm1.",
    ),
    (
        PIXEL_DECODER + r"encoder\.layers\.(\d+)\.final_layer_norm\.",
        r"pixel_decoder.layers.\1.norm2.",
    ),
    (PIXEL_DECODER + r"encoder\.layers\.", "pixel_decoder.layers."),
    (PIXEL_DECODER + r"adapter_1\.", "pixel_decoder.lateral."),
    (PIXEL_DECODER + r"layer_1\.", "pixel_decoder.output."),
    (PIXEL_DECODER + r"mask_projection\.", "pixel_decoder.mask_features."),
    (PIXEL_DECODER, "pixel_decoder."),
    (DECODER + r"decoder\.layers\.", "decoder.layers."),
    (r"^(decoder\.layers\.\d+\.(?:cross|self))_attn_layer_norm\.", r"\1_norm."),
    (r"^(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm."),
    (r"^((?:pixel_)?decoder\.layers\.\d+)\.(?:mlp\.)?fc(\d)\.", r"\1.linear\2."),
    (DECODER + r"decoder\.layernorm\.", "decoder.norm."),
    (DECODER + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"decoder.mask_embed.\1."),
    (DECODER + r"queries_features\.", "decoder.query_features."),
    (DECODER + r"queries_embedder\.", "decoder.query_embed."),
    (DECODER, "decoder."),
    (r"^class_predictor\.", "decoder.class_predictor."),
)
FPN = PIXEL_DECODER + r"fpn\."
MASKFORMER_RULES = (
    (FPN + r"stem\.", "pixel_decoder.output.3."),
    # The coarsest scale is the first.
    *((FPN + rf"layers\.{i}\.proj\.", f"pixel_decoder.lateral.{2 - i}.") for i in range(3)),
    *((FPN + rf"layers\.{i}\.block\.", f"pixel_decoder.output.{2 - i}.") for i in range(3)),
    (PIXEL_DECODER + r"mask_projection\.", "pixel_decoder.mask_features."),
    (DECODER + r"decoder\.layernorm\.", "decoder.norm."),
    (DECODER + r"(?:decoder\.)?", "decoder."),
    (r"^(decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.cross_norm."),
    (r"^(decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.self_norm."),
    (r"^(decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm."),
    (r"^(decoder\.layers\.\d+)\.encoder_attn\.", r"\1.cross_attn."),
    (r"^(decoder\.layers\.\d+\.(?:cross|self)_attn)\.o_proj\.", r"\1.out_proj."),
    (r"^(decoder\.layers\.\d+)\.(?:mlp\.)?fc(\d)\.", r"\1.linear\2."),
    (r"^decoder\.queries_embedder\.", "decoder.query_embed."),
    (r"^class_predictor\.", "decoder.class_predictor."),
    (r"^mask_embedder\.(\d)\.0\.", r"decoder.mask_embed.\1."),
)
