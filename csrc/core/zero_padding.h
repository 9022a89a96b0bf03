// Where a bilinear sample of a map with zeros around it lies and how it changes with its position:
// the arithmetic that CPU and CUDA share.
#pragma once

#include <cmath>

#include "core/types.h"

namespace fastseg {

// Between which cells a sample lies: columns x0 and x0 + 1, rows y0 and y0 + 1.
template <class Acc>
struct Position {
  int x0, y0;
  Acc x, y;   // from those cells on, 0 to 1
  bool near;  // false: all four cells are outside the map
};

// The position of (x, y), in cells from the centre of the first cell on. A sample a cell or more
// outside the map is not near it, nor is one at NaN: then the position is (-1, -1).
template <class Acc>
FASTSEG_HD Position<Acc> position_in_cells(Acc x, Acc y, int width, int height) {
  // & and not &&: without branches compilers vectorise loops over this.
  const bool near = (x > Acc(-1)) & (x < static_cast<Acc>(width)) & (y > Acc(-1)) &
                    (y < static_cast<Acc>(height));
  x = near ? x : Acc(-1);
  y = near ? y : Acc(-1);
  const Acc column = std::floor(x), line = std::floor(y);
  return {static_cast<int>(column), static_cast<int>(line), x - column, y - line, near};
}

// The position of (x, y), in units of the map's sides. Pixel centres lie at half integers.
template <class Acc>
FASTSEG_HD Position<Acc> position(Acc x, Acc y, int width, int height) {
  return position_in_cells(x * static_cast<Acc>(width) - Acc(0.5),
                           y * static_cast<Acc>(height) - Acc(0.5), width, height);
}

// The four cells around a sample, north-west first, then north-east, south-west, south-east.
template <class Acc>
struct Sample {
  int cell[4];  // offsets; -1: outside the map, counts as 0
  Acc x, y;     // position between the cells, 0 to 1
};

// The cells around a position on a map whose first cell is at `start`.
template <class Acc>
FASTSEG_HD Sample<Acc> cells_around(const Position<Acc>& at, int width, int height, int start,
                                    int row_stride, int column_stride) {
  // All ones where a column or row is outside the map: no branches, as above.
  const int far = at.near ? 0 : -1;
  const int west = at.x0 >= 0 ? far : -1, east = at.x0 + 1 < width ? far : -1;
  const int north = at.y0 >= 0 ? 0 : -1, south = at.y0 + 1 < height ? 0 : -1;
  const int north_west = start + at.y0 * row_stride + at.x0 * column_stride;
  Sample<Acc> sample;
  sample.cell[0] = north_west | north | west;
  sample.cell[1] = (north_west + column_stride) | north | east;
  sample.cell[2] = (north_west + row_stride) | south | west;
  sample.cell[3] = (north_west + row_stride + column_stride) | south | east;
  sample.x = at.x;
  sample.y = at.y;
  return sample;
}

// Weight of corner c of the four.
template <class Acc>
FASTSEG_HD Acc corner_weight(Acc x, Acc y, int c) {
  return (c & 1 ? x : Acc(1) - x) * (c & 2 ? y : Acc(1) - y);
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
