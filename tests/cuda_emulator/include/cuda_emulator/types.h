// CUDA's keywords and its vector and index types.
#pragma once

#include <math.h>  // also brings isnan, isinf, abs and the float functions into the global scope
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __forceinline__ inline __attribute__((always_inline))

// One object per variable will do, since one block runs at a time. The attribute, unlike a section
// name, also works inside templates: it puts the variable where poison_static_shared() finds it.
#define __shared__ static __attribute__((noinit))

#define FASTSEG_VECTOR_TYPES(name, scalar, alignment2, alignment4) \
  struct alignas(alignment2) name##2 { scalar x, y; }; \
  struct name##3 { scalar x, y, z; }; \
  struct alignas(alignment4) name##4 { scalar x, y, z, w; }; \
  inline name##2 make_##name##2(scalar x, scalar y) { return {x, y}; } \
  inline name##3 make_##name##3(scalar x, scalar y, scalar z) { return {x, y, z}; } \
  inline name##4 make_##name##4(scalar x, scalar y, scalar z, scalar w) { return {x, y, z, w}; }

FASTSEG_VECTOR_TYPES(char, signed char, 2, 4)
FASTSEG_VECTOR_TYPES(uchar, unsigned char, 2, 4)
FASTSEG_VECTOR_TYPES(short, short, 4, 8)
FASTSEG_VECTOR_TYPES(ushort, unsigned short, 4, 8)
FASTSEG_VECTOR_TYPES(int, int, 8, 16)
FASTSEG_VECTOR_TYPES(uint, unsigned, 8, 16)
FASTSEG_VECTOR_TYPES(longlong, long long, 16, 16)
FASTSEG_VECTOR_TYPES(ulonglong, unsigned long long, 16, 16)
FASTSEG_VECTOR_TYPES(float, float, 8, 16)
FASTSEG_VECTOR_TYPES(double, double, 16, 16)
#undef FASTSEG_VECTOR_TYPES

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};

// The scheduler sets these whenever it switches to another emulated thread.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;
