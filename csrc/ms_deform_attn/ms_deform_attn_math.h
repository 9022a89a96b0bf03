// Where a sample lies in its level: the arithmetic that CPU and CUDA share.
#pragma once

#include <cmath>

#include "ms_deform_attn/ms_deform_attn.h"

namespace fastseg {

// The four cells around a sample, north-west first, then north-east, south-west, south-east.
template <class Acc>
struct Sample {
  int row[4];  // of value; -1: outside the map, counts as 0
  Acc x, y;    // position between the cells, 0 to 1
};

// The sample at (x, y), in units of the map's sides, of a level whose first cell is row `start`.
// Pixel centres lie at half integers; a sample a cell or more outside the map counts as 0, as does
// one at NaN.
template <class Acc>
FASTSEG_HD Sample<Acc> locate(Acc x, Acc y, int width, int height, int start) {
  x = x * static_cast<Acc>(width) - Acc(0.5);
  y = y * static_cast<Acc>(height) - Acc(0.5);
  const bool near =
      x > Acc(-1) && x < static_cast<Acc>(width) && y > Acc(-1) && y < static_cast<Acc>(height);
  x = near ? x : Acc(-1);
  y = near ? y : Acc(-1);
  const Acc column = std::floor(x), line = std::floor(y);
  const int x0 = static_cast<int>(column), y0 = static_cast<int>(line);
  const int north_west = start + y0 * width + x0;
  const bool west = near && x0 >= 0, east = near && x0 + 1 < width;
  const bool north = y0 >= 0, south = y0 + 1 < height;
  Sample<Acc> sample;
  sample.row[0] = north && west ? north_west : -1;
  sample.row[1] = north && east ? north_west + 1 : -1;
  sample.row[2] = south && west ? north_west + width : -1;
  sample.row[3] = south && east ? north_west + width + 1 : -1;
  sample.x = x - column;
  sample.y = y - line;
  return sample;
}

// Weight of corner c of the four.
template <class Acc>
FASTSEG_HD Acc corner_weight(Acc x, Acc y, int c) {
  return (c & 1 ? x : Acc(1) - x) * (c & 2 ? y : Acc(1) - y);
}

}  // namespace fastseg
