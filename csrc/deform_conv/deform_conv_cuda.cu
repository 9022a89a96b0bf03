// Deformable convolution on CUDA.
//
// Columns: a warp owns one sample (a tap of an output pixel and a group of offsets), its lanes own
// vectors of channels. In half precision and TF32 the forward pass needs no columns in memory: a
// block makes those of 128 pixels and 64 bytes of a tap's channels in shared memory, while tensor
// cores multiply the ones before.
#include <type_traits>

#include "core/atomic_sums.cuh"
#include "core/cuda.cuh"
#include "core/dispatch.h"
#include "core/mma.cuh"
#include "deform_conv/deform_conv_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

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
  own.pixel = output_pixel(p, p.image, p.first + own.item);
  own.sample = read_sample<Acc>(p, own.offset_group, own.tap, own.pixel);
  own.mask = read_mask<Acc>(p, own.offset_group, own.tap, own.pixel);
  return own;
}

// Four cells of kVec channels, as accumulators.
template <class T, int kVec>
struct Cells {
  using Acc = accumulate_t<T>;
  Acc value[4][kVec];

  __device__ Cells(const DeformConvParams& p, const Sample<Acc>& sample, int c) {
    const T* image = p.input.at<const T>(p.image, c);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      Vec<T, kVec> cell;
      const bool inside = sample.inside(k, p.input);
      if (inside) cell = Vec<T, kVec>::load(image + sample.cell(k, p.input));
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
    store_column<T, kVec>(own, Cells<T, kVec>(p, own.sample, c), column);
  });
}

// ---- Backward ----------------------------------------------------------------------------------

// Adds to the gradients of kVec channels of a cell, in whatever order the warps come.
struct AddFloats {
  template <class Acc, int kVec>
  __device__ void operator()(const DeformConvParams& p, int64_t cell,
                             const Acc (&values)[kVec]) const {
    atomic_add(p.grad_input.as<Acc>() + cell, values);
  }
};

// Where values are not finite, so is the unit's bound, or the offset's gradient.
struct AddFixedPoint {
  template <class Acc, int kVec>
  __device__ void operator()(const DeformConvParams& p, int64_t cell,
                             const Acc (&values)[kVec]) const {
    const double units = static_cast<double>(*static_cast<const Acc*>(p.units));
    atomic_add_fixed_point(p.grad_input.as<int64_t>() + cell, values, units);
  }
};

template <class T, int kVec, class Add>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ DeformConvParams p, Add add) {
  using Acc = accumulate_t<T>;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + warp_id();
  if (index >= samples_of(p)) return;
  const auto own = own_sample<Acc>(p, index);
  const int64_t image = p.image * p.grad_input.stride[0];
  Acc sums[4] = {};
  for_each_vector<T, kVec>(p, own, [&](int c, T* column) {
    const auto grads = Vec<T, kVec>::load(column);
    const Cells<T, kVec> cells(p, own.sample, c);
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

bool aligned_to(const View<4>& view, int64_t vector) {
  return reinterpret_cast<uintptr_t>(view.data) % (vector * bytes_of(view.dtype)) == 0 &&
         view.stride[0] % vector == 0 && view.stride[2] % vector == 0 &&
         view.stride[3] % vector == 0;
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

// ---- Product on tensor cores -------------------------------------------------------------------

constexpr int kTilePixels = 128;
constexpr int kWarpPixels = 64;  // warps: 2 along pixels, 4 along outputs
template <class T>
constexpr int kStepChannels = 64 / sizeof(T);  // columns per step; a tap's channels are a multiple
template <class T>
constexpr int kRow = 80 / sizeof(T);  // rows in shared memory: no two of 8 share a bank
template <class T>
constexpr int kVector = 16 / sizeof(T);
static_assert(kTilePixels * 2 == kThreads, "two threads per pixel make its columns of a step");

// Makes a pixel's columns, two vectors at a time; loads are apart from arithmetic so that
// products run between the two.
template <class T>
struct ColumnMaker {
  const T* image;
  int cell;             // north-west cell, from the image's first element
  unsigned inside = 0;  // bit k: cell k is inside the map; the others count as 0
  float weight[4];
  Vec<T, kVector<T>> cells[4][2];

  // Goes to a tap and a group of offsets.
  __device__ void move(const DeformConvParams& p, int offset_group, int tap, OutputPixel pixel) {
    const Sample<float> sample = read_sample<float>(p, offset_group, tap, pixel);
    const float mask = read_mask<float>(p, offset_group, tap, pixel);
    cell = static_cast<int>(sample.cell(0, p.input));
    inside = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (!sample.outside && sample.inside(k, p.input)) inside |= 1u << k;
      weight[k] = sample.outside ? 0.0f : sample.weight(k) * mask;
    }
  }

  __device__ void load(const DeformConvParams& p, int channel) {
    const int row = static_cast<int>(p.input.stride[2]),
              column = static_cast<int>(p.input.stride[3]);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const T* source = image + (cell + k / 2 * row + k % 2 * column + channel);
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        cells[k][v] = Vec<T, kVector<T>>{};
        if (inside >> k & 1) cells[k][v] = Vec<T, kVector<T>>::load(source + kVector<T> * v);
      }
    }
  }

  __device__ void store(T* row) const {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      Vec<T, kVector<T>> column;
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          sum = multiply_add(weight[k], static_cast<float>(cells[k][v][e]), sum);
        }
        column[e] = static_cast<T>(sum);
      }
      column.store(row + kVector<T> * v);
    }
  }
};

struct ProductKernelParams : DeformConvProductParams {
  bool pairs_in_output;  // two outputs of a pixel move as one
};

// The warp's sums: kWarpPixels pixels times kWarpOutputs outputs in tiles of 16 x 8.
template <class T, int kWarpOutputs>
struct WarpProduct {
  static constexpr int kRows = kWarpPixels / 16, kColumns = kWarpOutputs / 8;
  float sums[kRows][kColumns][4] = {};

  __device__ void add(const T* left, const T* right) {
#pragma unroll
    for (int k = 0; k < kStepChannels<T>; k += 2 * kHalfRow<T>) {
      unsigned a[kRows][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        load_left(a[i], left + 16 * i * kRow<T> + k, kRow<T>);
#pragma unroll
        for (unsigned& word : a[i]) word = rounded_word<T>(word);
      }
#pragma unroll
      for (int j = 0; j < kColumns; j += 2) {
        unsigned b[2][2];
        load_right(b, right + 8 * j * kRow<T> + k, kRow<T>);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (unsigned& word : b[half]) word = rounded_word<T>(word);
#pragma unroll
          for (int i = 0; i < kRows; ++i) multiply_tiles<T>(sums[i][j + half], a[i], b[half]);
        }
      }
    }
  }

  // Writes the sums, whose first is of pixel `first` of the batch and of output `channel`.
  __device__ void store(const ProductKernelParams& q, int64_t first, int channel) const {
    const int64_t height = q.output.size[2], width = q.output.size[3];
    const T* bias = q.bias.as<const T>();
#pragma unroll
    for (int row = 0; row < 2 * kRows; ++row) {
      const int64_t index = first + 8 * row + lane_id() / 4;
      if (index >= q.output.size[0] * height * width) continue;
      const int64_t image = index / (height * width), pixel = index % (height * width);
      T* out = q.output.at<T>(image, 0, pixel / width, pixel % width);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int c = channel + 8 * j + lane_id() % 4 * 2;
        Vec<T, 2> pair;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const bool shifted = bias != nullptr && c + e < q.output.size[1];
          const float shift = shifted ? static_cast<float>(bias[(c + e) * q.bias.stride[0]]) : 0.0f;
          pair[e] = static_cast<T>(sums[row / 2][j][row % 2 * 2 + e] + shift);
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

template <int kTileOutputs>
constexpr size_t kProductShared = 2 * (kTilePixels + kTileOutputs) * 80;

template <class T, int kTileOutputs>
__device__ void multiply_columns(const ProductKernelParams& q) {
  constexpr int kWarpOutputs = kTileOutputs / 4;
  const DeformConvParams& p = q.sampling;
  T* left = dynamic_shared<T>();                // [2][kTilePixels][kRow<T>]
  T* right = left + 2 * kTilePixels * kRow<T>;  // [2][kTileOutputs][kRow<T>]
  const int64_t pixels = q.output.size[2] * q.output.size[3];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTilePixels;
  const int first_output = blockIdx.y * kTileOutputs;
  const int channels = static_cast<int>(p.input.size[1]);
  const int offset_channels = channels / static_cast<int>(p.offset_groups);
  const int row = thread_rank() / 2, column = thread_rank() % 2 * 2 * kVector<T>;
  // Threads beyond the last pixel make its columns again; nobody stores their products.
  const int64_t last = q.output.size[0] * pixels - 1;
  const int64_t own = first + row < last ? first + row : last;
  ColumnMaker<T> maker;
  maker.image = p.input.at<const T>(own / pixels, column);
  // Starts loading what step `step` multiplies.
  const auto start = [&](int step) {
    const int position = step * kStepChannels<T>, c = position % channels;
    if (c % offset_channels == 0) {
      const OutputPixel pixel = output_pixel(p, own / pixels, own % pixels);
      maker.move(p, c / offset_channels, position / channels, pixel);
    }
    maker.load(p, c);
    T* target = right + step % 2 * kTileOutputs * kRow<T>;
#pragma unroll 1
    for (int i = thread_rank(); i < kTileOutputs * kStepChannels<T> / kVector<T>; i += kThreads) {
      const int n = i / (kStepChannels<T> / kVector<T>),
                k = i % (kStepChannels<T> / kVector<T>)*kVector<T>;
      const bool exists = first_output + n < q.weights.size[0];
      const T* source = q.weights.at<const T>(exists ? first_output + n : 0, position + k);
      copy_async(target + n * kRow<T> + k, source, exists);
    }
  };
  const auto finish = [&](int step) {
    maker.store(left + (step % 2 * kTilePixels + row) * kRow<T> + column);
    wait_for_copies();
  };
  WarpProduct<T, kWarpOutputs> product;
  const int warp_pixel = warp_id() % 2 * kWarpPixels, warp_output = warp_id() / 2 * kWarpOutputs;
  const int steps = static_cast<int>(q.weights.size[1]) / kStepChannels<T>;
  start(0);
  finish(0);
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) start(step + 1);
    product.add(left + (step % 2 * kTilePixels + warp_pixel) * kRow<T>,
                right + (step % 2 * kTileOutputs + warp_output) * kRow<T>);
    if (step + 1 < steps) finish(step + 1);
    __syncthreads();
  }
  product.store(q, first + warp_pixel, first_output + warp_output);
}

template <class T, int kTileOutputs>
__global__ void __launch_bounds__(kThreads, 1)
    product_kernel(const __grid_constant__ ProductKernelParams q) {
  if constexpr (kHasMultiplyTiles) multiply_columns<T, kTileOutputs>(q);
}

template <class T, int kTileOutputs>
void launch_product(const DeformConvProductParams& q, cudaStream_t stream) {
  const int64_t pixels = q.output.size[0] * q.output.size[2] * q.output.size[3];
  const bool pairs =
      q.output.stride[1] == 1 && q.output.size[1] % 2 == 0 && aligned_to(q.output, 2);
  const ProductKernelParams kernel_params{q, pairs};
  launch("deform_conv_product", product_kernel<T, kTileOutputs>,
         make_grid(ceil_div<int64_t>(pixels, kTilePixels),
                   ceil_div<int64_t>(q.output.size[1], kTileOutputs)),
         dim3(kThreads), kProductShared<kTileOutputs>, stream, kernel_params);
}

template <class T>
void product(const DeformConvProductParams& q, cudaStream_t stream) {
  if (q.output.size[1] <= 128) return launch_product<T, 128>(q, stream);
  launch_product<T, 256>(q, stream);
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
  const DeformConvParams& p = params.sampling;
  const int64_t offset_channels = p.input.size[1] / p.offset_groups;
  FASTSEG_CHECK(offset_channels % 32 == 0,
                "input must have a multiple of 32 channels per group of offsets, got ",
                offset_channels);
  FASTSEG_CHECK(aligned_to(p.input, 16 / bytes_of(p.input.dtype)) &&
                    reinterpret_cast<uintptr_t>(params.weights.data) % 16 == 0,
                "input and weights must be aligned to 16 bytes");
  FASTSEG_CHECK(p.input.stride[2] * p.input.size[2] < int64_t{1} << 31,
                "input must have less than 2^31 elements per image");
  FASTSEG_CHECK(p.input.dtype != DType::f64, "input must be float32, float16 or bfloat16, got ",
                name_of(p.input.dtype));
  if (p.input.dtype == DType::f32) return product<float>(params, stream);
  if (p.input.dtype == DType::f16) return product<half_t>(params, stream);
  product<bfloat16_t>(params, stream);
}

}  // namespace fastseg
