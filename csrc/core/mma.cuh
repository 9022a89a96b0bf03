// Products of tiles of bits on tensor cores, and the same on other architectures. Inline PTX stays
// here, so that kernels also compile for the CPU emulator.
#pragma once

#include "core/cuda.cuh"

namespace fastseg {

// Whether and_popc() is one instruction. Before sm_80 tensor cores only have XOR; from sm_100 on
// the instruction is emulated, slower than what stands below.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && __CUDA_ARCH__ < 1000
#define FASTSEG_HAS_AND_POPC 1
#else
#define FASTSEG_HAS_AND_POPC 0
#endif

// sums[m][n] += number of bits set in both row m of A (16 x 256) and row n of B (8 x 256), by the
// whole warp. Lane 4 * g + t holds words t and 4 + t (of 32 bits) of rows g and g + 8 of A, as
// {g: t, g + 8: t, g: 4 + t, g + 8: 4 + t}, and of row g of B. It gets the sums {(g, 2 * t),
// (g, 2 * t + 1), (g + 8, 2 * t), (g + 8, 2 * t + 1)}. The order of bits along a row is free, as
// long as it is the same in A and B.
__device__ inline void and_popc(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if FASTSEG_HAS_AND_POPC
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, "
      "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  const int row = lane_id() & ~3, column = 8 * (lane_id() & 3);  // first lanes that hold them
#pragma unroll 1
  for (int t = 0; t < 4; ++t) {
    unsigned rows[4], columns[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) rows[i] = __shfl_sync(kFullMask, a[i], row + t);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        columns[n][i] = __shfl_sync(kFullMask, b[i], column + 4 * n + t);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int m = i / 2, n = i % 2;
      sums[i] += __popc(rows[m] & columns[n][0]) + __popc(rows[2 + m] & columns[n][1]);
    }
  }
#endif
}

}  // namespace fastseg
