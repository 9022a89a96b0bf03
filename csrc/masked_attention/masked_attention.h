// Masked attention (Cheng et al., Mask2Former, 2022, Eq. 2): each query takes the softmax-weighted
// sum of the values of the keys that its mask lets it attend to. Neither scores nor weights nor an
// unpacked mask are ever in memory.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

constexpr int64_t kMaxHeadWidth = 128;

struct MaskedAttentionParams {
  View<4> query;   // [B, M, Q, D], any strides
  View<4> key;     // [B, M, S, D], any strides
  View<4> value;   // [B, M, S, D], any strides
  View<3> words;   // [B, Q, ceil(S / 64)] int64: bit b of word i tells whether key 64 * i + b may
                   // be attended; a row without bits attends everything. Null: all rows do
  double scale;    // of query * key
  View<4> output;  // [B, M, Q, D], any strides; written by forward, read by backward
  // [B, M, Q] of accumulation type, contiguous: log2 of the sum of 2^score over the keys attended,
  // the scores in units of log(2). Written by forward, read by backward.
  View<3> log_sums;
  View<1> workspace;  // CUDA: as many as masked_attention_workspace() of _math.h says, of
                      // accumulation type
  bool tensor_cores;  // CUDA: whether products may run on them; in float32 that is TF32
};

void masked_attention_cpu(const MaskedAttentionParams& params);
void masked_attention_cuda(const MaskedAttentionParams& params, cudaStream_t stream);

struct MaskedAttentionBackwardParams {
  MaskedAttentionParams forward;
  View<4> grad_output;  // [B, M, Q, D], any strides
  View<4> grad_query;   // as query, any strides, written
  View<4> grad_key;     // as key, any strides, written
  View<4> grad_value;   // as value, any strides, written
};

// Deterministic: keys have one owner each; sums over keys are added in order.
void masked_attention_backward_cpu(const MaskedAttentionBackwardParams& params);
void masked_attention_backward_cuda(const MaskedAttentionBackwardParams& params,
                                    cudaStream_t stream);

}  // namespace fastseg
