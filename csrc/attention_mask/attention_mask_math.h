// What CPU and CUDA share: the threshold.
#pragma once

#include "attention_mask/attention_mask.h"
#include "core/bilinear.h"

namespace fastseg {

// Mask2Former blocks where sigmoid(logit) < 0.5: neither at 0 nor at NaN.
struct MayAttend {
  FASTSEG_HD bool operator()(float logit) const { return !(logit < 0.0f); }
};

// Logits of the map's own size are taken as they are: resized, an infinite one would be NaN.
FASTSEG_HD bool keeps_size(const AttentionMaskParams& p) {
  return p.height == p.logits.size[2] && p.width == p.logits.size[3];
}

}  // namespace fastseg
