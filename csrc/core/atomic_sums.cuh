// Adding to sums that other threads add to as well.
#pragma once

#include <type_traits>

#include "core/cuda.cuh"

namespace fastseg {

// Adds to consecutive floats; the result depends on the order. Where kCount is a multiple of 4,
// the addresses of floats must be aligned to 16 bytes.
template <class Acc, int kCount>
__device__ void atomic_add(Acc* sums, const Acc (&values)[kCount]) {
  if constexpr (std::is_same_v<Acc, float> && kCount % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) atomic_add_vector(sums + i, values + i);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) atomicAdd(sums + i, values[i]);
  }
}

// Adds multiples of a unit as integers: the same result in any order. `units` is the number of
// units in 1, so small that no sum overflows, and divides the sums in the end. Values that are not
// finite are left out: then `units` must be 0 or NaN, which makes all quotients NaN.
template <class Acc, int kCount>
__device__ void atomic_add_fixed_point(int64_t* sums, const Acc (&values)[kCount], double units) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    const double value = static_cast<double>(values[i]) * units;
    if (!(fabs(value) < 0x1p62)) continue;
    atomicAdd(reinterpret_cast<unsigned long long*>(sums + i),
              static_cast<unsigned long long>(static_cast<long long>(rint(value))));
  }
}

}  // namespace fastseg
