// The arithmetic of Matrix NMS, shared by the CPU and CUDA, in float32 and rounded as SOLO does.
#pragma once

#include <cmath>
#include <limits>

#include "matrix_nms/matrix_nms.h"
#include "nms/nms_math.h"

namespace fastseg {

FASTSEG_HD float matrix_nms_area(const View<2>& areas, int64_t image, int64_t n) {
  return areas.dtype == DType::f32 ? *areas.at<const float>(image, n)
                                   : static_cast<float>(*areas.at<const int64_t>(image, n));
}

// IoU of masks that share pixels. Areas that a caller gives may be too small for the intersection;
// then, as for two equal masks, the IoU is 1.
FASTSEG_HD float matrix_nms_iou(int64_t intersection, float area_a, float area_b) {
  const float inter = static_cast<float>(intersection), joined = area_a + area_b - inter;
  return joined > inter ? inter / joined : 1.0f;
}

// How far an overlap lets a score decay: 1 at 0.
FASTSEG_HD float decay_of(DecayKernel kernel, float sigma, float iou) {
  return kernel == DecayKernel::linear ? 1.0f - iou : expf(-sigma * (iou * iou));
}

// A score and its place: of two, which mask is better.
template <class Key>
FASTSEG_HD bool is_before(Key key_a, int64_t a, Key key_b, int64_t b) {
  return key_a < key_b || (key_a == key_b && a < b);
}

// Whether a mask may be selected.
template <class T>
FASTSEG_HD bool is_kept(const MatrixNmsSelectParams& p, T score, T decayed) {
  if (p.skip_absent && score == -std::numeric_limits<T>::infinity()) return false;
  return p.threshold > 0 ? static_cast<double>(decayed) >= p.threshold : true;
}

}  // namespace fastseg
