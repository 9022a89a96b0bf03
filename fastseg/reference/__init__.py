"""The ops in plain torch, slow and written like their formulas: the definition of each op."""

from fastseg.reference import mask
from fastseg.reference.attention_mask import attention_mask, pack_attention_mask
from fastseg.reference.deform_conv import deform_conv2d
from fastseg.reference.mask_iou import mask_iou
from fastseg.reference.mask_nms import mask_nms, soft_mask_nms
from fastseg.reference.masked_attention import masked_attention
from fastseg.reference.matrix_nms import matrix_nms, matrix_nms_padded, matrix_nms_scores
from fastseg.reference.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from fastseg.reference.nms import batched_nms, nms
from fastseg.reference.pack_masks import pack_masks, unpack_masks
from fastseg.reference.panoptic_map import panoptic_map
from fastseg.reference.paste_masks import paste_masks
from fastseg.reference.point_sample import point_sample
from fastseg.reference.resize_masks import mask_scores, resize_masks
from fastseg.reference.rle import rle_decode, rle_encode
from fastseg.reference.roi_align import multi_scale_roi_align, roi_align
from fastseg.reference.semantic_map import semantic_map

__all__ = [
    "attention_mask",
    "batched_nms",
    "deform_conv2d",
    "mask",
    "mask_iou",
    "mask_nms",
    "mask_scores",
    "masked_attention",
    "matrix_nms",
    "matrix_nms_padded",
    "matrix_nms_scores",
    "ms_deform_attn",
    "ms_deform_attn_fused",
    "multi_scale_roi_align",
    "nms",
    "pack_attention_mask",
    "pack_masks",
    "panoptic_map",
    "paste_masks",
    "point_sample",
    "resize_masks",
    "rle_decode",
    "rle_encode",
    "roi_align",
    "semantic_map",
    "soft_mask_nms",
    "unpack_masks",
]
