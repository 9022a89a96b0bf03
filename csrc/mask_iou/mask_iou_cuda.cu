// Intersections of masks on CUDA: a block counts a tile of 128 x 128 pairs over a part of the
// words, and adds to the result by integer atomics, whose order does not matter. It looks at the
// boxes first. Where they overlap much, all pairs go through the tensor cores as products of bits,
// over the rows that any two of the masks may share. Where they overlap little, a warp takes each
// pair that does and reads only the overlap.
#include <algorithm>

#include "core/mma.cuh"
#include "mask_iou/mask_iou_math.h"

namespace fastseg {
namespace {

using Word = unsigned long long;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTile = kThreads / 2;  // masks a side; a thread for each mask of both sides
constexpr int kStepWords = 4;        // of each mask that are in shared memory at a time
constexpr int kLoads = 2 * kTile * kStepWords / kThreads;  // words per thread and step
constexpr int kWarpsA = 2, kWarpsB = kWarps / kWarpsA;     // how warps share a tile
constexpr int kFragmentsA = kTile / kWarpsA / 16, kFragmentsB = kTile / kWarpsB / 8;
constexpr int kBufferSize = 2 * kTile * kStepWords;
constexpr int64_t kMaxSteps = 1 << 22;  // of a block: 2^30 bits, which fit an int

// What a word of a pair costs by warp, in words of a pair by tile; and a pair, in words by warp.
constexpr int kPairWordCost = FASTSEG_HAS_AND_POPC ? 128 : 4;
constexpr int kPairWords = 128;

// A tile of pairs, and the part of it that is this block's.
struct Tile {
  int64_t first_a, first_b;
  int part, parts;
};

__device__ Word* result_at(const MaskIntersectionsParams& p, const Tile& tile, int a, int b) {
  const int64_t row = tile.first_a + a, column = tile.first_b + b;
  if (row >= p.intersections.size[0] || column >= p.intersections.size[1]) return nullptr;
  return p.intersections.at<Word>(row, column);
}

// Thread t loads the box of mask t of a, or t - kTile of b; no mask, no rows.
__device__ MaskBox load_box(const MaskIntersectionsParams& p, const Tile& tile) {
  const bool is_a = threadIdx.x < kTile;
  const View<2>& boxes = is_a ? p.boxes_a : p.boxes_b;
  const int64_t n = (is_a ? tile.first_a : tile.first_b) + threadIdx.x % kTile;
  if (n >= boxes.size[0]) return {0, 0, 0, 0};
  return mask_box(boxes, n, p.words_a);
}

// ---- tensor cores

// Of a word range [begin, end), step by step: from memory to registers, to shared memory, to sums.
struct Product {
  Word loaded[kLoads];
  int sums[kFragmentsA][kFragmentsB][4] = {};

  // Thread t holds word t % kStepWords of every (kThreads / kStepWords)-th mask.
  __device__ void load(const MaskIntersectionsParams& p, const Tile& tile, int64_t word,
                       int64_t end) {
    const int64_t mask_words = p.words_a.size[1] * p.words_a.size[2];
    const int64_t own = word + threadIdx.x % kStepWords;
    const int mask = int(threadIdx.x) / kStepWords;
    load_masks(p.words_a, tile.first_a + mask, mask_words, own, own < end, loaded);
    load_masks(p.words_b, tile.first_b + mask, mask_words, own, own < end, loaded + kLoads / 2);
  }

  __device__ static void load_masks(const View<3>& words, int64_t n, int64_t mask_words,
                                    int64_t word, bool exists, Word* loaded) {
    const Word* from = words.as<const Word>() + n * mask_words + word;
#pragma unroll
    for (int i = 0; i < kLoads / 2; ++i) {
      loaded[i] = exists && n < words.size[0] ? *from : 0;
      n += kThreads / kStepWords;
      from += kThreads / kStepWords * mask_words;
    }
  }

  __device__ void store(Word* shared) const {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) shared[i * kThreads + threadIdx.x] = loaded[i];
  }

  __device__ void multiply(const Word* shared) {
    const int own = lane_id() / 4 * kStepWords + lane_id() % 4;
    const Word* a = shared + warp_id() / kWarpsB * (kTile / kWarpsA) * kStepWords + own;
    const Word* b = shared + (kTile + warp_id() % kWarpsB * (kTile / kWarpsB)) * kStepWords + own;
    unsigned columns[kFragmentsB][2];
#pragma unroll
    for (int n = 0; n < kFragmentsB; ++n) split(b[8 * n * kStepWords], columns[n]);
#pragma unroll
    for (int m = 0; m < kFragmentsA; ++m) {
      unsigned upper[2], lower[2];
      split(a[16 * m * kStepWords], upper);
      split(a[(16 * m + 8) * kStepWords], lower);
      const unsigned rows[4] = {upper[0], lower[0], upper[1], lower[1]};
#pragma unroll
      for (int n = 0; n < kFragmentsB; ++n) and_popc(sums[m][n], rows, columns[n]);
    }
  }

  __device__ static void split(Word word, unsigned (&halves)[2]) {
    halves[0] = unsigned(word);
    halves[1] = unsigned(word >> 32);
  }

  __device__ void add_to_result(const MaskIntersectionsParams& p, const Tile& tile) const {
    const int row = warp_id() / kWarpsB * (kTile / kWarpsA) + lane_id() / 4;
    const int column = warp_id() % kWarpsB * (kTile / kWarpsB) + lane_id() % 4 * 2;
#pragma unroll
    for (int m = 0; m < kFragmentsA; ++m) {
#pragma unroll
      for (int n = 0; n < kFragmentsB; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (sums[m][n][i] == 0) continue;
          Word* result = result_at(p, tile, row + 16 * m + i / 2 * 8, column + 8 * n + i % 2);
          if (result != nullptr) atomicAdd(result, Word(sums[m][n][i]));
        }
      }
    }
  }
};

// All pairs of the tile over words [begin, end) of each mask.
__device__ void count_by_product(const MaskIntersectionsParams& p, const Tile& tile, int64_t begin,
                                 int64_t end, Word* shared) {
  Product product;
  product.load(p, tile, begin, end);
  Word* buffer = shared;
  for (int64_t word = begin; word < end; word += kStepWords) {
    product.store(buffer);
    __syncthreads();
    if (word + kStepWords < end) product.load(p, tile, word + kStepWords, end);
    product.multiply(buffer);
    buffer = buffer == shared ? shared + kBufferSize : shared;
  }
  product.add_to_result(p, tile);
}

// ---- pair by pair

// Lanes look for pairs whose boxes overlap, 32 at a time; the warp counts each one found.
__device__ void count_by_pairs(const MaskIntersectionsParams& p, const Tile& tile,
                               const MaskBox* boxes) {
  const int warps = tile.parts * kWarps;
  for (int first = (tile.part * kWarps + warp_id()) * kWarpSize; first < kTile * kTile;
       first += warps * kWarpSize) {
    const int own = first + lane_id();
    const WordRange range(boxes[own / kTile], boxes[kTile + own % kTile]);
    for (unsigned found = ballot(!range.empty()); found != 0; found &= found - 1) {
      const int pair = first + __ffs(int(found)) - 1, a = pair / kTile, b = pair % kTile;
      const WordRange overlap(boxes[a], boxes[kTile + b]);
      const Word* words_a = p.words_a.at<const Word>(tile.first_a + a, overlap.top, overlap.first);
      const Word* words_b = p.words_b.at<const Word>(tile.first_b + b, overlap.top, overlap.first);
      Word common = 0;
      for (int i = lane_id(); i < overlap.words(); i += kWarpSize) {
        const int64_t at = i / overlap.columns * p.words_a.size[2] + i % overlap.columns;
        common += __popcll(words_a[at] & words_b[at]);
      }
      common = warp_reduce_sum(common);
      if (lane_id() == 0) *result_at(p, tile, a, b) = common;
    }
  }
}

// Cost of the pairs whose boxes overlap, as that of words.
__device__ int64_t pair_cost(const MaskBox* boxes, int64_t* scratch) {
  int64_t cost = 0;
  for (int pair = threadIdx.x; pair < kTile * kTile; pair += kThreads) {
    const int words = WordRange(boxes[pair / kTile], boxes[kTile + pair % kTile]).words();
    cost += words > 0 ? words + kPairWords : 0;
  }
  return block_reduce_sum(cost, scratch);
}

// Grid: x: tiles of b, then tiles of a; y: parts.
__global__ void __launch_bounds__(kThreads, 2) tiles_kernel(MaskIntersectionsParams p) {
  __shared__ Word words[2 * kBufferSize];
  __shared__ MaskBox boxes[2 * kTile];
  __shared__ int64_t scratch[kWarpSize];
  __shared__ int rows[4];  // of a: first, end; of b: first, end
  const int64_t tiles_b = ceil_div<int64_t>(p.words_b.size[0], kTile);
  const int64_t tile_a = blockIdx.x / tiles_b, tile_b = blockIdx.x % tiles_b;
  if (p.symmetric && tile_b < tile_a) return;
  const Tile tile = {tile_a * kTile, tile_b * kTile, int(blockIdx.y), int(gridDim.y)};

  if (threadIdx.x < 4) rows[threadIdx.x] = threadIdx.x % 2 == 0 ? int(p.words_a.size[1]) : 0;
  __syncthreads();
  const MaskBox box = boxes[threadIdx.x] = load_box(p, tile);
  if (box.y0 < box.y1) {
    int* const own = rows + threadIdx.x / kTile * 2;
    atomicMin(own, box.y0);
    atomicMax(own + 1, box.y1);
  }
  __syncthreads();
  const int top = Max()(rows[0], rows[2]), bottom = rows[1] < rows[3] ? rows[1] : rows[3];
  if (top >= bottom) return;
  const int64_t row_words = p.words_a.size[2], num_words = (bottom - top) * row_words;
  if (pair_cost(boxes, scratch) * kPairWordCost < num_words * kTile * kTile) {
    return count_by_pairs(p, tile, boxes);
  }
  const int64_t steps = ceil_div<int64_t>(num_words, kStepWords);
  const int64_t part_words = ceil_div<int64_t>(steps, tile.parts) * kStepWords;
  const int64_t begin = top * row_words + tile.part * part_words, end = bottom * row_words;
  count_by_product(p, tile, begin, begin + part_words < end ? begin + part_words : end, words);
}

__global__ void __launch_bounds__(kThreads) reset_kernel(View<2> intersections) {
  const int64_t pair = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (pair < intersections.numel()) intersections.as<int64_t>()[pair] = 0;
}

// What tiles_kernel leaves out of a symmetric result.
__global__ void __launch_bounds__(kThreads) mirror_kernel(View<2> intersections) {
  const int64_t pair = int64_t(blockIdx.x) * kThreads + threadIdx.x, size = intersections.size[1];
  const int64_t a = pair / size, b = pair % size;
  if (a >= size || b / kTile >= a / kTile) return;
  *intersections.at<int64_t>(a, b) = *intersections.at<int64_t>(b, a);
}

__global__ void __launch_bounds__(kThreads) iou_kernel(MaskIouParams p) {
  const int64_t pair = int64_t(blockIdx.x) * kThreads + threadIdx.x, num_b = p.ious.size[1];
  const int64_t a = pair / num_b, b = pair % num_b;
  if (a < p.ious.size[0]) *p.ious.at<double>(a, b) = iou_at(p, a, b);
}

// Blocks per tile: two for each multiprocessor in all, but not less than 32 steps each.
int64_t parts_of(int64_t tiles, int64_t mask_words) {
  int device = 0, multiprocessors = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t steps = ceil_div<int64_t>(mask_words, kStepWords);
  const int64_t wanted = std::min<int64_t>(2 * multiprocessors / tiles, steps / 32);
  return std::max<int64_t>({wanted, ceil_div(steps, kMaxSteps), 1});
}

}  // namespace

void mask_intersections_cuda(const MaskIntersectionsParams& params, cudaStream_t stream) {
  const View<2>& intersections = params.intersections;
  if (intersections.numel() == 0) return;
  const dim3 pairs = make_grid(ceil_div<int64_t>(intersections.numel(), kThreads));
  launch("mask_intersections_reset", reset_kernel, pairs, kThreads, 0, stream, intersections);
  const int64_t tiles_a = ceil_div<int64_t>(intersections.size[0], kTile);
  const int64_t tiles_b = ceil_div<int64_t>(intersections.size[1], kTile);
  const int64_t tiles = params.symmetric ? tiles_a * (tiles_a + 1) / 2 : tiles_a * tiles_b;
  const int64_t parts = parts_of(tiles, params.words_a.size[1] * params.words_a.size[2]);
  launch("mask_intersections", tiles_kernel, make_grid(tiles_a * tiles_b, parts), kThreads, 0,
         stream, params);
  if (params.symmetric && tiles_a > 1) {
    launch("mask_intersections_mirror", mirror_kernel, pairs, kThreads, 0, stream, intersections);
  }
}

void mask_iou_cuda(const MaskIouParams& params, cudaStream_t stream) {
  launch("mask_iou", iou_kernel, make_grid(ceil_div<int64_t>(params.ious.numel(), kThreads)),
         kThreads, 0, stream, params);
}

}  // namespace fastseg
