// Attention masks on CUDA: a lane resizes one pixel, a warp's ballot is half a word. A warp packs
// several halves of a query, so that it finds out once which.
#include "attention_mask/attention_mask_math.h"
#include "core/cuda.cuh"
#include "core/dispatch.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpHalves = 4;

// The logits [h, w] of a query.
template <class T>
struct Map {
  const T* data;
  int64_t row_stride, column_stride;

  __device__ float operator()(int64_t y, int64_t x) const {
    return static_cast<float>(data[y * row_stride + x * column_stride]);
  }
};

template <class T>
__device__ float resized_logit(const AttentionMaskParams& p, const Map<T>& map, int64_t row,
                               int64_t column) {
  const Tap y = stretched_tap(row, p.height, static_cast<int>(p.logits.size[2]));
  const Tap x = stretched_tap(column, p.width, static_cast<int>(p.logits.size[3]));
  return blend_pair(
      blend_pair(map(y.low, x.low), x.low_weight, map(y.low, x.high), x.high_weight), y.low_weight,
      blend_pair(map(y.high, x.low), x.low_weight, map(y.high, x.high), x.high_weight),
      y.high_weight);
}

// The warp's halves from pixel `first` on: bit b of lane i is pixel 32 * i + b.
template <class Logit>
__device__ unsigned pack(const AttentionMaskParams& p, int64_t first, const Logit& logit) {
  const int64_t pixel = first + lane_id();
  const unsigned width = static_cast<unsigned>(p.width);
  const int64_t first_row = pixel / p.width;
  const unsigned first_column = static_cast<unsigned>(pixel % p.width);
  unsigned own = 0;  // bit i: the lane's pixel of half i
#pragma unroll
  for (int i = 0; i < kWarpHalves; ++i) {
    const unsigned column = first_column + kWarpSize * i;
    const int64_t row = first_row + column / width;
    const bool exists = row < p.height;
    const float value = logit(exists ? row : 0, column % width);
    own |= static_cast<unsigned>(exists && MayAttend()(value)) << i;
  }
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kWarpHalves; ++i) {
    const unsigned half = ballot(own >> i & 1u);
    if (lane_id() == i) bits = half;
  }
  return bits;
}

template <class T>
__global__ void __launch_bounds__(kThreads) pack_kernel(AttentionMaskParams p) {
  const int64_t halves = 2 * p.words.size[2], queries = p.words.size[1];
  const int64_t runs = ceil_div<int64_t>(halves, kWarpHalves);
  const int64_t run = int64_t(blockIdx.x) * (kThreads / kWarpSize) + warp_id();
  if (run >= p.words.size[0] * queries * runs) return;  // the whole warp
  const int64_t query = run / runs, first = run % runs * kWarpHalves;
  const Map<T> map = {p.logits.at<const T>(query / queries, query % queries), p.logits.stride[2],
                      p.logits.stride[3]};
  const unsigned bits = keeps_size(p)
                            ? pack(p, first * kWarpSize, map)
                            : pack(p, first * kWarpSize, [&](int64_t row, int64_t column) {
                                return resized_logit(p, map, row, column);
                              });
  // Little-endian: the low half of a word comes first.
  const int64_t half = first + lane_id();
  if (lane_id() < kWarpHalves && half < halves) {
    p.words.as<unsigned>()[query * halves + half] = bits;
  }
}

}  // namespace

void attention_mask_cuda(const AttentionMaskParams& params, cudaStream_t stream) {
  const View<3>& words = params.words;
  const int64_t runs = ceil_div<int64_t>(2 * words.size[2], kWarpHalves);
  const int64_t warps = words.size[0] * words.size[1] * runs;
  const dim3 grid = make_grid(ceil_div<int64_t>(warps, kThreads / kWarpSize));
  dispatch_floating(params.logits.dtype, "mask_logits", [&](auto zero) {
    launch("attention_mask", pack_kernel<decltype(zero)>, grid, dim3(kThreads), 0, stream, params);
  });
}

}  // namespace fastseg
