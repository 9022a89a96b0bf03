// 64 pixels as one word: between bytes and bits on the CPU, with the instruction set of the file
// that includes it (so for *_cpu.cpp files alone). Bit i is pixel i.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/types.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace fastseg {
namespace FASTSEG_ISA {

// Bit i of the result tells whether bytes[i] is non-zero; reads 64 bytes.
inline uint64_t pack_bits(const uint8_t* bytes) {
#if defined(__AVX512BW__)
  const __m512i pixels = _mm512_loadu_si512(bytes);
  return _mm512_test_epi8_mask(pixels, pixels);
#elif defined(__AVX2__)
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32));
  const uint32_t low_zero = _mm256_movemask_epi8(_mm256_cmpeq_epi8(low, zero));
  const uint32_t high_zero = _mm256_movemask_epi8(_mm256_cmpeq_epi8(high, zero));
  return ~(uint64_t(high_zero) << 32 | low_zero);
#elif defined(__SSE2__)
  uint64_t is_zero = 0;
  for (int i = 0; i < 4; ++i) {
    const __m128i pixels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes) + i);
    const uint64_t zeros = _mm_movemask_epi8(_mm_cmpeq_epi8(pixels, _mm_setzero_si128()));
    is_zero |= zeros << (16 * i);
  }
  return ~is_zero;
#else
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t pixels;
    memcpy(&pixels, bytes + 8 * i, 8);
    // The high bit of each byte becomes (byte != 0); the product gathers them in the top byte.
    constexpr uint64_t low_seven = 0x7f7f7f7f7f7f7f7f;
    pixels = (((pixels & low_seven) + low_seven) | pixels) & ~low_seven;
    const uint64_t packed = ((pixels >> 7) * 0x0102040810204080) >> 56;
    bits |= packed << (8 * i);
  }
  return bits;
#endif
}

// Bit i of the result is inside(pixels[i * stride]); `count` <= 64 pixels, the other bits are 0.
template <class T, class Inside>
inline uint64_t load_bits(const T* pixels, int64_t stride, int64_t count, const Inside& inside) {
  alignas(64) uint8_t bytes[64];
  if (stride == 1 && count == 64) {
    if (std::is_same<Inside, NonZero>::value && sizeof(T) == 1) {
      return pack_bits(reinterpret_cast<const uint8_t*>(pixels));
    }
    for (int i = 0; i < 64; ++i) bytes[i] = inside(pixels[i]);
    return pack_bits(bytes);
  }
  memset(bytes, 0, sizeof(bytes));
  for (int64_t i = 0; i < count; ++i) bytes[i] = inside(pixels[i * stride]);
  return pack_bits(bytes);
}

// Mirrors a square of 64 x 64 bits at its diagonal: bit c of words[r] becomes bit r of words[c].
inline void transpose_bits(uint64_t* words) {
  uint64_t mask = 0x00000000ffffffff;
  for (int width = 32; width > 0; width /= 2, mask ^= mask << width) {
    for (int block = 0; block < 64; block += 2 * width) {
      for (int r = block; r < block + width; ++r) {
        const uint64_t swapped = (words[r] >> width ^ words[r + width]) & mask;
        words[r] ^= swapped << width;
        words[r + width] ^= swapped;
      }
    }
  }
}

// Bit i of the result tells whether values[i] > threshold (NaN is not); reads 64 values.
inline uint64_t pack_greater(const float* values, float threshold) {
  uint64_t bits = 0;
#if defined(__AVX512F__)
  const __m512 limit = _mm512_set1_ps(threshold);
  for (int i = 0; i < 4; ++i) {
    const __mmask16 greater =
        _mm512_cmp_ps_mask(_mm512_loadu_ps(values + 16 * i), limit, _CMP_GT_OQ);
    bits |= uint64_t(greater) << (16 * i);
  }
#elif defined(__AVX2__)
  const __m256 limit = _mm256_set1_ps(threshold);
  for (int i = 0; i < 8; ++i) {
    const __m256 greater = _mm256_cmp_ps(_mm256_loadu_ps(values + 8 * i), limit, _CMP_GT_OQ);
    bits |= uint64_t(_mm256_movemask_ps(greater)) << (8 * i);
  }
#elif defined(__SSE2__)
  const __m128 limit = _mm_set1_ps(threshold);
  for (int i = 0; i < 16; ++i) {
    const __m128 greater = _mm_cmpgt_ps(_mm_loadu_ps(values + 4 * i), limit);
    bits |= uint64_t(_mm_movemask_ps(greater)) << (4 * i);
  }
#else
  for (int i = 0; i < 64; ++i) bits |= uint64_t(values[i] > threshold) << i;
#endif
  return bits;
}

// bytes[i] = bit i, as 0 or 1; writes 64 bytes.
inline void unpack_bits(uint64_t bits, uint8_t* bytes) {
#if defined(__AVX512BW__)
  _mm512_storeu_si512(bytes, _mm512_maskz_set1_epi8(bits, 1));
#elif defined(__AVX2__)
  const __m256i byte_of_pixel =
      _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of_pixel = _mm256_set1_epi64x(int64_t(0x8040201008040201));
  for (int i = 0; i < 2; ++i) {
    const __m256i word = _mm256_set1_epi32(static_cast<int>(bits >> (32 * i)));
    const __m256i own_bit =
        _mm256_and_si256(_mm256_shuffle_epi8(word, byte_of_pixel), bit_of_pixel);
    const __m256i pixels =
        _mm256_and_si256(_mm256_cmpeq_epi8(own_bit, bit_of_pixel), _mm256_set1_epi8(1));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes) + i, pixels);
  }
#else
  for (int i = 0; i < 8; ++i) {
    const uint64_t copies = (bits >> (8 * i) & 0xff) * 0x0101010101010101;
    const uint64_t own_bit = copies & 0x8040201008040201;
    const uint64_t pixels = ((own_bit + 0x7f7f7f7f7f7f7f7f) >> 7) & 0x0101010101010101;
    memcpy(bytes + 8 * i, &pixels, 8);  // pixel 0 is the lowest byte: little-endian hosts
  }
#endif
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg
