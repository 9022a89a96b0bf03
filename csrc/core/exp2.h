// 2^x in every lane of a vector register. Only *_cpu.cpp files include this.
#pragma once

#include <cmath>

#include "core/lanes.h"

namespace fastseg {
namespace FASTSEG_ISA {

template <class Acc>
struct IntegerLanesOf {
  typedef std::conditional_t<sizeof(Acc) == 4, int32_t, int64_t> type
      __attribute__((vector_size(kLaneBytes)));
};
template <class Acc>
using IntegerLanes = typename IntegerLanesOf<Acc>::type;

// Relative error below 8e-8 for x from -126 to 126; 0 below, NaN at NaN.
FASTSEG_HD Lanes<float> exp2_lanes(Lanes<float> x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Lanes<float> shifted = x + kRound;
  const Lanes<float> fraction = x - (shifted - kRound);
  // 2^fraction, fraction within -0.5 and 0.5: fitted for the least relative error.
  Lanes<float> power = 1.535336182e-4f + Lanes<float>{};
  power = multiply_add(power, fraction, 1.339887445e-3f + Lanes<float>{});
  power = multiply_add(power, fraction, 9.618437358e-3f + Lanes<float>{});
  power = multiply_add(power, fraction, 5.550332471e-2f + Lanes<float>{});
  power = multiply_add(power, fraction, 2.402264791e-1f + Lanes<float>{});
  power = multiply_add(power, fraction, 6.931472029e-1f + Lanes<float>{});
  power = multiply_add(power, fraction, 1.0f + Lanes<float>{});
  IntegerLanes<float> bits;
  memcpy(&bits, &shifted, sizeof(bits));
  const IntegerLanes<float> exponent = bits << 23;  // the low bits of `shifted` are the integer
  memcpy(&bits, &power, sizeof(bits));
  bits += exponent;
  memcpy(&power, &bits, sizeof(power));
  return x < -126.0f ? Lanes<float>{} : (x == x ? power : x);
}

FASTSEG_HD Lanes<double> exp2_lanes(Lanes<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = std::exp2(x[i]);
  return x;
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg
