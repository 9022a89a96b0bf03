// Masked attention on tensor cores, for rows of whole 16 bytes. A warp owns 16 rows, queries or
// keys, in registers; the block's warps share tiles of the other side, which are copied to shared
// memory while the tile before is worked on. What a lane holds of products is as core/mma.cuh says:
// with lane = 4 * g + t, of rows g and g + 8 columns 8 * j + 2 * t and the next.
//
// Blocks own the same as those of masked_attention_rows.cuh, but for more rows.
#pragma once

#include <type_traits>

#include "core/dispatch.h"
#include "core/mma.cuh"
#include "masked_attention/masked_attention_device.cuh"

namespace fastseg {
namespace {

constexpr int kWarpRows = 16;
constexpr int kBlockRows = kWarps * kWarpRows;

template <class T, int kWidth>
constexpr int kBlocksPerSm = sizeof(T) * kWidth <= 64 ? 2 : 1;  // where registers suffice

// Two pairs of tiles take less than 48 KB.
template <class T, int kWidth>
constexpr int kTileRows = kWidth * sizeof(T) <= 128 ? 64 : 8192 / (kWidth * sizeof(T));

// Tiles of kTileRows rows for heads of up to kWidth channels; those past D are 0.
template <class T, int kMaxWidth, int kTileRows>
struct Tiles {
  using Element = T;
  static constexpr int kWidth = kMaxWidth, kRows = kTileRows;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kStep = 2 * kHalfRow<T>;  // channels, or rows of a tile, of a product
  static constexpr int kSteps = kWidth / kStep;
  static constexpr int kStride = kWidth + kVector;  // so that no two of 8 rows share a bank
  static constexpr int kElements = kRows * kStride;
  using Products = float[kRows / 8][4];  // of the warp's rows and a tile's
  using Sums = float[kWidth / 8][4];     // of the warp's rows, by channel
  static_assert(kWordKeys % kRows == 0, "the mask of a tile lies in one word");
};

// Starts copying a tile: rows [first, first + kRows) of a head.
template <class Shape, class T>
__device__ void copy_tile(const View<4>& from, const Place& at, int64_t first, T* tile) {
  constexpr int kVectors = Shape::kWidth / Shape::kVector;
  constexpr int kAll = Shape::kRows * kVectors;
#pragma unroll
  for (int n = 0; n < ceil_div(kAll, kThreads); ++n) {
    const int i = n * kThreads + threadIdx.x;
    if (kAll % kThreads != 0 && i >= kAll) break;
    const int row = i / kVectors, c = i % kVectors * Shape::kVector;
    const bool exists = first + row < from.size[2] && c < from.size[3];
    const T* source = exists ? from.at<const T>(at.b, at.m, first + row, c) : from.as<const T>();
    copy_async(tile + row * Shape::kStride + c, source, exists);
  }
}

// The warp's rows as left factors.
template <class Shape>
struct OwnRows {
  using T = typename Shape::Element;
  unsigned words[Shape::kSteps][4];

  __device__ OwnRows(const View<4>& from, const Place& at, int64_t first) {
    constexpr int kWord = sizeof(unsigned) / sizeof(T);  // elements of a word
#pragma unroll
    for (int k = 0; k < Shape::kSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t row = first + lane_id() / 4 + i % 2 * 8;
        const int c = k * Shape::kStep + i / 2 * kHalfRow<T> + lane_id() % 4 * kWord;
        const bool exists = row < from.size[2] && c < from.size[3];
        words[k][i] = exists ? rounded_word<T>(*reinterpret_cast<const unsigned*>(
                                   from.at<const T>(at.b, at.m, row, c)))
                             : 0u;
      }
    }
  }
};

// products = own rows * the tile's rows.
template <class Shape, class T>
__device__ void multiply_rows(const OwnRows<Shape>& own, const T* tile,
                              typename Shape::Products& products) {
#pragma unroll
  for (int j = 0; j < Shape::kRows / 8; j += 2) {
#pragma unroll
    for (int i = 0; i < 4; ++i) products[j][i] = products[j + 1][i] = 0;
#pragma unroll
    for (int k = 0; k < Shape::kSteps; ++k) {
      unsigned right[2][2];
      load_right(right, tile + 8 * j * Shape::kStride + k * Shape::kStep, Shape::kStride);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (unsigned& word : right[half]) word = rounded_word<T>(word);
        multiply_tiles<T>(products[j + half], own.words[k], right[half]);
      }
    }
  }
}

// sums += weights * tile. Products come as left factors do, but for the order of columns in a step
// of floats: a lane has columns 2 * t and 2 * t + 1 where t and 4 + t are due, so that rows of the
// tile are taken in that order too.
template <class Shape, class T>
__device__ void add_products(const typename Shape::Products& weights, const T* tile,
                             typename Shape::Sums& sums) {
#pragma unroll
  for (int k = 0; k < Shape::kRows; k += Shape::kStep) {
    const float (&low)[4] = weights[k / 8];
    unsigned left[4];
    if constexpr (sizeof(T) == 2) {
      const float (&high)[4] = weights[k / 8 + 1];
      left[0] = pair_word<T>(low[0], low[1]);
      left[1] = pair_word<T>(low[2], low[3]);
      left[2] = pair_word<T>(high[0], high[1]);
      left[3] = pair_word<T>(high[2], high[3]);
    } else {
      constexpr int kOrder[] = {0, 2, 1, 3};
#pragma unroll
      for (int i = 0; i < 4; ++i) left[i] = rounded_word<T>(bit_cast<unsigned>(low[kOrder[i]]));
    }
#pragma unroll
    for (int c = 0; c < Shape::kWidth; c += 16) {
      const T* corner = tile + k * Shape::kStride + c;
      unsigned right[2][2];
      if constexpr (sizeof(T) == 2) {
        load_right_transposed(right, corner, Shape::kStride);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = lane_id() % 4 * 2 + i % 2, column = i / 2 * 8 + lane_id() / 4;
          right[i / 2][i % 2] =
              rounded_word<T>(bit_cast<unsigned>(corner[row * Shape::kStride + column]));
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        multiply_tiles<T>(sums[c / 8 + half], left, right[half]);
      }
    }
  }
}

// Calls body(first, stage, loaded) for all tiles, of rows [begin, end), in turn. copy(first, stage)
// starts copying a tile to one of two stages of shared memory and returns what it loads besides.
template <int kRows, class Copy, class Body>
__device__ void each_tile(int64_t begin, int64_t end, const Copy& copy, const Body& body) {
  if (begin >= end) return;
  auto next = copy(begin, 0);
  int stage = 0;
  for (int64_t first = begin; first < end; first += kRows, stage ^= 1) {
    const auto loaded = next;
    wait_for_copies();
    __syncthreads();  // the tile has come, and nobody works on the one before
    if (first + kRows < end) next = copy(first + kRows, stage ^ 1);
    body(first, stage, loaded);
  }
}

// ---- Forward, and the queries' gradient: the warp's rows are queries
// -----------------------------

// The words of the mask of a lane's two queries that have the keys of a tile.
struct Words {
  uint64_t word[2];

  // Which of the tile's keys, `count` from `first` on, are attended: bit 8 * j and the next are the
  // lane's columns.
  __device__ uint64_t columns(int i, int64_t keys, int64_t first, int count) const {
    uint64_t bits = word[i] & existing_keys(keys, first / kWordKeys);
    bits >>= first % kWordKeys;
    if (count < kWordKeys) bits &= (uint64_t(1) << count) - 1;
    return bits >> (lane_id() % 4 * 2);
  }
};

__device__ inline bool bit_of(uint64_t word, int column) { return word >> column & 1; }

// The two queries of a lane.
struct OwnQueries {
  int64_t q[2];
  bool exists[2], open[2];

  template <class Acc>
  __device__ OwnQueries(const MaskedAttentionParams& p, const Workspace<Acc>& workspace,
                        const Place& at, int64_t first) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      q[i] = first + lane_id() / 4 + 8 * i;
      exists[i] = q[i] < p.query.size[2];
      if (!exists[i]) q[i] = 0;
      open[i] = exists[i] && is_open(p, workspace, at.b, q[i]);
    }
  }

  // Their words of the mask that have the keys from `first` on, as they are in memory.
  __device__ Words words(const MaskedAttentionParams& p, const Place& at, int64_t first) const {
    Words words = {{0, 0}};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (open[i]) words.word[i] = ~uint64_t(0);
      if (exists[i] && !open[i]) {
        words.word[i] = *p.words.at<const uint64_t>(at.b, q[i], first / kWordKeys);
      }
    }
    return words;
  }
};

// The running softmax of the lane's two queries.
struct RunningPair {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};  // of the lane's keys

  // Turns scores into weights; returns in `shrink` what sums so far must be multiplied with.
  template <int kColumns>
  __device__ void weigh(float (&scores)[kColumns][4], float (&shrink)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = max[i];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        top = fmaxf(fmaxf(top, scores[j][2 * i]), scores[j][2 * i + 1]);
      }
      top = fmaxf(top, __shfl_xor_sync(kFullMask, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kFullMask, top, 2));
      const float base = finite_base(top);
      shrink[i] = fast_exp2(max[i] - base);
      max[i] = top;
      sum[i] *= shrink[i];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; ++e) {
          scores[j][e] = fast_exp2(scores[j][e] - base);
          sum[i] += scores[j][e];
        }
      }
    }
  }
};

// Writes a lane's sums of query i to a part, or adds nothing past D.
template <int kWidth>
__device__ void store_part(const float (&sums)[kWidth / 8][4], int i, int64_t width, float* part) {
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j) {
    const int c = 8 * j + lane_id() % 4 * 2;
    if (c >= width) continue;
    part[c] = sums[j][2 * i];
    part[c + 1] = sums[j][2 * i + 1];
  }
}

// Which block of rows a block owns, and which part of the keys.
struct QueryBlock {
  int64_t split, begin, end;  // keys [begin, end)
  Place at;
  int64_t first;  // query of the warp

  __device__ QueryBlock(const MaskedAttentionParams& p, int64_t splits)
      : split(blockIdx.x % splits),
        begin(split_begin(p.key.size[2], splits, split)),
        end(split_begin(p.key.size[2], splits, split + 1)),
        at(p, blockIdx.x / splits / ceil_div<int64_t>(p.query.size[2], kBlockRows)) {
    const int64_t blocks = ceil_div<int64_t>(p.query.size[2], kBlockRows);
    first = blockIdx.x / splits % blocks * kBlockRows + warp_id() * kWarpRows;
  }
};

template <class T, int kWidth>
__device__ void attend_tiles(const MaskedAttentionParams& p, int64_t splits) {
  using Shape = Tiles<T, kWidth, kTileRows<T, kWidth>>;
  __shared__ __align__(16) T keys[2][Shape::kElements];
  __shared__ __align__(16) T values[2][Shape::kElements];
  const QueryBlock block(p, splits);
  const Place& at = block.at;
  const Workspace<float> workspace(p);
  const OwnQueries own(p, workspace, at, block.first);
  const OwnRows<Shape> queries(p.query, at, block.first);
  const float factor = static_cast<float>(p.scale * kLog2E);
  RunningPair running;
  typename Shape::Sums output = {};
  const auto copy = [&](int64_t first, int stage) {
    copy_tile<Shape>(p.key, at, first, keys[stage]);
    copy_tile<Shape>(p.value, at, first, values[stage]);
    return own.words(p, at, first);
  };
  each_tile<Shape::kRows>(block.begin, block.end, copy,
                          [&](int64_t first, int stage, const Words& words) {
                            const int64_t count = p.key.size[2];
                            const uint64_t bits[] = {words.columns(0, count, first, Shape::kRows),
                                                     words.columns(1, count, first, Shape::kRows)};
                            if (ballot((bits[0] | bits[1]) != 0) == 0) return;
                            typename Shape::Products scores;
                            multiply_rows<Shape>(queries, keys[stage], scores);
#pragma unroll
                            for (int j = 0; j < Shape::kRows / 8; ++j) {
#pragma unroll
                              for (int e = 0; e < 4; ++e) {
                                const bool attended = bit_of(bits[e / 2], 8 * j + e % 2);
                                scores[j][e] = attended ? scores[j][e] * factor : -INFINITY;
                              }
                            }
                            float shrink[2];
                            running.weigh(scores, shrink);
#pragma unroll
                            for (int j = 0; j < kWidth / 8; ++j) {
#pragma unroll
                              for (int e = 0; e < 4; ++e) output[j][e] *= shrink[e / 2];
                            }
                            add_products<Shape>(scores, values[stage], output);
                          });
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float sum = running.sum[i];
    sum += __shfl_xor_sync(kFullMask, sum, 1);
    sum += __shfl_xor_sync(kFullMask, sum, 2);
    if (!own.exists[i]) continue;
    float* part = workspace.output_part(block.split, at.row(p, own.q[i]));
    store_part<kWidth>(output, i, workspace.width, part);
    if (lane_id() % 4 == 0) {
      part[workspace.width] = running.max[i];
      part[workspace.width + 1] = sum;
    }
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<T, kWidth>)
    attend_tiles_kernel(const __grid_constant__ MaskedAttentionParams p, int64_t splits) {
  if constexpr (kHasMultiplyTiles<T>) attend_tiles<T, kWidth>(p, splits);
}

template <class T, int kWidth>
__device__ void query_grad_tiles(const MaskedAttentionBackwardParams& p, int64_t splits) {
  using Shape = Tiles<T, kWidth, kTileRows<T, kWidth>>;
  const MaskedAttentionParams& f = p.forward;
  __shared__ __align__(16) T keys[2][Shape::kElements];
  __shared__ __align__(16) T values[2][Shape::kElements];
  const QueryBlock block(f, splits);
  const Place& at = block.at;
  const Workspace<float> workspace(f);
  const OwnQueries own(f, workspace, at, block.first);
  const OwnRows<Shape> queries(f.query, at, block.first);
  const OwnRows<Shape> grads(p.grad_output, at, block.first);
  const float factor = static_cast<float>(f.scale * kLog2E);
  float log_sum[2], product[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    log_sum[i] = f.log_sums.template as<const float>()[at.row(f, own.q[i])];
    product[i] = workspace.products[at.row(f, own.q[i])];
  }
  typename Shape::Sums sums = {};
  const auto copy = [&](int64_t first, int stage) {
    copy_tile<Shape>(f.key, at, first, keys[stage]);
    copy_tile<Shape>(f.value, at, first, values[stage]);
    return own.words(f, at, first);
  };
  each_tile<Shape::kRows>(
      block.begin, block.end, copy, [&](int64_t first, int stage, const Words& words) {
        const int64_t count = f.key.size[2];
        const uint64_t bits[] = {words.columns(0, count, first, Shape::kRows),
                                 words.columns(1, count, first, Shape::kRows)};
        if (ballot((bits[0] | bits[1]) != 0) == 0) return;
        typename Shape::Products scores, slopes;
        multiply_rows<Shape>(queries, keys[stage], scores);
        multiply_rows<Shape>(grads, values[stage], slopes);
#pragma unroll
        for (int j = 0; j < Shape::kRows / 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const bool attended = bit_of(bits[e / 2], 8 * j + e % 2);
            slopes[j][e] = Pair<float>(attended, scores[j][e] * factor, log_sum[e / 2],
                                       slopes[j][e], product[e / 2])
                               .slope;
          }
        }
        add_products<Shape>(slopes, keys[stage], sums);
      });
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (!own.exists[i]) continue;
    store_part<kWidth>(sums, i, workspace.width,
                       workspace.grad_part(block.split, at.row(f, own.q[i])));
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<T, kWidth>)
    query_grad_tiles_kernel(const __grid_constant__ MaskedAttentionBackwardParams p,
                            int64_t splits) {
  if constexpr (kHasMultiplyTiles<T>) query_grad_tiles<T, kWidth>(p, splits);
}

// ---- The keys' and values' gradients: the warp's rows are keys
// -----------------------------------

// What the block needs of a tile's queries.
template <int kRows>
struct TileQueries {
  float log_sum[kRows], product[kRows];
  uint64_t bits[kBlockRows / kWordKeys][kRows];  // which of the block's keys they attend

  __device__ void load(const MaskedAttentionParams& p, const Workspace<float>& workspace,
                       const Place& at, int64_t first, int64_t first_key) {
    const int i = threadIdx.x % kRows, word = threadIdx.x / kRows;
    if (word >= kBlockRows / kWordKeys) return;
    const bool exists = first + i < p.query.size[2];
    const int64_t q = exists ? first + i : 0, key_word = first_key / kWordKeys + word;
    const bool has_keys = exists && key_word < words_of(p.key.size[2]);
    bits[word][i] =
        has_keys ? attended_keys(p, at.b, q, is_open(p, workspace, at.b, q), key_word) : 0;
    if (word != 0) return;
    log_sum[i] = p.log_sums.template as<const float>()[at.row(p, q)];
    product[i] = workspace.products[at.row(p, q)];
  }
};

// Writes the warp's sums, times `factor`, to the rows of `to` from `first` on.
template <class T, int kWidth>
__device__ void store_rows(const float (&sums)[kWidth / 8][4], float factor, const View<4>& to,
                           const Place& at, int64_t first) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t row = first + lane_id() / 4 + 8 * i;
    if (row >= to.size[2]) continue;
    T* target = to.at<T>(at.b, at.m, row);
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      const int c = 8 * j + lane_id() % 4 * 2;
      if (c >= to.size[3]) continue;
      target[c * to.stride[3]] = static_cast<T>(sums[j][2 * i] * factor);
      target[(c + 1) * to.stride[3]] = static_cast<T>(sums[j][2 * i + 1] * factor);
    }
  }
}

template <class T, int kWidth>
__device__ void key_value_grad_tiles(const MaskedAttentionBackwardParams& p) {
  // Both kinds of sums and both kinds of products at once: registers are scarce.
  using Shape = Tiles<T, kWidth, kTileRows<T, kWidth> == 64 ? 32 : kTileRows<T, kWidth>>;
  static_assert(2 * Shape::kRows <= kThreads, "a thread loads one word of the mask");
  const MaskedAttentionParams& f = p.forward;
  __shared__ __align__(16) T queries[2][Shape::kElements];
  __shared__ __align__(16) T grads[2][Shape::kElements];
  __shared__ TileQueries<Shape::kRows> others[2];
  const int64_t blocks = ceil_div<int64_t>(f.key.size[2], kBlockRows);
  const Place at(f, blockIdx.x / blocks);
  const int64_t block_first = blockIdx.x % blocks * kBlockRows;
  const int64_t first_key = block_first + warp_id() * kWarpRows;
  const Workspace<float> workspace(f);
  const OwnRows<Shape> keys(f.key, at, first_key), values(f.value, at, first_key);
  const float factor = static_cast<float>(f.scale * kLog2E);
  const int word = warp_id() * kWarpRows / kWordKeys;
  const int key = warp_id() * kWarpRows % kWordKeys + lane_id() / 4;  // the lane's first
  typename Shape::Sums key_sums = {}, value_sums = {};
  const auto copy = [&](int64_t first, int stage) {
    copy_tile<Shape>(f.query, at, first, queries[stage]);
    copy_tile<Shape>(p.grad_output, at, first, grads[stage]);
    others[stage].load(f, workspace, at, first, block_first);
    return 0;
  };
  each_tile<Shape::kRows>(0, f.query.size[2], copy, [&](int64_t, int stage, int) {
    const TileQueries<Shape::kRows>& other = others[stage];
    bool any = false;
    for (int i = lane_id(); i < Shape::kRows; i += kWarpSize) {
      any = any || (other.bits[word][i] >> (first_key % kWordKeys) & 0xffff) != 0;
    }
    if (ballot(any) == 0) return;  // nobody attends the warp's keys
    typename Shape::Products weights, slopes;
    multiply_rows<Shape>(keys, queries[stage], weights);
    multiply_rows<Shape>(values, grads[stage], slopes);
#pragma unroll
    for (int j = 0; j < Shape::kRows / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int q = 8 * j + lane_id() % 4 * 2 + e % 2;
        const bool attended = bit_of(other.bits[word][q], key + e / 2 * 8);
        const Pair<float> pair(attended, weights[j][e] * factor, other.log_sum[q], slopes[j][e],
                               other.product[q]);
        weights[j][e] = pair.weight;
        slopes[j][e] = pair.slope;
      }
    }
    add_products<Shape>(slopes, queries[stage], key_sums);
    add_products<Shape>(weights, grads[stage], value_sums);
  });
  store_rows<T, kWidth>(key_sums, static_cast<float>(f.scale), p.grad_key, at, first_key);
  store_rows<T, kWidth>(value_sums, 1.0f, p.grad_value, at, first_key);
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<T, kWidth>)
    key_value_grad_tiles_kernel(const __grid_constant__ MaskedAttentionBackwardParams p) {
  if constexpr (kHasMultiplyTiles<T>) key_value_grad_tiles<T, kWidth>(p);
}

// ---- Launch ------------------------------------------------------------------------------------

// Whether rows of a tensor can be copied 16 bytes at a time.
inline bool has_whole_vectors(const View<4>& view) {
  const int64_t vector = 16 / bytes_of(view.dtype);
  bool whole = view.stride[3] == 1 && reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
  for (int d = 0; d < 3; ++d) whole = whole && (view.size[d] <= 1 || view.stride[d] % vector == 0);
  return whole;
}

inline bool fits_tiles(const MaskedAttentionParams& p) {
  return p.tensor_cores && p.query.dtype != DType::f64 && p.query.size[3] % 8 == 0 &&
         has_whole_vectors(p.query) && has_whole_vectors(p.key) && has_whole_vectors(p.value);
}

// Calls f with the width of the tiles, as a constant.
template <class F>
void with_tile_width(int64_t width, const F& f) {
  if (width <= 32) return f(std::integral_constant<int, 32>());
  if (width <= 64) return f(std::integral_constant<int, 64>());
  f(std::integral_constant<int, 128>());
}

}  // namespace
}  // namespace fastseg
