// NMS on CUDA. Candidates, ordered by score, go through in chunks of kChunk. For each chunk one
// kernel on the whole GPU finds which candidates overlap which: among the chunk as a triangle of
// bits, and with the boxes kept from earlier chunks. Then one block per image walks the chunk, 64
// candidates a step. What a step reads of the triangle does not depend on earlier steps, only what
// it is compared with does, so the reads run ahead of the walk.
//
// Memory is linear in N, plus one triangle of at most kChunk^2 / 2 bits per image. Chunks behind
// the last entry present, or behind max_output boxes kept, return at once.
#include <algorithm>

#include "nms/nms_order.cuh"

namespace fastseg {
namespace {

constexpr int kTile = 64;           // candidates per step: the bits of a word
constexpr int64_t kChunk = 8192;    // a triangle of 4 MiB, 128 steps
constexpr int kKeptStrip = 1024;    // kept boxes that one block compares with a tile
constexpr int kWalkThreads = 1024;  // kTile rows x kSlices words of the triangle at a time
constexpr int kSlices = kWalkThreads / kTile;
constexpr int kWordsPerThread = kChunk / kTile / kSlices;
constexpr int kGatherThreads = 256;

using Word = unsigned long long;

template <class T>
struct Buffers {
  T* boxes;              // [B, N, 4] by score
  int64_t* labels;       // [B, N] by score; null: one class
  unsigned* suppressed;  // [B, suppressed_words] a bit per candidate: by a box of an earlier chunk
  int* kept;             // [B, kept_size] positions in the order of scores
  Word* overlaps;        // [B, overlap_words] the triangle: overlap_row()
  const int* order;      // [B, N]
  const int* present;    // [B]
  int64_t n, suppressed_words, kept_size, overlap_words;
};

// Words of row tile `s` begin here: for each earlier tile w <= s the 64 words of its candidates.
// Bit i of word [w * 64 + j] says that candidate i of tile w suppresses candidate j of tile s.
__host__ __device__ inline int64_t overlap_row(int64_t s) { return s * (s + 1) / 2 * kTile; }

template <class T>
__device__ NmsBox<T> load_box(const T* boxes, int64_t position) {
  constexpr int kLanes = 16 / sizeof(T);
  T corners[4];
#pragma unroll
  for (int i = 0; i < 4; i += kLanes) {
    const auto part = Vec<T, kLanes>::load(boxes + 4 * position + i);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) corners[i + lane] = part[lane];
  }
  return make_nms_box(corners[0], corners[1], corners[2], corners[3]);
}

// ---- before the walk

template <class Key, class T>
__global__ void __launch_bounds__(kGatherThreads)
    reset_kernel(NmsParams p, OrderBuffers<Key> order, Buffers<T> buffers) {
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kGatherThreads + threadIdx.x;
  if (i < p.indices.size[1]) *p.indices.at<int64_t>(image, i) = -1;
  if (i < kBuckets) order.buckets[image * kBuckets + i] = 0;
  if (i < buffers.suppressed_words) buffers.suppressed[image * buffers.suppressed_words + i] = 0;
  if (i > 0) return;
  *p.count.at<int64_t>(image) = 0;
  order.present[image] = 0;
}

template <class T>
__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(NmsParams p, Buffers<accumulate_t<T>> buffers) {
  using Acc = accumulate_t<T>;
  const int64_t image = blockIdx.y, i = int64_t(blockIdx.x) * kGatherThreads + threadIdx.x;
  if (i >= buffers.present[image]) return;
  const int64_t to = image * buffers.n + i;
  const int from = buffers.order[to];
  const T* box = p.boxes.at<const T>(image, from);
  for (int side = 0; side < 4; ++side) {
    buffers.boxes[4 * to + side] = static_cast<Acc>(box[side * p.boxes.stride[2]]);
  }
  if (buffers.labels != nullptr) buffers.labels[to] = *p.idxs.at<const int64_t>(image, from);
}

// ---- overlaps

// Aligned so that a rival is read from shared memory by two or three instructions.
template <class T>
struct alignas(16) Rival {
  NmsBox<T> box;
  int64_t label;
};

// Bit i: rival i suppresses the candidate.
template <class T>
__device__ Word overlaps_of(const Rival<T>* rivals, int count, const Rival<T>& candidate,
                            const NmsThreshold<T>& threshold) {
  Word bits = 0;
#pragma unroll 4
  for (int i = 0; i < count; ++i) {
    const Rival<T> rival = rivals[i];
    const NmsBox<T>& box = rival.box;
    const bool maybe = !threshold.quick || iou_may_exceed(box.x1, box.y1, box.x2, box.y2, box.area,
                                                          candidate.box, threshold.share);
    if (maybe && rival.label == candidate.label && iou_exceeds(box, candidate.box, threshold.iou)) {
      bits |= Word{1} << i;
    }
  }
  return bits;
}

// Grid: x: the chunk's tiles, then strips of kept boxes; y: the chunk's tiles; z: images.
template <class T>
__global__ void __launch_bounds__(kTile)
    overlap_kernel(NmsParams p, Buffers<T> buffers, int64_t chunk_begin,
                   NmsThreshold<T> threshold) {
  __shared__ Rival<T> rivals[kTile];
  const int64_t image = blockIdx.z, first = chunk_begin + int64_t(blockIdx.y) * kTile;
  const int64_t present = buffers.present[image], kept_count = *p.count.at<int64_t>(image);
  const bool within = blockIdx.x < gridDim.y;
  if (first >= present || kept_count >= p.indices.size[1]) return;
  if (within && blockIdx.x > blockIdx.y) return;

  const T* boxes = buffers.boxes + 4 * image * buffers.n;
  const int64_t* labels = buffers.labels + image * buffers.n;
  const bool classes = buffers.labels != nullptr;
  const int me = threadIdx.x;
  const int64_t position = min(first + me, present - 1);  // those behind the end are not read
  const auto read = [&](int64_t i) -> Rival<T> {
    return {load_box(boxes, i), classes ? labels[i] : 0};
  };
  const Rival<T> candidate = read(position);

  if (within) {
    const int64_t rival = min(chunk_begin + int64_t(blockIdx.x) * kTile + me, present - 1);
    rivals[me] = read(rival);
    __syncthreads();
    Word bits = overlaps_of(rivals, kTile, candidate, threshold);
    if (blockIdx.x == blockIdx.y) bits &= (Word{1} << me) - 1;
    const int64_t row = image * buffers.overlap_words + overlap_row(blockIdx.y);
    buffers.overlaps[row + int64_t(blockIdx.x) * kTile + me] = bits;
    return;
  }
  const int64_t begin = int64_t(blockIdx.x - gridDim.y) * kKeptStrip;
  const int64_t end = min(begin + kKeptStrip, kept_count);
  bool dead = false;
  for (int64_t base = begin; base < end; base += kTile) {
    if (base + me < end) {
      const int64_t rival = buffers.kept[image * buffers.kept_size + base + me];
      rivals[me] = read(rival);
    }
    __syncthreads();
    const int count = static_cast<int>(min(int64_t{kTile}, end - base));
    dead = dead || overlaps_of(rivals, count, candidate, threshold) != 0;
    __syncthreads();
  }
  const unsigned votes = ballot(dead);
  unsigned* words = buffers.suppressed + image * buffers.suppressed_words + first / kWarpSize;
  if (lane_id() == 0 && votes != 0) atomicOr(&words[warp_id()], votes);
}

// ---- the walk

// Greedy suppression among the 64 candidates of a tile, by one warp. `rows` are the words of
// candidates lane and lane + 32: who suppresses them. In each round every candidate is decided that
// no undecided one suppresses, so rounds are as many as the longest chain of suppressions.
__device__ inline Word resolve_tile(Word undecided, Word row_low, Word row_high) {
  const int lane = lane_id();
  Word kept = 0;
  while (undecided != 0) {
    const bool low = (undecided >> lane) & 1, high = (undecided >> (lane + kWarpSize)) & 1;
    const Word rivals = kept | undecided;
    const Word keep = ballot(low && (row_low & rivals) == 0) |
                      Word{ballot(high && (row_high & rivals) == 0)} << kWarpSize;
    kept |= keep;
    const Word drop = ballot(low && (row_low & kept) != 0) |
                      Word{ballot(high && (row_high & kept) != 0)} << kWarpSize;
    undecided &= ~(keep | drop);
  }
  return kept;
}

// One block per image.
template <class T>
__global__ void __launch_bounds__(kWalkThreads)
    walk_kernel(NmsParams p, Buffers<T> buffers, int64_t chunk_begin, int64_t chunk_end) {
  __shared__ Word kept[kChunk / kTile];  // of the tiles behind us
  __shared__ unsigned votes[kWalkThreads / kWarpSize];
  __shared__ int64_t kept_count;
  const int64_t image = blockIdx.x, limit = p.indices.size[1];
  const int64_t end = min(chunk_end, int64_t{buffers.present[image]});
  int64_t count = *p.count.at<int64_t>(image);
  if (chunk_begin >= end || count >= limit) return;

  const int tiles = static_cast<int>(ceil_div(end - chunk_begin, int64_t{kTile}));
  const Word* overlaps = buffers.overlaps + image * buffers.overlap_words;
  const unsigned* suppressed =
      buffers.suppressed + image * buffers.suppressed_words + chunk_begin / kWarpSize;
  const int* order = buffers.order + image * buffers.n + chunk_begin;
  const int row = threadIdx.x % kTile, slice = threadIdx.x / kTile, lane = lane_id();
  const bool leads = warp_id() == 0;

  Word words[kWordsPerThread] = {};  // of tile s: earlier tiles slice, slice + kSlices, ...
  Word row_low = 0, row_high = 0;    // of tile s in the first warp: tile s itself
  const auto read_tile = [&](int s) {
    const Word* tile_row = overlaps + overlap_row(s);
#pragma unroll
    for (int k = 0; k < kWordsPerThread; ++k) {
      const int w = slice + k * kSlices;
      if (w < s) words[k] = tile_row[w * kTile + row];
    }
    if (!leads) return;
    row_low = tile_row[s * kTile + lane];
    row_high = tile_row[s * kTile + lane + kWarpSize];
  };

  read_tile(0);
  for (int s = 0; s < tiles; ++s) {
    bool dead = false;
#pragma unroll
    for (int k = 0; k < kWordsPerThread; ++k) {
      const int w = slice + k * kSlices;
      if (w < s) dead = dead || (words[k] & kept[w]) != 0;
    }
    const unsigned vote = ballot(dead);
    if (lane == 0) votes[warp_id()] = vote;
    const Word tile_low = row_low, tile_high = row_high;
    if (s + 1 < tiles) read_tile(s + 1);
    __syncthreads();
    if (leads) {
      // Even warps voted on candidates 0-31 of the tile, odd ones on 32-63.
      unsigned half = votes[lane] | suppressed[2 * s + lane % 2];
#pragma unroll
      for (int distance = 2; distance < kWarpSize; distance *= 2) {
        half |= __shfl_xor_sync(kFullMask, half, distance);
      }
      const Word dead_tile = __shfl_sync(kFullMask, half, 0) | Word{__shfl_sync(kFullMask, half, 1)}
                                                                   << kWarpSize;
      const int64_t left = end - chunk_begin - int64_t(s) * kTile;
      const Word valid = left >= kTile ? ~Word{0} : (Word{1} << left) - 1;
      const Word keep = resolve_tile(valid & ~dead_tile, tile_low, tile_high);
      for (int j = lane; j < kTile; j += kWarpSize) {
        const int64_t rank = count + __popcll(keep & ((Word{1} << j) - 1));
        if (((keep >> j) & 1) == 0 || rank >= limit) continue;
        *p.indices.at<int64_t>(image, rank) = order[s * kTile + j];
        buffers.kept[image * buffers.kept_size + rank] =
            static_cast<int>(chunk_begin + s * kTile + j);
      }
      if (lane == 0) {
        kept[s] = keep;
        kept_count = min(count + __popcll(keep), limit);
      }
    }
    __syncthreads();
    count = kept_count;
    if (count >= limit) break;
  }
  if (threadIdx.x == 0) *p.count.at<int64_t>(image) = count;
}

// ---- host

// Hands out parts of the workspace; without memory it only adds up their sizes.
struct Workspace {
  char* memory;
  int64_t bytes = 0;

  template <class T>
  T* take(int64_t count) {
    T* part = memory == nullptr ? nullptr : reinterpret_cast<T*>(memory + bytes);
    bytes += ceil_div(count * int64_t{sizeof(T)}, int64_t{16}) * 16;
    return part;
  }
};

template <class Key, class T>
void lay_out(const NmsParams& p, Workspace* workspace, OrderBuffers<Key>* order,
             Buffers<T>* buffers) {
  const int64_t batch = p.boxes.size[0], n = p.boxes.size[1];
  buffers->n = n;
  buffers->suppressed_words = ceil_div(n, int64_t{kTile}) * (kTile / kWarpSize);
  buffers->kept_size = std::min(n, p.indices.size[1]);
  buffers->overlap_words = overlap_row(ceil_div(std::min(n, kChunk), int64_t{kTile}));
  order->buckets = workspace->take<unsigned>(batch * kBuckets);
  order->entries = workspace->take<Ranked<Key>>(batch * n);
  order->order = workspace->take<int>(batch * n);
  order->present = workspace->take<int>(batch);
  buffers->order = order->order;
  buffers->present = order->present;
  buffers->boxes = workspace->take<T>(4 * batch * n);
  buffers->labels = p.idxs.data == nullptr ? nullptr : workspace->take<int64_t>(batch * n);
  buffers->suppressed = workspace->take<unsigned>(batch * buffers->suppressed_words);
  buffers->kept = workspace->take<int>(batch * buffers->kept_size);
  buffers->overlaps = workspace->take<Word>(batch * buffers->overlap_words);
}

// Calls f(score zero, key zero, box zero) for the types at hand.
template <class F>
void dispatch_types(const NmsParams& p, F&& f) {
  dispatch_floating(p.scores.dtype, "scores", [&](auto score) {
    using Key = decltype(descending_key(accumulate_t<decltype(score)>{}));
    dispatch_floating(p.boxes.dtype, "boxes", [&](auto box) { f(score, Key{}, box); });
  });
}

template <class Score, class Key, class Box>
void run(const NmsParams& p, cudaStream_t stream) {
  using Acc = accumulate_t<Box>;
  const int64_t batch = p.boxes.size[0], n = p.boxes.size[1], limit = p.indices.size[1];
  Workspace workspace{p.workspace.as<char>()};
  OrderBuffers<Key> order;
  Buffers<Acc> buffers;
  lay_out(p, &workspace, &order, &buffers);

  const int64_t reset = std::max({limit, int64_t{kBuckets}, buffers.suppressed_words});
  launch("nms_reset", reset_kernel<Key, Acc>,
         make_grid(ceil_div(reset, int64_t{kGatherThreads}), batch), kGatherThreads, 0, stream, p,
         order, buffers);
  order_scores<Score>(p, order, stream);
  launch("nms_gather", gather_kernel<Box>, make_grid(ceil_div(n, int64_t{kGatherThreads}), batch),
         kGatherThreads, 0, stream, p, buffers);
  const NmsThreshold<Acc> threshold = make_nms_threshold<Acc>(p.iou_threshold);
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = std::min(n, begin + kChunk);
    const int64_t tiles = ceil_div(end - begin, int64_t{kTile});
    const int64_t strips = ceil_div(std::min(begin, limit), int64_t{kKeptStrip});
    launch("nms_overlap", overlap_kernel<Acc>, make_grid(tiles + strips, tiles, batch), kTile, 0,
           stream, p, buffers, begin, threshold);
    launch("nms_walk", walk_kernel<Acc>, make_grid(batch), kWalkThreads, 0, stream, p, buffers,
           begin, end);
  }
}

}  // namespace

int64_t nms_workspace_size(const NmsParams& params) {
  Workspace workspace{nullptr};
  dispatch_types(params, [&](auto, auto key, auto box) {
    OrderBuffers<decltype(key)> order;
    Buffers<accumulate_t<decltype(box)>> buffers;
    lay_out(params, &workspace, &order, &buffers);
  });
  return workspace.bytes;
}

void nms_cuda(const NmsParams& params, cudaStream_t stream) {
  dispatch_types(params, [&](auto score, auto key, auto box) {
    run<decltype(score), decltype(key), decltype(box)>(params, stream);
  });
}

}  // namespace fastseg
