// Lanes<float>, Lanes<double>: one vector register of the instruction set that the file is
// compiled for. Only *_cpu.cpp files include this, hence the namespace.
#pragma once

#include <type_traits>
#include <utility>

#include "core/types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fastseg {
namespace FASTSEG_ISA {

#if defined(__AVX512F__)
constexpr int kLaneBytes = 64;
#elif defined(__AVX2__)
constexpr int kLaneBytes = 32;
#else
constexpr int kLaneBytes = 16;
#endif

template <class Acc>
struct LanesOf {
  typedef Acc type __attribute__((vector_size(kLaneBytes)));
};
template <class Acc>
using Lanes = typename LanesOf<Acc>::type;

template <class Acc>
constexpr int kLanes = kLaneBytes / sizeof(Acc);

// Loads kLanes consecutive elements as accumulators; no alignment needed.
template <class Acc, class T>
FASTSEG_HD Lanes<Acc> load_lanes(const T* source) {
  Acc values[kLanes<Acc>];
  for (int i = 0; i < kLanes<Acc>; ++i) values[i] = static_cast<Acc>(source[i]);
  Lanes<Acc> lanes;
  memcpy(&lanes, values, sizeof(lanes));
  return lanes;
}
template <>
FASTSEG_HD Lanes<float> load_lanes<float, float>(const float* source) {
  Lanes<float> lanes;
  memcpy(&lanes, source, sizeof(lanes));
  return lanes;
}
template <>
FASTSEG_HD Lanes<double> load_lanes<double, double>(const double* source) {
  Lanes<double> lanes;
  memcpy(&lanes, source, sizeof(lanes));
  return lanes;
}

// Some lanes of float32 at once, by the instruction set's masks: through memory, element by
// element, they take ten times as long.
#if defined(__AVX512F__)
FASTSEG_HD Lanes<float> load_first(const float* source, int count) {
  return _mm512_maskz_loadu_ps((1u << count) - 1, source);
}
FASTSEG_HD void store_first(float* target, const Lanes<float>& lanes, int count) {
  _mm512_mask_storeu_ps(target, (1u << count) - 1, lanes);
}
#elif defined(__AVX2__)
FASTSEG_HD __m256i first_lanes(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FASTSEG_HD Lanes<float> load_first(const float* source, int count) {
  return _mm256_maskload_ps(source, first_lanes(count));
}
FASTSEG_HD void store_first(float* target, const Lanes<float>& lanes, int count) {
  _mm256_maskstore_ps(target, first_lanes(count), lanes);
}
#endif

template <class T>
constexpr bool kHasMasks = std::is_same_v<T, float> && kLaneBytes > 16;

// The first `count` (1 to kLanes) elements, `stride` apart; the other lanes are 0.
template <class Acc, class T>
FASTSEG_HD Lanes<Acc> load_lanes(const T* source, int count, int64_t stride) {
  if (count == kLanes<Acc> && stride == 1) return load_lanes<Acc>(source);
  if constexpr (kHasMasks<T>) {
    if (stride == 1) return load_first(source, count);
  }
  Acc values[kLanes<Acc>] = {};
  for (int i = 0; i < count; ++i) values[i] = static_cast<Acc>(source[i * stride]);
  return load_lanes<Acc>(static_cast<const Acc*>(values));
}

// cells[index[i]] in lane i, for indices in ascending order.
FASTSEG_HD Lanes<float> load_ascending(const float* cells, const int* index) {
#if defined(__AVX512F__)
  const int first = index[0], last = index[kLanes<float> - 1] - first;
  if (last < kLanes<float>) {  // within one register: faster than one by one
    const auto exist = static_cast<__mmask16>((2u << last) - 1);
    const __m512i offsets = _mm512_sub_epi32(_mm512_loadu_si512(index), _mm512_set1_epi32(first));
    return _mm512_permutexvar_ps(offsets, _mm512_maskz_loadu_ps(exist, cells + first));
  }
#endif
  float values[kLanes<float>];
  for (int i = 0; i < kLanes<float>; ++i) values[i] = cells[index[i]];
  return load_lanes<float>(static_cast<const float*>(values));
}

template <class T, class Acc>
FASTSEG_HD void store_lanes(T* target, const Lanes<Acc>& lanes) {
  Acc values[kLanes<Acc>];
  memcpy(values, &lanes, sizeof(lanes));
  for (int i = 0; i < kLanes<Acc>; ++i) target[i] = static_cast<T>(values[i]);
}

// The first `count` (1 to kLanes) lanes alone.
template <class T, class Acc>
FASTSEG_HD void store_lanes(T* target, const Lanes<Acc>& lanes, int count) {
  if (count == kLanes<Acc>) return store_lanes<T, Acc>(target, lanes);
  if constexpr (kHasMasks<T>) return store_first(target, lanes, count);
  for (int i = 0; i < count; ++i) target[i] = static_cast<T>(lanes[i]);
}

// a * b + c in every lane, fused where the target fuses.
using fastseg::multiply_add;
FASTSEG_HD Lanes<float> multiply_add(Lanes<float> a, Lanes<float> b, Lanes<float> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}
FASTSEG_HD Lanes<double> multiply_add(Lanes<double> a, Lanes<double> b, Lanes<double> c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}
FASTSEG_HD Lanes<float> multiply_add(float a, Lanes<float> b, Lanes<float> c) {
  return multiply_add(a - Lanes<float>{}, b, c);  // in every lane; a + 0 would lose the sign of -0
}
FASTSEG_HD Lanes<double> multiply_add(double a, Lanes<double> b, Lanes<double> c) {
  return multiply_add(a - Lanes<double>{}, b, c);
}

// The sum over all lanes: halves are added until one lane is left.
template <class Acc>
FASTSEG_HD Acc sum_lanes(const Lanes<Acc>& lanes) {
  Acc values[kLanes<Acc>];
  memcpy(values, &lanes, sizeof(lanes));
  for (int half = kLanes<Acc> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}
#if defined(__AVX512F__)
template <>
FASTSEG_HD float sum_lanes<float>(const Lanes<float>& lanes) {
  return _mm512_reduce_add_ps(lanes);
}
#endif

// A square of kLanes registers transposed in place: log2(kLanes) rounds of interleaving register
// i with register i + kLanes / 2.
template <class Acc, int... I>
FASTSEG_HD Lanes<Acc> interleave(Lanes<Acc> a, Lanes<Acc> b, int half,
                                 std::integer_sequence<int, I...>) {
  using Integer = std::conditional_t<sizeof(Acc) == 4, int32_t, int64_t>;
  typedef Integer Mask __attribute__((vector_size(kLaneBytes)));
  constexpr int n = kLanes<Acc>;
#if defined(__clang__)
  return half == 0 ? __builtin_shufflevector(a, b, (I / 2 + I % 2 * n)...)
                   : __builtin_shufflevector(a, b, (I / 2 + I % 2 * n + n / 2)...);
#else
  return half == 0 ? __builtin_shuffle(a, b, Mask{(I / 2 + I % 2 * n)...})
                   : __builtin_shuffle(a, b, Mask{(I / 2 + I % 2 * n + n / 2)...});
#endif
}

template <class Acc>
FASTSEG_HD void transpose(Lanes<Acc> (&square)[kLanes<Acc>]) {
  constexpr int n = kLanes<Acc>;
  constexpr std::make_integer_sequence<int, n> lanes;
#pragma GCC unroll 4
  for (int round = 1; round < n; round *= 2) {
    Lanes<Acc> next[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) {
      next[2 * i] = interleave<Acc>(square[i], square[i + n / 2], 0, lanes);
      next[2 * i + 1] = interleave<Acc>(square[i], square[i + n / 2], 1, lanes);
    }
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) square[i] = next[i];
  }
}

#if defined(__AVX512F__)
template <>
FASTSEG_HD Lanes<float> load_lanes<float, half_t>(const half_t* source) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}
template <>
FASTSEG_HD Lanes<float> load_lanes<float, bfloat16_t>(const bfloat16_t* source) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
#elif defined(__AVX2__)
template <>
FASTSEG_HD Lanes<float> load_lanes<float, half_t>(const half_t* source) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
}
template <>
FASTSEG_HD Lanes<float> load_lanes<float, bfloat16_t>(const bfloat16_t* source) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
#endif

}  // namespace FASTSEG_ISA
}  // namespace fastseg
