// Masks on the CPU as float32 whose columns are neighbours: those of a tensor of that kind, or a
// copy. Only *_cpu.cpp files include this, hence the namespace.
#pragma once

#include <vector>

#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/view.h"

namespace fastseg {
namespace FASTSEG_ISA {

class FloatMasks {
 public:
  // [N, h, w] of a floating type, which must outlive this.
  explicit FloatMasks(const View<3>& masks) : view_(masks) {
    if (masks.dtype == DType::f32 && masks.stride[2] == 1) return;
    const int64_t height = masks.size[1], width = masks.size[2];
    copy_.resize(masks.numel());
    view_.data = copy_.data();
    view_.dtype = DType::f32;
    view_.stride[0] = height * width;
    view_.stride[1] = width;
    view_.stride[2] = 1;
    dispatch_floating(masks.dtype, "masks", [&](auto zero) {
      using T = decltype(zero);
      parallel_for(masks.size[0], 1, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
          for (int64_t y = 0; y < height; ++y) {
            const T* from = masks.at<T>(n, y);
            float* to = view_.at<float>(n, y);
            for (int64_t x = 0; x < width; ++x)
              to[x] = static_cast<float>(from[x * masks.stride[2]]);
          }
        }
      });
    });
  }
  FloatMasks(const FloatMasks&) = delete;
  FloatMasks& operator=(const FloatMasks&) = delete;

  const float* mask(int64_t n) const { return view_.at<const float>(n); }
  const float* row(int64_t n, int64_t y) const { return view_.at<const float>(n, y); }
  int64_t row_stride() const { return view_.stride[1]; }

 private:
  View<3> view_;
  std::vector<float> copy_;
};

}  // namespace FASTSEG_ISA
}  // namespace fastseg
