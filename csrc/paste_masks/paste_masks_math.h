// Where a pixel of the image lies in a mask: the arithmetic that CPU and CUDA share.
//
// Results equal the peers' bit for bit: core/bilinear.h has the order of torch's operations. Masks
// are addressed with a border of zeros: cell (r, c) of the mask is (r + 1, c + 1) here.
#pragma once

#include <cmath>

#include "core/bilinear.h"
#include "paste_masks/paste_masks.h"

namespace fastseg {

// One axis of a pasted mask. [begin, end) are the pixels of the image that the mask may reach.
struct PasteAxis {
  int64_t begin, end;
  int cells;          // M + 2, the border included
  int64_t first;      // torchvision: the box's first pixel, may lie outside the image
  int64_t size;       // torchvision: the box's pixels
  float low, length;  // detectron2: the box
};

struct PasteBox {
  PasteAxis y, x;
};

FASTSEG_HD int64_t clamp_pixel(float position, int64_t pixels) {
  return position > 0.0f
             ? (position < static_cast<float>(pixels) ? static_cast<int64_t>(position) : pixels)
             : 0;
}

FASTSEG_HD PasteAxis torchvision_axis(float low, float high, int mask_size, int64_t pixels) {
  const float grown = static_cast<float>(double(mask_size + 2) / mask_size);
  const float half = (high - low) * 0.5f * grown;
  const float centre = (high + low) * 0.5f;
  float from = centre - half, to = centre + half;
  PasteAxis axis{};
  axis.cells = mask_size + 2;
  if (!(std::fabs(from) < INFINITY && std::fabs(to) < INFINITY)) return axis;
  // The peer's own conversion to int64 overflows from 2^63 on.
  constexpr float kFarthest = float(int64_t(1) << 60);
  from = std::fmin(std::fmax(from, -kFarthest), kFarthest);
  to = std::fmin(std::fmax(to, -kFarthest), kFarthest);
  axis.first = static_cast<int64_t>(from);
  const int64_t last = static_cast<int64_t>(to);
  axis.size = last - axis.first + 1 > 1 ? last - axis.first + 1 : 1;
  axis.begin = axis.first > 0 ? axis.first : 0;
  axis.end = last + 1 < pixels ? last + 1 : pixels;
  return axis;
}

FASTSEG_HD PasteAxis detectron2_axis(float low, float high, int mask_size, int64_t pixels) {
  PasteAxis axis{};
  axis.cells = mask_size + 2;
  axis.low = low;
  axis.length = high - low;
  const float extent = std::fabs(axis.length);
  if (!(extent > 0.0f && extent < INFINITY && std::fabs(low) < INFINITY)) return axis;
  // The mask fades out over half a cell beyond the box. The rest is slack for rounding: pixels
  // without need get weights of zero from paste_tap().
  const float reach = extent / static_cast<float>(2 * mask_size) + 2.0f +
                      1e-6f * (std::fabs(low) + std::fabs(high));
  axis.begin = clamp_pixel(std::fmin(low, high) - reach, pixels);
  axis.end = clamp_pixel(std::fmax(low, high) + reach, pixels);
  return axis;
}

FASTSEG_HD PasteBox paste_box(const PasteMasksParams& p, int64_t n) {
  float box[4];
  for (int i = 0; i < 4; ++i) box[i] = *p.boxes.at<const float>(n, i);
  const int mask_size = static_cast<int>(p.masks.size[1]);
  PasteBox result;
  if (p.mode == PasteMode::torchvision) {
    result.y = torchvision_axis(box[1], box[3], mask_size, p.output.size[1]);
    result.x = torchvision_axis(box[0], box[2], mask_size, p.output.size[2]);
  } else {
    result.y = detectron2_axis(box[1], box[3], mask_size, p.output.size[1]);
    result.x = detectron2_axis(box[0], box[2], mask_size, p.output.size[2]);
  }
  // One empty axis leaves the mask no pixel.
  if (result.y.begin >= result.y.end || result.x.begin >= result.x.end) {
    result.y.begin = result.y.end = result.x.begin = result.x.end = 0;
  }
  return result;
}

FASTSEG_HD Tap detectron2_tap(const PasteAxis& axis, int64_t pixel) {
  const int mask_size = axis.cells - 2;
  const float centre = static_cast<float>(pixel) + 0.5f;
  const float grid = (centre - axis.low) / axis.length * 2.0f - 1.0f;
  const float half_size = static_cast<float>(mask_size) * 0.5f;
  const float position = multiply_add(grid + 1.0f, half_size, -0.5f);
  if (!(position > -1.0f && position < static_cast<float>(mask_size))) return {0, 0, 0.0f, 0.0f};
  const float cell = std::floor(position);
  Tap tap;
  tap.low = static_cast<int>(cell) + 1;
  tap.high = tap.low + 1;
  tap.high_weight = position - cell;
  tap.low_weight = 1.0f - tap.high_weight;
  return tap;
}

// Cells are counted with the border.
FASTSEG_HD Tap paste_tap(PasteMode mode, const PasteAxis& axis, int64_t pixel) {
  return mode == PasteMode::torchvision ? stretched_tap(pixel - axis.first, axis.size, axis.cells)
                                        : detectron2_tap(axis, pixel);
}

// Which values are inside the mask.
struct GreaterThan {
  float threshold;
  FASTSEG_HD bool operator()(float value) const { return value > threshold; }
};
struct AtLeast {
  float threshold;
  FASTSEG_HD bool operator()(float value) const { return value >= threshold; }
};

// f(inside) with the mode's comparison.
template <class F>
void with_comparison(const PasteMasksParams& p, F f) {
  if (p.mode == PasteMode::torchvision) {
    f(GreaterThan{p.threshold});
  } else {
    f(AtLeast{p.threshold});
  }
}

}  // namespace fastseg
