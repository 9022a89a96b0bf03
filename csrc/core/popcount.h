// Bits that two blocks of words have in common, with the instruction set of the file that includes
// it (so for *_cpu.cpp files alone).
//
//   const CountCommon count_common = best_count_common();
//   count_common(a, b, rows, count, stride);  // rows of `count` words, `stride` words apart
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastseg {
namespace FASTSEG_ISA {

using CountCommon = int64_t (*)(const uint64_t* a, const uint64_t* b, int64_t rows, int64_t count,
                                int64_t stride);

#if defined(__AVX2__)
// Bits of each byte, by table look-up of its halves; sums of bytes until they could overflow.
inline int64_t count_common(const uint64_t* a, const uint64_t* b, int64_t rows, int64_t count,
                            int64_t stride) {
  constexpr int64_t kVector = 4, kVectorsBeforeOverflow = 31;  // 8 bits a byte and vector
  const __m256i table = _mm256_setr_epi64x(0x0302020102010100, 0x0403030203020201,
                                           0x0302020102010100, 0x0403030203020201);
  const __m256i low_half = _mm256_set1_epi8(15), zero = _mm256_setzero_si256();
  __m256i total = zero;
  int64_t rest = 0;
  for (int64_t row = 0; row < rows; ++row, a += stride, b += stride) {
    int64_t i = 0;
    while (i + kVector <= count) {
      __m256i bytes = zero;
      for (int64_t v = 0; v < kVectorsBeforeOverflow && i + kVector <= count; ++v, i += kVector) {
        const __m256i common =
            _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i)),
                             _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i)));
        const __m256i low = _mm256_and_si256(common, low_half);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(common, 4), low_half);
        bytes = _mm256_add_epi8(bytes, _mm256_add_epi8(_mm256_shuffle_epi8(table, low),
                                                       _mm256_shuffle_epi8(table, high)));
      }
      total = _mm256_add_epi64(total, _mm256_sad_epu8(bytes, zero));
    }
    for (; i < count; ++i) rest += __builtin_popcountll(a[i] & b[i]);
  }
  alignas(32) int64_t sums[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(sums), total);
  return rest + sums[0] + sums[1] + sums[2] + sums[3];
}
#else
inline int64_t count_common(const uint64_t* a, const uint64_t* b, int64_t rows, int64_t count,
                            int64_t stride) {
  int64_t total = 0;
  for (int64_t row = 0; row < rows; ++row, a += stride, b += stride) {
    for (int64_t i = 0; i < count; ++i) total += __builtin_popcountll(a[i] & b[i]);
  }
  return total;
}
#endif

#if defined(__AVX512F__)
// With an instruction that x86-64-v4 does not include.
__attribute__((target("avx512vpopcntdq"))) inline int64_t count_common_vpopcntdq(
    const uint64_t* a, const uint64_t* b, int64_t rows, int64_t count, int64_t stride) {
  constexpr int64_t kVector = 8;
  const int64_t whole = count / kVector * kVector;
  const __mmask8 tail = static_cast<__mmask8>((1u << (count - whole)) - 1u);
  __m512i total = _mm512_setzero_si512(), tails = _mm512_setzero_si512();
  for (int64_t row = 0; row < rows; ++row, a += stride, b += stride) {
    for (int64_t i = 0; i < whole; i += kVector) {
      const __m512i common = _mm512_and_si512(_mm512_loadu_si512(a + i), _mm512_loadu_si512(b + i));
      total = _mm512_add_epi64(total, _mm512_popcnt_epi64(common));
    }
    if (tail == 0) continue;
    const __m512i common = _mm512_and_si512(_mm512_maskz_loadu_epi64(tail, a + whole),
                                            _mm512_maskz_loadu_epi64(tail, b + whole));
    tails = _mm512_add_epi64(tails, _mm512_popcnt_epi64(common));
  }
  alignas(64) int64_t sums[kVector];
  _mm512_store_si512(sums, _mm512_add_epi64(total, tails));
  int64_t sum = 0;
  for (int64_t lane : sums) sum += lane;
  return sum;
}
#endif

inline CountCommon best_count_common() {
#if defined(__AVX512F__)
  if (__builtin_cpu_supports("avx512vpopcntdq")) return count_common_vpopcntdq;
#endif
  return count_common;
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg
