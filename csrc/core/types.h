// Element types that a tensor may hold, and the float that each one is computed in.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FASTSEG_HD __host__ __device__ __forceinline__
#else
#define FASTSEG_HD inline __attribute__((always_inline))
#endif

namespace fastseg {

enum class DType : uint8_t { f32, f64, f16, bf16, i64, i32, i16, i8, u8, u16, u32, u64, boolean };

template <class To, class From>
FASTSEG_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// IEEE half precision, storage only: arithmetic happens in float. The host conversions are
// branch-free so that compilers vectorise loops over them.
struct half_t {
  uint16_t bits;

  half_t() = default;
  FASTSEG_HD half_t(float value) {
#if defined(__CUDA_ARCH__)
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
    const uint32_t x = bit_cast<uint32_t>(value);
    const uint32_t sign = (x >> 16) & 0x8000u;
    const uint32_t magnitude = x & 0x7fffffffu;
    // Adding 0.5 (exponent 126) aligns a subnormal half's bits to the bottom of the fraction.
    const float subnormal_sum = bit_cast<float>(magnitude) + 0.5f;
    const uint32_t subnormal = bit_cast<uint32_t>(subnormal_sum) - 0x3f000000u;
    const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    bits = static_cast<uint16_t>(sign | (magnitude >= (143u << 23) ? special : finite));
#endif
  }
  FASTSEG_HD operator float() const {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
    const float scaled = bit_cast<float>(magnitude) * bit_cast<float>((254u - 15u) << 23);
    const uint32_t special = magnitude | 0x7f800000u;
    const uint32_t value = magnitude >= (31u << 23) ? special : bit_cast<uint32_t>(scaled);
    return bit_cast<float>(value | sign);
#endif
  }
};

struct bfloat16_t {
  uint16_t bits;

  bfloat16_t() = default;
  FASTSEG_HD bfloat16_t(float value) {
    const uint32_t x = bit_cast<uint32_t>(value);
    const uint32_t rounded = (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
    const bool is_nan = (x & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded);
  }
  FASTSEG_HD operator float() const { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

// When a pixel of a boolean or integer mask is inside.
struct NonZero {
  template <class T>
  FASTSEG_HD bool operator()(T pixel) const {
    return pixel != 0;
  }
};

// Accumulation is float32 for every type but float64.
template <class T>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename Accumulate<T>::type;

// a * b + c, fused where the target has the instruction; GPUs do, so the emulator fuses too. The
// build switches the compiler's own contraction off, so that coordinates and comparisons round as
// the peers' do; sums opt in here.
FASTSEG_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATOR) || defined(__FMA__) || \
    defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
FASTSEG_HD double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__) || defined(FASTSEG_CUDA_EMULATOR) || defined(__FMA__) || \
    defined(__aarch64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

}  // namespace fastseg
