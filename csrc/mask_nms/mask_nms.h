// Non-maximum suppression of masks that visits one after the other: greedy and soft NMS, and Fast
// NMS, where masks that are suppressed suppress as well. One walk does them all: the mask with the
// best score now is selected, and then it removes the others of its label or lowers their scores.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

enum class MaskNmsMethod {
  greedy,    // removed when IoU > threshold
  fast,      // removed when IoU > threshold with any better mask, selected or not
  linear,    // score * (1 - IoU) when IoU >= threshold
  gaussian,  // score * exp(-IoU^2 / sigma)
};

struct MaskNmsParams {
  View<3> intersections;  // [B, N, N] int64, symmetric: pixels in both; read for pairs of a label
  View<2> areas;          // [B, N] int64: pixels
  View<2> labels;         // [B, N] int64
  View<2> scores;         // [B, N] float32 or float64
  View<2> current;        // [B, N] as scores, workspace for CUDA: scores as they fall
  View<2> removed;        // [B, N] uint8, workspace for CUDA: selected, or no longer to be
  View<2> kept_scores;    // [B, M] as scores, written: when selected, then 0
  View<2> indices;        // [B, M] int64, written: then -1
  View<1> count;          // [B] int64, written
  MaskNmsMethod method = MaskNmsMethod::greedy;
  double iou_threshold = 0.5;
  double sigma = 0.5;
  double min_score = 0;     // of soft NMS: masks are removed once their score is below
  bool skip_absent = true;  // scores of -inf are padding: never selected
};

void mask_nms_cpu(const MaskNmsParams& params);
void mask_nms_cuda(const MaskNmsParams& params, cudaStream_t stream);

}  // namespace fastseg
