// NMS of masks on CUDA: one block per image selects one mask after the other. A thread has masks of
// its own, whose scores only it reads and lowers, so that a step waits for its reduction alone.
#include "core/cuda.cuh"
#include "mask_nms/mask_nms_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kWalkThreads = 512;

// A mask's place in the order of scores.
template <class Key>
struct Place {
  Key key;
  int64_t index;

  __device__ static Place none() { return {static_cast<Key>(~Key{0}), INT64_MAX}; }
  __device__ bool before(const Place& other) const {
    return key < other.key || (key == other.key && index < other.index);
  }
};

template <class Key>
__device__ Place<Key> warp_best(Place<Key> place) {
#pragma unroll
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    const Place<Key> other = {__shfl_xor_sync(kFullMask, place.key, distance),
                              __shfl_xor_sync(kFullMask, place.index, distance)};
    if (other.before(place)) place = other;
  }
  return place;
}

// Every thread gets the best place of the block; `scratch` has room for one per warp.
template <class Key>
__device__ Place<Key> block_best(Place<Key> place, Place<Key>* scratch) {
  place = warp_best(place);
  if (lane_id() == 0) scratch[warp_id()] = place;
  __syncthreads();
  place = lane_id() < kWalkThreads / kWarpSize ? scratch[lane_id()] : Place<Key>::none();
  place = warp_best(place);
  __syncthreads();  // the next step overwrites scratch
  return place;
}

// Who takes part. Fast NMS also decides here, with a warp per mask.
template <class T>
__global__ void __launch_bounds__(kThreads) start_kernel(MaskNmsParams p) {
  const int64_t image = blockIdx.y, mask = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = p.scores.size[1];
  if (mask >= n) return;  // the whole warp
  T score = *p.scores.at<const T>(image, mask);
  bool removed = !may_be_kept(p, score);
  if (p.method == MaskNmsMethod::fast) {
    const int64_t label = *p.labels.at<const int64_t>(image, mask);
    const Place<decltype(descending_key(T{}))> place = {descending_key(score), mask};
    for (int64_t i = lane_id(); i < n; i += kWarpSize) {
      const T other = *p.scores.at<const T>(image, i);
      if (*p.labels.at<const int64_t>(image, i) != label || !may_be_kept(p, other)) continue;
      if (!decltype(place){descending_key(other), i}.before(place)) continue;
      removed |= !survives(p, mask_nms_iou(p, image, mask, i), &score);
    }
    removed = ballot(removed) != 0;
  }
  if (lane_id() == 0) {
    *p.current.at<T>(image, mask) = score;
    *p.removed.at<uint8_t>(image, mask) = removed;
  }
}

// One block per image.
template <class T>
__global__ void __launch_bounds__(kWalkThreads) walk_kernel(MaskNmsParams p) {
  using Key = decltype(descending_key(T{}));
  __shared__ Place<Key> scratch[kWarpSize];
  const int64_t image = blockIdx.x, n = p.scores.size[1], limit = p.indices.size[1];
  int64_t count = 0;
  for (; count < limit; ++count) {
    Place<Key> best = Place<Key>::none();
    for (int64_t i = threadIdx.x; i < n; i += kWalkThreads) {
      if (*p.removed.at<uint8_t>(image, i) != 0) continue;
      const Place<Key> place = {descending_key(*p.current.at<T>(image, i)), i};
      if (place.before(best)) best = place;
    }
    const int64_t selected = block_best(best, scratch).index;
    if (selected == INT64_MAX) break;
    const int64_t label = *p.labels.at<const int64_t>(image, selected);
    for (int64_t i = threadIdx.x; i < n; i += kWalkThreads) {
      uint8_t& removed = *p.removed.at<uint8_t>(image, i);
      if (i == selected) {
        *p.indices.at<int64_t>(image, count) = i;
        *p.kept_scores.at<T>(image, count) = *p.current.at<T>(image, i);
        removed = 1;
      } else if (p.method != MaskNmsMethod::fast && removed == 0 &&
                 *p.labels.at<const int64_t>(image, i) == label) {
        T& score = *p.current.at<T>(image, i);
        if (!survives(p, mask_nms_iou(p, image, selected, i), &score)) removed = 1;
      }
    }
  }
  if (threadIdx.x == 0) *p.count.at<int64_t>(image) = count;
  for (int64_t i = count + threadIdx.x; i < limit; i += kWalkThreads) {
    *p.indices.at<int64_t>(image, i) = -1;
    *p.kept_scores.at<T>(image, i) = T(0);
  }
}

template <class T>
void run(const MaskNmsParams& p, cudaStream_t stream) {
  const int64_t batch = p.scores.size[0], n = p.scores.size[1];
  launch("mask_nms_start", start_kernel<T>, make_grid(ceil_div(n, int64_t{kWarps}), batch),
         kThreads, 0, stream, p);
  launch("mask_nms_walk", walk_kernel<T>, make_grid(batch), kWalkThreads, 0, stream, p);
}

}  // namespace

void mask_nms_cuda(const MaskNmsParams& params, cudaStream_t stream) {
  params.scores.dtype == DType::f64 ? run<double>(params, stream) : run<float>(params, stream);
}

}  // namespace fastseg
