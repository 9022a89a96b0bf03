"""Checkpoints of Mask2Former's own repository, which builds on detectron2."""

from __future__ import annotations

PIXEL_DECODER = r"^sem_seg_head\.pixel_decoder\."
DECODER = r"^sem_seg_head\.predictor\."
# Rules for `fastseg.checkpoints.keys.renamed`, for all but the backbone.
RULES = (
    # Names of the head's first version, and of the queries' features before they were learned.
    (r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)", "sem_seg_head.pixel_decoder."),
    (DECODER + r"static_query\.", "sem_seg_head.predictor.query_feat."),
    (PIXEL_DECODER + r"input_proj\.", "pixel_decoder.input_projections."),
    (PIXEL_DECODER + r"transformer\.(?:encoder\.)?", "pixel_decoder."),
    (PIXEL_DECODER + r"adapter_1\.norm\.", "pixel_decoder.lateral.1."),
    (PIXEL_DECODER + r"adapter_1\.", "pixel_decoder.lateral.0."),
    (PIXEL_DECODER + r"layer_1\.norm\.", "pixel_decoder.output.1."),
    (PIXEL_DECODER + r"layer_1\.", "pixel_decoder.output.0."),
    (PIXEL_DECODER, "pixel_decoder."),
    (
        DECODER + r"transformer_(cross|self)_attention_layers\.(\d+)\.(?:multihead|self)_attn\.",
        r"decoder.layers.\2.\1_attn.",
    ),
    (
        DECODER + r"transformer_(cross|self)_attention_layers\.(\d+)\.norm\.",
        r"decoder.layers.\2.\1_norm.",
    ),
    (DECODER + r"transformer_ffn_layers\.", "decoder.layers."),
    (DECODER + r"decoder_norm\.", "decoder.norm."),
    (DECODER + r"query_feat\.", "decoder.query_features."),
    (DECODER + r"class_embed\.", "decoder.class_predictor."),
    (DECODER + r"mask_embed\.layers\.", "decoder.mask_embed."),
    (DECODER + r"input_proj\.", "decoder.input_projections."),
    (DECODER, "decoder."),
)
