// Products of tiles on tensor cores, and the same on other architectures. Inline PTX stays here, so
// that kernels also compile for the CPU emulator.
#pragma once

#include <cstring>
#include <type_traits>

#include "core/cuda.cuh"
#include "core/types.h"

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

// ---- Products of floating-point tiles
// ------------------------------------------------------------ T is half_t, bfloat16_t, or float
// for TF32. Rows of A (16 of them) and of B^T (8) are 32 bytes long: 8 words of 32 bits, each a
// float or two halves. Lane 4 * g + t holds of A the words {g: t, g + 8: t, g: 4 + t, g + 8: 4 +
// t}, of B^T {g: t, g: 4 + t}.

template <class T>
inline constexpr int kHalfRow = 16 / static_cast<int>(sizeof(T));  // elements of half a row

// The lane's part of A, whose rows lie `stride` elements apart in shared memory. Rows must be
// aligned to 16 bytes.
template <class T>
__device__ void load_left(unsigned (&a)[4], const T* tile, int stride) {
#if defined(__CUDA_ARCH__)
  const T* row = tile + (lane_id() % 16) * stride + lane_id() / 16 * kHalfRow<T>;
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
               : "r"(address)
               : "memory");
#else
  for (int i = 0; i < 4; ++i) {
    const T* row = tile + (lane_id() / 4 + i % 2 * 8) * stride + i / 2 * kHalfRow<T>;
    a[i] = Vec<unsigned, 4>::load(reinterpret_cast<const unsigned*>(row))[lane_id() % 4];
  }
#endif
}

// The lane's parts of two B^T, rows 0 to 7 and 8 to 15 of a tile in shared memory.
template <class T>
__device__ void load_right(unsigned (&b)[2][2], const T* tile, int stride) {
#if defined(__CUDA_ARCH__)
  const T* row = tile + (lane_id() / 16 * 8 + lane_id() % 8) * stride;
  row += lane_id() / 8 % 2 * kHalfRow<T>;
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(b[0][0]), "=r"(b[0][1]), "=r"(b[1][0]), "=r"(b[1][1])
               : "r"(address)
               : "memory");
#else
  for (int i = 0; i < 4; ++i) {
    const T* row = tile + (lane_id() / 4 + i / 2 * 8) * stride + i % 2 * kHalfRow<T>;
    b[i / 2][i % 2] = Vec<unsigned, 4>::load(reinterpret_cast<const unsigned*>(row))[lane_id() % 4];
  }
#endif
}

// The same of tiles that lie transposed in shared memory: 32 bytes of a row of A or B^T are a
// column there, whose elements are `stride` apart.
template <class T>
__device__ void load_left_transposed(unsigned (&a)[4], const T* tile, int stride) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 2) {
    const T* row = tile + (lane_id() / 16 * 8 + lane_id() % 8) * stride + lane_id() / 8 % 2 * 8;
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
    return;
  }
#endif
  constexpr int kWord = sizeof(unsigned) / sizeof(T);  // elements of a word
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int k = (i / 2 * 4 + lane_id() % 4) * kWord;
    const T* source = tile + k * stride + lane_id() / 4 + i % 2 * 8;
    T word[kWord];
#pragma unroll
    for (int e = 0; e < kWord; ++e) word[e] = source[e * stride];
    memcpy(&a[i], word, sizeof(unsigned));
  }
}

template <class T>
__device__ void load_right_transposed(unsigned (&b)[2][2], const T* tile, int stride) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == 2) {
    const T* row = tile + lane_id() % 16 * stride + lane_id() / 16 * 8;
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0][0]), "=r"(b[0][1]), "=r"(b[1][0]), "=r"(b[1][1])
                 : "r"(address)
                 : "memory");
    return;
  }
#endif
  constexpr int kWord = sizeof(unsigned) / sizeof(T);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int k = (i % 2 * 4 + lane_id() % 4) * kWord;
    const T* source = tile + k * stride + lane_id() / 4 + i / 2 * 8;
    T word[kWord];
#pragma unroll
    for (int e = 0; e < kWord; ++e) word[e] = source[e * stride];
    memcpy(&b[i / 2][i % 2], word, sizeof(unsigned));
  }
}

// The word as TF32, rounded to nearest; what is not float stays.
template <class T>
__device__ unsigned rounded_word(unsigned word) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, float>) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(bit_cast<float>(word)));
  }
#endif
  return word;
}

// Two numbers, rounded, as a word of half_t or bfloat16_t.
template <class T>
__device__ unsigned pair_word(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, bfloat16_t>) {
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
  }
#endif
  return static_cast<unsigned>(T(low).bits) | static_cast<unsigned>(T(high).bits) << 16;
}

// Whether multiply_tiles() is an instruction or two; where it is not, it serves tests alone.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <class T>
inline constexpr bool kHasMultiplyTiles = __CUDA_ARCH__ >= 750 && std::is_same_v<T, half_t>;
#else
template <class T>
inline constexpr bool kHasMultiplyTiles = true;
#endif

// sums += A * B by the whole warp, in float32. The lane gets the sums {(g, 2 * t), (g, 2 * t + 1),
// (g + 8, 2 * t), (g + 8, 2 * t + 1)}.
template <class T>
__device__ void multiply_tiles(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define FASTSEG_MULTIPLY_TILES(shape_and_types) \
  asm volatile("mma.sync.aligned." shape_and_types \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, half_t>) {
    FASTSEG_MULTIPLY_TILES("m16n8k16.row.col.f32.f16.f16.f32");
  } else if constexpr (std::is_same_v<T, bfloat16_t>) {
    FASTSEG_MULTIPLY_TILES("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else {
    FASTSEG_MULTIPLY_TILES("m16n8k8.row.col.f32.tf32.tf32.f32");
  }
#undef FASTSEG_MULTIPLY_TILES
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 750
  static_assert(std::is_same_v<T, half_t>, "sm_75 multiplies tiles of half precision alone");
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#else
  const int row = lane_id() & ~3, column = 8 * (lane_id() & 3);  // first lanes that hold them
#pragma unroll 1
  for (int t = 0; t < 4; ++t) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const unsigned left = __shfl_sync(kFullMask, a[i], row + t);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const unsigned right = __shfl_sync(kFullMask, b[i / 2], column + 4 * n + t);
        T lefts[4 / sizeof(T)], rights[4 / sizeof(T)];
        memcpy(lefts, &left, sizeof(left));
        memcpy(rights, &right, sizeof(right));
        float& sum = sums[i % 2 * 2 + n];
        for (int e = 0; e < static_cast<int>(4 / sizeof(T)); ++e) {
          sum = multiply_add(static_cast<float>(lefts[e]), static_cast<float>(rights[e]), sum);
        }
      }
    }
  }
#endif
}

// ---- Copies to shared memory that the thread does not wait for (sm_80; elsewhere it does)
// ---------

// Copies 16 bytes, to which addresses must be aligned, or writes zeros where there is nothing.
__device__ inline void copy_async(void* shared, const void* global, bool exists) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = exists ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(address), "l"(global), "r"(bytes)
               : "memory");
#else
  Vec<unsigned, 4> bytes = {};
  if (exists) bytes = Vec<unsigned, 4>::load(static_cast<const unsigned*>(global));
  bytes.store(static_cast<unsigned*>(shared));
#endif
}

// Waits for all copies that this thread started.
__device__ inline void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" : : : "memory");
#endif
}

}  // namespace fastseg
