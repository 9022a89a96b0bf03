// What selecting a mask does to another one, shared by the CPU and CUDA.
#pragma once

#include <cmath>
#include <limits>

#include "mask_iou/mask_iou_math.h"
#include "mask_nms/mask_nms.h"
#include "nms/nms_math.h"

namespace fastseg {

FASTSEG_HD double mask_nms_iou(const MaskNmsParams& p, int64_t image, int64_t a, int64_t b) {
  return iou_of(*p.intersections.at<const int64_t>(image, a, b),
                *p.areas.at<const int64_t>(image, a), *p.areas.at<const int64_t>(image, b), false);
}

// Whether a mask with this score may be selected.
template <class T>
FASTSEG_HD bool may_be_kept(const MaskNmsParams& p, T score) {
  if (p.skip_absent && score == -std::numeric_limits<T>::infinity()) return false;
  const bool soft = p.method == MaskNmsMethod::linear || p.method == MaskNmsMethod::gaussian;
  return !(soft && static_cast<double>(score) < p.min_score);
}

// A mask of the same label was selected that has this IoU with one of this score. False when that
// one is removed.
template <class T>
FASTSEG_HD bool survives(const MaskNmsParams& p, double iou, T* score) {
  switch (p.method) {
    case MaskNmsMethod::linear:
      if (iou >= p.iou_threshold) *score *= static_cast<T>(1 - iou);
      return may_be_kept(p, *score);
    case MaskNmsMethod::gaussian:
      *score *= static_cast<T>(exp(-(iou * iou) / p.sigma));
      return may_be_kept(p, *score);
    default:
      return !(iou > p.iou_threshold);
  }
}

}  // namespace fastseg
