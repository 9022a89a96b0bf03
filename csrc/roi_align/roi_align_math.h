// Where a RoI lies and what its samples weigh: the arithmetic that CPU and CUDA share. Operations
// are in torchvision's order, so that sample positions round as they do there.
#pragma once

#include <cmath>

#include "roi_align/roi_align.h"

namespace fastseg {

// The level of a box: floor(canonical_level + log2(sqrt(area) / canonical_scale)) with each
// library's epsilon, clamped to the levels there are.
template <class T>
FASTSEG_HD int roi_level(const RoIAlignParams& p, const T* box) {
  if (p.num_levels == 1) return 0;
  const T scale = std::sqrt((box[3] - box[1]) * (box[4] - box[2]));
  T level = 0;
  switch (p.level_rule) {
    case LevelRule::torchvision:
      level = T(p.canonical_level) + std::log2(scale / T(p.canonical_scale)) + T(1e-6);
      break;
    case LevelRule::detectron2:
      level = T(p.canonical_level) + std::log2(scale / T(p.canonical_scale) + T(1e-8));
      break;
    case LevelRule::mmdet: {
      const T finest =
          T(p.canonical_scale) / T(std::exp2(double(p.canonical_level - p.first_level)));
      level = T(p.first_level) + std::log2(scale / finest + T(1e-6));
      break;
    }
  }
  level = std::floor(level) - T(p.first_level);
  if (!(level > 0)) return 0;  // NaN (negative area) too
  return level < T(p.num_levels - 1) ? static_cast<int>(level) : p.num_levels - 1;
}

// One axis of a RoI on its level: `bins` bins of `grid` samples each.
template <class T>
struct RoIAxis {
  T start, bin_size;
  int64_t cells;  // length of the feature map along this axis
  int64_t grid;   // samples per bin
};

template <class T>
FASTSEG_HD RoIAxis<T> roi_axis(const RoIAlignParams& p, T low, T high, T scale, int64_t bins,
                               int64_t cells) {
  const T offset = p.aligned ? T(0.5) : T(0);
  const T start = low * scale - offset;
  T length = high * scale - offset - start;
  if (!p.aligned && length < T(1)) length = T(1);
  RoIAxis<T> axis;
  axis.start = start;
  axis.bin_size = length / static_cast<T>(bins);
  axis.cells = cells;
  // Sizes beyond int64 come from absurd boxes only; all but a few of their samples are outside.
  const T adaptive = std::ceil(axis.bin_size);
  axis.grid = p.sampling_ratio > 0 ? p.sampling_ratio
              : adaptive < T(1e15) ? static_cast<int64_t>(adaptive)
                                   : int64_t(1e15);
  return axis;
}

template <class T>
FASTSEG_HD T sample_position(const RoIAxis<T>& axis, int64_t bin, int64_t sample) {
  return axis.start + static_cast<T>(bin) * axis.bin_size +
         (static_cast<T>(sample) + T(0.5)) * axis.bin_size / static_cast<T>(axis.grid);
}

// A sample weighs two neighbouring cells (the last cell alone at the border).
template <class T>
struct SampleTaps {
  int64_t low, high;
  T low_weight, high_weight;
};

// False when the sample is outside [-1, cells], where it counts as zero.
template <class T>
FASTSEG_HD bool sample_taps(T position, int64_t cells, SampleTaps<T>* taps) {
  if (!(position >= T(-1) && position <= static_cast<T>(cells))) return false;
  if (position <= T(0)) position = T(0);
  taps->low = static_cast<int64_t>(position);
  if (taps->low >= cells - 1) {
    taps->low = taps->high = cells - 1;
    position = static_cast<T>(taps->low);
  } else {
    taps->high = taps->low + 1;
  }
  taps->high_weight = position - static_cast<T>(taps->low);
  taps->low_weight = T(1) - taps->high_weight;
  return true;
}

// The samples [begin, end) of a bin that can lie inside the map; exact bounds are left to
// sample_taps. Keeps boxes far larger than the map cheap.
template <class T>
FASTSEG_HD void inside_samples(const RoIAxis<T>& axis, int64_t bin, int64_t* begin, int64_t* end) {
  *begin = 0;
  *end = axis.grid > 0 ? axis.grid : 0;
  const T bin_start = axis.start + static_cast<T>(bin) * axis.bin_size;
  const T step = axis.bin_size / static_cast<T>(axis.grid);
  if (axis.grid <= 64 || !(step > T(0))) return;
  const T first = (T(-1) - bin_start) / step - T(2);
  const T last = (static_cast<T>(axis.cells) - bin_start) / step + T(2);
  if (first > T(0)) *begin = first < static_cast<T>(*end) ? static_cast<int64_t>(first) : *end;
  if (last < static_cast<T>(*end)) *end = last > T(*begin) ? static_cast<int64_t>(last) : *begin;
}

// Calls emit(cell, weight) for every cell that the samples of a bin weigh, merged cell by cell:
// samples come in order, so the cells of the last one are the only ones that can recur. (Those of
// an inverted box come in reverse order and are not merged.)
template <class T, class Emit>
FASTSEG_HD void for_each_tap(const RoIAxis<T>& axis, int64_t bin, const Emit& emit) {
  int64_t begin, end;
  inside_samples(axis, bin, &begin, &end);
  SampleTaps<T> pending{-1, -1, T(0), T(0)};
  for (int64_t sample = begin; sample < end; ++sample) {
    SampleTaps<T> taps;
    if (!sample_taps(sample_position(axis, bin, sample), axis.cells, &taps)) continue;
    if (taps.low == pending.low) {
      pending.low_weight += taps.low_weight;
      pending.high_weight += taps.high_weight;
      continue;
    }
    if (pending.low_weight != T(0)) emit(pending.low, pending.low_weight);
    if (taps.low == pending.high) {
      taps.low_weight += pending.high_weight;
    } else if (pending.high_weight != T(0)) {
      emit(pending.high, pending.high_weight);
    }
    pending = taps;
  }
  if (pending.low_weight != T(0)) emit(pending.low, pending.low_weight);
  if (pending.high_weight != T(0)) emit(pending.high, pending.high_weight);
}

template <class T>
FASTSEG_HD T samples_per_bin(const RoIAxis<T>& y, const RoIAxis<T>& x) {
  const T count = static_cast<T>(y.grid) * static_cast<T>(x.grid);
  return count > T(1) ? count : T(1);
}

// Where a RoI is pooled from; image < 0 when its image index is outside the batch.
template <class T>
struct RoI {
  int64_t image;
  int level;
  bool finite;  // false: a NaN or infinite coordinate, the RoI pools to 0
  RoIAxis<T> y, x;
};

template <class T>
FASTSEG_HD RoI<T> read_roi(const RoIAlignParams& p, int64_t k) {
  T box[5];
  for (int i = 0; i < 5; ++i) box[i] = *p.boxes.at<T>(k, i);
  RoI<T> roi;
  roi.image = box[0] >= T(0) && box[0] < static_cast<T>(p.features[0].size[0])
                  ? static_cast<int64_t>(box[0])
                  : -1;
  roi.finite = true;
  for (int i = 1; i < 5; ++i) roi.finite = roi.finite && std::fabs(box[i]) < T(1e30);
  roi.level = roi.finite ? roi_level(p, box) : 0;
  const View<4>& features = p.features[roi.level];
  const T scale = static_cast<T>(p.spatial_scale[roi.level]);
  roi.y = roi_axis(p, box[2], box[4], scale, p.output.size[2], features.size[2]);
  roi.x = roi_axis(p, box[1], box[3], scale, p.output.size[3], features.size[3]);
  return roi;
}

}  // namespace fastseg
