// The exponential function without branches or calls, so that compilers vectorise loops over it.
#pragma once

#include <cmath>

#include "core/types.h"

namespace fastseg {

// e^x for x <= 0 within 2 units in the last place; below -87.3 it is 0, at NaN it is NaN.
FASTSEG_HD float exp_nonpositive(float x) {
  x = x < -88.0f ? -88.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer, which the sum's lowest bits hold.
  constexpr float kRounder = 12582912.0f, kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // their sum is ln 2
  const float rounded = multiply_add(x, kLog2E, kRounder);
  const float power = rounded - kRounder;
  const float r = multiply_add(power, -kLn2Low, multiply_add(power, -kLn2High, x));
  float series = 1.0f / 5040;
  series = multiply_add(series, r, 1.0f / 720);
  series = multiply_add(series, r, 1.0f / 120);
  series = multiply_add(series, r, 1.0f / 24);
  series = multiply_add(series, r, 1.0f / 6);
  series = multiply_add(series, r, 0.5f);
  series = multiply_add(series, r, 1.0f);
  series = multiply_add(series, r, 1.0f);
  return series * bit_cast<float>((bit_cast<uint32_t>(rounded) + 127) << 23);  // 2^power
}
FASTSEG_HD double exp_nonpositive(double x) { return std::exp(x); }

}  // namespace fastseg
