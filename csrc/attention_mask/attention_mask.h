// Which pixels of a feature map each query may attend to (Cheng et al., Mask2Former, 2022, Eq. 3):
// its mask logits, resized to the map's size, one bit a pixel.
//
// A query's pixels, row after row, are ceil(H * W / 64) words: bit b of word i is pixel 64 * i + b,
// bits past the last pixel are 0. A pixel may be attended unless its logit is below 0.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

struct AttentionMaskParams {
  View<4> logits;         // [B, Q, h, w] float32, float16 or bfloat16, any strides
  View<3> words;          // [B, Q, ceil(height * width / 64)] int64, contiguous, written
  int64_t height, width;  // that the logits are resized to
};

void attention_mask_cpu(const AttentionMaskParams& params);
void attention_mask_cuda(const AttentionMaskParams& params, cudaStream_t stream);

}  // namespace fastseg
