// Where a tap reads and how its four cells blend: the arithmetic that CPU and CUDA share, rounded
// in torchvision's order.
#pragma once

#include <cmath>

#include "deform_conv/deform_conv.h"

namespace fastseg {

// Cell k of the four is at row y + k / 2 and column x + k % 2; each may lie outside the map, where
// it counts as 0.
template <class Acc>
struct Sample {
  bool outside;     // more than a cell beyond the border: reads 0, passes no gradient
  int y, x;         // of the north-west cell
  Acc south, east;  // position between the cells, 0 to 1; NaN when the offset is

  FASTSEG_HD Acc weight(int k) const {
    return (k / 2 == 0 ? Acc(1) - south : south) * (k % 2 == 0 ? Acc(1) - east : east);
  }
  FASTSEG_HD bool inside(int k, const View<4>& input) const {
    const int row = y + k / 2, column = x + k % 2;
    return row >= 0 && row < input.size[2] && column >= 0 && column < input.size[3];
  }
  // Bit k: cell k counts.
  FASTSEG_HD unsigned cells_inside(const View<4>& input) const {
    if (outside) return 0;
    const unsigned north = y >= 0 && y < input.size[2] ? 0b0011 : 0;
    const unsigned south = y + 1 >= 0 && y + 1 < input.size[2] ? 0b1100 : 0;
    const unsigned west = x >= 0 && x < input.size[3] ? 0b0101 : 0;
    const unsigned east = x + 1 >= 0 && x + 1 < input.size[3] ? 0b1010 : 0;
    return (north | south) & (west | east);
  }
  // Offset of cell k from the image's first element.
  FASTSEG_HD int64_t cell(int k, const View<4>& input) const {
    return (y + k / 2) * input.stride[2] + (x + k % 2) * input.stride[3];
  }
};

// The cell that a position along one axis lies after; NaN gives one beyond the border.
template <class Acc>
FASTSEG_HD int cell_before(Acc position) {
  return position >= Acc(-1) ? static_cast<int>(std::floor(position)) : -2;
}

template <class Acc>
FASTSEG_HD Sample<Acc> sample_at(Acc y, Acc x, const View<4>& input) {
  Sample<Acc> sample;
  sample.outside = y < Acc(-1) || y >= static_cast<Acc>(input.size[2]) || x < Acc(-1) ||
                   x >= static_cast<Acc>(input.size[3]);
  if (sample.outside) y = x = Acc(0);
  sample.y = cell_before(y);
  sample.x = cell_before(x);
  sample.south = y - std::floor(y);
  sample.east = x - std::floor(x);
  return sample;
}

struct OutputPixel {
  int64_t image, y, x;
};
// Output pixel `index` of the batch, image by image in row-major order.
FASTSEG_HD OutputPixel output_pixel(const DeformConvParams& p, int64_t index) {
  const int64_t height = p.offset.size[2], width = p.offset.size[3];
  const int64_t row = index / width;
  return {row / height, row % height, index % width};
}

template <class Acc>
struct Offset {
  Acc y, x;
};
template <class Acc>
FASTSEG_HD Offset<Acc> read_offset(const DeformConvParams& p, int64_t offset_group, int64_t tap,
                                   OutputPixel pixel) {
  const int64_t taps = p.kernel[0] * p.kernel[1];
  const Acc* offset =
      p.offset.at<const Acc>(pixel.image, 2 * (offset_group * taps + tap), pixel.y, pixel.x);
  return {offset[0], offset[p.offset.stride[1]]};
}

// Where tap `tap`, moved by an offset, reads for an output pixel.
template <class Acc>
FASTSEG_HD Sample<Acc> moved_sample(const DeformConvParams& p, int64_t tap, OutputPixel pixel,
                                    Offset<Acc> offset) {
  const int64_t tap_y = tap / p.kernel[1], tap_x = tap % p.kernel[1];
  const int64_t y = pixel.y * p.stride[0] - p.padding[0] + tap_y * p.dilation[0];
  const int64_t x = pixel.x * p.stride[1] - p.padding[1] + tap_x * p.dilation[1];
  return sample_at(static_cast<Acc>(y) + offset.y, static_cast<Acc>(x) + offset.x, p.input);
}

template <class Acc>
FASTSEG_HD Sample<Acc> read_sample(const DeformConvParams& p, int64_t offset_group, int64_t tap,
                                   OutputPixel pixel) {
  return moved_sample(p, tap, pixel, read_offset<Acc>(p, offset_group, tap, pixel));
}

template <class Acc>
FASTSEG_HD Acc read_mask(const DeformConvParams& p, int64_t offset_group, int64_t tap,
                         OutputPixel pixel) {
  const int64_t taps = p.kernel[0] * p.kernel[1];
  return p.mask.data == nullptr
             ? Acc(1)
             : *p.mask.at<const Acc>(pixel.image, offset_group * taps + tap, pixel.y, pixel.x);
}

// Channels [begin, begin + count) of one group of weights, and where their columns lie.
struct ChannelRun {
  int64_t begin, count;
  int64_t column;  // of the tile's pixel 0 and tap 0, from the start of columns
};

// Calls f(run) for the channels [begin, end), cut where a group of weights ends.
template <class F>
FASTSEG_HD void for_each_run(const DeformConvParams& p, int64_t begin, int64_t end, const F& f) {
  const int64_t group_channels = p.input.size[1] / p.groups;
  while (begin < end) {
    const int64_t group = begin / group_channels;
    const int64_t group_end = (group + 1) * group_channels;
    const int64_t run_end = group_end < end ? group_end : end;
    f(ChannelRun{begin, run_end - begin,
                 group * p.columns.stride[0] + begin - group * group_channels});
    begin = run_end;
  }
}

// From the columns of the tile's pixel 0 and tap 0 to those of `pixel` and `tap`.
FASTSEG_HD int64_t column_step(const DeformConvParams& p, int64_t pixel, int64_t tap) {
  return pixel * p.columns.stride[1] + tap * (p.input.size[1] / p.groups);
}

// Gradients of one sample's position and mask, from those sums over the channels of a gradient
// times each of the four cells.
template <class Acc>
struct PositionGrad {
  Acc y, x, mask;
};
template <class Acc>
FASTSEG_HD PositionGrad<Acc> position_grad(const Sample<Acc>& sample, Acc mask, const Acc* sums) {
  if (sample.outside) return {Acc(0), Acc(0), Acc(0)};
  const Acc south = sample.south, east = sample.east;
  PositionGrad<Acc> grad;
  grad.y = mask * ((Acc(1) - east) * (sums[2] - sums[0]) + east * (sums[3] - sums[1]));
  grad.x = mask * ((Acc(1) - south) * (sums[1] - sums[0]) + south * (sums[3] - sums[2]));
  grad.mask = Acc(0);
  for (int k = 0; k < 4; ++k) grad.mask += sample.weight(k) * sums[k];
  return grad;
}

template <class Acc>
FASTSEG_HD void write_position_grad(const DeformConvParams& p, int64_t offset_group, int64_t tap,
                                    OutputPixel pixel, const PositionGrad<Acc>& grad) {
  const int64_t channel = offset_group * p.kernel[0] * p.kernel[1] + tap;
  Acc* offset = p.grad_offset.at<Acc>(pixel.image, 2 * channel, pixel.y, pixel.x);
  offset[0] = grad.y;
  offset[p.grad_offset.stride[1]] = grad.x;
  if (p.grad_mask.data != nullptr) {
    *p.grad_mask.at<Acc>(pixel.image, channel, pixel.y, pixel.x) = grad.mask;
  }
}

}  // namespace fastseg
