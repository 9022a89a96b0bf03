// Small kernels that use each part of CUDA's execution model, right and wrong, for
// test_emulator.py. `selftest NAME...` runs them and prints what they computed. The file also
// compiles with nvcc.
#include <cstdio>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/cuda.cuh"

namespace {

using fastseg::launch;

// A vector on the device that the host reads and fills.
template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : size_(values.size()) {
    cudaMalloc(&data_, size_ * sizeof(T));
    cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice);
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }
  std::vector<T> host() const {
    std::vector<T> values(size_);
    cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

std::vector<int> iota(int n) {
  std::vector<int> values(n);
  std::iota(values.begin(), values.end(), 0);
  return values;
}

void print(const std::vector<int>& values) {
  for (const int value : values) std::printf("%d ", value);
  std::printf("\n");
}

// ---- Right kernels -----------------------------------------------------------------------------

__global__ void block_sum_kernel(const int* values, int n, int* sums) {
  __shared__ int scratch[32];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int sum = fastseg::block_reduce_sum(i < n ? values[i] : 0, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

void block_sum() {
  Buffer<int> values(iota(1000)), sums(std::vector<int>(4));
  launch("block_sum", block_sum_kernel, dim3(4), dim3(256), 0, nullptr, values.data(), 1000,
         sums.data());
  print(sums.host());
}

__global__ void scan_kernel(int* values, int* total) {
  __shared__ int scratch[32];
  int block_total = 0;
  const int value = values[threadIdx.x];
  values[threadIdx.x] = fastseg::block_exclusive_scan(value, scratch, &block_total);
  if (threadIdx.x == blockDim.x - 1) *total = block_total;
}

void scan() {
  Buffer<int> values(iota(96)), total({0});
  launch("scan", scan_kernel, dim3(1), dim3(96), 0, nullptr, values.data(), total.data());
  print(values.host());
  print(total.host());
}

// Keeps the multiples of 3 in their order: the way NMS and mask kernels compact.
__global__ void compact_kernel(const int* values, int* kept, int* count) {
  __shared__ int warp_offsets[32];
  const int value = values[threadIdx.x];
  const unsigned votes = fastseg::ballot(value % 3 == 0);
  if (fastseg::lane_id() == 0) warp_offsets[fastseg::warp_id()] = __popc(votes);
  __syncthreads();
  int offset = 0;
  for (int warp = 0; warp < fastseg::warp_id(); ++warp) offset += warp_offsets[warp];
  if (value % 3 == 0) kept[offset + __popc(votes & fastseg::lanes_below())] = value;
  const int all = __syncthreads_count(value % 3 == 0);
  if (threadIdx.x == 0) *count = all;
}

void compact() {
  Buffer<int> values(iota(128)), kept(std::vector<int>(43)), count({0});
  launch("compact", compact_kernel, dim3(1), dim3(128), 0, nullptr, values.data(), kept.data(),
         count.data());
  print(kept.host());
  print(count.host());
}

__global__ void atomics_kernel(int* out, float* sum, unsigned long long* bits) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&out[0], i);
  atomicMax(&out[1], i);
  atomicMin(&out[2], -i);
  atomicOr(&out[3], 1 << (i % 31));
  if (atomicCAS(&out[4], 0, 7) == 0) atomicAdd(&out[5], 1);
  atomicAdd(sum, 0.5f);
  atomicOr(bits, 1ull << (i % 64));
}

void atomics() {
  Buffer<int> out(std::vector<int>(6));
  Buffer<float> sum({0.0f});
  Buffer<unsigned long long> bits({0});
  launch("atomics", atomics_kernel, dim3(3), dim3(64), 0, nullptr, out.data(), sum.data(),
         bits.data());
  print(out.host());
  std::printf("%g 0x%llx\n", sum.host()[0], bits.host()[0]);
}

// Transposes a tile through dynamic shared memory, four elements an access, on a 2-D block.
__global__ void transpose_kernel(const float* in, float* out) {
  constexpr int kTile = 16;
  float* tile = fastseg::dynamic_shared<float>();
  using Four = fastseg::Vec<float, 4>;
  const int row = static_cast<int>(threadIdx.y), column = static_cast<int>(threadIdx.x) * 4;
  Four::load(in + row * kTile + column).store(tile + row * kTile + column);
  __syncthreads();
  Four turned;
  for (int i = 0; i < 4; ++i) turned[i] = tile[(column + i) * kTile + row];
  turned.store(out + row * kTile + column);
}

void transpose() {
  std::vector<float> values(256);
  std::iota(values.begin(), values.end(), 0.0f);
  Buffer<float> in(values), out(std::vector<float>(256));
  launch("transpose", transpose_kernel, dim3(1), dim3(4, 16), 256 * sizeof(float), nullptr,
         in.data(), out.data());
  const std::vector<float> result = out.host();
  print(std::vector<int>(result.begin(), result.end()));
}

// Each line: the source lane that lanes 0, 5, 15, 16 and 31 read.
__global__ void shuffles_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned all = fastseg::kFullMask;
  out[lane] = __shfl_sync(all, lane, 3);
  out[32 + lane] = __shfl_sync(all, lane, 19, 16);
  out[64 + lane] = __shfl_up_sync(all, lane, 2);
  out[96 + lane] = __shfl_down_sync(all, lane, 4, 16);
  out[128 + lane] = __shfl_xor_sync(all, lane, 16, 16);
  out[160 + lane] = static_cast<int>(__shfl_xor_sync(all, static_cast<double>(lane), 1));
  // Two halves of the warp, each with a mask of its own.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  out[192 + lane] = __shfl_sync(half, lane, lane < 16 ? 1 : 17);
  out[224 + lane] = __popc(__match_any_sync(all, lane % 5));
  out[256 + lane] = __any_sync(all, lane == 9) + 2 * __all_sync(all, lane < 31);
}

void shuffles() {
  Buffer<int> out(std::vector<int>(9 * 32));
  launch("shuffles", shuffles_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  const std::vector<int> lanes = out.host();
  for (int row = 0; row < 9; ++row) {
    const int* values = &lanes[row * 32];
    print({values[0], values[5], values[15], values[16], values[31]});
  }
}

__global__ void intrinsics_kernel(int* out, float x) {
  out[0] = __ffs(0x50);
  out[1] = __clz(1);
  out[2] = __clz(0);
  out[3] = static_cast<int>(__brev(1u) >> 31);
  out[4] = __popcll(~0ull);
  out[5] = __float_as_int(1.0f);
  out[6] = __float2int_rn(x * 2.5f);
  out[7] = __float2int_rd(-x * 0.5f);
  out[8] = static_cast<int>(__fmaf_rn(x, 3.0f, 1.0f));
  out[9] = max(static_cast<int>(min(x, 7.0f)), -3);
  out[10] = static_cast<int>(rsqrtf(0.0625f) + 0.5f);
  out[11] = static_cast<int>(__ldg(&out[5]) == 0x3f800000);
}

void intrinsics() {
  Buffer<int> out(std::vector<int>(12));
  launch("intrinsics", intrinsics_kernel, dim3(1), dim3(1), 0, nullptr, out.data(), 1.0f);
  print(out.host());
}

template <class T>
__global__ void half_filled_kernel(T* out) {
  __shared__ T tile[64];
  if (threadIdx.x % 2 == 0) tile[threadIdx.x] = T(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void half_filled_dynamic_kernel(float* out) {
  float* tile = fastseg::dynamic_shared<float>();
  if (threadIdx.x % 2 == 0) tile[threadIdx.x] = 1.0f;
  __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = tile[threadIdx.x];
}

// Counts what was read from shared memory that nobody wrote, in blocks that follow one another.
void uninitialised() {
  Buffer<float> floats(std::vector<float>(64)), dynamic(std::vector<float>(128));
  Buffer<int> integers(std::vector<int>(64));
  launch("half_filled", half_filled_kernel<float>, dim3(2), dim3(64), 0, nullptr, floats.data());
  launch("half_filled", half_filled_kernel<int>, dim3(2), dim3(64), 0, nullptr, integers.data());
  launch("half_filled", half_filled_dynamic_kernel, dim3(2), dim3(64), 64 * sizeof(float), nullptr,
         dynamic.data());
  const auto count_nan = [](const std::vector<float>& values) {
    int count = 0;
    for (const float value : values) count += value != value;
    return count;
  };
  int negative = 0;
  for (const int value : integers.host()) negative += value == -1;
  print({count_nan(floats.host()), negative, count_nan(dynamic.host())});
}

__global__ void index_kernel(int* out) {
  const int block =
      static_cast<int>((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  out[block * fastseg::block_size() + fastseg::thread_rank()] +=
      1000 * block + fastseg::thread_rank();
}

void indices() {
  Buffer<int> out(std::vector<int>(2 * 3 * 2 * 24));
  launch("index", index_kernel, dim3(2, 3, 2), dim3(2, 3, 4), 0, nullptr, out.data());
  // An empty grid is no launch.
  launch("index", index_kernel, dim3(2, 0, 2), dim3(2, 3, 4), 0, nullptr, out.data());
  print(out.host());
}

// Many barriers on many threads: the cost of switching.
__global__ void barriers_kernel(int* out, int rounds) {
  __shared__ int ring[256];
  const int i = static_cast<int>(threadIdx.x);
  ring[i] = i;
  for (int round = 0; round < rounds; ++round) {
    __syncthreads();
    const int next = ring[(i + 1) % 256];
    __syncthreads();
    ring[i] = next;
  }
  out[i] = ring[i];
}

void barriers() {
  Buffer<int> out(std::vector<int>(256));
  launch("barriers", barriers_kernel, dim3(20), dim3(256), 0, nullptr, out.data(), 100);
  print(out.host());
}

// The block's verdicts on i < limit.
__global__ void votes_kernel(int* out, int limit) {
  const bool below = static_cast<int>(threadIdx.x) < limit;
  const int any = __syncthreads_or(below), all = __syncthreads_and(below);
  const int count = __syncthreads_count(below);
  if (threadIdx.x != 40) return;
  out[0] = any;
  out[1] = all;
  out[2] = count;
}

void votes() {
  for (const int limit : {0, 40, 64}) {
    Buffer<int> out(std::vector<int>(3));
    launch("votes", votes_kernel, dim3(1), dim3(64), 0, nullptr, out.data(), limit);
    print(out.host());
  }
}

// Launches from two host threads at once, as autograd's threads do.
void host_threads() {
  std::vector<int> sums(2);
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&sums, t] {
      Buffer<int> values(iota(256)), sum({0});
      for (int repeat = 0; repeat < 50; ++repeat) {
        launch("block_sum", block_sum_kernel, dim3(1), dim3(256), 0, nullptr, values.data(), 256,
               sum.data());
        sums[t] += sum.host()[0];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  print(sums);
}

// ---- Wrong kernels -----------------------------------------------------------------------------

__global__ void missing_barrier_kernel(int* out) {
  __shared__ int tile[64];
  tile[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = tile[63 - threadIdx.x];
}

void missing_barrier() {
  Buffer<int> out(std::vector<int>(64));
  launch("missing_barrier", missing_barrier_kernel, dim3(1), dim3(64), 0, nullptr, out.data());
  print(out.host());
}

// Lanes hand values to their neighbours in rounds, without a __syncwarp after the read.
__global__ void missing_warp_barrier_kernel(int* out) {
  __shared__ int ring[32];
  const int lane = fastseg::lane_id();
  int value = lane;
  for (int round = 0; round < 3; ++round) {
    ring[lane] = value;
    __syncwarp();
    value = ring[(lane + 1) % 32];
  }
  out[lane] = value;
}

void missing_warp_barrier() {
  Buffer<int> out(std::vector<int>(32));
  launch("ring", missing_warp_barrier_kernel, dim3(1), dim3(32), 0, nullptr, out.data());
  print(out.host());
}

__global__ void block_order_kernel(int* out) { *out = static_cast<int>(blockIdx.x); }

void block_order() {
  Buffer<int> out({0});
  launch("block_order", block_order_kernel, dim3(5), dim3(1), 0, nullptr, out.data());
  print(out.host());
}

__global__ void early_exit_kernel() {
  if (threadIdx.x >= 48) return;
  __syncthreads();
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void absent_lane_kernel() {
  if (threadIdx.x % 32 != 7) __syncwarp();
}

__global__ void mask_without_caller_kernel() { __syncwarp(0x0000ffffu); }

__global__ void unmasked_source_kernel(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 20);
}

__global__ void partial_warp_kernel(int* out) { *out = __any_sync(fastseg::kFullMask, 1); }

__global__ void dynamic_overrun_kernel(int* out) {
  int* tile = fastseg::dynamic_shared<int>();
  tile[threadIdx.x + 1] = static_cast<int>(threadIdx.x);
  *out = tile[1];
}

__global__ void static_overrun_kernel(int* out, int offset) {
  __shared__ int tile[32];
  tile[static_cast<int>(threadIdx.x) + offset] = 1;
  *out = tile[1];
}

__global__ void static_overrun_by_pointer_kernel(int* out, int offset) {
  __shared__ int tile[32];
  int* volatile row = tile + threadIdx.x;  // volatile: beyond what UBSan can follow
  row[offset] = 1;
  *out = row[0];
}

__global__ void stack_overrun_kernel(int* out, int offset) {
  int local[4] = {out[0], out[1], out[2], out[3]};
  __syncthreads();
  int* volatile pointer = local;
  *out = pointer[offset];
}

__global__ void global_overrun_kernel(int* out) { out[threadIdx.x] = 1; }

__global__ void misaligned_kernel(int* out) { fastseg::Vec<int, 4>::load(out + 1).store(out + 4); }

__global__ void trap_kernel() {
  if (threadIdx.x == 33) __trap();
  __syncthreads();
}

// Launches a wrong kernel, prints the error, and then the result of a right kernel.
template <class... P, class... A>
void expect_error(void (*kernel)(P...), dim3 block, size_t shared_bytes, A... args) {
  try {
    launch("wrong", kernel, dim3(1), block, shared_bytes, nullptr, args...);
    std::printf("no error\n");
  } catch (const std::runtime_error& error) {
    std::printf("%s\n", error.what());
  }
  block_sum();
}

// ... for a kernel whose first parameter is an array of 64 integers.
template <class... P, class... A>
void expect_error_with_array(void (*kernel)(P...), dim3 block, size_t shared_bytes, A... args) {
  Buffer<int> out(std::vector<int>(64));
  expect_error(kernel, block, shared_bytes, out.data(), args...);
}

struct Case {
  const char* name;
  void (*run)();
};

const Case kCases[] = {
    {"block_sum", block_sum},
    {"scan", scan},
    {"compact", compact},
    {"atomics", atomics},
    {"transpose", transpose},
    {"shuffles", shuffles},
    {"intrinsics", intrinsics},
    {"uninitialised", uninitialised},
    {"indices", indices},
    {"barriers", barriers},
    {"votes", votes},
    {"host_threads", host_threads},
    {"missing_barrier", missing_barrier},
    {"missing_warp_barrier", missing_warp_barrier},
    {"block_order", block_order},
    {"early_exit", [] { expect_error(early_exit_kernel, 64, 0); }},
    {"two_barriers", [] { expect_error(two_barriers_kernel, 64, 0); }},
    {"absent_lane", [] { expect_error(absent_lane_kernel, 64, 0); }},
    {"mask_without_caller", [] { expect_error(mask_without_caller_kernel, 32, 0); }},
    {"unmasked_source", [] { expect_error_with_array(unmasked_source_kernel, 32, 0); }},
    {"partial_warp", [] { expect_error_with_array(partial_warp_kernel, 40, 0); }},
    {"trap", [] { expect_error(trap_kernel, 40, 0); }},
    {"dynamic_overrun", [] { expect_error_with_array(dynamic_overrun_kernel, 32, 128); }},
    {"static_overrun", [] { expect_error_with_array(static_overrun_kernel, 32, 0, 1); }},
    {"static_overrun_by_pointer",
     [] { expect_error_with_array(static_overrun_by_pointer_kernel, 32, 0, 1); }},
    {"stack_overrun", [] { expect_error_with_array(stack_overrun_kernel, 32, 0, 4); }},
    {"global_overrun", [] { expect_error_with_array(global_overrun_kernel, 65, 0); }},
    {"misaligned", [] { expect_error_with_array(misaligned_kernel, 1, 0); }},
    {"too_many_threads", [] { expect_error_with_array(global_overrun_kernel, 1025, 0); }},
    {"too_much_shared", [] { expect_error_with_array(global_overrun_kernel, 1, 100 * 1024); }},
};

void run(const char* name) {
  for (const Case& candidate : kCases) {
    if (std::strcmp(candidate.name, name) != 0) continue;
    std::printf("%s:\n", name);
    candidate.run();
    return;
  }
  throw std::runtime_error(std::string("no case '") + name + "'");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    for (int i = 1; i < argc; ++i) run(argv[i]);
  } catch (const std::runtime_error& error) {
    std::fprintf(stderr, "selftest: %s\n", error.what());
    return 1;
  }
  return 0;
}
