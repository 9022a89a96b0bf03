// View<N>: where an N-dimensional tensor lies in memory. Strides are in elements.
#pragma once

#include "core/types.h"

namespace fastseg {

constexpr int kCpuDevice = -1;

template <int N>
struct View {
  void* data = nullptr;
  int64_t size[N] = {};
  int64_t stride[N] = {};
  DType dtype = DType::f32;
  int device = kCpuDevice;  // index of the CUDA device, or kCpuDevice

  template <class T>
  FASTSEG_HD T* as() const {
    return static_cast<T*>(data);
  }

  // Address of the element at the leading indices given; trailing ones are 0.
  template <class T, class... Index>
  FASTSEG_HD T* at(Index... index) const {
    static_assert(sizeof...(Index) <= N, "too many indices");
    const int64_t indices[] = {static_cast<int64_t>(index)...};
    int64_t offset = 0;
    for (int d = 0; d < static_cast<int>(sizeof...(Index)); ++d) offset += indices[d] * stride[d];
    return as<T>() + offset;
  }

  FASTSEG_HD int64_t numel() const {
    int64_t count = 1;
    for (int d = 0; d < N; ++d) count *= size[d];
    return count;
  }
};

}  // namespace fastseg
