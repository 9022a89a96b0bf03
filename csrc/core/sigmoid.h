// The logistic function in float32, for loops that compilers vectorise: on the CPU without branches
// and calls, within 1 unit in the last place of the exact exponential.
#pragma once

#include <cmath>

#include "core/types.h"

namespace fastseg {

FASTSEG_HD float exponential(float x) {
#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATOR)
  return expf(x);
#else
  // Beyond these the result is 0 or infinite; NaN passes.
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  // x = n ln 2 + r: the sum's last bits are the integer n.
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23
  const float shifted = multiply_add(x, 1.44269504f, kShift);
  const uint32_t n = bit_cast<uint32_t>(shifted) - bit_cast<uint32_t>(kShift);
  float r = multiply_add(shifted - kShift, -0.693359375f, x);
  r = multiply_add(shifted - kShift, 2.12194440e-4f, r);
  float series = multiply_add(1.9875691500e-4f, r, 1.3981999507e-3f);
  series = multiply_add(series, r, 8.3334519073e-3f);
  series = multiply_add(series, r, 4.1665795894e-2f);
  series = multiply_add(series, r, 1.6666665459e-1f);
  series = multiply_add(series, r, 5.0000001201e-1f);
  const float power = multiply_add(series, r * r, r) + 1.0f;
  // 2^n as two factors, for the ends of the range of floats.
  const uint32_t half = static_cast<uint32_t>(static_cast<int32_t>(n) >> 1);
  const float low = bit_cast<float>((half + 127u) << 23);
  const float high = bit_cast<float>((n - half + 127u) << 23);
  return power * low * high;
#endif
}

// As torch computes it: 1 / (1 + exp(-x)).
FASTSEG_HD float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace fastseg
