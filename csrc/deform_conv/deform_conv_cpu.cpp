// Deformable convolution's columns on the CPU: channels in the vector lanes, pixels on the threads.
// Gradients of the input are the exception: there threads own channels, so that every sum has one
// owner and one order.
#include <type_traits>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/lanes.h"
#include "core/parallel.h"
#include "deform_conv/deform_conv_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kBytesPerTask = 1 << 16;  // of columns
constexpr int64_t kLineChannels = 16;       // a cache line of float32: threads share none

// Calls f(lane offset, lanes in use) for `count` channels.
template <class Acc, class F>
FASTSEG_HD void for_each_register(int64_t count, const F& f) {
  constexpr std::integral_constant<int, kLanes<Acc>> all;
  int64_t c = 0;
  for (; c + all <= count; c += all) f(c, all);
  if (c < count) f(c, static_cast<int>(count - c));
}

// The four cells of a sample at channel 0, and their weights.
template <class T, class Acc>
struct Cells {
  const T* data[4];
  Acc weight[4];

  Cells(const DeformConvParams& p, int64_t image_index, const Sample<Acc>& sample, Acc mask,
        const T* zeros) {
    const T* image = p.input.at<const T>(image_index);
    for (int k = 0; k < 4; ++k) {
      data[k] = sample.inside(k, p.input) ? image + sample.cell(k, p.input) : zeros;
      weight[k] = sample.weight(k) * mask;
    }
  }
};

// Runs f(offset_group, tap, pixel, pixel of the tile) for a tile's samples on all threads.
template <class Acc, class F>
void for_each_sample(const DeformConvParams& p, const F& f) {
  const int64_t taps = p.kernel[0] * p.kernel[1];
  const int64_t bytes = taps * p.input.size[1] * sizeof(Acc);
  parallel_for(p.columns.size[1], kBytesPerTask / bytes, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const OutputPixel pixel = output_pixel(p, p.first + i);
      for (int64_t group = 0; group < p.offset_groups; ++group) {
        for (int64_t tap = 0; tap < taps; ++tap) f(group, tap, pixel, i);
      }
    }
  });
}

template <class Acc>
void check_types(const DeformConvParams& p) {
  FASTSEG_CHECK(p.columns.dtype == (std::is_same_v<Acc, double> ? DType::f64 : DType::f32),
                "columns must be float32, or float64 as input, got ", name_of(p.columns.dtype));
  FASTSEG_CHECK(p.units == nullptr, "units must be None on the CPU, whose sums have one order");
}

template <class T>
void sample(const DeformConvParams& p) {
  using Acc = accumulate_t<T>;
  check_types<Acc>(p);
  const int64_t offset_channels = p.input.size[1] / p.offset_groups;
  const std::vector<T> zeros(p.input.size[1], T(0.0f));
  for_each_sample<Acc>(p, [&](int64_t group, int64_t tap, OutputPixel pixel, int64_t i) {
    const Sample<Acc> sample = read_sample<Acc>(p, group, tap, pixel);
    const Acc mask = read_mask<Acc>(p, group, tap, pixel);
    const Cells<T, Acc> cells(p, pixel.image, sample, mask, zeros.data());
    const int64_t c0 = group * offset_channels;
    for_each_run(p, c0, c0 + offset_channels, [&](const ChannelRun& run) {
      Acc* column = p.columns.as<Acc>() + run.column + column_step(p, i, tap);
      if (sample.outside) return std::fill(column, column + run.count, Acc(0));
      for_each_register<Acc>(run.count, [&](int64_t c, auto lanes) {
        Lanes<Acc> sum = {};
        for (int k = 0; k < 4; ++k) {
          const T* cell = cells.data[k] + run.begin + c;
          sum = multiply_add(cells.weight[k], load_lanes<Acc>(cell, lanes, 1), sum);
        }
        store_lanes<Acc, Acc>(column + c, sum, lanes);
      });
    });
  });
}

// Adds the columns' gradients of channels [begin, end) to grad_input, pixel after pixel.
template <class Acc>
void scatter_channels(const DeformConvParams& p, int64_t begin, int64_t end) {
  const int64_t taps = p.kernel[0] * p.kernel[1];
  const int64_t offset_channels = p.input.size[1] / p.offset_groups;
  for (int64_t i = 0; i < p.columns.size[1]; ++i) {
    const OutputPixel pixel = output_pixel(p, p.first + i);
    Acc* image = p.grad_input.at<Acc>(pixel.image);
    for (int64_t c0 = begin; c0 < end;) {
      const int64_t group = c0 / offset_channels;
      const int64_t group_end = std::min(end, (group + 1) * offset_channels);
      for (int64_t tap = 0; tap < taps; ++tap) {
        const Sample<Acc> sample = read_sample<Acc>(p, group, tap, pixel);
        if (sample.outside) continue;
        const Acc mask = read_mask<Acc>(p, group, tap, pixel);
        for_each_run(p, c0, group_end, [&](const ChannelRun& run) {
          const Acc* grad = p.columns.as<Acc>() + run.column + column_step(p, i, tap);
          for (int k = 0; k < 4; ++k) {
            if (!sample.inside(k, p.grad_input)) continue;
            const Acc weight = sample.weight(k) * mask;
            Acc* cell = image + sample.cell(k, p.grad_input) + run.begin;
            for_each_register<Acc>(run.count, [&](int64_t c, auto lanes) {
              const Lanes<Acc> old = load_lanes<Acc>(cell + c, lanes, 1);
              const Lanes<Acc> value = load_lanes<Acc>(grad + c, lanes, 1);
              store_lanes<Acc, Acc>(cell + c, multiply_add(weight, value, old), lanes);
            });
          }
        });
      }
      c0 = group_end;
    }
  }
}

// Writes the gradients of offsets and masks, and the columns over their gradients.
template <class T>
void position_grads(const DeformConvParams& p) {
  using Acc = accumulate_t<T>;
  const int64_t offset_channels = p.input.size[1] / p.offset_groups;
  const std::vector<T> zeros(p.input.size[1], T(0.0f));
  for_each_sample<Acc>(p, [&](int64_t group, int64_t tap, OutputPixel pixel, int64_t i) {
    const Sample<Acc> sample = read_sample<Acc>(p, group, tap, pixel);
    const Acc mask = read_mask<Acc>(p, group, tap, pixel);
    const Cells<T, Acc> cells(p, pixel.image, sample, mask, zeros.data());
    const int64_t c0 = group * offset_channels;
    Lanes<Acc> products[4] = {};
    for_each_run(p, c0, c0 + offset_channels, [&](const ChannelRun& run) {
      Acc* column = p.columns.as<Acc>() + run.column + column_step(p, i, tap);
      if (sample.outside) return std::fill(column, column + run.count, Acc(0));
      for_each_register<Acc>(run.count, [&](int64_t c, auto lanes) {
        const Lanes<Acc> grad = load_lanes<Acc>(column + c, lanes, 1);
        Lanes<Acc> sum = {};
        for (int k = 0; k < 4; ++k) {
          const Lanes<Acc> cell = load_lanes<Acc>(cells.data[k] + run.begin + c, lanes, 1);
          products[k] = multiply_add(grad, cell, products[k]);
          sum = multiply_add(cells.weight[k], cell, sum);
        }
        store_lanes<Acc, Acc>(column + c, sum, lanes);
      });
    });
    Acc sums[4];
    for (int k = 0; k < 4; ++k) sums[k] = sum_lanes<Acc>(products[k]);
    write_position_grad(p, group, tap, pixel, position_grad(sample, mask, sums));
  });
}

template <class T>
void backward(const DeformConvParams& p) {
  using Acc = accumulate_t<T>;
  check_types<Acc>(p);
  const int64_t channels = p.input.size[1];
  const int64_t lines = (channels + kLineChannels - 1) / kLineChannels;
  const int64_t block = (lines + max_threads() - 1) / max_threads() * kLineChannels;
  parallel_for(channels, block,
               [&](int64_t begin, int64_t end) { scatter_channels<Acc>(p, begin, end); });
  position_grads<T>(p);
}

// ---- Products of groups of few channels: groups in the vector lanes ----------------------------

constexpr int kBlock = 4;  // rows and columns of sums that registers hold at once
constexpr int64_t kProductsPerTask = 1 << 14;  // of whole registers

// sums[i, j] (+)= left[i, k] * right[k, j] for kRows rows and kColumns columns from (row, column)
// on, in each of the lanes from group `first` on.
template <int kRows, int kColumns, class Acc, class Count>
FASTSEG_HD void multiply_block(const DeformConvGroupsParams& p, int64_t row, int64_t column,
                               int64_t first, Count lanes) {
  Lanes<Acc> sums[kRows][kColumns] = {};
  Acc* target = p.sums.at<Acc>(row, column, first);
  const auto for_each_sum = [&](const auto& f) {
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) {
        f(sums[i][j], target + i * p.sums.stride[0] + j * p.sums.stride[1]);
      }
    }
  };
  if (p.add) for_each_sum([&](auto& sum, Acc* at) { sum = load_lanes<Acc>(at, lanes, 1); });
  const Acc* left = p.left.at<const Acc>(row, 0, first);
  const Acc* right = p.right.at<const Acc>(0, column, first);
  for (int64_t k = 0; k < p.right.size[0]; ++k) {
    Lanes<Acc> factors[kColumns];
    for (int j = 0; j < kColumns; ++j) {
      factors[j] = load_lanes<Acc>(right + j * p.right.stride[1], lanes, 1);
    }
    for (int i = 0; i < kRows; ++i) {
      const Lanes<Acc> factor = load_lanes<Acc>(left + i * p.left.stride[0], lanes, 1);
      for (int j = 0; j < kColumns; ++j) sums[i][j] = multiply_add(factor, factors[j], sums[i][j]);
    }
    left += p.left.stride[1];
    right += p.right.stride[0];
  }
  for_each_sum([&](auto& sum, Acc* at) { store_lanes<Acc, Acc>(at, sum, lanes); });
}

template <int kRows, class Acc, class Count>
void multiply_rows(const DeformConvGroupsParams& p, int64_t row, int64_t first, Count lanes) {
  int64_t j = 0;
  for (; j + kBlock <= p.sums.size[1]; j += kBlock) {
    multiply_block<kRows, kBlock, Acc>(p, row, j, first, lanes);
  }
  for (; j < p.sums.size[1]; ++j) multiply_block<kRows, 1, Acc>(p, row, j, first, lanes);
}

template <class Acc>
void multiply_groups(const DeformConvGroupsParams& p) {
  const int64_t rows = p.sums.size[0], groups = p.sums.size[2];
  const int64_t blocks = (groups + kLanes<Acc> - 1) / kLanes<Acc>;
  const int64_t products = std::max<int64_t>(kBlock * p.sums.size[1] * p.right.size[0], 1);
  // Tasks are blocks of rows, and of groups within those.
  parallel_for((rows + kBlock - 1) / kBlock * blocks, kProductsPerTask / products,
               [&](int64_t begin, int64_t end) {
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t row = task / blocks * kBlock, first = task % blocks * kLanes<Acc>;
                   const auto multiply = [&](auto lanes) {
                     if (row + kBlock <= rows) {
                       return multiply_rows<kBlock, Acc>(p, row, first, lanes);
                     }
                     for (int64_t i = row; i < rows; ++i) multiply_rows<1, Acc>(p, i, first, lanes);
                   };
                   if (first + kLanes<Acc> <= groups) {
                     multiply(std::integral_constant<int, kLanes<Acc>>());
                   } else {
                     multiply(static_cast<int>(groups - first));
                   }
                 }
               });
}

}  // namespace

void deform_conv_sample_cpu(const DeformConvParams& params) {
  dispatch_floating(params.input.dtype, "input",
                    [&](auto zero) { sample<decltype(zero)>(params); });
}

void deform_conv_backward_cpu(const DeformConvParams& params) {
  dispatch_floating(params.input.dtype, "input",
                    [&](auto zero) { backward<decltype(zero)>(params); });
}

void deform_conv_groups_cpu(const DeformConvGroupsParams& params) {
  if (params.sums.dtype == DType::f32) return multiply_groups<float>(params);
  multiply_groups<double>(params);
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(deform_conv_sample_cpu, DeformConvParams)
FASTSEG_CPU_LAUNCHER(deform_conv_backward_cpu, DeformConvParams)
FASTSEG_CPU_LAUNCHER(deform_conv_groups_cpu, DeformConvGroupsParams)
