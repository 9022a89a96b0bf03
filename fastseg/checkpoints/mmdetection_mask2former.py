"""Checkpoints of Mask2Former and MaskFormer from mmdetection (2.20 to 3.3) and mmsegmentation."""

from __future__ import annotations

PIXEL_DECODER = r"^panoptic_head\.pixel_decoder\."
DECODER = r"^panoptic_head\.transformer_decoder\."
FFN = (
    (r"^((?:pixel_)?decoder\.layers\.\d+)\.ffns?(?:\.0)?\.layers\.0\.0\.", r"\1.linear1."),
    (r"^((?:pixel_)?decoder\.layers\.\d+)\.ffns?(?:\.0)?\.layers\.1\.", r"\1.linear2."),
)
PREDICTIONS = (
    (r"^panoptic_head\.query_embed\.", "decoder.query_embed."),
    (r"^panoptic_head\.cls_embed\.", "decoder.class_predictor."),
    # ReLUs are counted.
    *((rf"^panoptic_head\.mask_embed\.{2 * i}\.", f"decoder.mask_embed.{i}.") for i in range(3)),
)
# Rules for `fastseg.checkpoints.keys.renamed`, for all but the backbone.
RULES = (
    (PIXEL_DECODER + r"input_convs\.(\d+)\.conv\.", r"pixel_decoder.input_projections.\1.0."),
    (PIXEL_DECODER + r"input_convs\.(\d+)\.gn\.", r"pixel_decoder.input_projections.\1.1."),
    (PIXEL_DECODER + r"level_encoding\.weight$", "pixel_decoder.level_embed"),
    (PIXEL_DECODER + r"lateral_convs\.0\.conv\.", "pixel_decoder.lateral.0."),
    (PIXEL_DECODER + r"lateral_convs\.0\.gn\.", "pixel_decoder.lateral.1."),
    (PIXEL_DECODER + r"output_convs\.0\.conv\.", "pixel_decoder.output.0."),
    (PIXEL_DECODER + r"output_convs\.0\.gn\.", "pixel_decoder.output.1."),
    (PIXEL_DECODER + r"mask_feature\.", "pixel_decoder.mask_features."),
    (PIXEL_DECODER + r"encoder\.layers\.", "pixel_decoder.layers."),
    (DECODER + r"layers\.", "decoder.layers."),
    (DECODER + r"post_norm\.", "decoder.norm."),
    # Layers number their parts: cross-attention first. Version 2 numbers attentions as well.
    (r"^(pixel_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"^(decoder\.layers\.\d+)\.(?:attentions\.0|cross_attn)\.attn\.", r"\1.cross_attn."),
    (r"^(decoder\.layers\.\d+)\.(?:attentions\.1|self_attn)\.attn\.", r"\1.self_attn."),
    *FFN,
    (r"^(pixel_decoder\.layers\.\d+)\.norms\.0\.", r"\1.norm1."),
    (r"^(pixel_decoder\.layers\.\d+)\.norms\.1\.", r"\1.norm2."),
    (r"^(decoder\.layers\.\d+)\.norms\.0\.", r"\1.cross_norm."),
    (r"^(decoder\.layers\.\d+)\.norms\.1\.", r"\1.self_norm."),
    (r"^(decoder\.layers\.\d+)\.norms\.2\.", r"\1.norm."),
    (r"^panoptic_head\.query_feat\.", "decoder.query_features."),
    (r"^panoptic_head\.level_embed\.", "decoder.level_embed."),
    (r"^panoptic_head\.decoder_input_projs\.", "decoder.input_projections."),
    *PREDICTIONS,
)
MASKFORMER_RULES = (
    # Of the stage at stride 32, without and with an encoder on it.
    (
        PIXEL_DECODER + r"(?:last_feat_conv|encoder_out_proj)\.",
        "panoptic_head.pixel_decoder.output_convs.3.",
    ),
    (PIXEL_DECODER + r"encoder_in_proj\.", "pixel_decoder.input_projection."),
    (PIXEL_DECODER + r"encoder\.layers\.", "pixel_decoder.layers."),
    (r"^(pixel_decoder\.layers\.\d+)\.(?:attentions\.0|self_attn)\.attn\.", r"\1.self_attn."),
    (r"^(pixel_decoder\.layers\.\d+)\.norms\.0\.", r"\1.norm1."),
    (r"^(pixel_decoder\.layers\.\d+)\.norms\.1\.", r"\1.norm2."),
    (PIXEL_DECODER + r"lateral_convs\.(\d+)\.conv\.", r"pixel_decoder.lateral.\1.0."),
    (PIXEL_DECODER + r"lateral_convs\.(\d+)\.gn\.", r"pixel_decoder.lateral.\1.1."),
    (PIXEL_DECODER + r"output_convs\.(\d+)\.conv\.", r"pixel_decoder.output.\1.0."),
    (PIXEL_DECODER + r"output_convs\.(\d+)\.gn\.", r"pixel_decoder.output.\1.1."),
    (PIXEL_DECODER + r"mask_feature\.", "pixel_decoder.mask_features."),
    (DECODER + r"layers\.", "decoder.layers."),
    (DECODER + r"post_norm\.", "decoder.norm."),
    # Self-attention comes first here.
    (r"^(decoder\.layers\.\d+)\.(?:attentions\.0|self_attn)\.attn\.", r"\1.self_attn."),
    (r"^(decoder\.layers\.\d+)\.(?:attentions\.1|cross_attn)\.attn\.", r"\1.cross_attn."),
    (r"^(decoder\.layers\.\d+)\.norms\.0\.", r"\1.self_norm."),
    (r"^(decoder\.layers\.\d+)\.norms\.1\.", r"\1.cross_norm."),
    (r"^(decoder\.layers\.\d+)\.norms\.2\.", r"\1.norm."),
    *FFN,
    (r"^panoptic_head\.decoder_input_proj\.", "decoder.input_projection."),
    *PREDICTIONS,
)
# mmsegmentation has mmdetection's heads under its own name for a head.
MMSEGMENTATION_HEAD = (r"^decode_head\.", "panoptic_head.")
MMSEGMENTATION_RULES = (MMSEGMENTATION_HEAD, *RULES)
MMSEGMENTATION_MASKFORMER_RULES = (MMSEGMENTATION_HEAD, *MASKFORMER_RULES)
