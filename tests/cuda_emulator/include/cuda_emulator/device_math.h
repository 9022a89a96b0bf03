// CUDA's integer, conversion and floating point functions that the C library does not have.
// Build with -ffp-contract=off: the _rn functions must not be fused into multiply-adds.
#pragma once

#include <limits>

#include "types.h"

// ---- Bits --------------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) {
  return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x));
}
inline unsigned long long __brevll(unsigned long long x) {
  unsigned long long reversed = 0;
  for (int i = 0; i < 64; ++i, x >>= 1) reversed = (reversed << 1) | (x & 1);
  return reversed;
}
inline unsigned __brev(unsigned x) { return static_cast<unsigned>(__brevll(x) >> 32); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  const unsigned long long both = (static_cast<unsigned long long>(high) << 32) | low;
  return static_cast<unsigned>((both << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  const unsigned long long both = (static_cast<unsigned long long>(high) << 32) | low;
  return static_cast<unsigned>(both >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<unsigned long long>(a) * b) >> 32);
}

// ---- Reinterpretation and conversion -----------------------------------------------------------

namespace cuda_emulator {
template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// CUDA's float to integer conversion: NaN gives 0, and what does not fit saturates.
template <class To>
To to_integer(double rounded) {
  using Limits = std::numeric_limits<To>;
  if (isnan(rounded)) return 0;
  if (rounded >= ldexp(1.0, Limits::digits)) return Limits::max();
  if (rounded < static_cast<double>(Limits::min())) return Limits::min();
  return static_cast<To>(rounded);
}
}  // namespace cuda_emulator

inline int __float_as_int(float x) { return cuda_emulator::bit_cast<int>(x); }
inline unsigned __float_as_uint(float x) { return cuda_emulator::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return cuda_emulator::bit_cast<float>(x); }
inline float __uint_as_float(unsigned x) { return cuda_emulator::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_emulator::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_emulator::bit_cast<double>(x); }

inline int __float2int_rn(float x) { return cuda_emulator::to_integer<int>(rintf(x)); }
inline int __float2int_rz(float x) { return cuda_emulator::to_integer<int>(truncf(x)); }
inline int __float2int_rd(float x) { return cuda_emulator::to_integer<int>(floorf(x)); }
inline int __float2int_ru(float x) { return cuda_emulator::to_integer<int>(ceilf(x)); }
inline unsigned __float2uint_rn(float x) { return cuda_emulator::to_integer<unsigned>(rintf(x)); }
inline unsigned __float2uint_rz(float x) { return cuda_emulator::to_integer<unsigned>(truncf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline long long __double2ll_rn(double x) { return cuda_emulator::to_integer<long long>(rint(x)); }

// ---- Floating point ----------------------------------------------------------------------------

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }

// Approximate on a GPU, exact here: compare with a tolerance.
inline float rsqrtf(float a) { return 1.0f / sqrtf(a); }
inline double rsqrt(double a) { return 1.0 / sqrt(a); }
inline float __frsqrt_rn(float a) { return static_cast<float>(1.0 / sqrt(static_cast<double>(a))); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return expf(a); }
inline float __exp2f(float a) { return exp2f(a); }
inline float __logf(float a) { return logf(a); }
inline float __log2f(float a) { return log2f(a); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __saturatef(float a) { return a > 0.0f ? (a < 1.0f ? a : 1.0f) : 0.0f; }

// ---- min and max, with the mixed signatures that CUDA has; a NaN operand is ignored
// --------------

#define FASTSEG_MIN_MAX(T, A, B) \
  inline T min(A a, B b) { \
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); \
  } \
  inline T max(A a, B b) { \
    return static_cast<T>(a) > static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b); \
  }
FASTSEG_MIN_MAX(int, int, int)
FASTSEG_MIN_MAX(unsigned, unsigned, unsigned)
FASTSEG_MIN_MAX(unsigned, int, unsigned)
FASTSEG_MIN_MAX(unsigned, unsigned, int)
FASTSEG_MIN_MAX(long, long, long)
FASTSEG_MIN_MAX(unsigned long, unsigned long, unsigned long)
FASTSEG_MIN_MAX(unsigned long, long, unsigned long)
FASTSEG_MIN_MAX(unsigned long, unsigned long, long)
FASTSEG_MIN_MAX(long long, long long, long long)
FASTSEG_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
FASTSEG_MIN_MAX(unsigned long long, long long, unsigned long long)
FASTSEG_MIN_MAX(unsigned long long, unsigned long long, long long)
#undef FASTSEG_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }
