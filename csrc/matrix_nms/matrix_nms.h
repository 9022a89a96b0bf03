// Matrix NMS (SOLOv2, section 3.5): every mask's score is lowered by how much better masks of its
// class overlap it, all at once, and then the best are selected.
//
// "Better" is a higher score; NaN is above all numbers, equal scores go by index. So the masks need
// not be sorted, and a mask's intersections are read along its own row.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

enum class DecayKernel { gaussian, linear };

struct MatrixNmsParams {
  View<3> intersections;  // [B, N, N] int64, symmetric: pixels in both; read for pairs of a label
  View<2> areas;          // [B, N] int64 or float32
  View<2> labels;         // [B, N] int64
  View<2> scores;         // [B, N] float32 or float64
  View<2> divisors;       // [B, N] float32, written: the decay at a mask's own largest overlap
  View<2> decayed;        // [B, N] as scores, written
  DecayKernel kernel = DecayKernel::gaussian;
  float sigma = 2;
};

void matrix_nms_cpu(const MatrixNmsParams& params);
void matrix_nms_cuda(const MatrixNmsParams& params, cudaStream_t stream);

// The best M masks by decayed score; equal ones by the score before, then by index.
struct MatrixNmsSelectParams {
  View<2> scores;           // as MatrixNmsParams
  View<2> decayed;          // [B, N] as scores
  View<2> labels;           // [B, N] int64
  View<2> kept_scores;      // [B, M] as scores, written: decayed, then 0
  View<2> kept_labels;      // [B, M] int64, written: then 0
  View<2> indices;          // [B, M] int64, written: then -1
  View<1> count;            // [B] int64, written
  double threshold = 0;     // least decayed score; 0 and below: none
  bool skip_absent = true;  // scores of -inf are padding: never kept
};

void matrix_nms_select_cpu(const MatrixNmsSelectParams& params);
void matrix_nms_select_cuda(const MatrixNmsSelectParams& params, cudaStream_t stream);

}  // namespace fastseg
