"""Checkpoints of Mask2Former's and MaskFormer's own repositories, which build on detectron2."""

from __future__ import annotations

PIXEL_DECODER = r"^sem_seg_head\.pixel_decoder\."
DECODER = r"^sem_seg_head\.predictor\."
# Rules for `fastseg.checkpoints.keys.renamed`, for all but the backbone.
FIRST_VERSION = (r"^sem_seg_head\.(?!pixel_decoder\.|predictor\.)", "sem_seg_head.pixel_decoder.")
PREDICTIONS = (
    (DECODER + r"class_embed\.", "decoder.class_predictor."),
    (DECODER + r"mask_embed\.layers\.", "decoder.mask_embed."),
)
RULES = (
    FIRST_VERSION,
    # The queries' features before they were learned.
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
    *PREDICTIONS,
    (DECODER + r"input_proj\.", "decoder.input_projections."),
    (DECODER, "decoder."),
)
MASKFORMER_RULES = (
    FIRST_VERSION,
    *(
        rule
        for i in range(4)
        for rule in (
            (PIXEL_DECODER + rf"adapter_{i + 1}\.norm\.", f"pixel_decoder.lateral.{i}.1."),
            (PIXEL_DECODER + rf"adapter_{i + 1}\.", f"pixel_decoder.lateral.{i}.0."),
            (PIXEL_DECODER + rf"layer_{i + 1}\.norm\.", f"pixel_decoder.output.{i}.1."),
            (PIXEL_DECODER + rf"layer_{i + 1}\.", f"pixel_decoder.output.{i}.0."),
        )
    ),
    (PIXEL_DECODER + r"transformer\.encoder\.", "pixel_decoder."),
    (PIXEL_DECODER + r"input_proj\.", "pixel_decoder.input_projection."),
    (PIXEL_DECODER, "pixel_decoder."),
    (DECODER + r"transformer\.decoder\.", "decoder."),
    (r"^(decoder\.layers\.\d+)\.multihead_attn\.", r"\1.cross_attn."),
    (r"^(decoder\.layers\.\d+)\.norm1\.", r"\1.self_norm."),
    (r"^(decoder\.layers\.\d+)\.norm2\.", r"\1.cross_norm."),
    (r"^(decoder\.layers\.\d+)\.norm3\.", r"\1.norm."),
    *PREDICTIONS,
    (DECODER + r"input_proj\.", "decoder.input_projection."),
    (DECODER, "decoder."),
)
