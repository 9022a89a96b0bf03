// Greedy non-maximum suppression of boxes, within each class of each image.
//
// Boxes are walked by score, descending; a box is kept unless its IoU with a kept box of its class
// is above the threshold. Both forms of the op are one walk that stops after M boxes: the padded
// form has M = max_output, the plain one M = N. What is kept in memory grows with the boxes kept,
// never with N squared.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

struct NmsParams {
  View<3> boxes;      // [B, N, 4]: x1, y1, x2, y2
  View<2> scores;     // [B, N]
  View<2> idxs;       // [B, N] int64 classes; no data: all boxes are of one class
  View<2> indices;    // [B, M] int64, written: the kept boxes by score, then -1
  View<1> count;      // [B] int64, written: how many are kept
  View<1> workspace;  // nms_workspace_size() bytes; CUDA only
  double iou_threshold = 0.5;
  bool skip_absent = false;  // entries of score -inf are padding: never kept
};

// Order of scores: NaN first, then descending, equal ones by index.
void nms_cpu(const NmsParams& params);

int64_t nms_workspace_size(const NmsParams& params);
void nms_cuda(const NmsParams& params, cudaStream_t stream);

}  // namespace fastseg
