// Matrix NMS on CUDA, in three launches: each mask's largest overlap, the decay of each score, and
// the selection. A warp does one mask and walks along its row. Nothing is sorted: what a sort would
// tell, who is better, is a comparison of two scores, and a rank is a count.
#include <algorithm>

#include "core/cuda.cuh"
#include "matrix_nms/matrix_nms_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;

struct Min {
  __device__ float operator()(float a, float b) const { return b < a ? b : a; }
};

// Calls f(better mask, IoU) in some lane for each better mask of its label that `mask` overlaps.
template <class T, class F>
__device__ void visit_better(const MatrixNmsParams& p, int64_t image, int64_t mask, F&& f) {
  const int64_t n = p.scores.size[1];
  const auto key = descending_key(*p.scores.at<const T>(image, mask));
  const int64_t label = *p.labels.at<const int64_t>(image, mask);
  const float area = matrix_nms_area(p.areas, image, mask);
  for (int64_t i = lane_id(); i < n; i += kWarpSize) {
    if (*p.labels.at<const int64_t>(image, i) != label) continue;
    if (!is_before(descending_key(*p.scores.at<const T>(image, i)), i, key, mask)) continue;
    const int64_t shared = *p.intersections.at<const int64_t>(image, mask, i);
    if (shared > 0) f(i, matrix_nms_iou(shared, matrix_nms_area(p.areas, image, i), area));
  }
}

// Grid: x: kWarps masks a block; y: images.
template <class T>
__global__ void __launch_bounds__(kThreads) divisor_kernel(MatrixNmsParams p) {
  const int64_t image = blockIdx.y, mask = int64_t(blockIdx.x) * kWarps + warp_id();
  if (mask >= p.scores.size[1]) return;  // the whole warp
  float largest = 0;
  visit_better<T>(p, image, mask, [&](int64_t, float iou) { largest = fmaxf(largest, iou); });
  largest = warp_reduce_max(largest);
  if (lane_id() == 0) {
    *p.divisors.at<float>(image, mask) = decay_of(p.kernel, p.sigma, largest);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) decay_kernel(MatrixNmsParams p) {
  const int64_t image = blockIdx.y, mask = int64_t(blockIdx.x) * kWarps + warp_id();
  if (mask >= p.scores.size[1]) return;  // the whole warp
  float factor = 1;
  visit_better<T>(p, image, mask, [&](int64_t better, float iou) {
    const float divisor = *p.divisors.at<const float>(image, better);
    const float decay = decay_of(p.kernel, p.sigma, iou) / divisor;
    if (decay < factor) factor = decay;  // 0 / 0 is not: it counts as 1
  });
  factor = warp_reduce(factor, Min());
  if (lane_id() == 0) {
    *p.decayed.at<T>(image, mask) = *p.scores.at<const T>(image, mask) * T(factor);
  }
}

// A warp ranks one mask, and pads one place of the output.
template <class T>
__global__ void __launch_bounds__(kThreads) select_kernel(MatrixNmsSelectParams p) {
  const int64_t image = blockIdx.y, me = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = p.scores.size[1], limit = p.indices.size[1];
  const auto score = [&](int64_t i) { return *p.scores.at<const T>(image, i); };
  const auto decayed = [&](int64_t i) { return *p.decayed.at<const T>(image, i); };
  const bool mine = me < n && is_kept(p, score(me), decayed(me));
  const auto my_decayed = descending_key(mine ? decayed(me) : T(0));
  const auto my_score = descending_key(mine ? score(me) : T(0));
  int kept = 0, rank = 0;
  for (int64_t i = lane_id(); i < n; i += kWarpSize) {
    if (!is_kept(p, score(i), decayed(i))) continue;
    ++kept;
    const auto key = descending_key(decayed(i));
    rank += key < my_decayed ||
            (key == my_decayed && is_before(descending_key(score(i)), i, my_score, me));
  }
  kept = warp_reduce_sum(kept);
  rank = warp_reduce_sum(rank);
  if (lane_id() != 0) return;
  if (mine && rank < limit) {
    *p.kept_scores.at<T>(image, rank) = decayed(me);
    *p.kept_labels.at<int64_t>(image, rank) = *p.labels.at<const int64_t>(image, me);
    *p.indices.at<int64_t>(image, rank) = me;
  }
  if (me >= kept && me < limit) {
    *p.kept_scores.at<T>(image, me) = T(0);
    *p.kept_labels.at<int64_t>(image, me) = 0;
    *p.indices.at<int64_t>(image, me) = -1;
  }
  if (me == 0) *p.count.at<int64_t>(image) = kept < limit ? kept : limit;
}

dim3 warps_grid(int64_t warps, int64_t batch) {
  return make_grid(ceil_div(warps, int64_t{kWarps}), batch);
}

template <class T>
void decay(const MatrixNmsParams& p, cudaStream_t stream) {
  const dim3 grid = warps_grid(p.scores.size[1], p.scores.size[0]);
  launch("matrix_nms_divisor", divisor_kernel<T>, grid, kThreads, 0, stream, p);
  launch("matrix_nms_decay", decay_kernel<T>, grid, kThreads, 0, stream, p);
}

template <class T>
void select(const MatrixNmsSelectParams& p, cudaStream_t stream) {
  // One warp at least, which writes the count.
  const int64_t warps = std::max({p.scores.size[1], p.indices.size[1], int64_t{1}});
  launch("matrix_nms_select", select_kernel<T>, warps_grid(warps, p.scores.size[0]), kThreads, 0,
         stream, p);
}

}  // namespace

void matrix_nms_cuda(const MatrixNmsParams& params, cudaStream_t stream) {
  params.scores.dtype == DType::f64 ? decay<double>(params, stream) : decay<float>(params, stream);
}

void matrix_nms_select_cuda(const MatrixNmsSelectParams& params, cudaStream_t stream) {
  params.scores.dtype == DType::f64 ? select<double>(params, stream)
                                    : select<float>(params, stream);
}

}  // namespace fastseg
