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

// A threshold on the IoU, and what iou_may_exceed needs instead: IoU > t means that
// inter > t / (1 + t) * (area + area). `share` is a little less than t / (1 + t), so that rounding
// loses no pair. Thresholds of 0 and below have no such condition: `quick` is false.
template <class T>
struct NmsThreshold {
  T iou, share;
  bool quick;
};

template <class T>
inline NmsThreshold<T> make_nms_threshold(double iou) {
  NmsThreshold<T> threshold;
  // The largest T <= iou: comparing with it is comparing with the float64 number.
  threshold.iou = static_cast<T>(iou);
  if (static_cast<double>(threshold.iou) > iou) {
    threshold.iou = std::nextafter(threshold.iou, -std::numeric_limits<T>::infinity());
  }
  const double t = static_cast<double>(threshold.iou);
  threshold.share = static_cast<T>(t / (1 + t) * (1 - 8 * std::numeric_limits<T>::epsilon()));
  threshold.quick = t > 1e-30;
  return threshold;
}

// True whenever iou_exceeds is and for hardly any other pair, without its division. For boxes that
// can_overlap and quick thresholds.
template <class T>
FASTSEG_HD bool iou_may_exceed(T x1, T y1, T x2, T y2, T area, const NmsBox<T>& b, T share) {
  const T left = x1 < b.x1 ? b.x1 : x1, top = y1 < b.y1 ? b.y1 : y1;
  const T right = b.x2 < x2 ? b.x2 : x2, bottom = b.y2 < y2 ? b.y2 : y2;
  const T width = right - left, height = bottom - top;
  // A negative height alone makes the product negative.
  return (width > T(0)) & (width * height >= share * (area + b.area));
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

}  // namespace fastseg
