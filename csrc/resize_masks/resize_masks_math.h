// Which values a resized pixel can have, told from the cells that it depends on.
//
// Bilinear interpolation takes weighted means, so a pixel whose cells all lie on one side of the
// threshold lies there too. Rounding breaks that by a few units in the last place of each step, for
// which kSlack is ample: a pixel is called certain only when its cells are farther away. With no
// threshold above 0 or below it, sums of one sign keep that sign and 0 is not above 0.
#pragma once

#include <cmath>

#include "core/bilinear.h"
#include "core/sigmoid.h"
#include "resize_masks/resize_masks.h"

namespace fastseg {

struct CertainLimits {
  float above;  // cells above this alone: inside
  float below;  // cells at most this alone: outside

  static constexpr float kSlack = 1e-5f;      // relative; each step errs by less than 3e-7
  static constexpr float kSmallest = 1e-30f;  // products of weights and values do not underflow
  static constexpr float kLargest = 1e30f;    // and sums stay finite

  FASTSEG_HD explicit CertainLimits(float threshold) {
    const float slack = std::fmax(std::fabs(threshold) * kSlack, kSmallest);
    above = threshold + slack;
    below = threshold == 0.0f ? 0.0f : threshold - slack;
  }

  FASTSEG_HD bool is_above(float cell) const { return cell > above && cell < kLargest; }
  FASTSEG_HD bool is_below(float cell) const { return cell <= below && cell > -kLargest; }
};

// Integers, so that sums do not depend on their order; 2^32 pixels and more fit.
constexpr int64_t kScoreUnits = 1 << 24;

}  // namespace fastseg
