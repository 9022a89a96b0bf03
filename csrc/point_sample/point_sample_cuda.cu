// Point sampling on CUDA: a thread locates one point and visits the channels of its chunk.
#include "core/atomic_sums.cuh"
#include "core/cuda.cuh"
#include "point_sample/point_sample_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kChannelsPerThread = 16;

// The point of a thread and the channels it visits.
struct Place {
  int64_t n, point, first, end;
  bool exists;
};

// Points of one batch entry and chunk lie next to each other.
__device__ Place find_place(int64_t batch, int64_t channels, int64_t points, int64_t per_thread) {
  const int64_t thread = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t chunks = ceil_div(channels, per_thread);
  const int64_t group = thread / points, first = group % chunks * per_thread;
  const int64_t end = first + per_thread;
  return {group / chunks, thread % points, first, end < channels ? end : channels,
          thread < batch * chunks * points};
}

dim3 grid_of(const View<3>& output, int64_t per_thread) {
  const int64_t threads = output.size[0] * ceil_div(output.size[1], per_thread) * output.size[2];
  return make_grid(ceil_div<int64_t>(threads, kThreads));
}

template <class Acc>
__device__ Sample<Acc> locate_point(const View<4>& maps, const View<3>& points, const Place& at) {
  const Acc* point = points.at<const Acc>(at.n, at.point);
  return locate(maps, point[0], point[points.stride[2]]);
}

template <class In, class Out>
__global__ void __launch_bounds__(kThreads) forward_kernel(PointSampleParams p) {
  using Acc = accumulate_t<In>;
  const Place at =
      find_place(p.output.size[0], p.output.size[1], p.output.size[2], kChannelsPerThread);
  if (!at.exists) return;
  const Sample<Acc> sample = locate_point<Acc>(p.input, p.points, at);
  for (int64_t c = at.first; c < at.end; ++c) {
    const In* map = p.input.at<const In>(at.n, c);
    Acc sum = 0;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const Acc weight = corner_weight(sample.x, sample.y, corner);
      if (sample.cell[corner] < 0 || weight == Acc(0)) continue;
      sum = multiply_add(static_cast<Acc>(map[sample.cell[corner]]), weight, sum);
    }
    *p.output.at<Out>(at.n, c, at.point) = static_cast<Out>(sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) input_grad_kernel(PointSampleInputGradParams p) {
  using Acc = accumulate_t<T>;
  const View<3>& grads = p.grad_output;
  const Place at = find_place(grads.size[0], grads.size[1], grads.size[2], kChannelsPerThread);
  if (!at.exists) return;
  const Sample<Acc> sample = locate_point<Acc>(p.grad_input, p.points, at);
  const double* units = p.units.as<const double>();
  for (int64_t c = at.first; c < at.end; ++c) {
    const Acc grad = static_cast<Acc>(*grads.at<const T>(at.n, c, at.point));
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int cell = sample.cell[corner];
      if (cell < 0) continue;
      const Acc term[1] = {grad * corner_weight(sample.x, sample.y, corner)};
      if (units == nullptr) {
        atomic_add(p.grad_input.at<Acc>(at.n, c) + cell, term);
      } else {
        atomic_add_fixed_point(p.grad_input.at<int64_t>(at.n, c) + cell, term, *units);
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) points_grad_kernel(PointSamplePointsGradParams p) {
  using Acc = accumulate_t<T>;
  const View<3>& grads = p.grad_output;
  const Place at = find_place(grads.size[0], 1, grads.size[2], 1);
  if (!at.exists) return;
  const Sample<Acc> sample = locate_point<Acc>(p.input, p.points, at);
  Acc along_x = 0, along_y = 0;
  for (int64_t c = 0; c < grads.size[1]; ++c) {
    const T* map = p.input.at<const T>(at.n, c);
    Acc cells[4] = {};
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (sample.cell[corner] >= 0) cells[corner] = static_cast<Acc>(map[sample.cell[corner]]);
    }
    const Slope<Acc> slope = slope_between(cells, sample.x, sample.y);
    const Acc grad = static_cast<Acc>(*grads.at<const T>(at.n, c, at.point));
    along_x = multiply_add(grad, slope.x, along_x);
    along_y = multiply_add(grad, slope.y, along_y);
  }
  Acc* to = p.grad_points.at<Acc>(at.n, at.point);
  to[0] = along_x * static_cast<Acc>(p.input.size[3]);
  to[p.grad_points.stride[2]] = along_y * static_cast<Acc>(p.input.size[2]);
}

}  // namespace

void point_sample_cuda(const PointSampleParams& p, cudaStream_t stream) {
  dispatch_maps(p.input.dtype, [&](auto cell, auto sample) {
    launch("point_sample", forward_kernel<decltype(cell), decltype(sample)>,
           grid_of(p.output, kChannelsPerThread), kThreads, 0, stream, p);
  });
}

void point_sample_input_grad_cuda(const PointSampleInputGradParams& p, cudaStream_t stream) {
  dispatch_floating(p.grad_output.dtype, "grad_output", [&](auto zero) {
    using T = decltype(zero);
    launch("point_sample_input_grad", input_grad_kernel<T>,
           grid_of(p.grad_output, kChannelsPerThread), kThreads, 0, stream, p);
  });
}

void point_sample_points_grad_cuda(const PointSamplePointsGradParams& p, cudaStream_t stream) {
  const View<3>& grads = p.grad_output;
  dispatch_floating(p.input.dtype, "input", [&](auto zero) {
    launch("point_sample_points_grad", points_grad_kernel<decltype(zero)>,
           make_grid(ceil_div<int64_t>(grads.size[0] * grads.size[2], kThreads)), kThreads, 0,
           stream, p);
  });
}

}  // namespace fastseg
