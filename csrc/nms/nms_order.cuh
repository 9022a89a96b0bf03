// The order of scores for NMS on CUDA, without a library's sort: a score is put into a bucket by
// the leading bits of its key and ranked by counting the better ones of its bucket. That is four
// launches for a whole batch (torch.sort: several per image), skips absent entries, and the ranks
// do not depend on the order in which atomics reach the buckets. Scores that all share their
// leading 12 bits cost n^2 comparisons, which the comparisons of boxes exceed.
#pragma once

#include "core/cuda.cuh"
#include "core/dispatch.h"
#include "nms/nms_math.h"

namespace fastseg {
namespace {

constexpr int kOrderThreads = 256;
constexpr int kBucketBits = 12;  // sign, exponent and 3 more bits: [0.5, 1) makes 8 buckets
constexpr int kBuckets = 1 << kBucketBits;
constexpr int kOffsetThreads = 1024;

template <class Key>
struct Ranked {
  Key key;
  int index;

  __device__ bool before(const Ranked& other) const {
    return key < other.key || (key == other.key && index < other.index);
  }
};

// Workspace, [B, ...] each.
template <class Key>
struct OrderBuffers {
  unsigned* buckets;     // [B, kBuckets]; 0 at first, then counts, starts, at last ends
  Ranked<Key>* entries;  // [B, N] by bucket
  int* order;            // [B, N] the result: indices by score
  int* present;          // [B] how many entries are not absent
};

template <class Key>
__device__ int bucket_of(Key key) {
  return static_cast<int>(key >> (8 * sizeof(Key) - kBucketBits));
}

// False for an absent entry.
template <class T, class Key>
__device__ bool read_key(const NmsParams& p, int64_t image, int64_t i, Key* key) {
  using Acc = accumulate_t<T>;
  const Acc score = static_cast<Acc>(*p.scores.at<const T>(image, i));
  *key = descending_key(score);
  return !(p.skip_absent && score == -std::numeric_limits<Acc>::infinity());
}

template <class T, class Key>
__global__ void __launch_bounds__(kOrderThreads)
    count_buckets_kernel(NmsParams p, OrderBuffers<Key> buffers) {
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kOrderThreads + threadIdx.x;
  Key key;
  if (i >= p.scores.size[1] || !read_key<T>(p, image, i, &key)) return;
  atomicAdd(&buffers.buckets[image * kBuckets + bucket_of(key)], 1u);
}

// Counts become starts. One block per image.
template <class Key>
__global__ void __launch_bounds__(kOffsetThreads) start_buckets_kernel(OrderBuffers<Key> buffers) {
  constexpr int kEach = kBuckets / kOffsetThreads;
  __shared__ unsigned scratch[kWarpSize];
  unsigned* mine = buffers.buckets + int64_t(blockIdx.x) * kBuckets + threadIdx.x * kEach;
  unsigned counts[kEach], sum = 0, total;
  for (int i = 0; i < kEach; ++i) sum += counts[i] = mine[i];
  unsigned start = block_exclusive_scan(sum, scratch, &total);
  for (int i = 0; i < kEach; ++i) {
    mine[i] = start;
    start += counts[i];
  }
  if (threadIdx.x == 0) buffers.present[blockIdx.x] = static_cast<int>(total);
}

// Puts each entry into its bucket, at any place; starts become ends.
template <class T, class Key>
__global__ void __launch_bounds__(kOrderThreads)
    fill_buckets_kernel(NmsParams p, OrderBuffers<Key> buffers) {
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kOrderThreads + threadIdx.x;
  const int64_t n = p.scores.size[1];
  Key key;
  if (i >= n || !read_key<T>(p, image, i, &key)) return;
  const unsigned place = atomicAdd(&buffers.buckets[image * kBuckets + bucket_of(key)], 1u);
  buffers.entries[image * n + place] = {key, static_cast<int>(i)};
}

template <class Key>
__global__ void __launch_bounds__(kOrderThreads) rank_kernel(OrderBuffers<Key> buffers, int64_t n) {
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kOrderThreads + threadIdx.x;
  if (i >= buffers.present[image]) return;
  const Ranked<Key>* entries = buffers.entries + image * n;
  const Ranked<Key> mine = entries[i];
  const unsigned* end = buffers.buckets + image * kBuckets + bucket_of(mine.key);
  const unsigned start = bucket_of(mine.key) == 0 ? 0 : end[-1];
  unsigned rank = start;
#pragma unroll 4
  for (unsigned j = start; j < *end; ++j) rank += entries[j].before(mine);
  buffers.order[image * n + rank] = mine.index;
}

template <class T, class Key>
void order_scores(const NmsParams& p, const OrderBuffers<Key>& buffers, cudaStream_t stream) {
  const int64_t batch = p.scores.size[0], n = p.scores.size[1];
  const dim3 grid = make_grid(ceil_div(n, int64_t{kOrderThreads}), batch);
  launch("nms_count_buckets", count_buckets_kernel<T, Key>, grid, kOrderThreads, 0, stream, p,
         buffers);
  launch("nms_start_buckets", start_buckets_kernel<Key>, make_grid(batch), kOffsetThreads, 0,
         stream, buffers);
  launch("nms_fill_buckets", fill_buckets_kernel<T, Key>, grid, kOrderThreads, 0, stream, p,
         buffers);
  launch("nms_rank", rank_kernel<Key>, grid, kOrderThreads, 0, stream, buffers, n);
}

}  // namespace
}  // namespace fastseg
