// Which of many scored masks a pixel belongs to: the one with the greatest score * sigmoid(logit)
// of its resized logits (core/resize_steps.h), without the resized logits ever lying in memory.
#pragma once

#include "core/device.h"
#include "core/resize_steps.h"
#include "core/view.h"

namespace fastseg {

struct PanopticMapParams {
  View<3> masks;   // [Q, h, w] logits, float32, float16 or bfloat16, any strides
  View<1> scores;  // [Q] float32; masks take part whose score is above 0
  ResizeSteps steps;
  bool inside_only = true;  // pixels are nobody's where the winner's probability is below 0.5
  View<2> winners;  // [H, W] int32, contiguous, written: the mask that wins the pixel, or -1
  View<2> areas;    // [3, Q] int64, contiguous, added to: the pixels that the mask wins, those
                    // where its probability is at least 0.5, and those with both
};

void panoptic_map_cpu(const PanopticMapParams& params);
void panoptic_map_cuda(const PanopticMapParams& params, cudaStream_t stream);

}  // namespace fastseg
