// Point sampling on the CPU. A block of points is located once, points in the vector lanes, for the
// maps of all channels.
#include <algorithm>
#include <cstring>

#include "core/cpu_dispatch.h"
#include "core/huge_pages.h"
#include "core/parallel.h"
#include "point_sample/point_sample_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int kBlock = 512;            // points; located, they fit the first cache
constexpr int kSamplesPerTask = 8192;  // points times channels

// Up to kBlock points of one batch entry, located.
template <class Acc>
struct Block {
  int cell[4][kBlock];
  Acc x[kBlock], y[kBlock];

  void read(const View<4>& maps, const View<3>& points, int64_t n, int64_t first, int count) {
    const Acc* from = points.at<const Acc>(n, first);
    const int64_t step = points.stride[1], to_y = points.stride[2];
    for (int i = 0; i < count; ++i) {
      x[i] = from[i * step];
      y[i] = from[i * step + to_y];
    }
    const View<4> view = maps;  // a copy that the stores below cannot change
    for (int i = 0; i < count; ++i) {
      const Sample<Acc> sample = locate(view, x[i], y[i]);
      cell[0][i] = sample.cell[0];
      cell[1][i] = sample.cell[1];
      cell[2][i] = sample.cell[2];
      cell[3][i] = sample.cell[3];
      x[i] = sample.x;
      y[i] = sample.y;
    }
  }
};

// Reads without a branch, so that lanes can read together; a map has at least one cell.
template <class Acc, class T>
FASTSEG_HD Acc read_cell(const T* map, int cell) {
  const Acc value = static_cast<Acc>(map[cell < 0 ? 0 : cell]);
  return cell < 0 ? Acc(0) : value;
}

// As Block, where cells need not be told from those outside: each row's two cells lie next to each
// other in the map, so that they move together, and a cell outside it has weight 0.
template <class Acc>
struct Taps {
  int north[kBlock], south[kBlock];  // offsets of each row's western cell
  Acc west_weight[kBlock], east_weight[kBlock], north_weight[kBlock], south_weight[kBlock];

  void read(const View<4>& maps, const View<3>& points, int64_t n, int64_t first, int count) {
    const Acc* from = points.at<const Acc>(n, first);
    const int64_t step = points.stride[1], to_y = points.stride[2];
    Acc x[kBlock], y[kBlock];
    if (step == 2 && to_y == 1) {
      for (int i = 0; i < count; ++i) {
        x[i] = from[2 * i];
        y[i] = from[2 * i + 1];
      }
    } else {
      for (int i = 0; i < count; ++i) {
        x[i] = from[i * step];
        y[i] = from[i * step + to_y];
      }
    }
    const int width = static_cast<int>(maps.size[3]), height = static_cast<int>(maps.size[2]);
    const int row = static_cast<int>(maps.stride[2]), column = static_cast<int>(maps.stride[3]);
    const int last_pair = std::max(0, width - 2);
    for (int i = 0; i < count; ++i) {
      const Position<Acc> at = position(x[i], y[i], width, height);
      const Acc west = at.x0 < 0 ? Acc(0) : Acc(1) - at.x;
      const Acc east = at.x0 + 1 < width ? at.x : Acc(0);
      north_weight[i] = at.y0 < 0 ? Acc(0) : Acc(1) - at.y;
      south_weight[i] = at.y0 + 1 < height ? at.y : Acc(0);
      // At the borders the one cell inside is the other of its pair.
      const bool first_column = at.x0<0, last_column = at.x0> last_pair;
      west_weight[i] = first_column ? east : last_column ? Acc(0) : west;
      east_weight[i] = first_column ? Acc(0) : last_column ? west : east;
      const int x0 = std::min(std::max(at.x0, 0), last_pair) * column;
      north[i] = std::max(at.y0, 0) * row + x0;
      south[i] = std::min(at.y0 + 1, height - 1) * row + x0;
    }
  }
};

template <class T, class Acc>
FASTSEG_HD Acc add_weighted(T cell, Acc weight, Acc sum) {
  const Acc next = multiply_add(static_cast<Acc>(cell), weight, sum);
  return weight == Acc(0) ? sum : next;  // 0 times infinity
}

// `step` leads from the western cell to the eastern one. The cells are first collected one by one,
// then weighted in lanes: faster than gather instructions.
template <class T, class Acc>
void sample(const Taps<Acc>& taps, const T* map, int64_t step, int count, Acc* __restrict output) {
  T north[2 * kBlock], south[2 * kBlock];
  if (step == 1) {
    for (int i = 0; i < count; ++i) {
      memcpy(north + 2 * i, map + taps.north[i], 2 * sizeof(T));
      memcpy(south + 2 * i, map + taps.south[i], 2 * sizeof(T));
    }
  } else {
    for (int i = 0; i < count; ++i) {
      north[2 * i] = map[taps.north[i]];
      north[2 * i + 1] = map[taps.north[i] + step];
      south[2 * i] = map[taps.south[i]];
      south[2 * i + 1] = map[taps.south[i] + step];
    }
  }
  for (int i = 0; i < count; ++i) {
    const Acc west = taps.west_weight[i], east = taps.east_weight[i];
    Acc sum = add_weighted(north[2 * i], west * taps.north_weight[i], Acc(0));
    sum = add_weighted(north[2 * i + 1], east * taps.north_weight[i], sum);
    sum = add_weighted(south[2 * i], west * taps.south_weight[i], sum);
    output[i] = add_weighted(south[2 * i + 1], east * taps.south_weight[i], sum);
  }
}

// f(n, first, count) for blocks of points of all batch entries.
template <class F>
void for_blocks(int64_t batch, int64_t channels, int64_t points, F f) {
  const int64_t blocks = (points + kBlock - 1) / kBlock;
  const int64_t grain =
      std::max<int64_t>(1, kSamplesPerTask / kBlock / std::max<int64_t>(1, channels));
  parallel_for(batch * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % blocks * kBlock;
      f(task / blocks, first, static_cast<int>(std::min<int64_t>(kBlock, points - first)));
    }
  });
}

template <class In, class Out>
void forward(const PointSampleParams& p) {
  using Acc = accumulate_t<In>;
  const bool empty = p.input.size[2] == 0 || p.input.size[3] == 0;
  const int64_t channels = p.output.size[1], step = p.output.stride[2];
  const int64_t to_east = p.input.size[3] == 1 ? 0 : p.input.stride[3];
  for_blocks(p.output.size[0], channels, p.output.size[2],
             [&](int64_t n, int64_t first, int count) {
               Taps<Acc> taps;
               Acc samples[kBlock] = {};
               if (!empty) taps.read(p.input, p.points, n, first, count);
               for (int64_t c = 0; c < channels; ++c) {
                 if (!empty) sample(taps, p.input.at<const In>(n, c), to_east, count, samples);
                 Out* output = p.output.at<Out>(n, c, first);
                 for (int i = 0; i < count; ++i) output[i * step] = static_cast<Out>(samples[i]);
               }
             });
}

// Adds the points' shares of `grad`, `grad_step` apart, to the cells of `sums`, which lie without
// gaps. Shares are computed in lanes, then added one by one.
template <class T, class Acc>
void spread(const Taps<Acc>& taps, const T* grad, int64_t grad_step, int64_t to_east, int count,
            Acc* sums) {
  Acc value[kBlock], north[2 * kBlock], south[2 * kBlock];
  for (int i = 0; i < count; ++i) value[i] = static_cast<Acc>(grad[i * grad_step]);
  for (int i = 0; i < count; ++i) {
    const Acc west = taps.west_weight[i], east = taps.east_weight[i];
    north[2 * i] = add_weighted(value[i], west * taps.north_weight[i], Acc(0));
    north[2 * i + 1] = add_weighted(value[i], east * taps.north_weight[i], Acc(0));
    south[2 * i] = add_weighted(value[i], west * taps.south_weight[i], Acc(0));
    south[2 * i + 1] = add_weighted(value[i], east * taps.south_weight[i], Acc(0));
  }
  for (int i = 0; i < count; ++i) {
    Acc *upper = sums + taps.north[i], *lower = sums + taps.south[i];
    upper[0] += north[2 * i];
    upper[to_east] += north[2 * i + 1];
    lower[0] += south[2 * i];
    lower[to_east] += south[2 * i + 1];
  }
}

template <class T>
void input_grad(const PointSampleInputGradParams& p) {
  using Acc = accumulate_t<T>;
  const int64_t channels = p.grad_output.size[1], points = p.grad_output.size[2];
  const int64_t to_east = p.grad_input.size[3] == 1 ? 0 : 1;
  if (p.grad_input.numel() == 0) return;
  // Channels of a task share the located points; a task is one batch entry where there are enough.
  const int64_t share = p.grad_output.size[0] >= max_threads() ? channels : 1;
  parallel_for(p.grad_output.size[0] * channels / share, 1, [&](int64_t begin, int64_t end) {
    Taps<Acc> taps;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task * share / channels, c0 = task * share % channels;
      for (int64_t first = 0; first < points; first += kBlock) {
        const int count = static_cast<int>(std::min<int64_t>(kBlock, points - first));
        taps.read(p.grad_input, p.points, n, first, count);
        for (int64_t c = c0; c < c0 + share; ++c) {
          spread(taps, p.grad_output.at<const T>(n, c, first), p.grad_output.stride[2], to_east,
                 count, p.grad_input.at<Acc>(n, c));
        }
      }
    }
  });
}

template <class T>
void points_grad(const PointSamplePointsGradParams& p) {
  using Acc = accumulate_t<T>;
  const bool empty = p.input.size[2] == 0 || p.input.size[3] == 0;
  const int64_t channels = empty ? 0 : p.grad_output.size[1], step = p.grad_output.stride[2];
  const Acc width = static_cast<Acc>(p.input.size[3]), height = static_cast<Acc>(p.input.size[2]);
  for_blocks(p.grad_output.size[0], channels, p.grad_output.size[2],
             [&](int64_t n, int64_t first, int count) {
               Block<Acc> block;
               Acc along_x[kBlock] = {}, along_y[kBlock] = {};
               if (!empty) block.read(p.input, p.points, n, first, count);
               for (int64_t c = 0; c < channels; ++c) {
                 const T* map = p.input.at<const T>(n, c);
                 const T* grad = p.grad_output.at<const T>(n, c, first);
                 for (int i = 0; i < count; ++i) {
                   const Acc cells[4] = {read_cell<Acc>(map, block.cell[0][i]),
                                         read_cell<Acc>(map, block.cell[1][i]),
                                         read_cell<Acc>(map, block.cell[2][i]),
                                         read_cell<Acc>(map, block.cell[3][i])};
                   const Slope<Acc> slope = slope_between(cells, block.x[i], block.y[i]);
                   const Acc value = static_cast<Acc>(grad[i * step]);
                   along_x[i] = multiply_add(value, slope.x, along_x[i]);
                   along_y[i] = multiply_add(value, slope.y, along_y[i]);
                 }
               }
               for (int i = 0; i < count; ++i) {
                 Acc* to = p.grad_points.at<Acc>(n, first + i);
                 to[0] = along_x[i] * width;
                 to[p.grad_points.stride[2]] = along_y[i] * height;
               }
             });
}

}  // namespace

void point_sample_cpu(const PointSampleParams& params) {
  const View<3>& output = params.output;
  advise_huge_pages(output.data, output.numel() * bytes_of(output.dtype));
  dispatch_maps(params.input.dtype,
                [&](auto cell, auto sample) { forward<decltype(cell), decltype(sample)>(params); });
}

void point_sample_input_grad_cpu(const PointSampleInputGradParams& params) {
  dispatch_floating(params.grad_output.dtype, "grad_output",
                    [&](auto zero) { input_grad<decltype(zero)>(params); });
}

void point_sample_points_grad_cpu(const PointSamplePointsGradParams& params) {
  dispatch_floating(params.input.dtype, "input",
                    [&](auto zero) { points_grad<decltype(zero)>(params); });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(point_sample_cpu, PointSampleParams)
FASTSEG_CPU_LAUNCHER(point_sample_input_grad_cpu, PointSampleInputGradParams)
FASTSEG_CPU_LAUNCHER(point_sample_points_grad_cpu, PointSamplePointsGradParams)
