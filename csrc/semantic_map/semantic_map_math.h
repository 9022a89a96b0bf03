// How classes compete for a pixel.
#pragma once

#include "core/bilinear.h"
#include "core/sigmoid.h"
#include "semantic_map/semantic_map.h"

namespace fastseg {

struct BestClass {
  float score = -INFINITY;
  int label = 0;

  FASTSEG_HD void add(float other, int other_label) {
    const float value = other == other ? other : INFINITY;
    label = value > score ? other_label : label;
    score = value > score ? value : score;
  }
};

}  // namespace fastseg
