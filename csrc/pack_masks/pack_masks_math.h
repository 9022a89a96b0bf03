// When a pixel is inside, for each type of mask.
#pragma once

#include "core/dispatch.h"
#include "pack_masks/pack_masks.h"

namespace fastseg {

// NaN is above nothing.
template <class T>
struct Above {
  T threshold;

  FASTSEG_HD bool operator()(T value) const { return value > threshold; }
};

// Half precision compares as integers, so that 64 values need no conversion: with the magnitude of
// negative numbers inverted, the bits are in the order of the values. -0 lies just below 0, which
// is why a threshold of -0 becomes 0; positive NaN lies above infinity, negative NaN lowest.
template <class T>
struct AboveHalf {
  int16_t threshold, infinity;

  AboveHalf(T threshold_value, T infinity_value)
      : threshold(order(threshold_value.bits == 0x8000 ? T(0.0f) : threshold_value)),
        infinity(order(infinity_value)) {}

  FASTSEG_HD bool operator()(T value) const {
    const int16_t own = order(value);
    return (own > threshold) & (own <= infinity);
  }
  FASTSEG_HD static int16_t order(T value) {
    const int16_t bits = static_cast<int16_t>(value.bits);
    return static_cast<int16_t>(bits ^ ((bits >> 15) & 0x7fff));
  }
};

// Calls f(zero of the element type, predicate) for the type and threshold of the masks.
template <class F>
void dispatch_inside(const PackMasksParams& params, F&& f) {
  const DType dtype = params.masks.dtype;
  const float threshold = static_cast<float>(params.threshold), infinity = __builtin_inff();
  switch (dtype) {
    case DType::f32:
      return f(float{}, Above<float>{threshold});
    case DType::f64:
      return f(double{}, Above<double>{params.threshold});
    case DType::f16:
      return f(half_t{}, AboveHalf<half_t>(threshold, infinity));
    case DType::bf16:
      return f(bfloat16_t{}, AboveHalf<bfloat16_t>(threshold, infinity));
    default:
      dispatch_width(dtype, "masks", [&](auto zero) { f(zero, NonZero()); });
  }
}

}  // namespace fastseg
