// Bilinear resizing on CUDA, of columns: a thread walks down one column of the result and keeps in
// registers the two lines that each resize blends, which change with the rows of its input only.
#pragma once

#include "core/bilinear.h"
#include "core/cuda.cuh"
#include "core/resize_steps.h"
#include "core/view.h"

namespace fastseg {

// One mask of View<3> [N, h, w] of float32, float16 or bfloat16.
struct MaskCells {
  const View<3>& masks;
  const ResizeSteps& steps;
  int64_t n;

  __device__ float cell(int64_t row, int64_t column) const {
    switch (masks.dtype) {  // the same for all threads, and rare: no reason for more kernels
      case DType::f16:
        return *masks.at<const half_t>(n, row, column);
      case DType::bf16:
        return *masks.at<const bfloat16_t>(n, row, column);
      default:
        return *masks.at<const float>(n, row, column);
    }
  }
  __device__ float between(int row, const Tap& x) const {
    return blend_pair(cell(row, x.low), x.low_weight, cell(row, x.high), x.high_weight);
  }
};

// Where a coordinate of the result comes from: in the last resize's input, and from there in the
// cells. `axis`: 0 for rows, 1 for columns.
__device__ inline Tap last_tap(const ResizeSteps& steps, int axis, int64_t pixel) {
  const int64_t from = steps.via[0] > 0 ? steps.crop[axis] : steps.cells[axis];
  return stretched_tap(pixel, steps.size[axis], static_cast<int>(from));
}
__device__ inline Tap via_tap(const ResizeSteps& steps, int axis, int64_t pixel) {
  return stretched_tap(pixel, steps.via[axis], static_cast<int>(steps.cells[axis]));
}

// The first and the last cell that pixels [first, last] of an axis come from.
struct CellRange {
  int first, last;
};
__device__ inline CellRange cell_range(const ResizeSteps& steps, int axis, int64_t first,
                                       int64_t last) {
  CellRange range = {last_tap(steps, axis, first).low, last_tap(steps, axis, last).high};
  if (steps.via[0] > 0) {
    range.first = via_tap(steps, axis, range.first).low;
    range.last = via_tap(steps, axis, range.last).high;
  }
  return range;
}

// The lines north and south of a row, of kValues values each; `load(row, values)` makes one.
template <int kValues>
struct Lines {
  int north_row = -1, south_row = -1;
  float north[kValues], south[kValues];

  template <class Load>
  __device__ void move_to(const Tap& y, Load&& load) {
    if (y.low != north_row) {
      if (y.low == south_row) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) north[i] = south[i];
      } else {
        load(y.low, north);
      }
      north_row = y.low;
    }
    if (y.high != south_row) {
      load(y.high, south);
      south_row = y.high;
    }
  }
  __device__ float value(const Tap& y, int i) const {
    return blend_pair(north[i], y.low_weight, south[i], y.high_weight);
  }
};

// The cells left and right of one column of the result.
template <bool kVia>
struct ColumnTaps;

template <>
struct ColumnTaps<false> {
  Tap last;

  __device__ ColumnTaps(const ResizeSteps& steps, int64_t column)
      : last(last_tap(steps, 1, column)) {}
};

template <>
struct ColumnTaps<true> {
  Tap last, via_low, via_high;

  __device__ ColumnTaps(const ResizeSteps& steps, int64_t column)
      : last(last_tap(steps, 1, column)),
        via_low(via_tap(steps, 1, last.low)),
        via_high(via_tap(steps, 1, last.high)) {}
};

// One column of one resized mask; rows, as last_tap gives them, are best asked for from top to
// bottom. All lanes of a warp ask for the same rows, so that they branch alike.
template <bool kVia>
class ResizedColumn;

template <>
class ResizedColumn<false> {
 public:
  __device__ ResizedColumn(const MaskCells& mask, const ColumnTaps<false>& x)
      : mask_(mask), x_(x) {}

  __device__ float value(const Tap& y) {
    lines_.move_to(y, [&](int row, float* line) { line[0] = mask_.between(row, x_.last); });
    return lines_.value(y, 0);
  }

 private:
  const MaskCells& mask_;
  const ColumnTaps<false>& x_;
  Lines<1> lines_;
};

template <>
class ResizedColumn<true> {
 public:
  __device__ ResizedColumn(const MaskCells& mask, const ColumnTaps<true>& x) : mask_(mask), x_(x) {}

  __device__ float value(const Tap& y) {
    lines_.move_to(y, [&](int row, float* line) {
      const Tap via = via_tap(mask_.steps, 0, row);
      via_lines_.move_to(via, [&](int cells, float* via_line) {
        via_line[0] = mask_.between(cells, x_.via_low);
        via_line[1] = mask_.between(cells, x_.via_high);
      });
      line[0] = blend_pair(via_lines_.value(via, 0), x_.last.low_weight, via_lines_.value(via, 1),
                           x_.last.high_weight);
    });
    return lines_.value(y, 0);
  }

 private:
  const MaskCells& mask_;
  const ColumnTaps<true>& x_;
  Lines<1> lines_;
  Lines<2> via_lines_;
};

__device__ inline Tap shuffle(const Tap& tap, int lane) {
  return {__shfl_sync(kFullMask, tap.low, lane), __shfl_sync(kFullMask, tap.high, lane),
          __shfl_sync(kFullMask, tap.low_weight, lane),
          __shfl_sync(kFullMask, tap.high_weight, lane)};
}

}  // namespace fastseg
