// What every kernel file needs from CUDA: a checked launch, dynamic shared memory, warp and block
// collectives, vector memory access. Kernels are started through launch() and never by <<<>>>, so
// that the same .cu file also compiles with g++ for the CPU emulator (tests/cuda_emulator).
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#ifndef FASTSEG_CUDA_ARCHS  // the architectures that the build compiles for, "75 80 90"
#define FASTSEG_CUDA_ARCHS "unknown"
#endif

namespace fastseg {

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullMask = 0xffffffffu;
inline constexpr size_t kSharedBytesWithoutOptIn = 48 * 1024;

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

inline std::string describe(dim3 size) {
  return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " +
         std::to_string(size.z) + ")";
}

// A grid from 64-bit counts; an oversized one throws here, where a cast would wrap in silence.
inline dim3 make_grid(int64_t x, int64_t y = 1, int64_t z = 1) {
  if (x < 0 || y < 0 || z < 0 || x > 0x7fffffff || y > 65535 || z > 65535) {
    throw std::runtime_error("fastseg: a CUDA grid of (" + std::to_string(x) + ", " +
                             std::to_string(y) + ", " + std::to_string(z) +
                             ") blocks exceeds the limit of (2147483647, 65535, 65535)");
  }
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

// ---- Launch ------------------------------------------------------------------------------------

#ifndef FASTSEG_CUDA_EMULATOR
namespace detail {

[[noreturn]] inline void throw_launch_error(const char* name, dim3 grid, dim3 block,
                                            size_t shared_bytes, cudaError_t error) {
  cudaGetLastError();  // so that the next framework call does not report this error as its own
  int device = -1;
  cudaDeviceProp properties{};
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaGetDeviceProperties(&properties, device) == cudaSuccess;
  const std::string arch = std::to_string(properties.major * 10 + properties.minor);
  std::string message = std::string("fastseg: kernel '") + name +
                        "' failed: " + cudaGetErrorName(error) + " (" + cudaGetErrorString(error) +
                        "), grid " + describe(grid) + ", block " + describe(block) + ", " +
                        std::to_string(shared_bytes) + " bytes of dynamic shared memory, device " +
                        (known ? std::string(properties.name) + " (sm_" + arch + ")" : "unknown");
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    message +=
        ". This build of fastseg holds no kernel for this GPU's architecture: it was "
        "compiled for " FASTSEG_CUDA_ARCHS ". Rebuild it with FASTSEG_CUDA_ARCHS=" +
        (known ? arch : std::string("<arch>")) + " pip install .";
  }
  throw std::runtime_error(message);
}

inline bool synchronise_each_launch() {
  static const bool enabled = [] {
    const char* value = std::getenv("FASTSEG_SYNC");
    return value != nullptr && std::string(value) == "1";
  }();
  return enabled;
}

// While a stream is captured nothing runs that could be waited for, and to try would end it.
inline cudaError_t synchronise(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  if (error != cudaSuccess || status != cudaStreamCaptureStatusNone) return error;
  return cudaStreamSynchronize(stream);
}

}  // namespace detail
#endif

// Starts kernel(args...) on the stream; throws std::runtime_error that names the kernel when the
// launch fails (with FASTSEG_SYNC=1 also when the kernel itself fails, but for a stream that is
// captured). An empty grid is no launch.
template <class... P, class... A>
void launch(const char* name, void (*kernel)(P...), dim3 grid, dim3 block,
            size_t dynamic_shared_bytes, cudaStream_t stream, A&&... args) {
  static_assert(sizeof...(P) == sizeof...(A), "one argument per kernel parameter");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  std::tuple<P...> parameters(std::forward<A>(args)...);
#ifdef FASTSEG_CUDA_EMULATOR
  static_cast<void>(stream);
  cuda_emulator::launch(name, kernel, grid, block, dynamic_shared_bytes, parameters);
#else
  const void* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  // Until the launch no other thread may set a lower limit for the same kernel.
  static std::mutex limits;
  std::unique_lock<std::mutex> lock(limits, std::defer_lock);
  if (dynamic_shared_bytes > kSharedBytesWithoutOptIn) {
    lock.lock();
    error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(dynamic_shared_bytes));
  }
  if (error == cudaSuccess) {
    // cudaLaunchKernel and not <<<>>>: it returns the error of this launch alone, where
    // cudaGetLastError could blame the kernel for an error that somebody else left behind.
    error = std::apply(
        [&](auto&... parameter) {
          void* pointers[] = {static_cast<void*>(&parameter)..., nullptr};
          return cudaLaunchKernel(function, grid, block, pointers, dynamic_shared_bytes, stream);
        },
        parameters);
  }
  if (error == cudaSuccess && detail::synchronise_each_launch()) {
    error = detail::synchronise(stream);
  }
  if (error != cudaSuccess) {
    detail::throw_launch_error(name, grid, block, dynamic_shared_bytes, error);
  }
#endif
}

// The block's dynamic shared memory, aligned to 16 bytes. (`extern __shared__` does not compile
// under the emulator.)
template <class T>
__device__ T* dynamic_shared() {
  static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes");
#ifdef FASTSEG_CUDA_EMULATOR
  return static_cast<T*>(cuda_emulator::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char fastseg_dynamic_shared[];
  return reinterpret_cast<T*>(fastseg_dynamic_shared);
#endif
}

// ---- Vector memory access ----------------------------------------------------------------------

// N elements that move as one access of 1, 2, 4, 8 or 16 bytes; pointers must be aligned to that.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  static constexpr int kBytes = sizeof(T) * N;
  static_assert(kBytes <= 16 && (kBytes & (kBytes - 1)) == 0, "no such memory access");

  T data[N];

  __device__ T& operator[](int i) { return data[i]; }
  __device__ const T& operator[](int i) const { return data[i]; }
  __device__ static Vec load(const T* from) { return *reinterpret_cast<const Vec*>(from); }
  __device__ void store(T* to) const { *reinterpret_cast<Vec*>(to) = *this; }
};

// Adds 4 floats to memory that other threads add to; the addresses must be aligned to 16 bytes. One
// instruction on sm_90 and newer.
__device__ inline void atomic_add_vector(float* to, const float* values) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  atomicAdd(reinterpret_cast<float4*>(to), make_float4(values[0], values[1], values[2], values[3]));
#else
  for (int i = 0; i < 4; ++i) atomicAdd(to + i, values[i]);
#endif
}

// 2^x, in float by the one instruction that GPUs have for it: results below 2^-126 are 0.
__device__ inline float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return exp2f(x);
#endif
}
__device__ inline double fast_exp2(double x) { return exp2(x); }

// ---- Warp collectives: all 32 lanes must call them ----------------------------------------------

__device__ inline int thread_rank() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}
__device__ inline int block_size() {
  return static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
}
__device__ inline int lane_id() { return thread_rank() % kWarpSize; }
__device__ inline int warp_id() { return thread_rank() / kWarpSize; }
__device__ inline unsigned lanes_below() { return (1u << lane_id()) - 1u; }

// Bit i is lane i's predicate.
__device__ inline unsigned ballot(bool predicate) { return __ballot_sync(kFullMask, predicate); }

// Bit j of lane i becomes bit i of lane j.
__device__ inline unsigned transpose_bits(unsigned bits) {
  unsigned low = 0x0000ffffu;  // the bits below each distance
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const unsigned other = __shfl_xor_sync(kFullMask, bits, distance);
    bits = lane_id() & distance ? (bits & ~low) | (other & ~low) >> distance
                                : (bits & low) | (other & low) << distance;
    low ^= low << (distance / 2);
  }
  return bits;
}

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// Every lane gets the result, folded in the same order in every run.
template <class T, class Op>
__device__ T warp_reduce(T value, Op op) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = op(value, __shfl_xor_sync(kFullMask, value, distance));
  }
  return value;
}
template <class T>
__device__ T warp_reduce_sum(T value) {
  return warp_reduce(value, Sum());
}
template <class T>
__device__ T warp_reduce_max(T value) {
  return warp_reduce(value, Max());
}

template <class T>
__device__ T warp_inclusive_scan(T value) {
#pragma unroll
  for (int distance = 1; distance < kWarpSize; distance *= 2) {
    const T other = __shfl_up_sync(kFullMask, value, distance);
    if (lane_id() >= distance) value += other;
  }
  return value;
}

// ---- Block collectives: all threads must call them; the block is a multiple of 32 threads
// -------- `scratch` is shared memory for 32 T, free for reuse as soon as the call returns.

// Every thread gets the result; `identity` is op's neutral element.
template <class T, class Op>
__device__ T block_reduce(T value, Op op, T identity, T* scratch) {
  value = warp_reduce(value, op);
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  value = lane_id() < block_size() / kWarpSize ? scratch[lane_id()] : identity;
  value = warp_reduce(value, op);
  __syncthreads();  // the caller may overwrite scratch
  return value;
}
template <class T>
__device__ T block_reduce_sum(T value, T* scratch) {
  return block_reduce(value, Sum(), T(0), scratch);
}

// Returns the sum of the values of the threads before this one; `total` gets the block's sum.
template <class T>
__device__ T block_exclusive_scan(T value, T* scratch, T* total) {
  const T inclusive = warp_inclusive_scan(value);
  if (lane_id() == kWarpSize - 1) scratch[warp_id()] = inclusive;
  __syncthreads();
  const T warp_total = lane_id() < block_size() / kWarpSize ? scratch[lane_id()] : T(0);
  const T warps_inclusive = warp_inclusive_scan(warp_total);
  *total = __shfl_sync(kFullMask, warps_inclusive, kWarpSize - 1);
  const T warps_before = __shfl_sync(kFullMask, warps_inclusive - warp_total, warp_id());
  __syncthreads();  // the caller may overwrite scratch
  return warps_before + inclusive - value;
}

}  // namespace fastseg
