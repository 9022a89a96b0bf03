// A mask as runs: what can be told from toggles (rle_math.h) without looking at pixels.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastseg {

// Borrowed toggles of a mask; equal neighbours (runs of length 0) are allowed. With an odd number
// of them the last run of ones ends at `end`.
struct Runs {
  const uint32_t* toggles;
  int64_t size;
  int64_t end;

  // Run of ones number i: positions [first(i), last(i)).
  int64_t count() const { return (size + 1) / 2; }
  int64_t first(int64_t i) const { return toggles[2 * i]; }
  int64_t last(int64_t i) const { return 2 * i + 1 < size ? toggles[2 * i + 1] : end; }
};

// Columns [x0, x1) and rows [y0, y1); all 0 for an empty mask.
struct PixelBox {
  int64_t x0, y0, x1, y1;
};

// Pixels inside.
inline int64_t area_of(const Runs& runs) {
  int64_t area = 0;
  for (int64_t i = 0; i < runs.count(); ++i) area += runs.last(i) - runs.first(i);
  return area;
}

// The smallest box around a mask of this height. As in pycocotools, a run that goes on in the next
// column counts as full height.
inline PixelBox box_of(const Runs& runs, int64_t height) {
  PixelBox box = {INT64_MAX, INT64_MAX, 0, 0};
  int64_t column = 0, column_end = height;
  for (int64_t i = 0; i < runs.count(); ++i) {
    const int64_t begin = runs.first(i), end = runs.last(i);
    if (begin == end) continue;
    if (begin >= column_end) {  // mostly the next one, and a division costs more than all else
      column = begin < column_end + height ? column + 1 : begin / height;
      column_end = (column + 1) * height;
    }
    const int64_t column_start = column_end - height;
    box.x0 = std::min(box.x0, column);
    if (end > column_end) {
      column = (end - 1) / height;
      column_end = (column + 1) * height;
      box.y0 = 0;
      box.y1 = height;
    } else {
      box.y0 = std::min(box.y0, begin - column_start);
      box.y1 = std::max(box.y1, end - column_start);
    }
    box.x1 = column + 1;
  }
  return box.x1 == 0 ? PixelBox{0, 0, 0, 0} : box;
}

inline bool overlap(const PixelBox& a, const PixelBox& b) {
  return a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;
}

// Pixels inside both of two masks of the same size.
inline int64_t intersection_of(const Runs& a, const Runs& b) {
  int64_t common = 0;
  for (int64_t i = 0, j = 0; i < a.count() && j < b.count();) {
    const int64_t a_end = a.last(i), b_end = b.last(j);
    common += std::max<int64_t>(std::min(a_end, b_end) - std::max(a.first(i), b.first(j)), 0);
    if (a_end <= b_end) ++i;
    if (b_end <= a_end) ++j;
  }
  return common;
}

}  // namespace fastseg
