// What a point reads and how it pulls on it: the arithmetic that CPU and CUDA share.
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
  return locate(x, y, static_cast<int>(maps.size[3]), static_cast<int>(maps.size[2]), 0,
                static_cast<int>(maps.stride[2]), static_cast<int>(maps.stride[3]));
}

// How fast the sample between four values changes per cell, along x and along y.
template <class Acc>
struct Slope {
  Acc x, y;
};

template <class Acc>
FASTSEG_HD Slope<Acc> slope_between(const Acc (&cell)[4], Acc x, Acc y) {
  const Acc along_x = (cell[1] - cell[0]) * (Acc(1) - y) + (cell[3] - cell[2]) * y;
  const Acc along_y = (cell[2] - cell[0]) * (Acc(1) - x) + (cell[3] - cell[1]) * x;
  return {along_x, along_y};
}

}  // namespace fastseg
