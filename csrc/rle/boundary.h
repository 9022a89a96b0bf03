// The boundary of a mask (Cheng et al., "Boundary IoU", CVPR 2021): its pixels within `distance` of
// a pixel outside, both axes apart (a square neighbourhood); what lies past the image is outside.
//
// That is the mask without its erosion by a square of 2 * distance + 1, which is separable: each
// interval of a column loses `distance` rows at both ends, then column x keeps the rows that all
// columns from x - distance to x + distance have. The latter takes three intersections a column for
// any distance (van Herk): cut into blocks of the square's width, a window of columns is the end of
// one block and the beginning of the next.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "rle/columns.h"

namespace fastseg {

// The distance as a share of the image's diagonal, rounded half to even, at least 1 pixel.
inline int64_t boundary_distance(int64_t height, int64_t width, double dilation_ratio) {
  const double diagonal = std::sqrt(static_cast<double>(height * height + width * width));
  return std::max<int64_t>(static_cast<int64_t>(std::nearbyint(dilation_ratio * diagonal)), 1);
}

// Finds boundaries of one mask after the other; keeps its memory.
class BoundaryFinder {
 public:
  // Appends the toggles of the boundary; distance is at least 1.
  void find(const Runs& runs, int64_t height, int64_t distance, std::vector<uint32_t>* toggles) {
    columns_.assign(runs, height);
    const int64_t num_columns = columns_.size(), side = 2 * distance + 1;
    const bool may_have_core = num_columns >= side && erode_columns(distance);
    int64_t column = may_have_core ? distance : num_columns;
    for (int64_t x = 0; x < column; ++x) append_whole(x, height, toggles);
    for (int64_t block = 0; may_have_core && block + side <= num_columns; block += side) {
      intersect_ends(block, side);
      prefix_.clear();
      for (int64_t i = 0; i < side && block + i + side <= num_columns; ++i, ++column) {
        if (i > 0) extend_prefix(block + i + side - 1, i == 1);
        append_without(column, core(i), height, toggles);
      }
    }
    for (; column < num_columns; ++column) append_whole(column, height, toggles);
  }

 private:
  struct Span {
    int64_t begin, size;
  };

  // Takes `distance` rows off both ends of all intervals. False when nothing is left.
  bool erode_columns(int64_t distance) {
    eroded_.clear();
    eroded_ends_.clear();
    const uint32_t margin = static_cast<uint32_t>(distance);
    for (int64_t x = 0; x < columns_.size(); ++x) {
      const Intervals column = columns_[x];
      for (int64_t i = 0; i < column.size; i += 2) {
        if (column.rows[i + 1] - column.rows[i] <= 2 * int64_t(distance)) continue;
        eroded_.push_back(column.rows[i] + margin);
        eroded_.push_back(column.rows[i + 1] - margin);
      }
      eroded_ends_.push_back(eroded_.size());
    }
    return !eroded_.empty();
  }

  Intervals eroded(int64_t x) const {
    const int64_t begin = x == 0 ? 0 : eroded_ends_[x - 1];
    return {eroded_.data() + begin, eroded_ends_[x] - begin};
  }

  // ends_[i]: the rows that all of columns block + i to the end of the block have.
  void intersect_ends(int64_t block, int64_t side) {
    end_rows_.clear();
    ends_.resize(side);
    for (int64_t i = side - 1; i >= 0; --i) {
      const int64_t begin = end_rows_.size();
      if (i == side - 1) {
        const Intervals last = eroded(block + i);
        end_rows_.insert(end_rows_.end(), last.rows, last.rows + last.size);
      } else {
        const Span next = ends_[i + 1];
        const Intervals column = eroded(block + i);
        // Made large enough that the source does not move while the intersection grows behind it.
        const size_t most = end_rows_.size() + next.size + column.size;
        if (end_rows_.capacity() < most) end_rows_.reserve(2 * most);
        append_intersection({end_rows_.data() + next.begin, next.size}, column, &end_rows_);
      }
      ends_[i] = {begin, static_cast<int64_t>(end_rows_.size()) - begin};
    }
  }

  // prefix_: the rows that all columns of the next block up to x have.
  void extend_prefix(int64_t x, bool first) {
    const Intervals column = eroded(x);
    if (first) {
      prefix_.assign(column.rows, column.rows + column.size);
      return;
    }
    if (prefix_.empty()) return;
    longer_prefix_.clear();
    append_intersection({prefix_.data(), static_cast<int64_t>(prefix_.size())}, column,
                        &longer_prefix_);
    prefix_.swap(longer_prefix_);
  }

  // The eroded mask's rows in the column whose window begins with column i of the block.
  Intervals core(int64_t i) {
    const Intervals end = {end_rows_.data() + ends_[i].begin, ends_[i].size};
    if (i == 0) return end;
    core_.clear();
    append_intersection(end, {prefix_.data(), static_cast<int64_t>(prefix_.size())}, &core_);
    return {core_.data(), static_cast<int64_t>(core_.size())};
  }

  void append_whole(int64_t x, int64_t height, std::vector<uint32_t>* toggles) const {
    append_column(columns_[x], (columns_.first() + x) * height, toggles);
  }

  // Column x without its core: as the core lies inside, its rows are toggles too.
  void append_without(int64_t x, Intervals inner, int64_t height, std::vector<uint32_t>* toggles) {
    const Intervals outer = columns_[x];
    ring_.clear();
    for (int64_t i = 0, j = 0; i < outer.size || j < inner.size;) {
      const bool from_outer = j == inner.size || (i < outer.size && outer.rows[i] <= inner.rows[j]);
      ring_.push_back(from_outer ? outer.rows[i++] : inner.rows[j++]);
    }
    append_column({ring_.data(), static_cast<int64_t>(ring_.size())},
                  (columns_.first() + x) * height, toggles);
  }

  Columns columns_;
  std::vector<uint32_t> eroded_;      // the rows of all columns after erosion along columns
  std::vector<int64_t> eroded_ends_;  // of each column in eroded_
  std::vector<uint32_t> end_rows_;
  std::vector<Span> ends_;  // in end_rows_
  std::vector<uint32_t> prefix_, longer_prefix_, core_, ring_;
};

}  // namespace fastseg
