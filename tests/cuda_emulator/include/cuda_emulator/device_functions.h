// Barriers, warp collectives, atomics and memory access of CUDA's device code.
#pragma once

#include <type_traits>

#include "scheduler.h"

// ---- Block barriers ----------------------------------------------------------------------------

inline void __syncthreads(cuda_emulator::Site site = cuda_emulator::Site::here()) {
  cuda_emulator::block_barrier(cuda_emulator::Barrier::kSync, 0, site);
}
inline int __syncthreads_or(int predicate, cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return cuda_emulator::block_barrier(cuda_emulator::Barrier::kOr, predicate, site);
}
inline int __syncthreads_and(int predicate,
                             cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return cuda_emulator::block_barrier(cuda_emulator::Barrier::kAnd, predicate, site);
}
inline int __syncthreads_count(int predicate,
                               cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return cuda_emulator::block_barrier(cuda_emulator::Barrier::kCount, predicate, site);
}

// ---- Warp collectives --------------------------------------------------------------------------

inline void __syncwarp(unsigned mask = 0xffffffffu,
                       cuda_emulator::Site site = cuda_emulator::Site::here()) {
  cuda_emulator::warp_collective(cuda_emulator::Collective::kSync, mask, 0, 0, 32, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return static_cast<unsigned>(cuda_emulator::warp_collective(cuda_emulator::Collective::kBallot,
                                                              mask, predicate != 0, 0, 32, site));
}
inline int __any_sync(unsigned mask, int predicate,
                      cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return static_cast<int>(cuda_emulator::warp_collective(cuda_emulator::Collective::kAny, mask,
                                                         predicate != 0, 0, 32, site));
}
inline int __all_sync(unsigned mask, int predicate,
                      cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return static_cast<int>(cuda_emulator::warp_collective(cuda_emulator::Collective::kAll, mask,
                                                         predicate != 0, 0, 32, site));
}

namespace cuda_emulator {

template <class T>
uint64_t to_bits(T value) {
  static_assert(std::is_arithmetic<T>::value && sizeof(T) >= 4 && sizeof(T) <= 8,
                "CUDA's warp functions take 4- and 8-byte numbers only");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T collective_value(Collective kind, unsigned mask, T value, int argument, int width, Site site) {
  const uint64_t bits = warp_collective(kind, mask, to_bits(value), argument, width, site);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return cuda_emulator::collective_value(cuda_emulator::Collective::kShuffle, mask, value, lane,
                                         width, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return cuda_emulator::collective_value(cuda_emulator::Collective::kShuffleUp, mask, value,
                                         static_cast<int>(distance), width, site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return cuda_emulator::collective_value(cuda_emulator::Collective::kShuffleDown, mask, value,
                                         static_cast<int>(distance), width, site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return cuda_emulator::collective_value(cuda_emulator::Collective::kShuffleXor, mask, value,
                                         lane_mask, width, site);
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          cuda_emulator::Site site = cuda_emulator::Site::here()) {
  return static_cast<unsigned>(cuda_emulator::warp_collective(
      cuda_emulator::Collective::kMatchAny, mask, cuda_emulator::to_bits(value), 0, 32, site));
}

// ---- Atomics -----------------------------------------------------------------------------------
// One emulated thread runs at a time and is never interrupted, so plain memory access is atomic.
// The overloads are exactly CUDA's: one that CUDA lacks must not compile here either.

#define FASTSEG_ATOMIC(name, T, expression) \
  inline T name(T* address, T value) { \
    const T old = *address; \
    *address = (expression); \
    return old; \
  }
#define FASTSEG_ATOMIC_INTEGERS(name, expression) \
  FASTSEG_ATOMIC(name, int, expression) \
  FASTSEG_ATOMIC(name, unsigned, expression) \
  FASTSEG_ATOMIC(name, unsigned long long, expression)
#define FASTSEG_WRAPPING(op) \
  static_cast<decltype(value)>(static_cast<unsigned long long>(old) \
                                   op static_cast<unsigned long long>(value))

FASTSEG_ATOMIC_INTEGERS(atomicAdd, FASTSEG_WRAPPING(+))
FASTSEG_ATOMIC(atomicAdd, float, old + value)
FASTSEG_ATOMIC(atomicAdd, double, old + value)
FASTSEG_ATOMIC(atomicSub, int, FASTSEG_WRAPPING(-))
FASTSEG_ATOMIC(atomicSub, unsigned, FASTSEG_WRAPPING(-))
FASTSEG_ATOMIC_INTEGERS(atomicExch, value)
FASTSEG_ATOMIC(atomicExch, float, value)
FASTSEG_ATOMIC_INTEGERS(atomicMax, old > value ? old : value)
FASTSEG_ATOMIC(atomicMax, long long, old > value ? old : value)
FASTSEG_ATOMIC_INTEGERS(atomicMin, old < value ? old : value)
FASTSEG_ATOMIC(atomicMin, long long, old < value ? old : value)
FASTSEG_ATOMIC_INTEGERS(atomicAnd, old& value)
FASTSEG_ATOMIC_INTEGERS(atomicOr, old | value)
FASTSEG_ATOMIC_INTEGERS(atomicXor, old ^ value)
#undef FASTSEG_WRAPPING
#undef FASTSEG_ATOMIC_INTEGERS
#undef FASTSEG_ATOMIC

#define FASTSEG_ATOMIC_CAS(T) \
  inline T atomicCAS(T* address, T compare, T value) { \
    const T old = *address; \
    if (old == compare) *address = value; \
    return old; \
  }
FASTSEG_ATOMIC_CAS(int)
FASTSEG_ATOMIC_CAS(unsigned)
FASTSEG_ATOMIC_CAS(unsigned long long)
FASTSEG_ATOMIC_CAS(unsigned short)
#undef FASTSEG_ATOMIC_CAS

// ---- Memory ------------------------------------------------------------------------------------

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

inline void __threadfence_block() {}
inline void __threadfence() {}
[[noreturn]] inline void __trap() { cuda_emulator::fail("__trap()"); }
