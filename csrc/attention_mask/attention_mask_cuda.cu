// Attention masks on CUDA: a lane resizes one pixel, a warp's ballot is half a word.
#include "attention_mask/attention_mask_math.h"
#include "core/cuda.cuh"
#include "core/dispatch.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;

template <class T>
__device__ float logit_at(const AttentionMaskParams& p, int64_t b, int64_t q, int64_t pixel) {
  const int64_t row = pixel / p.width, column = pixel % p.width;
  const auto cell = [&](int64_t y, int64_t x) {
    return static_cast<float>(*p.logits.at<const T>(b, q, y, x));
  };
  if (keeps_size(p)) return cell(row, column);
  const Tap y = stretched_tap(row, p.height, static_cast<int>(p.logits.size[2]));
  const Tap x = stretched_tap(column, p.width, static_cast<int>(p.logits.size[3]));
  return blend_pair(
      blend_pair(cell(y.low, x.low), x.low_weight, cell(y.low, x.high), x.high_weight),
      y.low_weight,
      blend_pair(cell(y.high, x.low), x.low_weight, cell(y.high, x.high), x.high_weight),
      y.high_weight);
}

template <class T>
__global__ void __launch_bounds__(kThreads) pack_kernel(AttentionMaskParams p) {
  const int64_t halves = 2 * p.words.size[2], queries = p.words.size[1];
  const int64_t half = int64_t(blockIdx.x) * (kThreads / kWarpSize) + warp_id();
  if (half >= p.words.size[0] * queries * halves) return;  // the whole warp
  const int64_t query = half / halves, pixel = half % halves * kWarpSize + lane_id();
  const bool exists = pixel < p.height * p.width;
  const float logit = exists ? logit_at<T>(p, query / queries, query % queries, pixel) : -1.0f;
  const unsigned bits = ballot(exists && MayAttend()(logit));
  // Little-endian: the low half of a word comes first.
  if (lane_id() == 0) p.words.as<unsigned>()[half] = bits;
}

}  // namespace

void attention_mask_cuda(const AttentionMaskParams& params, cudaStream_t stream) {
  const int64_t blocks = ceil_div<int64_t>(2 * params.words.numel(), kThreads / kWarpSize);
  dispatch_floating(params.logits.dtype, "mask_logits", [&](auto zero) {
    launch("attention_mask", pack_kernel<decltype(zero)>, make_grid(blocks), dim3(kThreads), 0,
           stream, params);
  });
}

}  // namespace fastseg
