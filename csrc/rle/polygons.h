// Polygons become masks exactly as in COCO's frPoly: corners are rounded to a grid of fifths of a
// pixel, edges are drawn there point by point, and where two neighbouring points lie on either side
// of the middle of a column (fifths 2 and 3), the mask toggles in that column at the upper of the
// two. The peer walks every point of every edge; here each edge goes straight to the columns it
// crosses, so that a polygon costs its columns, and none outside the image.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "rle/rle_math.h"

namespace fastseg {

constexpr int64_t kGrid = 5;                    // points per pixel
constexpr double kMaxCoordinate = 429496728.0;  // times kGrid fits 32 bits

struct GridPoint {
  int64_t x, y;
};

// Halves go up, and negative numbers towards 0, as the cast of the definition does.
inline int64_t to_grid(double coordinate) { return static_cast<int64_t>(kGrid * coordinate + 0.5); }

// Fills one polygon after the other; keeps its memory.
class PolygonFiller {
 public:
  // Appends the toggles of a polygon of `size` corners, whose coordinates are finite and at most
  // kMaxCoordinate in magnitude. What lies outside the image is cut off.
  void fill(const double* xy, int64_t size, int64_t height, int64_t width,
            std::vector<uint32_t>* toggles) {
    height_ = height;
    width_ = width;
    crossings_.clear();
    const auto corner = [xy](int64_t i) {
      return GridPoint{to_grid(xy[2 * i]), to_grid(xy[2 * i + 1])};
    };
    GridPoint last = size > 0 ? corner(size - 1) : GridPoint{0, 0};
    for (int64_t i = 0; i < size; ++i) {
      const GridPoint next = corner(i);
      add_edge(last, next);
      last = next;
    }
    sort_crossings();
    for (uint32_t position : sorted_) append_toggle(position, toggles);
  }

 private:
  void add_edge(GridPoint a, GridPoint b) {
    const int64_t left = std::min(a.x, b.x), right = std::max(a.x, b.x);
    if (right < 3) return;
    // Columns c with both fifths 5 c + 2 and 5 c + 3 on the edge.
    const int64_t first = std::max<int64_t>(left + 2, 0) / kGrid;
    const int64_t last = std::min((right - 3) / kGrid, width_ - 1);
    if (first > last) return;
    const bool flat = std::abs(a.x - b.x) >= std::abs(a.y - b.y);
    // Each edge is drawn from its lower coordinate, along its longer axis.
    if (flat ? a.x > b.x : a.y > b.y) std::swap(a, b);
    flat ? cross_flat(a, b, first, last) : cross_steep(a, b, first, last);
  }

  // A point for each x: y is rounded.
  void cross_flat(GridPoint a, GridPoint b, int64_t first, int64_t last) {
    const double slope = static_cast<double>(b.y - a.y) / static_cast<double>(b.x - a.x);
    const double y = static_cast<double>(a.y);
    for (int64_t column = first; column <= last; ++column) {
      const double step = static_cast<double>(column * kGrid + 2 - a.x);
      const auto left = static_cast<int64_t>(y + slope * step + 0.5);
      const auto right = static_cast<int64_t>(y + slope * (step + 1) + 0.5);
      add_crossing(column, std::min(left, right));
    }
  }

  // A point for each y: x is rounded, and the step at which it passes the middle is looked for.
  void cross_steep(GridPoint a, GridPoint b, int64_t first, int64_t last) {
    const double slope = static_cast<double>(b.x - a.x) / static_cast<double>(b.y - a.y);
    const double x = static_cast<double>(a.x);
    const bool rightwards = slope > 0;
    for (int64_t column = first; column <= last; ++column) {
      const double middle = static_cast<double>(column * kGrid + 3);
      const auto has_passed = [&](int64_t step) {
        return (x + slope * static_cast<double>(step) + 0.5 >= middle) == rightwards;
      };
      // Where it passes without rounding; rounding moves that by less than one step or two.
      auto step = static_cast<int64_t>((middle - 0.5 - x) / slope);
      while (has_passed(step)) --step;
      while (!has_passed(step)) ++step;
      add_crossing(column, a.y + step - 1);
    }
  }

  // y in fifths; a row counts from its middle on.
  void add_crossing(int64_t column, int64_t y) {
    const int64_t row = y <= 2 ? 0 : std::min((y + 2) / kGrid, height_);
    crossings_.push_back({static_cast<uint32_t>(column), static_cast<uint32_t>(row)});
  }

  // Into sorted_, as positions. A counting sort by column: few columns have more than two.
  void sort_crossings() {
    uint32_t first = UINT32_MAX, last = 0;
    for (const Crossing& crossing : crossings_) {
      first = std::min(first, crossing.column);
      last = std::max(last, crossing.column);
    }
    column_end_.assign(crossings_.empty() ? 0 : last - first + 2, 0);
    for (const Crossing& crossing : crossings_) ++column_end_[crossing.column - first + 1];
    for (size_t c = 1; c < column_end_.size(); ++c) column_end_[c] += column_end_[c - 1];
    sorted_.resize(crossings_.size());
    for (const Crossing& crossing : crossings_) {
      sorted_[column_end_[crossing.column - first]++] =
          static_cast<uint32_t>(crossing.column * height_ + crossing.row);
    }
    int64_t begin = 0;
    for (size_t c = 0; c + 1 < column_end_.size(); begin = column_end_[c++]) {
      if (column_end_[c] - begin == 2) {
        const uint32_t a = sorted_[begin], b = sorted_[begin + 1];
        sorted_[begin] = std::min(a, b);
        sorted_[begin + 1] = std::max(a, b);
      } else {
        std::sort(sorted_.begin() + begin, sorted_.begin() + column_end_[c]);
      }
    }
  }

  struct Crossing {
    uint32_t column, row;
  };

  int64_t height_ = 0, width_ = 0;
  std::vector<Crossing> crossings_;  // in order of edges
  std::vector<int64_t> column_end_;  // where a column's next crossing goes, then where it ends
  std::vector<uint32_t> sorted_;
};

}  // namespace fastseg
