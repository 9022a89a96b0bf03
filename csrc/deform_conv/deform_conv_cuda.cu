// Deformable convolution on CUDA.
//
// Columns in memory, for any groups and types: a warp owns one sample (a tap of an output pixel and
// a group of offsets), its lanes own vectors of channels. With one group neither direction needs
// them: in the forward pass a block makes those of 128 pixels and 64 bytes of a tap's channels in
// shared memory, while the ones before are multiplied; the backward pass is in
// deform_conv_gradients.cuh.
#include <type_traits>

#include "core/dispatch.h"
#include "deform_conv/deform_conv_gradients.cuh"
#include "deform_conv/deform_conv_tiles.cuh"

namespace fastseg {
namespace {

// The sample that a warp owns.
template <class Acc>
struct OwnSample {
  int64_t item;  // pixel of the tile
  int offset_group, tap;
  OutputPixel pixel;
  Sample<Acc> sample;
  Acc mask;
};

__host__ __device__ int64_t samples_of(const DeformConvParams& p) {
  return p.columns.size[1] * p.offset_groups * p.kernel[0] * p.kernel[1];
}

template <class Acc>
__device__ OwnSample<Acc> own_sample(const DeformConvParams& p, int64_t index) {
  const int taps = static_cast<int>(p.kernel[0] * p.kernel[1]);
  const int groups = static_cast<int>(p.offset_groups);
  OwnSample<Acc> own;
  own.item = index / (groups * taps);
  const int rest = static_cast<int>(index - own.item * (groups * taps));
  own.offset_group = rest / taps;
  own.tap = rest % taps;
  own.pixel = output_pixel(p, p.first + own.item);
  own.sample = read_sample<Acc>(p, own.offset_group, own.tap, own.pixel);
  own.mask = read_mask<Acc>(p, own.offset_group, own.tap, own.pixel);
  return own;
}

// Four cells of kVec channels, as accumulators.
template <class T, int kVec>
struct Cells {
  using Acc = accumulate_t<T>;
  Acc value[4][kVec];

  __device__ Cells(const DeformConvParams& p, const OwnSample<Acc>& own, int c) {
    const T* image = p.input.at<const T>(own.pixel.image, c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Vec<T, kVec> cell;
      const bool inside = own.sample.inside(k, p.input);
      if (inside) cell = Vec<T, kVec>::load(image + own.sample.cell(k, p.input));
#pragma unroll
      for (int e = 0; e < kVec; ++e) value[k][e] = inside ? static_cast<Acc>(cell[e]) : Acc(0);
    }
  }
};

// Stores mask times the blend of the cells.
template <class T, int kVec>
__device__ void store_column(const OwnSample<accumulate_t<T>>& own, const Cells<T, kVec>& cells,
                             T* column) {
  using Acc = accumulate_t<T>;
  Vec<T, kVec> result;
#pragma unroll
  for (int e = 0; e < kVec; ++e) {
    Acc sum = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      sum = multiply_add(own.sample.weight(k) * own.mask, cells.value[k][e], sum);
    }
    result[e] = static_cast<T>(own.sample.outside ? Acc(0) : sum);
  }
  result.store(column);
}

// Calls f(channel, its column) for the lane's vectors of the sample's channels.
template <class T, int kVec, class F>
__device__ void for_each_vector(const DeformConvParams& p, const OwnSample<accumulate_t<T>>& own,
                                const F& f) {
  const int group_channels = static_cast<int>(p.input.size[1] / p.groups);
  const int channels = static_cast<int>(p.input.size[1] / p.offset_groups);
  T* columns = p.columns.as<T>() + column_step(p, own.item, own.tap);
  for (int i = lane_id() * kVec; i < channels; i += kWarpSize * kVec) {
    const int c = own.offset_group * channels + i;
    const int group = c / group_channels;
    f(c, columns + group * p.columns.stride[0] + (c - group * group_channels));
  }
}

template <class T, int kVec>
__global__ void __launch_bounds__(kThreads)
    sample_kernel(const __grid_constant__ DeformConvParams p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp_id();
  if (index >= samples_of(p)) return;
  const auto own = own_sample<accumulate_t<T>>(p, index);
  for_each_vector<T, kVec>(p, own, [&](int c, T* column) {
    store_column<T, kVec>(own, Cells<T, kVec>(p, own, c), column);
  });
}

// ---- Backward ----------------------------------------------------------------------------------

template <class T, int kVec, class Add>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ DeformConvParams p, Add add) {
  using Acc = accumulate_t<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp_id();
  if (index >= samples_of(p)) return;
  const auto own = own_sample<Acc>(p, index);
  const int64_t image = own.pixel.image * p.grad_input.stride[0];
  Acc sums[4] = {};
  for_each_vector<T, kVec>(p, own, [&](int c, T* column) {
    const auto grads = Vec<T, kVec>::load(column);
    const Cells<T, kVec> cells(p, own, c);
    store_column<T, kVec>(own, cells, column);
    if (own.sample.outside) return;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Acc weight = own.sample.weight(k) * own.mask;
      Acc parts[kVec];
#pragma unroll
      for (int e = 0; e < kVec; ++e) {
        const Acc grad = static_cast<Acc>(grads[e]);
        sums[k] = multiply_add(grad, cells.value[k][e], sums[k]);
        parts[e] = weight * grad;
      }
      if (own.sample.inside(k, p.input)) {
        add(p, image + own.sample.cell(k, p.grad_input) + c, parts);
      }
    }
  });
#pragma unroll
  for (int k = 0; k < 4; ++k) sums[k] = warp_reduce_sum(sums[k]);
  if (lane_id() == 0) {
    write_position_grad(p, own.offset_group, own.tap, own.pixel,
                        position_grad(own.sample, own.mask, sums));
  }
}

// Whether all pixels are; the stride of a single one is anything.
bool aligned_to(const View<4>& view, int64_t vector) {
  bool aligned = reinterpret_cast<uintptr_t>(view.data) % (vector * bytes_of(view.dtype)) == 0;
  for (const int d : {0, 2, 3}) {
    aligned = aligned && (view.size[d] <= 1 || view.stride[d] % vector == 0);
  }
  return aligned;
}

// Calls f with the number of channels that move at once, as a constant: 16 bytes, or one channel
// where groups or addresses forbid that.
template <class T, class F>
void with_vector(const DeformConvParams& p, const F& f) {
  constexpr int kVec = 16 / sizeof(T);
  const int64_t channels = p.input.size[1];
  const bool fits = channels / p.groups % kVec == 0 && channels / p.offset_groups % kVec == 0 &&
                    aligned_to(p.input, kVec) && aligned_to(p.grad_input, 4) &&
                    reinterpret_cast<uintptr_t>(p.columns.data) % 16 == 0;
  FASTSEG_CHECK(p.columns.dtype == p.input.dtype, "columns must be ", name_of(p.input.dtype),
                " as input, got ", name_of(p.columns.dtype));
  if (fits) return f(std::integral_constant<int, kVec>());
  f(std::integral_constant<int, 1>());
}

template <class T>
void sample(const DeformConvParams& p, cudaStream_t stream) {
  with_vector<T>(p, [&](auto vector) {
    launch("deform_conv_sample", sample_kernel<T, vector>,
           make_grid(ceil_div<int64_t>(samples_of(p), kWarps)), dim3(kThreads), 0, stream, p);
  });
}

template <class T>
void backward(const DeformConvParams& p, cudaStream_t stream) {
  with_vector<T>(p, [&](auto vector) {
    const dim3 grid = make_grid(ceil_div<int64_t>(samples_of(p), kWarps));
    if (p.units == nullptr) {
      launch("deform_conv_backward", backward_kernel<T, vector, AddFloats>, grid, dim3(kThreads), 0,
             stream, p, AddFloats());
    } else {
      launch("deform_conv_backward_fixed_point", backward_kernel<T, vector, AddFixedPoint>, grid,
             dim3(kThreads), 0, stream, p, AddFixedPoint());
    }
  });
}

// ---- Product -----------------------------------------------------------------------------------

constexpr int kTilePixels = 128;
constexpr int kWarpPixels = 64;  // warps: 2 along pixels, 4 along outputs

struct ProductKernelParams : DeformConvProductParams {
  bool pairs_in_output;  // two outputs of a pixel move as one
};

template <class T, int kTileOutputs, bool kExact>
struct ProductOfColumns {
  static_assert(kTilePixels * 2 == kThreads, "two threads per pixel make its columns of a step");
  static constexpr size_t kShared = 2 * (kTilePixels + kTileOutputs) * sizeof(T) * kRow<T>;
  static constexpr int kWarpOutputs = kTileOutputs / 4;
  using Product = WarpProduct<T, kWarpPixels / 16, kWarpOutputs / 8, kExact, Unrounded::right>;

  const ProductKernelParams& q;
  int64_t first;  // pixel of the batch
  int first_output;
  int row, column;    // of a step's columns, the thread's
  OutputPixel pixel;  // threads beyond the last make its columns, which nobody stores
  // Of the sample of the next step.
  int group = 0, tap = 0;
  int channel = 0, remaining = 0;  // the next of its channels, and how many it has yet
  Offset<float> offset;
  float mask;
  ColumnMaker<T, kExact> maker;
  T *left, *right;  // [2][kTilePixels][kRow], [2][kTileOutputs][kRow]

  __device__ explicit ProductOfColumns(const ProductKernelParams& params) : q(params) {
    const int64_t pixels = q.output.size[2] * q.output.size[3];
    first = static_cast<int64_t>(blockIdx.x) * kTilePixels;
    first_output = blockIdx.y * kTileOutputs;
    row = thread_rank() / 2;
    column = thread_rank() % 2 * 2 * kVector<T>;
    pixel = output_pixel(q.sampling, min(first + row, q.output.size[0] * pixels - 1));
    maker.image = q.sampling.input.at<const T>(pixel.image, column);
    left = dynamic_shared<T>();
    right = left + 2 * kTilePixels * kRow<T>;
  }

  // Reads where the next sample is, a step before it is needed.
  __device__ void read() {
    offset = read_offset<float>(q.sampling, group, tap, pixel);
    mask = read_mask<float>(q.sampling, group, tap, pixel);
  }

  __device__ void start(int step) {
    const DeformConvParams& p = q.sampling;
    if (remaining == 0) {
      maker.move(p, moved_sample(p, tap, pixel, offset), mask);
      remaining = static_cast<int>(p.input.size[1]) / static_cast<int>(p.offset_groups);
    }
    maker.load(p, channel);
    channel += kStep<T>;
    remaining -= kStep<T>;
    if (remaining == 0) {
      if (++group == p.offset_groups) {
        group = channel = 0;
        ++tap;
      }
      if (tap < p.kernel[0] * p.kernel[1]) read();
    }
    start_copies<T, kTileOutputs, kStep<T>>(right + step % 2 * kTileOutputs * kRow<T>, kRow<T>,
                                            q.weights.at<const T>(first_output, step * kStep<T>),
                                            q.weights.size[1], q.weights.size[0] - first_output,
                                            kStep<T>);
  }

  __device__ void finish(int step) {
    maker.store(left + (step % 2 * kTilePixels + row) * kRow<T> + column);
    wait_for_copies();
  }

  __device__ void run() {
    Product product;
    read();
    const int warp_pixel = warp_id() % 2 * kWarpPixels, warp_output = warp_id() / 2 * kWarpOutputs;
    pipeline(
        static_cast<int>(q.weights.size[1]) / kStep<T>, [&](int step) { start(step); },
        [&](int step) { finish(step); },
        [&](int step) {
          product.add(left + (step % 2 * kTilePixels + warp_pixel) * kRow<T>,
                      right + (step % 2 * kTileOutputs + warp_output) * kRow<T>);
        });
    store(product, first + warp_pixel, first_output + warp_output);
  }

  // Writes sums, whose first is of pixel `pixel` of the batch and of output `channel`.
  __device__ void store(const Product& product, int64_t pixel, int channel) const {
    const int64_t height = q.output.size[2], width = q.output.size[3];
    const T* bias = q.bias.as<const T>();
#pragma unroll
    for (int i = 0; i < kWarpPixels / 8; ++i) {
      const int64_t index = pixel + 8 * i + lane_id() / 4;
      if (index >= q.output.size[0] * height * width) continue;
      const OutputPixel at = output_pixel(q.sampling, index);
      T* out = q.output.at<T>(at.image, 0, at.y, at.x);
#pragma unroll
      for (int j = 0; j < kWarpOutputs / 8; ++j) {
        const int c = channel + 8 * j + lane_id() % 4 * 2;
        Vec<T, 2> pair;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool shifted = bias != nullptr && c + e < q.output.size[1];
          const float shift = shifted ? static_cast<float>(bias[(c + e) * q.bias.stride[0]]) : 0.0f;
          pair[e] = static_cast<T>(product.at(i, j, e) + shift);
        }
        if (q.pairs_in_output && c < q.output.size[1]) {
          pair.store(out + c);
          continue;
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          if (c + e < q.output.size[1]) out[(c + e) * q.output.stride[1]] = pair[e];
        }
      }
    }
  }
};

template <class T, int kTileOutputs, bool kExact>
__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ ProductKernelParams q) {
  if constexpr (kExact || kHasMultiplyTiles<T>) ProductOfColumns<T, kTileOutputs, kExact>(q).run();
}

template <class T, int kTileOutputs, bool kExact>
void launch_product(const DeformConvProductParams& q, cudaStream_t stream) {
  const int64_t pixels = q.output.size[0] * q.output.size[2] * q.output.size[3];
  const bool pairs =
      q.output.stride[1] == 1 && q.output.size[1] % 2 == 0 && aligned_to(q.output, 2);
  const ProductKernelParams kernel_params{q, pairs};
  launch("deform_conv_product", product_kernel<T, kTileOutputs, kExact>,
         make_grid(ceil_div<int64_t>(pixels, kTilePixels),
                   ceil_div<int64_t>(q.output.size[1], kTileOutputs)),
         dim3(kThreads), ProductOfColumns<T, kTileOutputs, kExact>::kShared, stream, kernel_params);
}

// Calls f(a zero of input's type, whether products are exact) after checks of what the kernels
// without columns in memory rely on.
template <class F>
void dispatch_fused(const DeformConvParams& p, const View<2>& weights, bool exact, const F& f) {
  const int64_t offset_channels = p.input.size[1] / p.offset_groups;
  FASTSEG_CHECK(offset_channels % 32 == 0,
                "input must have a multiple of 32 channels per group of offsets, got ",
                offset_channels);
  FASTSEG_CHECK(aligned_to(p.input, 16 / bytes_of(p.input.dtype)) &&
                    reinterpret_cast<uintptr_t>(weights.data) % 16 == 0,
                "input and weights must be aligned to 16 bytes");
  FASTSEG_CHECK(p.input.stride[2] * p.input.size[2] < int64_t{1} << 31,
                "input must have less than 2^31 elements per image");
  FASTSEG_CHECK(p.input.dtype != DType::f64, "input must be float32, float16 or bfloat16, got ",
                name_of(p.input.dtype));
  FASTSEG_CHECK(!exact || p.input.dtype == DType::f32, "exact products must be of float32, got ",
                name_of(p.input.dtype));
  if (p.input.dtype == DType::f16) return f(half_t(), std::false_type());
  if (p.input.dtype == DType::bf16) return f(bfloat16_t(), std::false_type());
  if (exact) return f(float(), std::true_type());
  f(float(), std::false_type());
}

}  // namespace

void deform_conv_sample_cuda(const DeformConvParams& params, cudaStream_t stream) {
  dispatch_floating(params.input.dtype, "input",
                    [&](auto zero) { sample<decltype(zero)>(params, stream); });
}

void deform_conv_backward_cuda(const DeformConvParams& params, cudaStream_t stream) {
  dispatch_floating(params.input.dtype, "input",
                    [&](auto zero) { backward<decltype(zero)>(params, stream); });
}

void deform_conv_product_cuda(const DeformConvProductParams& params, cudaStream_t stream) {
  dispatch_fused(params.sampling, params.weights, params.exact, [&](auto zero, auto exact) {
    using T = decltype(zero);
    if (params.output.size[1] <= 128) return launch_product<T, 128, exact>(params, stream);
    launch_product<T, 256, exact>(params, stream);
  });
}

void deform_conv_gradients_cuda(const DeformConvGradientParams& params, cudaStream_t stream) {
  const DeformConvParams& p = params.sampling;
  const View<2>& grads = params.grad_output;
  FASTSEG_CHECK(grads.size[0] < int64_t{1} << 31, "grad_output must have less than 2^31 pixels");
  FASTSEG_CHECK(grads.size[1] * bytes_of(grads.dtype) % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(grads.data) % 16 == 0,
                "grad_output's pixels must be aligned to 16 bytes");
  FASTSEG_CHECK(aligned_to(p.grad_input, 4), "grad_input must be aligned to 4 elements");
  dispatch_fused(p, params.weights, params.exact, [&](auto zero, auto exact) {
    launch_gradients<decltype(zero), exact>(params, stream);
  });
}

}  // namespace fastseg
