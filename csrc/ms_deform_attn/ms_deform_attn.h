// Multi-scale deformable attention (Zhu et al., Deformable DETR, 2021, Eq. 3): each query and head
// takes the weighted sum of bilinear samples of the value maps of all levels.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

constexpr int kMaxAttentionLevels = 8;

// Where level l lies in the rows of `value`: by value where the host knows it, else (shapes.data
// set) in device memory, so that nobody has to wait for it.
struct LevelTable {
  int64_t height[kMaxAttentionLevels] = {};
  int64_t width[kMaxAttentionLevels] = {};
  int64_t start[kMaxAttentionLevels] = {};
  View<2> shapes;  // [L, 2] int64: height, width; CUDA alone
  View<1> starts;  // [L] int64; CUDA alone
};

struct MsDeformAttnParams {
  View<4> value;      // [B, S, M, D], any strides
  LevelTable levels;  // a level that does not fit S gives NaN on CUDA
  View<6> locations;  // [B, Q, M, L, P, 2]: x, y in units of the map's width and height
  View<5> weights;    // [B, Q, M, L, P]
  // [B, Q, L, 2 or 4], or null data. With them `locations` are offsets from the reference points,
  // in cells or, where those are boxes, in halves of the box per P; and `weights` are logits, which
  // a softmax over L and P turns into weights.
  View<4> references;
  View<4> output;  // [B, Q, M, D], written
};

void ms_deform_attn_forward_cpu(const MsDeformAttnParams& params);
void ms_deform_attn_forward_cuda(const MsDeformAttnParams& params, cudaStream_t stream);

// All but value, output and its gradient are of accumulation type.
struct MsDeformAttnBackwardParams {
  MsDeformAttnParams forward;  // its output is the output's gradient, read
  // [B, S, M, D], contiguous, zeros on entry, written. CUDA: where its data type is i64, sums are
  // in fixed point, which do not depend on their order.
  View<4> grad_value;
  View<6> grad_locations;   // as locations, contiguous, written
  View<5> grad_weights;     // as weights, contiguous, written
  View<5> grad_references;  // [B, Q, M, L, 2 or 4]: each head's share, contiguous, written; or null
  View<1> units;            // [1] f64: fixed-point units of grad_value per 1, or null data
};

// Deterministic: a task owns the values of one image and head and adds the queries in order.
void ms_deform_attn_backward_cpu(const MsDeformAttnBackwardParams& params);
// Adds with atomics.
void ms_deform_attn_backward_cuda(const MsDeformAttnBackwardParams& params, cudaStream_t stream);

}  // namespace fastseg
