// Masked attention on CUDA. The keys are split into parts, so that few queries still fill a GPU,
// and parts are combined in order. Nothing is added by atomics, so that every run gives the same.
#include <type_traits>

#include "core/dispatch.h"
#include "masked_attention/masked_attention_rows.cuh"
#include "masked_attention/masked_attention_tiles.cuh"

namespace fastseg {
namespace {

// A warp looks whether any bit of a query's mask is set.
template <class Acc>
__global__ void __launch_bounds__(kThreads) find_open_kernel(MaskedAttentionParams p) {
  const int64_t row = int64_t(blockIdx.x) * kWarps + warp_id(), queries = p.query.size[2];
  if (row >= p.query.size[0] * queries) return;
  const int64_t words = words_of(p.key.size[2]);
  uint64_t any = 0;
#pragma unroll 4
  for (int64_t i = lane_id(); i < words; i += kWarpSize) {
    any |= read_word(p, row / queries, row % queries, i);
  }
  const bool open = ballot(any != 0) == 0;
  if (lane_id() == 0) Workspace<Acc>(p).open[row] = open ? Acc(1) : Acc(0);
}

// A warp combines the parts of one query.
template <class T>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(MaskedAttentionParams p, int64_t splits) {
  using Acc = accumulate_t<T>;
  const int64_t row = int64_t(blockIdx.x) * kWarps + warp_id(), width = p.query.size[3];
  if (row >= p.log_sums.numel()) return;
  const Place at(p, row / p.query.size[2]);
  const Workspace<Acc> workspace(p);
  Acc max = -static_cast<Acc>(INFINITY), sum = 0;
  for (int64_t s = lane_id(); s < splits; s += kWarpSize) {
    max = Max()(max, workspace.output_part(s, row)[width]);
  }
  max = warp_reduce_max(max);
  const Acc base = finite_base(max);
  for (int64_t s = lane_id(); s < splits; s += kWarpSize) {
    const Acc* part = workspace.output_part(s, row);
    sum = multiply_add(part[width + 1], fast_exp2(part[width] - base), sum);
  }
  sum = warp_reduce_sum(sum);
  T* output = p.output.template at<T>(at.b, at.m, row % p.query.size[2]);
  for (int64_t c = lane_id(); c < width; c += kWarpSize) {
    Acc total = 0;
#pragma unroll 8
    for (int64_t s = 0; s < splits; ++s) {
      const Acc* part = workspace.output_part(s, row);
      total = multiply_add(part[c], fast_exp2(part[width] - base), total);
    }
    output[c * p.output.stride[3]] = static_cast<T>(p.key.size[2] == 0 ? Acc(0) : total / sum);
  }
  if (lane_id() == 0) p.log_sums.template as<Acc>()[row] = max + log2(sum);
}

// Of each query the product of its output and its gradient, by a warp.
template <class T>
__global__ void __launch_bounds__(kThreads) product_kernel(MaskedAttentionBackwardParams p) {
  using Acc = accumulate_t<T>;
  const MaskedAttentionParams& f = p.forward;
  const int64_t row = int64_t(blockIdx.x) * kWarps + warp_id();
  if (row >= f.log_sums.numel()) return;
  const int64_t q = row % f.query.size[2];
  const Place at(f, row / f.query.size[2]);
  Acc product = 0;
  for (int64_t c = lane_id(); c < f.query.size[3]; c += kWarpSize) {
    const Acc output = static_cast<Acc>(*f.output.template at<const T>(at.b, at.m, q, c));
    const Acc grad = static_cast<Acc>(*p.grad_output.template at<const T>(at.b, at.m, q, c));
    product = multiply_add(output, grad, product);
  }
  product = warp_reduce_sum(product);
  if (lane_id() == 0) Workspace<Acc>(f).products[row] = product;
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
  const Acc* parts = Workspace<Acc>(f).parts;
  Acc sum = 0;
#pragma unroll 8
  for (int64_t s = 0; s < splits; ++s) sum += parts[s * elements + i];
  const int64_t row = i / width;
  const Place at(f, row / queries);
  *p.grad_query.template at<T>(at.b, at.m, row % queries, i % width) =
      static_cast<T>(sum * static_cast<Acc>(f.scale));
}

// ---- Launch ------------------------------------------------------------------------------------

// Calls f with the number of channels that a lane owns, as a constant.
template <class T, class F>
void with_channels(int64_t width, const F& f) {
  if (width <= kWarpSize) return f(std::integral_constant<int, 1>());
  if (width <= 2 * kWarpSize) return f(std::integral_constant<int, 2>());
  if constexpr (sizeof(accumulate_t<T>) == 4) {
    f(std::integral_constant<int, 4>());
  } else {
    FASTSEG_CHECK(false, "query must have heads of at most 64 channels in float64 on CUDA, got ",
                  width);
  }
}

int64_t splits_of(const MaskedAttentionParams& p) {
  return key_splits(p.query.size[0] * p.query.size[1], p.query.size[2], p.key.size[2]);
}

template <class T>
void find_open(const MaskedAttentionParams& p, cudaStream_t stream) {
  if (p.words.data == nullptr || p.log_sums.numel() == 0) return;
  const int64_t rows = p.query.size[0] * p.query.size[2];
  launch("masked_attention_find_open", find_open_kernel<accumulate_t<T>>,
         make_grid(ceil_div<int64_t>(rows, kWarps)), dim3(kThreads), 0, stream, p);
}

// The kernels that go through pairs of queries and keys, on tensor cores or not.

template <class T>
void attend(const MaskedAttentionParams& p, int64_t splits, cudaStream_t stream) {
  using Acc = accumulate_t<T>;
  constexpr int kOwn = kWarps * kForwardRows<Acc>;
  const int64_t heads = p.query.size[0] * p.query.size[1], width = p.query.size[3];
  if constexpr (!std::is_same_v<T, double>) {
    if (fits_tiles(p)) {
      const int64_t blocks = heads * ceil_div<int64_t>(p.query.size[2], kBlockRows);
      return with_tile_width(width, [&](auto padded) {
        launch("masked_attention_tiles", attend_tiles_kernel<T, padded>, make_grid(blocks * splits),
               dim3(kThreads), 0, stream, p, splits);
      });
    }
  }
  const int64_t blocks = heads * ceil_div<int64_t>(p.query.size[2], kOwn);
  with_channels<T>(width, [&](auto channels) {
    launch("masked_attention", attend_kernel<T, channels>, make_grid(blocks * splits),
           dim3(kThreads), ForwardShared<Acc>::bytes(row_size<Acc>(width)), stream, p, splits);
  });
}

template <class T>
void find_grads(const MaskedAttentionBackwardParams& p, int64_t splits, cudaStream_t stream) {
  using Acc = accumulate_t<T>;
  constexpr int kOwn = kWarps * kBackwardRows;
  const MaskedAttentionParams& f = p.forward;
  const int64_t heads = f.query.size[0] * f.query.size[1], width = f.query.size[3];
  const int64_t queries = f.query.size[2], keys = f.key.size[2];
  if constexpr (!std::is_same_v<T, double>) {
    if (fits_tiles(f) && has_whole_vectors(p.grad_output)) {
      return with_tile_width(width, [&](auto padded) {
        launch("masked_attention_query_grad_tiles", query_grad_tiles_kernel<T, padded>,
               make_grid(heads * ceil_div<int64_t>(queries, kBlockRows) * splits), dim3(kThreads),
               0, stream, p, splits);
        launch("masked_attention_key_value_grad_tiles", key_value_grad_tiles_kernel<T, padded>,
               make_grid(heads * ceil_div<int64_t>(keys, kBlockRows)), dim3(kThreads), 0, stream,
               p);
      });
    }
  }
  const size_t shared_bytes = BackwardShared<Acc>::bytes(row_size<Acc>(width));
  with_channels<T>(width, [&](auto channels) {
    launch("masked_attention_query_grad", query_grad_kernel<T, channels>,
           make_grid(heads * ceil_div<int64_t>(queries, kOwn) * splits), dim3(kThreads),
           shared_bytes, stream, p, splits);
    launch("masked_attention_key_value_grad", key_value_grad_kernel<T, channels>,
           make_grid(heads * ceil_div<int64_t>(keys, kOwn)), dim3(kThreads), shared_bytes, stream,
           p);
  });
}

template <class T>
void forward(const MaskedAttentionParams& p, cudaStream_t stream) {
  const int64_t splits = splits_of(p), rows = p.log_sums.numel();
  find_open<T>(p, stream);
  attend<T>(p, splits, stream);
  launch("masked_attention_combine", combine_kernel<T>, make_grid(ceil_div<int64_t>(rows, kWarps)),
         dim3(kThreads), 0, stream, p, splits);
}

template <class T>
void backward(const MaskedAttentionBackwardParams& p, cudaStream_t stream) {
  const MaskedAttentionParams& f = p.forward;
  const int64_t splits = splits_of(f), rows = f.log_sums.numel(), width = f.query.size[3];
  find_open<T>(f, stream);
  launch("masked_attention_products", product_kernel<T>, make_grid(ceil_div<int64_t>(rows, kWarps)),
         dim3(kThreads), 0, stream, p);
  find_grads<T>(p, splits, stream);
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
