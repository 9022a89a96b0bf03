// Both ends of a semantic map on CUDA: probabilities by lanes that walk down columns
// (core/resized_columns.cuh), labels by one thread a pixel that walks through the classes.
#include "core/resized_columns.cuh"
#include "semantic_map/semantic_map_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kWarpRows = 32;  // that a lane walks

template <bool kVia>
__global__ void __launch_bounds__(kThreads)
    probabilities_kernel(MaskProbabilitiesParams p, int64_t strips, int64_t chunks) {
  const int64_t warp = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t q = warp / (strips * chunks), top = warp / strips % chunks * kWarpRows;
  if (q >= p.masks.size[0]) return;  // the whole warp
  const int64_t x = warp % strips * kWarpSize + lane_id();
  const int64_t last = p.output.size[2] - 1, bottom = min(top + kWarpRows, p.output.size[1]);
  const MaskCells mask{p.masks, p.steps, q};
  const ColumnTaps<kVia> taps(p.steps, min(x, last));
  ResizedColumn<kVia> column(mask, taps);
  const Tap own_row = last_tap(p.steps, 0, p.first_row + min(top + lane_id(), bottom - 1));
  for (int64_t y = top; y < bottom; ++y) {
    const float probability = sigmoid(column.value(shuffle(own_row, static_cast<int>(y - top))));
    if (x <= last) *p.output.at<float>(q, y, x) = probability;
  }
}

__global__ void __launch_bounds__(kThreads) argmax_kernel(ResizedArgmaxParams p) {
  const int64_t width = p.labels.size[1], columns = p.scores.size[2];
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.labels.size[0] * width) return;
  const Tap y = stretched_tap(p.first_row + i / width, p.rows, static_cast<int>(p.score_rows));
  const Tap x = stretched_tap(i % width, width, static_cast<int>(columns));
  const int64_t north = y.low - p.first_score_row, south = y.high - p.first_score_row;
  BestClass best;
  for (int64_t k = 0; k < p.scores.size[0]; ++k) {
    const float *low = p.scores.at<const float>(k, north),
                *high = p.scores.at<const float>(k, south);
    float score = low[x.low];
    if (!p.same_size()) {
      score = blend_pair(blend_pair(score, x.low_weight, low[x.high], x.high_weight), y.low_weight,
                         blend_pair(high[x.low], x.low_weight, high[x.high], x.high_weight),
                         y.high_weight);
    }
    best.add(score, static_cast<int>(k));
  }
  p.labels.as<int>()[i] = best.label;
}

}  // namespace

void mask_probabilities_cuda(const MaskProbabilitiesParams& p, cudaStream_t stream) {
  const int64_t strips = ceil_div<int64_t>(p.output.size[2], kWarpSize);
  const int64_t chunks = ceil_div<int64_t>(p.output.size[1], kWarpRows);
  const int64_t warps = p.masks.size[0] * strips * chunks;
  launch("mask_probabilities",
         p.steps.has_via() ? probabilities_kernel<true> : probabilities_kernel<false>,
         make_grid(ceil_div<int64_t>(warps, kWarps)), kThreads, 0, stream, p, strips, chunks);
}

void resized_argmax_cuda(const ResizedArgmaxParams& p, cudaStream_t stream) {
  launch("resized_argmax", argmax_kernel, make_grid(ceil_div<int64_t>(p.labels.numel(), kThreads)),
         kThreads, 0, stream, p);
}

}  // namespace fastseg
