// torch's bilinear interpolation (F.interpolate, align_corners=False), bit for bit: the arithmetic
// that CPU and CUDA share.
//
// Every operation is in the order of torch's kernels and fused where those are compiled to fuse:
// multiply_add() fuses where the target has the instruction, as torch's CPU kernels do for the same
// target and its CUDA kernels always. One difference between torch's own CPU and CUDA kernels is
// kept: Blend::east_first.
#pragma once

#include "core/types.h"

namespace fastseg {

// The two cells that a pixel lies between along one axis.
struct Tap {
  int low, high;
  float low_weight, high_weight;
};

// `pixel` of an axis of `pixels` onto which one of `cells` is stretched.
FASTSEG_HD Tap stretched_tap(int64_t pixel, int64_t pixels, int cells) {
  if (pixels == cells) return {static_cast<int>(pixel), static_cast<int>(pixel), 1.0f, 0.0f};
  const float scale = static_cast<float>(cells) / static_cast<float>(pixels);
  float position = multiply_add(scale, static_cast<float>(pixel) + 0.5f, -0.5f);
  position = position < 0.0f ? 0.0f : position;
  Tap tap;
  tap.low = position < static_cast<float>(cells - 1) ? static_cast<int>(position) : cells - 1;
  tap.high = tap.low + (tap.low < cells - 1);
  const float fraction = position - static_cast<float>(tap.low);
  tap.high_weight = fraction < 1.0f ? fraction : 1.0f;
  tap.low_weight = 1.0f - tap.high_weight;
  return tap;
}

// The order in which the four cells around a pixel are summed.
enum class Blend {
  separable,   // F.interpolate: along rows, then along columns
  east_first,  // F.interpolate on the CPU to height + width <= 128: four products, north-east first
  west_first,  // F.grid_sample: four products, north-west first
};

// What F.interpolate uses on the CPU for an output of this size; its CUDA kernel is separable.
FASTSEG_HD Blend cpu_interpolate_blend(int64_t height, int64_t width) {
  return height + width > 128 ? Blend::separable : Blend::east_first;
}

FASTSEG_HD float blend_pair(float low, float low_weight, float high, float high_weight) {
  return multiply_add(low, low_weight, high * high_weight);
}

FASTSEG_HD float blend_four(Blend blend, const Tap& y, float x_low_weight, float x_high_weight,
                            float north_west, float north_east, float south_west,
                            float south_east) {
  const float west = y.low_weight * x_low_weight, east = y.low_weight * x_high_weight;
  const float north = blend == Blend::east_first
                          ? multiply_add(north_west, west, north_east * east)
                          : multiply_add(north_east, east, north_west * west);
  const float north_and_west = multiply_add(south_west, y.high_weight * x_low_weight, north);
  return multiply_add(south_east, y.high_weight * x_high_weight, north_and_west);
}

}  // namespace fastseg
