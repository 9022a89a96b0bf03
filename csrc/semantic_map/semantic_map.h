// The two ends of a semantic map, for some rows at a time, so that neither masks nor classes ever
// lie in memory at full size. Between them is a matrix product: scores of classes [K, pixels] =
// class probabilities [K, Q] * mask probabilities [Q, pixels].
#pragma once

#include "core/device.h"
#include "core/resize_steps.h"
#include "core/view.h"

namespace fastseg {

// sigmoid of resized logits.
struct MaskProbabilitiesParams {
  View<3> masks;  // [Q, h, w] float32, float16 or bfloat16, any strides
  ResizeSteps steps;
  int64_t first_row = 0;  // of the resized masks
  View<3> output;         // [Q, R, C] float32, contiguous, written: R rows from first_row on, of
                          // which the first C columns, which may be fewer than there are
};

void mask_probabilities_cpu(const MaskProbabilitiesParams& params);
void mask_probabilities_cuda(const MaskProbabilitiesParams& params, cudaStream_t stream);

// The class with the greatest score after a resize; of equal ones the first, and NaN is above all
// numbers, as for torch's argmax.
struct ResizedArgmaxParams {
  View<3> scores;           // [K, R, C] float32, contiguous: R rows from first_score_row on
  int64_t first_score_row;  // these are all that the labels come from
  int64_t score_rows;       // that there are; C columns
  int64_t first_row, rows;  // of the labels: the first that is written, and how many there are
  View<2> labels;           // [n, W] int32, contiguous, written

  FASTSEG_HD bool same_size() const {
    return rows == score_rows && labels.size[1] == scores.size[2];
  }
};

void resized_argmax_cpu(const ResizedArgmaxParams& params);
void resized_argmax_cuda(const ResizedArgmaxParams& params, cudaStream_t stream);

}  // namespace fastseg
