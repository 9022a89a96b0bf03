// Intersection over union of two masks given as runs.
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

inline Shape shape_of(const Runs& runs, int64_t height, int64_t width) {
  return {height, width, runs, box_of(runs, height), area_of(runs)};
}

// Pixels inside both of two masks of one size: reads the runs in the columns that both boxes have.
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

// pycocotools' numbers: 0 without common pixels, -1 for masks of unlike sizes whose boxes overlap.
// A crowd region `b` counts as no larger than what it shares with `a`, so the union is `a`.
inline double iou_of(const Shape& a, const Shape& b, bool crowd) {
  if (!overlap(a.box, b.box)) return 0;
  if (a.height != b.height || a.width != b.width) return -1;
  const int64_t common = common_pixels(a, b);
  if (common == 0) return 0;
  const int64_t whole = crowd ? a.area : a.area + b.area - common;
  return static_cast<double>(common) / static_cast<double>(whole);
}

}  // namespace fastseg
