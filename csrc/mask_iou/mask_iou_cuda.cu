// Intersections of masks on CUDA.
#include "core/cuda.cuh"
#include "mask_iou/mask_iou_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

using Word = unsigned long long;

// A warp per pair, within the overlap of the boxes.
__global__ void __launch_bounds__(kThreads) pairs_kernel(MaskIntersectionsParams p) {
  const int64_t num_b = p.intersections.size[1];
  const int64_t pair = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t a = pair / num_b, b = pair % num_b;
  if (a >= p.intersections.size[0] || (p.symmetric && b < a)) return;  // the whole warp
  const Overlap overlap(p.boxes_a.at<const int64_t>(a), p.boxes_b.at<const int64_t>(b));
  Word common = 0;
  if (!overlap.empty()) {
    const int64_t first = overlap.x0 / 64, count = (overlap.x1 + 63) / 64 - first;
    const int64_t words = count * (overlap.y1 - overlap.y0);
    const Word* words_a = p.words_a.at<const Word>(a, overlap.y0, first);
    const Word* words_b = p.words_b.at<const Word>(b, overlap.y0, first);
    for (int64_t i = lane_id(); i < words; i += kWarpSize) {
      const int64_t at = i / count * p.words_a.size[2] + i % count;
      common += __popcll(words_a[at] & words_b[at]);
    }
    common = warp_reduce_sum(common);
  }
  if (lane_id() != 0) return;
  *p.intersections.at<int64_t>(a, b) = int64_t(common);
  if (p.symmetric) *p.intersections.at<int64_t>(b, a) = int64_t(common);
}

__global__ void __launch_bounds__(kThreads) iou_kernel(MaskIouParams p) {
  const int64_t pair = int64_t(blockIdx.x) * kThreads + threadIdx.x, num_b = p.ious.size[1];
  const int64_t a = pair / num_b, b = pair % num_b;
  if (a < p.ious.size[0]) *p.ious.at<double>(a, b) = iou_at(p, a, b);
}

}  // namespace

void mask_intersections_cuda(const MaskIntersectionsParams& params, cudaStream_t stream) {
  launch("mask_intersections", pairs_kernel,
         make_grid(ceil_div<int64_t>(params.intersections.numel(), kWarps)), kThreads, 0, stream,
         params);
}

void mask_iou_cuda(const MaskIouParams& params, cudaStream_t stream) {
  launch("mask_iou", iou_kernel, make_grid(ceil_div<int64_t>(params.ious.numel(), kThreads)),
         kThreads, 0, stream, params);
}

}  // namespace fastseg
