// What a point reads: the arithmetic that CPU and CUDA share.
#pragma once

#include "core/dispatch.h"
#include "core/zero_padding.h"
#include "point_sample/point_sample.h"

namespace fastseg {

// f(cell, sample): zeros of the types of the maps' cells and of their samples.
template <class F>
void dispatch_maps(DType maps, F&& f) {
  if (maps == DType::boolean) return f(uint8_t{}, float{});
  dispatch_floating(maps, "input", [&](auto zero) { f(zero, zero); });
}

// The cells around point (x, y) of each map of `maps`, as offsets from the map's first element.
template <class Acc>
FASTSEG_HD Sample<Acc> locate(const View<4>& maps, Acc x, Acc y) {
  const int width = static_cast<int>(maps.size[3]), height = static_cast<int>(maps.size[2]);
  return cells_around(position(x, y, width, height), width, height, 0,
                      static_cast<int>(maps.stride[2]), static_cast<int>(maps.stride[3]));
}

}  // namespace fastseg
