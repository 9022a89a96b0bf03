// Common pixels of two masks given as runs, where only the columns that both boxes have are read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rle/runs.h"

namespace fastseg {

// A mask with what pairs of masks are asked again and again.
struct Shape {
  int64_t height, width;
  Runs runs;
  PixelBox box;
  int64_t area;
};

// Pixels inside both of two masks of one size.
inline int64_t common_pixels(const Shape& a, const Shape& b) {
  const int64_t begin = std::max(a.box.x0, b.box.x0) * a.height;
  const int64_t end = std::min(a.box.x1, b.box.x1) * a.height;
  const auto first_run = [&](const Runs& runs) {
    return (std::upper_bound(runs.toggles, runs.toggles + runs.size, begin) - runs.toggles) / 2;
  };
  int64_t common = 0;
  int64_t i = first_run(a.runs), j = first_run(b.runs);
  while (i < a.runs.count() && j < b.runs.count()) {
    const int64_t first = std::max(a.runs.first(i), b.runs.first(j));
    if (first >= end) break;
    const int64_t a_end = a.runs.last(i), b_end = b.runs.last(j);
    common += std::max<int64_t>(std::min(a_end, b_end) - first, 0);
    i += a_end <= b_end;
    j += b_end <= a_end;
  }
  return common;
}

}  // namespace fastseg
