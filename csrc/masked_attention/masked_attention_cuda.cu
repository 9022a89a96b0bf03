// Masked attention on CUDA for every type and head width. A warp owns some rows, queries or keys; a
// lane has one row of the other side in each tile. Tiles lie in shared memory as accumulators.
//
// Forward and the queries' gradient: a block owns some queries of a head and one of the parts that
// the keys are split into, so that few queries still fill the GPU; parts are combined in order.
// The keys' and values' gradients: a block owns some keys and goes through all queries.
#include "core/cuda.cuh"
#include "core/dispatch.h"
#include "masked_attention/masked_attention_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
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

// One head, and a block of rows or a part of the keys in it.
struct Place {
  int64_t b, m, head;  // head = b * M + m

  __device__ Place(const MaskedAttentionParams& p, int64_t head)
      : b(head / p.query.size[1]), m(head % p.query.size[1]), head(head) {}
};

__device__ int64_t log_sum_index(const MaskedAttentionParams& p, const Place& at, int64_t q) {
  return at.head * p.query.size[2] + q;
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

// Whether a query attends everything, since no bit of its mask is set; the whole warp looks.
__device__ bool attends_all(const MaskedAttentionParams& p, int64_t b, int64_t q) {
  if (p.words.data == nullptr) return true;
  const int64_t words = words_of(p.key.size[2]);
  for (int64_t first = 0; first < words; first += kWarpSize) {
    const int64_t i = first + lane_id();
    if (ballot(i < words && read_word(p, b, q, i) != 0) != 0) return false;
  }
  return true;
}

// Which keys of [first, first + kTile) a query attends.
__device__ unsigned tile_bits(const MaskedAttentionParams& p, int64_t b, int64_t q, bool all,
                              int64_t first) {
  const int64_t i = first / kWordKeys;
  const uint64_t word = all ? existing_keys(p.key.size[2], i) : read_word(p, b, q, i);
  return static_cast<unsigned>(word >> (first % kWordKeys));
}

// ---- Forward -----------------------------------------------------------------------------------

// What a part of the keys gives a query, in the workspace: the output so far [D], then max and sum
// of its softmax.
template <class Acc>
__device__ Acc* part_of(const MaskedAttentionParams& p, int64_t split, int64_t row) {
  const int64_t rows = p.log_sums.numel();
  return p.workspace.as<Acc>() + (split * rows + row) * (p.query.size[3] + 2);
}

// Scores in units of log(2); -inf where all of them are. Weights are relative to it.
template <class Acc>
__device__ Acc finite_base(Acc max) {
  return max == -static_cast<Acc>(INFINITY) ? Acc(0) : max;
}

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
    const Acc shrink = exp2(max[i] - base), weight = exp2(score - base);
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
  bool all[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) all[i] = own + i < queries && attends_all(p, at.b, own + i);
  Running<Acc, kRows, kChannels> running;
  for (int64_t tile = begin; tile < end; tile += kTile) {
    __syncthreads();  // the tile before is no longer needed
    load_rows<T>(p.key, at, tile, kTile, shared.keys);
    load_rows<T>(p.value, at, tile, kTile, shared.values);
    __syncthreads();
    unsigned bits[kRows], any = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      bits[i] = own + i < queries ? tile_bits(p, at.b, own + i, all[i], tile) : 0u;
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
    Acc* part = part_of<Acc>(p, split, log_sum_index(p, at, own + i));
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

// A warp combines the parts of one query.
template <class T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(MaskedAttentionParams p, int64_t splits) {
  using Acc = accumulate_t<T>;
  const int64_t row = int64_t(blockIdx.x) * kWarps + warp_id(), width = p.query.size[3];
  if (row >= p.log_sums.numel()) return;
  const Place at(p, row / p.query.size[2]);
  Acc max = -static_cast<Acc>(INFINITY), sum = 0;
  for (int64_t s = 0; s < splits; ++s) max = Max()(max, part_of<Acc>(p, s, row)[width]);
  const Acc base = finite_base(max);
  for (int64_t s = 0; s < splits; ++s) {
    const Acc* part = part_of<Acc>(p, s, row);
    sum = multiply_add(part[width + 1], exp2(part[width] - base), sum);
  }
  T* output = p.output.template at<T>(at.b, at.m, row % p.query.size[2]);
  for (int64_t c = lane_id(); c < width; c += kWarpSize) {
    Acc total = 0;
    for (int64_t s = 0; s < splits; ++s) {
      const Acc* part = part_of<Acc>(p, s, row);
      total = multiply_add(part[c], exp2(part[width] - base), total);
    }
    output[c * p.output.stride[3]] = static_cast<T>(p.key.size[2] == 0 ? Acc(0) : total / sum);
  }
  if (lane_id() == 0) p.log_sums.template as<Acc>()[row] = max + log2(sum);
}

// ---- Backward ----------------------------------------------------------------------------------

// The workspace: of each query the product of its output and its gradient; whether it attends
// everything; and of each part of the keys its gradient [D].
template <class Acc>
struct BackwardMemory {
  Acc *products, *attends_all, *parts;

  __device__ explicit BackwardMemory(const MaskedAttentionParams& p) {
    products = p.workspace.template as<Acc>();
    attends_all = products + p.log_sums.numel();
    parts = attends_all + p.log_sums.numel();
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) prepare_kernel(MaskedAttentionBackwardParams p) {
  using Acc = accumulate_t<T>;
  const MaskedAttentionParams& f = p.forward;
  const int64_t row = int64_t(blockIdx.x) * kWarps + warp_id();
  if (row >= f.log_sums.numel()) return;
  const int64_t q = row % f.query.size[2];
  const Place at(f, row / f.query.size[2]);
  const bool all = attends_all(f, at.b, q);
  Acc product = 0;
  for (int64_t c = lane_id(); c < f.query.size[3]; c += kWarpSize) {
    const Acc output = static_cast<Acc>(*f.output.template at<const T>(at.b, at.m, q, c));
    const Acc grad = static_cast<Acc>(*p.grad_output.template at<const T>(at.b, at.m, q, c));
    product = multiply_add(output, grad, product);
  }
  product = warp_reduce_sum(product);
  if (lane_id() != 0) return;
  const BackwardMemory<Acc> memory(f);
  memory.products[row] = product;
  memory.attends_all[row] = all ? Acc(1) : Acc(0);
}

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

// Of a pair: its weight, and the gradient of its score in units of log(2) / scale.
template <class Acc>
struct Pair {
  Acc weight, slope;

  __device__ Pair(bool attended, Acc score, Acc log_sum, Acc grad, Acc product)
      : weight(attended ? exp2(score - log_sum) : Acc(0)),
        slope(attended ? weight * (grad - product) : Acc(0)) {}
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
  const BackwardMemory<Acc> memory(f);
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
      const int64_t row = log_sum_index(f, at, exists ? own + i : 0);
      const bool all = memory.attends_all[row] != 0;
      const unsigned bits = exists ? tile_bits(f, at.b, own + i, all, tile) : 0u;
      const Pair<Acc> pair(bits >> lane_id() & 1u, scores[i] * factor,
                           f.log_sums.template as<const Acc>()[row], grads[i],
                           memory.products[row]);
      slopes[i * kTile + lane_id()] = pair.slope;
    }
    __syncwarp();
    add_rows(slopes, shared.tile[0], size, sums);
    __syncwarp();
  }
  for (int i = 0; i < kRows && own + i < queries; ++i) {
    const int64_t row = split * f.log_sums.numel() + log_sum_index(f, at, own + i);
    for (int k = 0; k < kChannels; ++k) {
      const int c = lane_id() + kWarpSize * k;
      if (c < width) memory.parts[row * width + c] = sums[i][k];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    add_parts_kernel(MaskedAttentionBackwardParams p, int64_t splits) {
  using Acc = accumulate_t<T>;
  const MaskedAttentionParams& f = p.forward;
  const int64_t width = f.query.size[3], queries = f.query.size[2];
  const int64_t elements = f.log_sums.numel() * width;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= elements) return;
  const Acc* parts = BackwardMemory<Acc>(f).parts;
  Acc sum = 0;
  for (int64_t s = 0; s < splits; ++s) sum += parts[s * elements + i];
  const int64_t row = i / width;
  const Place at(f, row / queries);
  *p.grad_query.template at<T>(at.b, at.m, row % queries, i % width) =
      static_cast<T>(sum * static_cast<Acc>(f.scale));
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
  const BackwardMemory<Acc> memory(f);
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
    const int64_t q = tile + lane_id();
    const int64_t row = log_sum_index(f, at, q < queries ? q : 0);
    const bool all = memory.attends_all[row] != 0;
    const int64_t word = first / kWordKeys;
    uint64_t bits = all ? existing_keys(keys, word) : read_word(f, at.b, q < queries ? q : 0, word);
    if (q >= queries) bits = 0;
    Acc scores[kRows], grads[kRows];
    multiply(shared.own[0] + own_offset, shared.tile[0], size, scores);
    multiply(shared.own[1] + own_offset, shared.tile[1], size, grads);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Pair<Acc> pair(bits >> ((own + i) % kWordKeys) & 1u, scores[i] * factor,
                           f.log_sums.template as<const Acc>()[row], grads[i],
                           memory.products[row]);
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

// ---- Launch ------------------------------------------------------------------------------------

// Calls f with the number of channels that a lane owns, as a constant.
template <class T, class F>
void with_channels(int64_t width, const F& f) {
  if (width <= kWarpSize) return f(std::integral_constant<int, 1>());
  if (width <= 2 * kWarpSize) return f(std::integral_constant<int, 2>());
  if constexpr (sizeof(accumulate_t<T>) == 4) return f(std::integral_constant<int, 4>());
  FASTSEG_CHECK(false, "query must have heads of at most 64 channels in float64 on CUDA, got ",
                width);
}

int64_t splits_of(const MaskedAttentionParams& p) {
  return key_splits(p.query.size[0] * p.query.size[1], p.query.size[2], p.key.size[2]);
}

template <class T>
void forward(const MaskedAttentionParams& p, cudaStream_t stream) {
  using Acc = accumulate_t<T>;
  const int64_t splits = splits_of(p), rows = p.log_sums.numel();
  const int64_t blocks = p.query.size[0] * p.query.size[1] *
                         ceil_div<int64_t>(p.query.size[2], kWarps * kForwardRows<Acc>);
  with_channels<T>(p.query.size[3], [&](auto channels) {
    launch("masked_attention", attend_kernel<T, channels>, make_grid(blocks * splits),
           dim3(kThreads), ForwardShared<Acc>::bytes(row_size<Acc>(p.query.size[3])), stream, p,
           splits);
  });
  launch("masked_attention_combine", combine_kernel<T>, make_grid(ceil_div<int64_t>(rows, kWarps)),
         dim3(kThreads), 0, stream, p, splits);
}

template <class T>
void backward(const MaskedAttentionBackwardParams& p, cudaStream_t stream) {
  using Acc = accumulate_t<T>;
  const MaskedAttentionParams& f = p.forward;
  constexpr int kOwn = kWarps * kBackwardRows;
  const int64_t splits = splits_of(f), rows = f.log_sums.numel(), width = f.query.size[3];
  const int64_t heads = f.query.size[0] * f.query.size[1];
  const size_t shared_bytes = BackwardShared<Acc>::bytes(row_size<Acc>(width));
  launch("masked_attention_prepare", prepare_kernel<T>, make_grid(ceil_div<int64_t>(rows, kWarps)),
         dim3(kThreads), 0, stream, p);
  with_channels<T>(width, [&](auto channels) {
    const int64_t query_blocks = heads * ceil_div<int64_t>(f.query.size[2], kOwn);
    launch("masked_attention_query_grad", query_grad_kernel<T, channels>,
           make_grid(query_blocks * splits), dim3(kThreads), shared_bytes, stream, p, splits);
    launch("masked_attention_key_value_grad", key_value_grad_kernel<T, channels>,
           make_grid(heads * ceil_div<int64_t>(f.key.size[2], kOwn)), dim3(kThreads), shared_bytes,
           stream, p);
  });
  launch("masked_attention_add_parts", add_parts_kernel<T>,
         make_grid(ceil_div<int64_t>(rows * width, kThreads)), dim3(kThreads), 0, stream, p,
         splits);
}

}  // namespace

void masked_attention_cuda(const MaskedAttentionParams& params, cudaStream_t stream) {
  dispatch_floating(params.query.dtype, "query",
                    [&](auto zero) { forward<decltype(zero)>(params, stream); });
}

void masked_attention_backward_cuda(const MaskedAttentionBackwardParams& params,
                                    cudaStream_t stream) {
  dispatch_floating(params.forward.query.dtype, "query",
                    [&](auto zero) { backward<decltype(zero)>(params, stream); });
}

}  // namespace fastseg
