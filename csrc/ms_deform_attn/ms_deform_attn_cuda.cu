// Multi-scale deformable attention on CUDA. A group of lanes (a power of two, at most a warp)
// serves one query and head; each lane owns vectors of 16 bytes of its channels, so that a cell is
// one coalesced access of the group. Every lane locates the samples itself: the few instructions
// cost less than passing the results around.
#include "core/cuda.cuh"
#include "core/dispatch.h"
#include "ms_deform_attn/ms_deform_attn_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;

template <class T>
constexpr int kVectorOf = 16 / static_cast<int>(sizeof(T));

struct Level {
  int width, height, start;
  bool fits;  // within the rows of value
};

__device__ Level read_level(const MsDeformAttnParams& p, int l) {
  const bool shapes = p.levels.shapes.data != nullptr, starts = p.levels.starts.data != nullptr;
  const int64_t height = shapes ? *p.levels.shapes.at<const int64_t>(l, 0) : p.levels.height[l];
  const int64_t width = shapes ? *p.levels.shapes.at<const int64_t>(l, 1) : p.levels.width[l];
  const int64_t start = starts ? *p.levels.starts.at<const int64_t>(l) : p.levels.start[l];
  const int64_t rows = p.value.size[1];
  const bool fits = height >= 0 && width >= 0 && start >= 0 && start <= rows &&
                    (width == 0 || height <= (rows - start) / width);
  return {static_cast<int>(width), static_cast<int>(height), static_cast<int>(start), fits};
}

// The query and head of a group of lanes, and the lane's place in it.
struct Place {
  int64_t b, q, m;
  int lane;
  bool exists;  // false past the end: such lanes still take part in shuffles
};

__device__ Place find_place(const MsDeformAttnParams& p, int lanes) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t queries = p.output.size[1], heads = p.output.size[2];
  const int64_t group = thread / lanes;
  return {group / heads / queries, group / heads % queries, group % heads,
          static_cast<int>(thread % lanes), group < p.output.size[0] * queries * heads};
}

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) forward_kernel(MsDeformAttnParams p, int lanes) {
  using Acc = accumulate_t<T>;
  const Place place = find_place(p, lanes);
  if (!place.exists) return;
  const Acc* location = p.locations.at<const Acc>(place.b, place.q, place.m);
  const Acc* weight = p.weights.at<const Acc>(place.b, place.q, place.m);
  const int64_t channels = p.value.size[3];
  for (int64_t c = place.lane * kVector; c < channels; c += lanes * kVector) {
    const T* value = p.value.at<const T>(place.b, 0, place.m, c);
    Acc sum[kVector] = {};
    for (int l = 0; l < p.locations.size[3]; ++l) {
      const Level level = read_level(p, l);
      for (int64_t point = 0; point < p.locations.size[4]; ++point) {
        const Acc* at = location + l * p.locations.stride[3] + point * p.locations.stride[4];
        const Acc share = weight[l * p.weights.stride[3] + point * p.weights.stride[4]];
        const Sample<Acc> sample =
            locate(at[0], at[p.locations.stride[5]], level.width, level.height, level.start);
        if (!level.fits) sum[0] = Acc(NAN);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          if (!level.fits || sample.cell[corner] < 0) continue;
          const Acc part = share * corner_weight(sample.x, sample.y, corner);
          const auto cell = Vec<T, kVector>::load(value + sample.cell[corner] * p.value.stride[1]);
#pragma unroll
          for (int i = 0; i < kVector; ++i) {
            sum[i] = multiply_add(part, static_cast<Acc>(cell[i]), sum[i]);
          }
        }
      }
    }
    Vec<T, kVector> result;
#pragma unroll
    for (int i = 0; i < kVector; ++i) result[i] = static_cast<T>(sum[i]);
    result.store(p.output.at<T>(place.b, place.q, place.m, c));
  }
}

// Adds to memory that other threads add to as well.
template <class Acc, int kVector>
__device__ void add_to(Acc* to, const Acc* values) {
  if constexpr (std::is_same_v<Acc, float> && kVector % 4 == 0) {
#pragma unroll
    for (int i = 0; i < kVector; i += 4) atomic_add_vector(to + i, values + i);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) atomicAdd(to + i, values[i]);
  }
}

// Units of the fixed-point sums: a power of two so small that no sum overflows 62 bits. A cell gets
// at most one term of each point, none larger than the product of the two bounds.
__device__ double fixed_point_scale(const MsDeformAttnBackwardParams& p) {
  const double bound = *p.largest.at<const double>(0) * *p.largest.at<const double>(1);
  const View<6>& locations = p.forward.locations;
  const double terms = static_cast<double>(locations.size[1] * locations.size[4]);
  int exponent = 0;
  frexp(bound * terms, &exponent);
  return bound > 0 && bound * terms < INFINITY ? ldexp(1.0, 62 - exponent) : 1.0;
}

template <class Acc, int kVector>
__device__ void add_fixed(int64_t* to, const Acc* values, double scale) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const int64_t units = __double2ll_rn(static_cast<double>(values[i]) * scale);
    atomicAdd(reinterpret_cast<unsigned long long*>(to + i),
              static_cast<unsigned long long>(units));
  }
}

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(MsDeformAttnBackwardParams params, int lanes) {
  using Acc = accumulate_t<T>;
  const MsDeformAttnParams& p = params.forward;
  const Place place = find_place(p, lanes);
  const int64_t channels = p.value.size[3], points = p.locations.size[4];
  const bool fixed = params.fixed_point.data != nullptr;
  const double scale = fixed ? fixed_point_scale(params) : 1.0;
  for (int l = 0; l < p.locations.size[3]; ++l) {
    const Level level = read_level(p, l);
    for (int64_t point = 0; point < points; ++point) {
      Acc along_x = 0, along_y = 0, along_weight = 0, share = 0;
      if (place.exists) {
        const Acc* at = p.locations.at<const Acc>(place.b, place.q, place.m, l, point);
        share = *p.weights.at<const Acc>(place.b, place.q, place.m, l, point);
        const Sample<Acc> sample =
            locate(at[0], at[p.locations.stride[5]], level.width, level.height, level.start);
        for (int64_t c = place.lane * kVector; c < channels; c += lanes * kVector) {
          const auto grad =
              Vec<T, kVector>::load(p.output.at<const T>(place.b, place.q, place.m, c));
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            if (!level.fits || sample.cell[corner] < 0) continue;
            const int64_t row = sample.cell[corner];
            const auto cell = Vec<T, kVector>::load(p.value.at<const T>(place.b, row, place.m, c));
            const Acc part = corner_weight(sample.x, sample.y, corner);
            Acc dot = 0, terms[kVector];
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
              dot = multiply_add(static_cast<Acc>(grad[i]), static_cast<Acc>(cell[i]), dot);
              terms[i] = share * part * static_cast<Acc>(grad[i]);
            }
            along_weight = multiply_add(part, dot, along_weight);
            along_x += (corner & 1 ? dot : -dot) * (corner & 2 ? sample.y : 1 - sample.y);
            along_y += (corner & 2 ? dot : -dot) * (corner & 1 ? sample.x : 1 - sample.x);
            if (fixed) {
              add_fixed<Acc, kVector>(params.fixed_point.at<int64_t>(place.b, row, place.m, c),
                                      terms, scale);
            } else {
              add_to<Acc, kVector>(params.grad_value.at<Acc>(place.b, row, place.m, c), terms);
            }
          }
        }
      }
      for (int distance = lanes / 2; distance > 0; distance /= 2) {
        along_x += __shfl_xor_sync(kFullMask, along_x, distance);
        along_y += __shfl_xor_sync(kFullMask, along_y, distance);
        along_weight += __shfl_xor_sync(kFullMask, along_weight, distance);
      }
      if (!place.exists || place.lane != 0) continue;
      const Acc nan = level.fits ? Acc(0) : Acc(NAN);
      Acc* location = params.grad_locations.at<Acc>(place.b, place.q, place.m, l, point);
      location[0] = along_x * share * static_cast<Acc>(level.width) + nan;
      location[1] = along_y * share * static_cast<Acc>(level.height) + nan;
      *params.grad_weights.at<Acc>(place.b, place.q, place.m, l, point) = along_weight + nan;
    }
  }
}

// Sums in fixed point become the gradient of value; both are contiguous.
template <class Acc>
__global__ void __launch_bounds__(kThreads) convert_kernel(MsDeformAttnBackwardParams p) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= p.grad_value.numel()) return;
  const double bound = *p.largest.at<const double>(0) * *p.largest.at<const double>(1);
  const double sum = static_cast<double>(p.fixed_point.as<const int64_t>()[i]);
  p.grad_value.as<Acc>()[i] =
      bound < INFINITY ? static_cast<Acc>(sum / fixed_point_scale(p)) : Acc(NAN);
}

// Whether all vectors of kVectorOf<T> channels are aligned.
template <class T>
bool has_vectors(const View<4>& view) {
  constexpr int n = kVectorOf<T>;
  return view.stride[3] == 1 && view.size[3] % n == 0 && view.stride[0] % n == 0 &&
         view.stride[1] % n == 0 && view.stride[2] % n == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// f(lanes, blocks) for groups of lanes that cover the channels in vectors of this many.
template <class F>
void with_groups(const MsDeformAttnParams& p, int vector, F f) {
  int lanes = 1;
  while (lanes < kWarpSize && lanes * vector < p.value.size[3]) lanes *= 2;
  const int64_t threads = p.output.size[0] * p.output.size[1] * p.output.size[2] * lanes;
  f(lanes, make_grid(ceil_div<int64_t>(threads, kThreads)));
}

}  // namespace

void ms_deform_attn_forward_cuda(const MsDeformAttnParams& p, cudaStream_t stream) {
  dispatch_floating(p.value.dtype, "value", [&](auto zero) {
    using T = decltype(zero);
    const bool vectors = has_vectors<T>(p.value) && has_vectors<T>(p.output);
    with_groups(p, vectors ? kVectorOf<T> : 1, [&](int lanes, dim3 grid) {
      const auto kernel = vectors ? forward_kernel<T, kVectorOf<T>> : forward_kernel<T, 1>;
      launch("ms_deform_attn_forward", kernel, grid, kThreads, 0, stream, p, lanes);
    });
  });
}

void ms_deform_attn_backward_cuda(const MsDeformAttnBackwardParams& params, cudaStream_t stream) {
  const MsDeformAttnParams& p = params.forward;
  dispatch_floating(p.value.dtype, "value", [&](auto zero) {
    using T = decltype(zero);
    const bool vectors = has_vectors<T>(p.value) && has_vectors<T>(p.output);
    with_groups(p, vectors ? kVectorOf<T> : 1, [&](int lanes, dim3 grid) {
      const auto kernel = vectors ? backward_kernel<T, kVectorOf<T>> : backward_kernel<T, 1>;
      launch("ms_deform_attn_backward", kernel, grid, kThreads, 0, stream, params, lanes);
    });
    if (params.fixed_point.data == nullptr) return;
    launch("ms_deform_attn_convert", convert_kernel<accumulate_t<T>>,
           make_grid(ceil_div<int64_t>(params.grad_value.numel(), kThreads)), kThreads, 0, stream,
           params);
  });
}

}  // namespace fastseg
