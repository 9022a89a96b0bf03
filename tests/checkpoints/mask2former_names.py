"""Names of Mask2Former's and MaskFormer's tensors with the peers."""

from __future__ import annotations

import re

from torch import Tensor

# Our names -> the peers', written down apart from the rules under test.
DETECTRON2_RESNET = [
    (r"^backbone\.(conv1|bn1)\.", r"backbone.stem.\1."),
    (r"^backbone\.layer1\.", "backbone.res2."),
    (r"^backbone\.layer2\.", "backbone.res3."),
    (r"^backbone\.layer3\.", "backbone.res4."),
    (r"^backbone\.layer4\.", "backbone.res5."),
    (r"^(backbone.*)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
]
ORIGINAL_LAYERS = [
    (r"^decoder\.layers\.(\d)\.cross_attn\.",
     r"sem_seg_head.predictor.transformer_cross_attention_layers.\1.multihead_attn."),
    (r"^decoder\.layers\.(\d)\.cross_norm\.",
     r"sem_seg_head.predictor.transformer_cross_attention_layers.\1.norm."),
    (r"^decoder\.layers\.(\d)\.self_attn\.",
     r"sem_seg_head.predictor.transformer_self_attention_layers.\1.self_attn."),
    (r"^decoder\.layers\.(\d)\.self_norm\.",
     r"sem_seg_head.predictor.transformer_self_attention_layers.\1.norm."),
    (r"^decoder\.layers\.", "sem_seg_head.predictor.transformer_ffn_layers."),
]  # fmt: skip
ORIGINAL = [
    *DETECTRON2_RESNET,
    (r"^pixel_decoder\.input_projections\.", "sem_seg_head.pixel_decoder.input_proj."),
    (r"^pixel_decoder\.level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    (r"^pixel_decoder\.layers\.", "sem_seg_head.pixel_decoder.transformer.encoder.layers."),
    (r"^pixel_decoder\.lateral\.0\.", "sem_seg_head.pixel_decoder.adapter_1."),
    (r"^pixel_decoder\.lateral\.1\.", "sem_seg_head.pixel_decoder.adapter_1.norm."),
    (r"^pixel_decoder\.output\.0\.", "sem_seg_head.pixel_decoder.layer_1."),
    (r"^pixel_decoder\.output\.1\.", "sem_seg_head.pixel_decoder.layer_1.norm."),
    (r"^pixel_decoder\.", "sem_seg_head.pixel_decoder."),
    *ORIGINAL_LAYERS,
    (r"^decoder\.norm\.", "sem_seg_head.predictor.decoder_norm."),
    (r"^decoder\.query_features\.", "sem_seg_head.predictor.query_feat."),
    (r"^decoder\.class_predictor\.", "sem_seg_head.predictor.class_embed."),
    (r"^decoder\.mask_embed\.", "sem_seg_head.predictor.mask_embed.layers."),
    (r"^decoder\.input_projections\.", "sem_seg_head.predictor.input_proj."),
    (r"^decoder\.", "sem_seg_head.predictor."),
]
ORIGINAL_OLD = [
    *ORIGINAL,
    (r"^sem_seg_head\.pixel_decoder\.", "sem_seg_head."),
    (r"\.query_feat\.", ".static_query."),
]
SWIN_OF_MMDETECTION = [
    (r"^(backbone\.patch_embed)\.proj\.", r"\1.projection."),
    (r"^backbone\.layers\.", "backbone.stages."),
    (r"^(backbone.*)\.attn\.", r"\1.attn.w_msa."),
    (r"^(backbone.*)\.mlp\.fc1\.", r"\1.ffn.layers.0.0."),
    (r"^(backbone.*)\.mlp\.fc2\.", r"\1.ffn.layers.1."),
]
MMDETECTION = [
    *SWIN_OF_MMDETECTION,
    (r"^pixel_decoder\.input_projections\.(\d)\.0\.",
     r"panoptic_head.pixel_decoder.input_convs.\1.conv."),
    (r"^pixel_decoder\.input_projections\.(\d)\.1\.",
     r"panoptic_head.pixel_decoder.input_convs.\1.gn."),
    (r"^pixel_decoder\.level_embed", "panoptic_head.pixel_decoder.level_encoding.weight"),
    (r"^pixel_decoder\.lateral\.0\.", "panoptic_head.pixel_decoder.lateral_convs.0.conv."),
    (r"^pixel_decoder\.lateral\.1\.", "panoptic_head.pixel_decoder.lateral_convs.0.gn."),
    (r"^pixel_decoder\.output\.0\.", "panoptic_head.pixel_decoder.output_convs.0.conv."),
    (r"^pixel_decoder\.output\.1\.", "panoptic_head.pixel_decoder.output_convs.0.gn."),
    (r"^pixel_decoder\.mask_features\.", "panoptic_head.pixel_decoder.mask_feature."),
    (r"^(pixel_decoder\.layers.*)\.norm1\.", r"\1.norms.0."),
    (r"^(pixel_decoder\.layers.*)\.norm2\.", r"\1.norms.1."),
    (r"^(decoder\.layers.*)\.cross_norm\.", r"\1.norms.0."),
    (r"^(decoder\.layers.*)\.self_norm\.", r"\1.norms.1."),
    (r"^(decoder\.layers.*)\.norm\.", r"\1.norms.2."),
    (r"^(decoder\.layers.*_attn)\.", r"\1.attn."),
    (r"\.linear1\.", ".ffn.layers.0.0."),
    (r"\.linear2\.", ".ffn.layers.1."),
    (r"^pixel_decoder\.layers\.", "panoptic_head.pixel_decoder.encoder.layers."),
    (r"^decoder\.layers\.", "panoptic_head.transformer_decoder.layers."),
    (r"^decoder\.norm\.", "panoptic_head.transformer_decoder.post_norm."),
    (r"^decoder\.query_features\.", "panoptic_head.query_feat."),
    (r"^decoder\.class_predictor\.", "panoptic_head.cls_embed."),
    (r"^decoder\.mask_embed\.2\.", "panoptic_head.mask_embed.4."),
    (r"^decoder\.mask_embed\.1\.", "panoptic_head.mask_embed.2."),
    (r"^decoder\.input_projections\.", "panoptic_head.decoder_input_projs."),
    (r"^decoder\.", "panoptic_head."),
]  # fmt: skip
MMDETECTION_2 = [
    *MMDETECTION,
    (r"(pixel_decoder.*)\.self_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder.*)\.cross_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder.*)\.self_attn\.", r"\1.attentions.1."),
    (r"^(panoptic_head.*)\.ffn\.layers\.", r"\1.ffns.0.layers."),
]
MMSEGMENTATION = [*MMDETECTION, (r"^panoptic_head\.", "decode_head.")]
TRANSFORMERS_BACKBONE = [
    (r"^backbone\.patch_embed\.proj\.", "backbone.embeddings.patch_embeddings.projection."),
    (r"^backbone\.patch_embed\.norm\.", "backbone.embeddings.norm."),
    (r"^backbone\.layers\.", "backbone.encoder.layers."),
    (r"^(backbone.*\.blocks.*)\.norm1\.", r"\1.layernorm_before."),
    (r"^(backbone.*\.blocks.*)\.norm2\.", r"\1.layernorm_after."),
    *((rf"^backbone\.norm{i}\.", f"backbone.hidden_states_norms.stage{i + 1}.") for i in range(4)),
    (r"^backbone\.conv1\.", "backbone.embedder.embedder.convolution."),
    (r"^backbone\.bn1\.", "backbone.embedder.embedder.normalization."),
    *(
        (rf"^backbone\.layer{i + 1}\.(\d)\.", rf"backbone.encoder.stages.{i}.layers.\1.")
        for i in range(4)
    ),
    *((rf"\.conv{i + 1}\.", f".layer.{i}.convolution.") for i in range(3)),
    *((rf"\.bn{i + 1}\.", f".layer.{i}.normalization.") for i in range(3)),
    (r"\.downsample\.0\.", ".shortcut.convolution."),
    (r"\.downsample\.1\.", ".shortcut.normalization."),
    (r"^backbone\.", "model.pixel_level_module.encoder."),
]
TRANSFORMERS_4 = [
    (r"^(backbone.*)\.attn\.qkv\.", r"\1.attention.self.{query,key,value}."),
    (r"^(backbone.*)\.attn\.proj\.", r"\1.attention.output.dense."),
    (r"^(backbone.*)\.attn\.relative", r"\1.attention.self.relative"),
    (r"^(backbone.*)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"^(backbone.*)\.mlp\.fc2\.", r"\1.output.dense."),
    *TRANSFORMERS_BACKBONE,
    (r"^(pixel_decoder\.layers.*)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"^((?:pixel_)?decoder\.layers.*)\.norm2?\.", r"\1.final_layer_norm."),
    (r"\.linear(\d)\.", r".fc\1."),
    (r"^pixel_decoder\.layers\.", "pixel_decoder.encoder.layers."),
    (r"^pixel_decoder\.lateral\.", "pixel_decoder.adapter_1."),
    (r"^pixel_decoder\.output\.", "pixel_decoder.layer_1."),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_projection."),
    (r"^pixel_decoder\.", "model.pixel_level_module.decoder."),
    (r"^(decoder\.layers.*)\.(cross|self)_norm\.", r"\1.\2_attn_layer_norm."),
    (r"\.self_attn\.in_proj_", ".self_attn.{q_proj,k_proj,v_proj}."),
    (r"^decoder\.layers\.", "model.transformer_module.decoder.layers."),
    (r"^decoder\.norm\.", "model.transformer_module.decoder.layernorm."),
    (r"^decoder\.mask_embed\.(\d)\.",
     r"model.transformer_module.decoder.mask_predictor.mask_embedder.\1.0."),
    (r"^decoder\.class_predictor\.", "class_predictor."),
    (r"^decoder\.query_features\.", "model.transformer_module.queries_features."),
    (r"^decoder\.query_embed\.", "model.transformer_module.queries_embedder."),
    (r"^decoder\.", "model.transformer_module."),
]  # fmt: skip
TRANSFORMERS_5 = [
    (r"^(backbone.*)\.attn\.qkv\.", r"\1.attention.{q_proj,k_proj,v_proj}."),
    (r"^(backbone.*)\.attn\.proj\.", r"\1.attention.o_proj."),
    (r"^(backbone.*)\.attn\.relative", r"\1.attention.relative_position_bias.relative"),
    *TRANSFORMERS_BACKBONE,
    (r"^(model\.pixel_level_module\.encoder)\.(embeddings|encoder\.layers)\.", r"\1.swin.\2."),
    *TRANSFORMERS_4,
]
PEERS = {
    "ours": [],
    "original": ORIGINAL,
    "original, first version": ORIGINAL_OLD,
    "mmdetection 3": MMDETECTION,
    "mmdetection 2": MMDETECTION_2,
    "mmsegmentation": MMSEGMENTATION,
    "transformers 4": TRANSFORMERS_4,
    "transformers 5": TRANSFORMERS_5,
}


MASKFORMER_ORIGINAL = [
    *DETECTRON2_RESNET,
    *((rf"^pixel_decoder\.lateral\.{i}\.", f"pixel_decoder.adapter_{i + 1}.") for i in range(3)),
    *((rf"^pixel_decoder\.output\.{i}\.", f"pixel_decoder.layer_{i + 1}.") for i in range(4)),
    (r"^(pixel_decoder\.(?:adapter|layer)_\d)\.0\.", r"\1."),
    (r"^(pixel_decoder\.(?:adapter|layer)_\d)\.1\.", r"\1.norm."),
    (r"^pixel_decoder\.layers\.", "pixel_decoder.transformer.encoder.layers."),
    (r"^pixel_decoder\.input_projection\.", "pixel_decoder.input_proj."),
    (r"^pixel_decoder\.", "sem_seg_head.pixel_decoder."),
    (r"^(decoder\.layers.*)\.norm\.", r"\1.norm3."),
    (r"^(decoder\.layers.*)\.cross_norm\.", r"\1.norm2."),
    (r"^(decoder\.layers.*)\.self_norm\.", r"\1.norm1."),
    (r"^(decoder\.layers.*)\.cross_attn\.", r"\1.multihead_attn."),
    (r"^decoder\.(layers|norm)\.", r"sem_seg_head.predictor.transformer.decoder.\1."),
    (r"^decoder\.class_predictor\.", "sem_seg_head.predictor.class_embed."),
    (r"^decoder\.mask_embed\.", "sem_seg_head.predictor.mask_embed.layers."),
    (r"^decoder\.input_projection\.", "sem_seg_head.predictor.input_proj."),
    (r"^decoder\.", "sem_seg_head.predictor."),
]
MASKFORMER_MMDETECTION = [
    *SWIN_OF_MMDETECTION,
    (r"^(pixel_decoder\.layers.*)\.norm1\.", r"\1.norms.0."),
    (r"^(pixel_decoder\.layers.*)\.norm2\.", r"\1.norms.1."),
    (r"^((?:pixel_)?decoder\.layers.*_attn)\.", r"\1.attn."),
    (r"^pixel_decoder\.layers\.", "pixel_decoder.encoder.layers."),
    (r"^pixel_decoder\.input_projection\.", "pixel_decoder.encoder_in_proj."),
    (r"^pixel_decoder\.output\.3\.", "pixel_decoder.last_feat_conv."),
    (r"^pixel_decoder\.(lateral|output)\.", r"pixel_decoder.\1_convs."),
    (r"^(pixel_decoder\.(?:.*_convs\.\d|last_feat_conv))\.0\.", r"\1.conv."),
    (r"^(pixel_decoder\.(?:.*_convs\.\d|last_feat_conv))\.1\.", r"\1.gn."),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_feature."),
    (r"^pixel_decoder\.", "panoptic_head.pixel_decoder."),
    (r"^(decoder\.layers.*)\.self_norm\.", r"\1.norms.0."),
    (r"^(decoder\.layers.*)\.cross_norm\.", r"\1.norms.1."),
    (r"^(decoder\.layers.*)\.norm\.", r"\1.norms.2."),
    (r"\.linear1\.", ".ffn.layers.0.0."),
    (r"\.linear2\.", ".ffn.layers.1."),
    (r"^decoder\.layers\.", "panoptic_head.transformer_decoder.layers."),
    (r"^decoder\.norm\.", "panoptic_head.transformer_decoder.post_norm."),
    (r"^decoder\.class_predictor\.", "panoptic_head.cls_embed."),
    (r"^decoder\.mask_embed\.2\.", "panoptic_head.mask_embed.4."),
    (r"^decoder\.mask_embed\.1\.", "panoptic_head.mask_embed.2."),
    (r"^decoder\.input_projection\.", "panoptic_head.decoder_input_proj."),
    (r"^decoder\.", "panoptic_head."),
]
MASKFORMER_MMDETECTION_2 = [
    *MASKFORMER_MMDETECTION,
    (r"(pixel_decoder.*)\.self_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder.*)\.self_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder.*)\.cross_attn\.", r"\1.attentions.1."),
    (r"^(panoptic_head.*)\.ffn\.layers\.", r"\1.ffns.0.layers."),
]
MASKFORMER_TRANSFORMERS_4 = [
    *TRANSFORMERS_4[:5],
    (r"^backbone\.norm(\d)\.", r"backbone.hidden_states_norms.\1."),
    *TRANSFORMERS_BACKBONE,
    (r"^(model\.pixel_level_module\.encoder)\.(embeddings|encoder\.layers)\.", r"\1.model.\2."),
    (r"^pixel_decoder\.output\.3\.", "pixel_decoder.fpn.stem."),
    *((rf"^pixel_decoder\.lateral\.{2 - i}\.", f"pixel_decoder.fpn.layers.{i}.proj.")
      for i in range(3)),
    *((rf"^pixel_decoder\.output\.{2 - i}\.", f"pixel_decoder.fpn.layers.{i}.block.")
      for i in range(3)),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_projection."),
    (r"^pixel_decoder\.", "model.pixel_level_module.decoder."),
    (r"^(decoder\.layers.*)\.norm\.", r"\1.final_layer_norm."),
    (r"^(decoder\.layers.*)\.self_norm\.", r"\1.self_attn_layer_norm."),
    (r"^(decoder\.layers.*)\.cross_norm\.", r"\1.encoder_attn_layer_norm."),
    (r"^(decoder.*)\.cross_attn\.", r"\1.encoder_attn."),
    (r"\.(self|encoder)_attn\.in_proj_", r".\1_attn.{q_proj,k_proj,v_proj}."),
    (r"\.linear(\d)\.", r".fc\1."),
    (r"^decoder\.layers\.", "model.transformer_module.decoder.layers."),
    (r"^decoder\.norm\.", "model.transformer_module.decoder.layernorm."),
    (r"^decoder\.mask_embed\.(\d)\.", r"mask_embedder.\1.0."),
    (r"^decoder\.class_predictor\.", "class_predictor."),
    (r"^decoder\.query_embed\.", "model.transformer_module.queries_embedder."),
    (r"^decoder\.", "model.transformer_module."),
]  # fmt: skip
MASKFORMER_TRANSFORMERS_5 = [
    *MASKFORMER_TRANSFORMERS_4,
    (r"^(model\.transformer_module.*)\.out_proj\.", r"\1.o_proj."),
    (r"^(model\.transformer_module.*)\.fc", r"\1.mlp.fc"),
]
MASKFORMER_PEERS = {
    "ours": [],
    "original": MASKFORMER_ORIGINAL,
    "original, first version": [
        *MASKFORMER_ORIGINAL,
        (r"^sem_seg_head\.pixel_decoder\.", "sem_seg_head."),
    ],
    "mmdetection 3": MASKFORMER_MMDETECTION,
    "mmdetection 2": MASKFORMER_MMDETECTION_2,
    "mmsegmentation": [*MASKFORMER_MMDETECTION, (r"^panoptic_head\.", "decode_head.")],
    "transformers 4": MASKFORMER_TRANSFORMERS_4,
    "transformers 5": MASKFORMER_TRANSFORMERS_5,
}


def under_names(state_dict: dict[str, Tensor], rules: list[tuple[str, str]]) -> dict[str, Tensor]:
    """A model's tensors as the peer stores them."""
    result = {}
    for key, tensor in state_dict.items():
        if rules[: len(SWIN_OF_MMDETECTION)] == SWIN_OF_MMDETECTION and re.search(
            r"backbone\.layers.*\.downsample\.", key
        ):
            # [..., right, down, C] -> [..., C, down, right].
            *rows, inputs = tensor.shape
            tensor = tensor.reshape(*rows, 4, inputs // 4)[..., [0, 2, 1, 3], :]
            tensor = tensor.transpose(-1, -2).reshape(*rows, inputs)
        for ours, theirs in rules:
            key = re.sub(ours, theirs, key)
        if found := re.search(r"\{(.*)\}", key):
            for name, part in zip(found[1].split(","), tensor.chunk(3), strict=True):
                result[key.replace(found[0], name)] = part
        else:
            result[key] = tensor
    return result
