// Multi-scale deformable attention on the CPU. The samples of a whole block of points are located
// first; then each point's four cells are summed, channels in the vector lanes.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/exp2.h"
#include "core/huge_pages.h"
#include "core/lanes.h"
#include "core/parallel.h"
#include "ms_deform_attn/ms_deform_attn_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int kQueriesPerTask = 64;
constexpr int kQueriesPerBlock = 8;  // backward: located together

// The samples of some pairs of query and head, all levels and points of each.
template <class Acc>
class Samples {
 public:
  Samples(const MsDeformAttnParams& p, int64_t pairs)
      : p_(p), per_pair_(p.locations.size[3] * p.locations.size[4]) {
    const int64_t size = pairs * per_pair_;
    for (auto* floats : {&x_, &y_, &weight_}) floats->resize(size + kLanes<Acc> - 1);
    for (auto* integers : {&width_, &height_, &start_}) integers->resize(size);
    for (auto& rows : rows_) rows.resize(size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t level = i / p.locations.size[4] % p.locations.size[3];
      width_[i] = static_cast<int>(p.levels.width[level]);
      height_[i] = static_cast<int>(p.levels.height[level]);
      start_[i] = static_cast<int>(p.levels.start[level]);
    }
  }

  int64_t per_pair() const { return per_pair_; }

  void read(int64_t pair, int64_t b, int64_t q, int64_t m) {
    const Acc* location = p_.locations.template at<const Acc>(b, q, m);
    const Acc* weight = p_.weights.template at<const Acc>(b, q, m);
    const int64_t* step = p_.locations.stride + 3;
    const LevelTable& levels = p_.levels;
    int64_t i = pair * per_pair_;
    for (int64_t level = 0; level < p_.locations.size[3]; ++level) {
      const Frame<Acc> frame = frame_of<Acc>(p_, b, q, level, static_cast<int>(levels.width[level]),
                                             static_cast<int>(levels.height[level]));
      for (int64_t point = 0; point < p_.locations.size[4]; ++point, ++i) {
        const Acc* at = location + level * step[0] + point * step[1];
        x_[i] = at[0] * frame.scale_x + frame.origin_x;
        y_[i] = at[step[2]] * frame.scale_y + frame.origin_y;
        weight_[i] = weight[level * p_.weights.stride[3] + point * p_.weights.stride[4]];
      }
    }
  }

  // Turns what was read of the first pairs into positions between cells, and logits into weights.
  void locate_all(int64_t pairs) {
    const int *width = width_.data(), *height = height_.data(), *start = start_.data();
    Acc *x = x_.data(), *y = y_.data();
    int *row0 = rows_[0].data(), *row1 = rows_[1].data();
    int *row2 = rows_[2].data(), *row3 = rows_[3].data();
    const int64_t size = pairs * per_pair_;
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) {
      const Sample<Acc> sample = locate(x[i], y[i], width[i], height[i], start[i]);
      row0[i] = sample.cell[0];
      row1[i] = sample.cell[1];
      row2[i] = sample.cell[2];
      row3[i] = sample.cell[3];
      x[i] = sample.x;
      y[i] = sample.y;
    }
    if (p_.references.data != nullptr) softmax(pairs);
  }

  int row(int64_t i, int corner) const { return rows_[corner][i]; }
  Acc x(int64_t i) const { return x_[i]; }
  Acc y(int64_t i) const { return y_[i]; }
  Acc weight(int64_t i) const { return weight_[i]; }

 private:
  void softmax(int64_t pairs) {
    constexpr Acc kLog2E = Acc(1.4426950408889634);
    const int64_t size = pairs * per_pair_;
    Acc* weight = weight_.data();
    for (int64_t first = 0; first < size; first += per_pair_) {
      const Acc largest = *std::max_element(weight + first, weight + first + per_pair_);
      for (int64_t i = first; i < first + per_pair_; ++i) {
        weight[i] = (weight[i] - largest) * kLog2E;
      }
    }
    for (int64_t i = 0; i < size; i += kLanes<Acc>) {
      store_lanes<Acc, Acc>(weight + i, exp2_lanes(load_lanes<Acc>(weight + i)));
    }
    for (int64_t first = 0; first < size; first += per_pair_) {
      const Acc sum = std::accumulate(weight + first, weight + first + per_pair_, Acc(0));
      for (int64_t i = first; i < first + per_pair_; ++i) weight[i] /= sum;
    }
  }

  const MsDeformAttnParams& p_;
  int64_t per_pair_;
  std::vector<Acc> x_, y_, weight_;
  std::vector<int> width_, height_, start_, rows_[4];
};

// Channels [c, c + kVectors * kLanes) of one pair; with kVectors = 0 the `count` channels left.
template <class T, int kVectors, class Acc>
void attend(const MsDeformAttnParams& p, const Samples<Acc>& samples, int64_t first, const T* value,
            T* output, int count) {
  constexpr int n = kLanes<Acc>, vectors = kVectors == 0 ? 1 : kVectors;
  Lanes<Acc> sum[vectors] = {};
  Acc outside = 0;  // NaN where the weight of a cell outside the maps is not finite
  const int64_t row_stride = p.value.stride[1], stride = p.value.stride[3];
  for (int64_t i = first; i < first + samples.per_pair(); ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      const int row = samples.row(i, corner);
      if (row < 0) {
        outside += samples.weight(i) * Acc(0);
        continue;
      }
      const Acc weight = samples.weight(i) * corner_weight(samples.x(i), samples.y(i), corner);
      const T* cell = value + row * row_stride;
      for (int v = 0; v < vectors; ++v) {
        const Lanes<Acc> lanes =
            kVectors == 0 ? load_lanes<Acc>(cell, count, stride) : load_lanes<Acc>(cell + v * n);
        sum[v] = multiply_add(weight, lanes, sum[v]);
      }
    }
  }
  for (int v = 0; v < vectors; ++v) {
    sum[v] += outside;
    if (kVectors != 0 && p.output.stride[3] == 1) {
      store_lanes<T, Acc>(output + v * n, sum[v]);
    } else {
      for (int i = 0; i < (kVectors == 0 ? count : n); ++i) {
        output[(v * n + i) * p.output.stride[3]] = static_cast<T>(sum[v][i]);
      }
    }
  }
}

template <class T>
void forward(const MsDeformAttnParams& p) {
  using Acc = accumulate_t<T>;
  constexpr int n = kLanes<Acc>;
  const int64_t queries = p.output.size[1], heads = p.output.size[2], width = p.output.size[3];
  const bool dense = p.value.stride[3] == 1;
  parallel_for(p.output.size[0] * queries, kQueriesPerTask, [&](int64_t begin, int64_t end) {
    Samples<Acc> samples(p, heads);
    for (int64_t query = begin; query < end; ++query) {
      const int64_t b = query / queries, q = query % queries;
      for (int64_t m = 0; m < heads; ++m) samples.read(m, b, q, m);
      samples.locate_all(heads);
      for (int64_t m = 0; m < heads; ++m) {
        const T* value = p.value.template at<const T>(b, 0, m);
        T* output = p.output.template at<T>(b, q, m);
        const int64_t first = m * samples.per_pair();
        int64_t c = 0;
        const auto take = [&](auto step, int count) {
          attend<T, decltype(step)::value, Acc>(p, samples, first, value + c * p.value.stride[3],
                                                output + c * p.output.stride[3], count);
          c += count;
        };
        if (dense) {
          while (c + 4 * n <= width) take(std::integral_constant<int, 4>(), 4 * n);
          while (c + 2 * n <= width) take(std::integral_constant<int, 2>(), 2 * n);
          while (c + n <= width) take(std::integral_constant<int, 1>(), n);
        }
        while (c < width) {
          take(std::integral_constant<int, 0>(), static_cast<int>(std::min<int64_t>(n, width - c)));
        }
      }
    }
  });
}

// The gradients of one pair's samples: of positions in cells and of weights. `grad` is the output's
// gradient, `sums` the [D] gradients of value rows.
template <class T, class Acc>
void spread(const MsDeformAttnBackwardParams& p, const Samples<Acc>& samples, int64_t first,
            const T* value, const Acc* grad, Acc* sums, Acc* grad_positions, Acc* grad_weights) {
  constexpr int n = kLanes<Acc>;
  const View<4>& values = p.forward.value;
  const int64_t channels = values.size[3], stride = values.stride[3];
  for (int64_t k = 0; k < samples.per_pair(); ++k) {
    const int64_t i = first + k;
    const Acc x = samples.x(i), y = samples.y(i), weight = samples.weight(i);
    Acc dot[4] = {};  // grad_output * cell
    bool near = false;
    for (int corner = 0; corner < 4; ++corner) {
      const int row = samples.row(i, corner);
      if (row < 0) continue;
      near = true;
      const Acc share = weight * corner_weight(x, y, corner);
      const T* cell = value + row * values.stride[1];
      Acc* sum = sums + row * p.grad_value.stride[1];
      Lanes<Acc> products = {};
      int64_t c = 0;
      if (stride == 1) {
        for (; c + n <= channels; c += n) {
          const Lanes<Acc> lanes = load_lanes<Acc>(grad + c);
          products += lanes * load_lanes<Acc>(cell + c);
          store_lanes<Acc, Acc>(sum + c, multiply_add(share, lanes, load_lanes<Acc>(sum + c)));
        }
      }
      dot[corner] = sum_lanes<Acc>(products);
      for (; c < channels; ++c) {
        dot[corner] = multiply_add(grad[c], static_cast<Acc>(cell[c * stride]), dot[corner]);
        sum[c] = multiply_add(share, grad[c], sum[c]);
      }
    }
    const PointGrad<Acc> point = point_grad(dot, x, y, weight, near);
    grad_positions[2 * k] = point.x;
    grad_positions[2 * k + 1] = point.y;
    grad_weights[k] = point.weight;
  }
}

// From what spread() wrote for one pair to the gradients of what the caller gave.
template <class Acc>
void finish(const MsDeformAttnBackwardParams& p, const Samples<Acc>& samples, int64_t first,
            int64_t b, int64_t q, int64_t m) {
  const LevelTable& levels = p.forward.levels;
  for (int64_t l = 0; l < p.forward.locations.size[3]; ++l) {
    const int width = static_cast<int>(levels.width[l]);
    const int height = static_cast<int>(levels.height[l]);
    if (p.grad_references.data != nullptr) {
      write_reference_grad<Acc>(p, b, q, m, l, width, height);
    }
    scale_position_grads<Acc>(p, b, q, m, l, width, height);
  }
  if (p.forward.references.data == nullptr) return;
  Acc* grad = p.grad_weights.template at<Acc>(b, q, m);
  Acc mean = 0;
  for (int64_t k = 0; k < samples.per_pair(); ++k) mean += samples.weight(first + k) * grad[k];
  for (int64_t k = 0; k < samples.per_pair(); ++k) {
    grad[k] = samples.weight(first + k) * (grad[k] - mean);
  }
}

template <class T>
void backward(const MsDeformAttnBackwardParams& p) {
  using Acc = accumulate_t<T>;
  const View<4>& grad_output = p.forward.output;
  const int64_t queries = grad_output.size[1], heads = grad_output.size[2];
  const int64_t channels = p.grad_value.size[3];
  parallel_for(grad_output.size[0] * heads, 1, [&](int64_t begin, int64_t end) {
    Samples<Acc> samples(p.forward, kQueriesPerBlock);
    std::vector<Acc> grad(channels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / heads, m = task % heads;
      Acc* sums = p.grad_value.template at<Acc>(b, 0, m);
      const T* value = p.forward.value.template at<const T>(b, 0, m);
      for (int64_t q0 = 0; q0 < queries; q0 += kQueriesPerBlock) {
        const int64_t block = std::min<int64_t>(kQueriesPerBlock, queries - q0);
        for (int64_t i = 0; i < block; ++i) samples.read(i, b, q0 + i, m);
        samples.locate_all(block);
        for (int64_t i = 0; i < block; ++i) {
          const T* from = grad_output.template at<const T>(b, q0 + i, m);
          for (int64_t c = 0; c < channels; ++c) {
            grad[c] = static_cast<Acc>(from[c * grad_output.stride[3]]);
          }
          const int64_t first = i * samples.per_pair();
          spread<T, Acc>(p, samples, first, value, grad.data(), sums,
                         p.grad_locations.template at<Acc>(b, q0 + i, m),
                         p.grad_weights.template at<Acc>(b, q0 + i, m));
          finish(p, samples, first, b, q0 + i, m);
        }
      }
    }
  });
}

}  // namespace

void ms_deform_attn_forward_cpu(const MsDeformAttnParams& params) {
  const View<4>& output = params.output;
  advise_huge_pages(output.data, output.numel() * bytes_of(output.dtype));
  dispatch_floating(output.dtype, "value", [&](auto zero) { forward<decltype(zero)>(params); });
}

void ms_deform_attn_backward_cpu(const MsDeformAttnBackwardParams& params) {
  dispatch_floating(params.forward.output.dtype, "grad_output",
                    [&](auto zero) { backward<decltype(zero)>(params); });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(ms_deform_attn_forward_cpu, MsDeformAttnParams)
FASTSEG_CPU_LAUNCHER(ms_deform_attn_backward_cpu, MsDeformAttnBackwardParams)
