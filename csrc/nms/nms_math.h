// The arithmetic of NMS, shared by the CPU and CUDA. Coordinates and IoU are float32 (float64 for
// float64 boxes) and round as torchvision's do.
#pragma once

#include <cmath>
#include <limits>

#include "nms/nms.h"

namespace fastseg {

template <class T>
struct NmsBox {
  T x1, y1, x2, y2, area;
};

template <class T>
FASTSEG_HD NmsBox<T> make_nms_box(T x1, T y1, T x2, T y2) {
  return {x1, y1, x2, y2, (x2 - x1) * (y2 - y1)};
}

// The definition: whether the kept box `a` suppresses `b`. A NaN coordinate makes an area NaN and
// with it the IoU, and so does 0 / 0; NaN is above no threshold.
template <class T>
FASTSEG_HD bool iou_exceeds(const NmsBox<T>& a, const NmsBox<T>& b, T threshold) {
  const T left = a.x1 < b.x1 ? b.x1 : a.x1, top = a.y1 < b.y1 ? b.y1 : a.y1;
  const T right = b.x2 < a.x2 ? b.x2 : a.x2, bottom = b.y2 < a.y2 ? b.y2 : a.y2;
  const T width = right - left, height = bottom - top;
  const T inter = (T(0) < width ? width : T(0)) * (T(0) < height ? height : T(0));
  return inter / (a.area + b.area - inter) > threshold;
}

// A condition that holds whenever iou_exceeds does, without its division, for boxes that
// can_overlap and thresholds >= 0: rounding is monotonic, so inter / union rounded to more than t
// means inter >= t * union rounded.
template <class T>
FASTSEG_HD bool iou_may_exceed(T x1, T y1, T x2, T y2, T area, const NmsBox<T>& b, T threshold) {
  const T left = x1 < b.x1 ? b.x1 : x1, top = y1 < b.y1 ? b.y1 : y1;
  const T right = b.x2 < x2 ? b.x2 : x2, bottom = b.y2 < y2 ? b.y2 : y2;
  const T width = right - left, height = bottom - top;
  const T inter = (T(0) < width ? width : T(0)) * height;  // <= 0 when the height is
  return (inter > T(0)) & (inter >= threshold * (area + b.area - inter));
}

// False for boxes whose IoU with every box is 0, -0 or NaN: no extent, negative, NaN or infinite.
// For thresholds >= 0 they neither suppress nor are suppressed.
template <class T>
FASTSEG_HD bool can_overlap(const NmsBox<T>& box) {
  return box.x1 < box.x2 && box.y1 < box.y2 && box.area < std::numeric_limits<T>::infinity();
}

// Keys ascend as scores descend; all NaNs come first and -0 equals 0, as in torch.sort.
FASTSEG_HD uint32_t descending_key(float score) {
  if (score != score) return 0;
  const uint32_t bits = bit_cast<uint32_t>(score + 0.0f);
  return (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
}
FASTSEG_HD uint64_t descending_key(double score) {
  if (score != score) return 0;
  const uint64_t bits = bit_cast<uint64_t>(score + 0.0);
  return (bits >> 63) != 0 ? bits : ~(bits | (uint64_t{1} << 63));
}

// The largest T <= threshold: comparing with it is comparing with the float64 threshold.
template <class T>
inline T nms_threshold(double threshold) {
  const T rounded = static_cast<T>(threshold);
  if (!(static_cast<double>(rounded) > threshold)) return rounded;
  return std::nextafter(rounded, -std::numeric_limits<T>::infinity());
}

}  // namespace fastseg
