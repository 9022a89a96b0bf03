"""Multi-scale deformable attention as its definition reads (Zhu et al., Deformable DETR, 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int] | None,
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """See `fastseg.ops.ms_deform_attn`. Eq. 3 without the projections W_m and W'_m."""
    shapes = [tuple(int(side) for side in shape) for shape in spatial_shapes]
    if level_start_index is None:
        sizes = [height * width for height, width in shapes]
        level_start_index = [sum(sizes[:level]) for level in range(len(sizes))]
    output = value.new_zeros(*sampling_locations.shape[:3], value.shape[3])  # [B, Q, M, D]
    for level, (height, width) in enumerate(shapes):
        start = int(level_start_index[level])
        rows = value[:, start : start + height * width].transpose(1, 2)  # [B, M, HW, D]
        locations = sampling_locations[:, :, :, level].transpose(1, 2)  # [B, M, Q, P, 2]
        samples = bilinear(rows, height, width, locations)  # [B, M, Q, P, D]
        weights = attention_weights[:, :, :, level].transpose(1, 2)  # [B, M, Q, P]
        output = output + (weights[..., None] * samples).sum(dim=3).transpose(1, 2)
    return output.flatten(2)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[tuple[int, int]],
    level_start_index: Tensor | Sequence[int] | None,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """See `fastseg.ops.ms_deform_attn_fused`."""
    references = reference_points[:, :, None, :, None]  # [B, Q, 1, L, 1, 2 or 4]
    if reference_points.shape[-1] == 2:
        sides = torch.tensor([[int(width), int(height)] for height, width in spatial_shapes])
        locations = references + sampling_offsets / sides.to(value.device)[:, None]
    else:
        centres, sizes = references.split(2, dim=-1)
        locations = centres + sampling_offsets / sampling_offsets.shape[4] * sizes * 0.5
    weights = attention_logits.flatten(3).softmax(-1).view(attention_logits.shape)
    return ms_deform_attn(value, spatial_shapes, level_start_index, locations, weights)


def bilinear(rows: Tensor, height: int, width: int, locations: Tensor) -> Tensor:
    """Samples maps at relative positions; beyond the map lie zeros.

    Args:
        rows: [B, M, H * W, D].
        height: H.
        width: W.
        locations: [B, M, Q, P, 2], x and y in units of the map's sides; pixel centres lie at half
            integers.

    Returns:
        [B, M, Q, P, D].
    """
    x = locations[..., 0] * width - 0.5
    y = locations[..., 1] * height - 0.5
    near = (x > -1) & (x < width) & (y > -1) & (y < height)
    x, y = torch.where(near, x, -1), torch.where(near, y, -1)
    left, top = x.floor(), y.floor()
    result = rows.new_zeros(*x.shape, rows.shape[3])
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            inside = near & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = torch.where(inside, row * width + column, 0).long().flatten(2)  # [B, M, QP]
            index = index[..., None].expand(-1, -1, -1, rows.shape[3])
            cells = torch.gather(rows, 2, index) if height * width else rows.new_zeros(index.shape)
            cells = torch.where(inside[..., None], cells.unflatten(2, x.shape[2:]), 0)
            result = result + (row_weight * column_weight)[..., None] * cells
    return result
