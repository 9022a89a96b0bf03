// Deformable convolution's columns on CUDA: a warp owns one sample (a tap of an output pixel and a
// group of offsets), its lanes own vectors of channels.
#include <type_traits>

#include "core/cuda.cuh"
#include "core/dispatch.h"
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
    Acc* sums = p.grad_input.as<Acc>() + cell;
    if constexpr (std::is_same_v<Acc, float> && kVec % 4 == 0) {
#pragma unroll
      for (int e = 0; e < kVec; e += 4) atomic_add_vector(sums + e, values + e);
    } else {
#pragma unroll
      for (int e = 0; e < kVec; ++e) atomicAdd(sums + e, values[e]);
    }
  }
};

// Adds multiples of a unit as integers: the same result in any order. Values that are not finite
// are left out; they make the unit's bound NaN, or the offset's gradient.
struct AddFixedPoint {
  template <class Acc, int kVec>
  __device__ void operator()(const DeformConvParams& p, int64_t cell,
                             const Acc (&values)[kVec]) const {
    const double units = static_cast<double>(*static_cast<const Acc*>(p.units));
    auto* sums = p.grad_input.as<unsigned long long>() + cell;
#pragma unroll
    for (int e = 0; e < kVec; ++e) {
      const double value = static_cast<double>(values[e]) * units;
      if (!(fabs(value) < 0x1p62)) continue;
      atomicAdd(sums + e, static_cast<unsigned long long>(static_cast<long long>(rint(value))));
    }
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

}  // namespace

void deform_conv_sample_cuda(const DeformConvParams& params, cudaStream_t stream) {
  dispatch_floating(params.input.dtype, "input",
                    [&](auto zero) { sample<decltype(zero)>(params, stream); });
}

void deform_conv_backward_cuda(const DeformConvParams& params, cudaStream_t stream) {
  dispatch_floating(params.input.dtype, "input",
                    [&](auto zero) { backward<decltype(zero)>(params, stream); });
}

}  // namespace fastseg
