"""The ops: functions on torch tensors, on the CPU and on CUDA."""

from fastseg.ops.attention_mask import attention_mask, pack_attention_mask
from fastseg.ops.deform_conv import deform_conv2d
from fastseg.ops.mask_iou import mask_iou
from fastseg.ops.mask_nms import mask_nms, soft_mask_nms
from fastseg.ops.masked_attention import masked_attention
from fastseg.ops.matrix_nms import matrix_nms, matrix_nms_padded, matrix_nms_scores
from fastseg.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_fused
from fastseg.ops.nms import batched_nms, nms
from fastseg.ops.pack_masks import PackedMasks, pack_masks, unpack_masks
from fastseg.ops.panoptic_map import panoptic_map
from fastseg.ops.paste_masks import paste_masks
from fastseg.ops.point_sample import point_sample, sample_uncertain_points
from fastseg.ops.resize_masks import mask_scores, resize_masks
from fastseg.ops.rle import PaddedRles, rle_decode, rle_encode, rle_encode_padded
from fastseg.ops.roi_align import multi_scale_roi_align, roi_align
from fastseg.ops.semantic_map import semantic_map

__all__ = [
    "PackedMasks",
    "PaddedRles",
    "attention_mask",
    "batched_nms",
    "deform_conv2d",
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
    "rle_encode_padded",
    "roi_align",
    "sample_uncertain_points",
    "semantic_map",
    "soft_mask_nms",
    "unpack_masks",
]
