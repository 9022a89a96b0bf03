// Masked attention for every type and head width. A warp owns some rows, queries or keys; a lane
// has one row of the other side in each tile. Tiles lie in shared memory as accumulators.
//
// Forward and the queries' gradient: a block owns some queries of a head and one of the parts that
// the keys are split into. The keys' and values' gradients: a block owns some keys and goes through
// all queries.
#pragma once

#include "masked_attention/masked_attention_device.cuh"

namespace fastseg {
namespace {

constexpr int kTile = kWarpSize;  // rows of the other side in shared memory
// Rows of a warp. With more of them each row of a tile is loaded less often; these fit the 64 KB of
// shared memory that sm_75 has.
template <class Acc>
constexpr int kForwardRows = sizeof(Acc) == 4 ? 4 : 2;
constexpr int kBackwardRows = 2;
template <class Acc>
constexpr int kVec = 16 / static_cast<int>(sizeof(Acc));

// Elements of a row in shared memory: whole vectors, an odd number, so that the lanes' rows lie in
// different banks.
template <class Acc>
__host__ __device__ int row_size(int64_t width) {
  return kVec<Acc> * (static_cast<int>(ceil_div<int64_t>(width, kVec<Acc>)) | 1);
}

// Rows [first, first + count) of a head; rows and channels that do not exist are 0.
template <class T, class Acc>
__device__ void load_rows(const View<4>& from, const Place& at, int64_t first, int count, Acc* to) {
  const int width = static_cast<int>(from.size[3]), size = row_size<Acc>(width);
  for (int r = warp_id(); r < count; r += kWarps) {
    const bool exists = first + r < from.size[2];
    const T* row = from.at<const T>(at.b, at.m, exists ? first + r : 0);
    for (int c = lane_id(); c < size; c += kWarpSize) {
      to[r * size + c] = exists && c < width ? static_cast<Acc>(row[c * from.stride[3]]) : Acc(0);
    }
  }
}

// products[i] = the warp's row i times the lane's row of the tile.
template <int kRows, class Acc>
__device__ void multiply(const Acc* own, const Acc* tile, int size, Acc (&products)[kRows]) {
  const Acc* other = tile + lane_id() * size;
#pragma unroll
  for (int i = 0; i < kRows; ++i) products[i] = 0;
  for (int c = 0; c < size; c += kVec<Acc>) {
    const auto right = Vec<Acc, kVec<Acc>>::load(other + c);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const auto left = Vec<Acc, kVec<Acc>>::load(own + i * size + c);
#pragma unroll
      for (int e = 0; e < kVec<Acc>; ++e) {
        products[i] = multiply_add(left[e], right[e], products[i]);
      }
    }
  }
}

// sums[i][k] += channel lane + 32 * k of the tile's rows, times weights [kRows][kTile].
template <int kRows, int kChannels, class Acc>
__device__ void add_rows(const Acc* weights, const Acc* tile, int size,
                         Acc (&sums)[kRows][kChannels]) {
  for (int j = 0; j < kTile; j += kVec<Acc>) {
    Vec<Acc, kVec<Acc>> weight[kRows];
#pragma unroll
    for (int i = 0; i < kRows; ++i) weight[i] = Vec<Acc, kVec<Acc>>::load(weights + i * kTile + j);
#pragma unroll
    for (int e = 0; e < kVec<Acc>; ++e) {
#pragma unroll
      for (int k = 0; k < kChannels; ++k) {
        const int c = lane_id() + kWarpSize * k;
        const Acc value = c < size ? tile[(j + e) * size + c] : Acc(0);
#pragma unroll
        for (int i = 0; i < kRows; ++i) sums[i][k] = multiply_add(weight[i][e], value, sums[i][k]);
      }
    }
  }
}

// Which keys of [first, first + kTile) a query attends.
__device__ inline unsigned tile_bits(const MaskedAttentionParams& p, int64_t b, int64_t q,
                                     bool open, int64_t first) {
  const uint64_t word = attended_keys(p, b, q, open, first / kWordKeys);
  return static_cast<unsigned>(word >> (first % kWordKeys));
}

// ---- Forward -----------------------------------------------------------------------------------

template <class Acc>
struct ForwardShared {
  Acc *queries, *keys, *values, *weights;

  __device__ explicit ForwardShared(int size) {
    constexpr int kOwn = kWarps * kForwardRows<Acc>;
    queries = dynamic_shared<Acc>();
    keys = queries + kOwn * size;
    values = keys + kTile * size;
    weights = values + kTile * size;
  }
  static size_t bytes(int size) {
    constexpr int kOwn = kWarps * kForwardRows<Acc>;
    return sizeof(Acc) * ((kOwn + 2 * kTile) * size + kOwn * kTile);
  }
};

// The running softmax of a warp's queries, and their outputs.
template <class Acc, int kRows, int kChannels>
struct Running {
  Acc max[kRows], sum[kRows], output[kRows][kChannels] = {};  // sum: of the lane's keys

  __device__ Running() {
    for (int i = 0; i < kRows; ++i) {
      max[i] = -static_cast<Acc>(INFINITY);
      sum[i] = 0;
    }
  }

  // Turns the lane's score of query i into a weight, and scales the output so far to match.
  __device__ Acc weigh(int i, Acc score) {
    const Acc top = Max()(max[i], warp_reduce_max(score)), base = finite_base(top);
    const Acc shrink = fast_exp2(max[i] - base), weight = fast_exp2(score - base);
    max[i] = top;
    sum[i] = multiply_add(sum[i], shrink, weight);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) output[i][k] *= shrink;
    return weight;
  }
};

template <class T, int kChannels>
__global__ void __launch_bounds__(kThreads) attend_kernel(MaskedAttentionParams p, int64_t splits) {
  using Acc = accumulate_t<T>;
  constexpr int kRows = kForwardRows<Acc>, kOwn = kWarps * kRows;
  const int64_t queries = p.query.size[2], keys = p.key.size[2], width = p.query.size[3];
  const int64_t blocks = ceil_div<int64_t>(queries, kOwn);
  const int64_t split = blockIdx.x % splits, block = blockIdx.x / splits;
  const Place at(p, block / blocks);
  const int64_t first = block % blocks * kOwn, own = first + warp_id() * kRows;
  const int64_t begin = split_begin(keys, splits, split);
  const int64_t end = split_begin(keys, splits, split + 1);
  const int size = row_size<Acc>(width);
  const ForwardShared<Acc> shared(size);
  const Acc* own_queries = shared.queries + warp_id() * kRows * size;
  Acc* own_weights = shared.weights + warp_id() * kRows * kTile;
  const Acc factor = static_cast<Acc>(p.scale * kLog2E);
  load_rows<T>(p.query, at, first, kOwn, shared.queries);
  const Workspace<Acc> workspace(p);
  bool open[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    open[i] = own + i < queries && is_open(p, workspace, at.b, own + i);
  }
  Running<Acc, kRows, kChannels> running;
  for (int64_t tile = begin; tile < end; tile += kTile) {
    __syncthreads();  // the tile before is no longer needed
    load_rows<T>(p.key, at, tile, kTile, shared.keys);
    load_rows<T>(p.value, at, tile, kTile, shared.values);
    __syncthreads();
    unsigned bits[kRows], any = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      bits[i] = own + i < queries ? tile_bits(p, at.b, own + i, open[i], tile) : 0u;
      any |= bits[i];
    }
    if (any == 0) continue;
    Acc products[kRows];
    multiply(own_queries, shared.keys, size, products);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool attended = bits[i] >> lane_id() & 1u;
      const Acc score = attended ? products[i] * factor : -static_cast<Acc>(INFINITY);
      own_weights[i * kTile + lane_id()] = running.weigh(i, score);
    }
    __syncwarp();
    add_rows(own_weights, shared.values, size, running.output);
    __syncwarp();  // before the weights are written again
  }
  for (int i = 0; i < kRows && own + i < queries; ++i) {
    Acc* part = workspace.output_part(split, at.row(p, own + i));
    const Acc sum = warp_reduce_sum(running.sum[i]);
#pragma unroll
    for (int k = 0; k < kChannels; ++k) {
      const int c = lane_id() + kWarpSize * k;
      if (c < width) part[c] = running.output[i][k];
    }
    if (lane_id() == 0) {
      part[width] = running.max[i];
      part[width + 1] = sum;
    }
  }
}

// ---- Backward ----------------------------------------------------------------------------------

template <class Acc>
struct BackwardShared {
  static constexpr int kOwn = kWarps * kBackwardRows;
  Acc *own[2], *tile[2], *weights, *slopes;

  __device__ explicit BackwardShared(int size) {
    own[0] = dynamic_shared<Acc>();
    own[1] = own[0] + kOwn * size;
    tile[0] = own[1] + kOwn * size;
    tile[1] = tile[0] + kTile * size;
    weights = tile[1] + kTile * size;
    slopes = weights + kOwn * kTile;
  }
  static size_t bytes(int size) {
    return sizeof(Acc) * (2 * (kOwn + kTile) * size + 2 * kOwn * kTile);
  }
};

template <class T, int kChannels>
__global__ void __launch_bounds__(kThreads)
    query_grad_kernel(MaskedAttentionBackwardParams p, int64_t splits) {
  using Acc = accumulate_t<T>;
  constexpr int kRows = kBackwardRows, kOwn = kWarps * kRows;
  const MaskedAttentionParams& f = p.forward;
  const int64_t queries = f.query.size[2], keys = f.key.size[2], width = f.query.size[3];
  const int64_t blocks = ceil_div<int64_t>(queries, kOwn);
  const int64_t split = blockIdx.x % splits, block = blockIdx.x / splits;
  const Place at(f, block / blocks);
  const int64_t first = block % blocks * kOwn, own = first + warp_id() * kRows;
  const int64_t begin = split_begin(keys, splits, split);
  const int64_t end = split_begin(keys, splits, split + 1);
  const int size = row_size<Acc>(width), own_offset = warp_id() * kRows * size;
  const BackwardShared<Acc> shared(size);
  const Workspace<Acc> workspace(f);
  Acc* slopes = shared.slopes + warp_id() * kRows * kTile;
  const Acc factor = static_cast<Acc>(f.scale * kLog2E);
  load_rows<T>(f.query, at, first, kOwn, shared.own[0]);
  load_rows<T>(p.grad_output, at, first, kOwn, shared.own[1]);
  Acc sums[kRows][kChannels] = {};
  for (int64_t tile = begin; tile < end; tile += kTile) {
    __syncthreads();
    load_rows<T>(f.key, at, tile, kTile, shared.tile[0]);
    load_rows<T>(f.value, at, tile, kTile, shared.tile[1]);
    __syncthreads();
    Acc scores[kRows], grads[kRows];
    multiply(shared.own[0] + own_offset, shared.tile[0], size, scores);
    multiply(shared.own[1] + own_offset, shared.tile[1], size, grads);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const bool exists = own + i < queries;
      const int64_t q = exists ? own + i : 0, row = at.row(f, q);
      const bool open = is_open(f, workspace, at.b, q);
      const unsigned bits = exists ? tile_bits(f, at.b, q, open, tile) : 0u;
      const Pair<Acc> pair(bits >> lane_id() & 1u, scores[i] * factor,
                           f.log_sums.template as<const Acc>()[row], grads[i],
                           workspace.products[row]);
      slopes[i * kTile + lane_id()] = pair.slope;
    }
    __syncwarp();
    add_rows(slopes, shared.tile[0], size, sums);
    __syncwarp();
  }
  for (int i = 0; i < kRows && own + i < queries; ++i) {
    Acc* part = workspace.grad_part(split, at.row(f, own + i));
    for (int k = 0; k < kChannels; ++k) {
      const int c = lane_id() + kWarpSize * k;
      if (c < width) part[c] = sums[i][k];
    }
  }
}

template <class T, int kChannels>
__global__ void __launch_bounds__(kThreads) key_value_grad_kernel(MaskedAttentionBackwardParams p) {
  using Acc = accumulate_t<T>;
  constexpr int kRows = kBackwardRows, kOwn = kWarps * kRows;
  static_assert(kWordKeys % kOwn == 0, "the mask of a block's keys lies in one word");
  const MaskedAttentionParams& f = p.forward;
  const int64_t queries = f.query.size[2], keys = f.key.size[2], width = f.query.size[3];
  const int64_t blocks = ceil_div<int64_t>(keys, kOwn);
  const Place at(f, blockIdx.x / blocks);
  const int64_t first = blockIdx.x % blocks * kOwn, own = first + warp_id() * kRows;
  const int size = row_size<Acc>(width), own_offset = warp_id() * kRows * size;
  const BackwardShared<Acc> shared(size);
  const Workspace<Acc> workspace(f);
  Acc* weights = shared.weights + warp_id() * kRows * kTile;
  Acc* slopes = shared.slopes + warp_id() * kRows * kTile;
  const Acc factor = static_cast<Acc>(f.scale * kLog2E);
  load_rows<T>(f.key, at, first, kOwn, shared.own[0]);
  load_rows<T>(f.value, at, first, kOwn, shared.own[1]);
  Acc key_sums[kRows][kChannels] = {}, value_sums[kRows][kChannels] = {};
  for (int64_t tile = 0; tile < queries; tile += kTile) {
    __syncthreads();
    load_rows<T>(f.query, at, tile, kTile, shared.tile[0]);
    load_rows<T>(p.grad_output, at, tile, kTile, shared.tile[1]);
    __syncthreads();
    const bool exists = tile + lane_id() < queries;
    const int64_t q = exists ? tile + lane_id() : 0, row = at.row(f, q);
    const bool open = is_open(f, workspace, at.b, q);
    const uint64_t bits = exists ? attended_keys(f, at.b, q, open, first / kWordKeys) : 0;
    Acc scores[kRows], grads[kRows];
    multiply(shared.own[0] + own_offset, shared.tile[0], size, scores);
    multiply(shared.own[1] + own_offset, shared.tile[1], size, grads);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Pair<Acc> pair(bits >> ((own + i) % kWordKeys) & 1u, scores[i] * factor,
                           f.log_sums.template as<const Acc>()[row], grads[i],
                           workspace.products[row]);
      weights[i * kTile + lane_id()] = pair.weight;
      slopes[i * kTile + lane_id()] = pair.slope;
    }
    __syncwarp();
    add_rows(slopes, shared.tile[0], size, key_sums);
    add_rows(weights, shared.tile[1], size, value_sums);
    __syncwarp();
  }
  for (int i = 0; i < kRows && own + i < keys; ++i) {
    for (int k = 0; k < kChannels; ++k) {
      const int c = lane_id() + kWarpSize * k;
      if (c >= width) continue;
      *p.grad_key.template at<T>(at.b, at.m, own + i, c) =
          static_cast<T>(key_sums[i][k] * static_cast<Acc>(f.scale));
      *p.grad_value.template at<T>(at.b, at.m, own + i, c) = static_cast<T>(value_sums[i][k]);
    }
  }
}

}  // namespace
}  // namespace fastseg
