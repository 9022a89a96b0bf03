// The connected regions of a mask: intervals of neighbouring columns that touch are joined.
#pragma once

#include <cstdint>
#include <vector>

#include "rle/columns.h"

namespace fastseg {

// Finds the regions of one mask after the other; keeps its memory.
class RegionFinder {
 public:
  // Numbers the regions in the order of their first pixels, column by column; `diagonals`: pixels
  // that meet at a corner are connected.
  void find(const Runs& runs, int64_t height, bool diagonals) {
    columns_.assign(runs, height);
    height_ = height;
    intervals_.clear();
    parent_.clear();
    int64_t previous = 0;  // the first interval of the column before
    for (int64_t x = 0; x < columns_.size(); ++x) {
      const int64_t current = intervals_.size();
      const Intervals column = columns_[x];
      for (int64_t i = 0; i < column.size; i += 2) {
        parent_.push_back(static_cast<uint32_t>(intervals_.size()));
        intervals_.push_back(
            {column.rows[i], column.rows[i + 1], static_cast<uint32_t>(columns_.first() + x), 0});
      }
      join(previous, current, diagonals);
      previous = current;
    }
    number();
  }

  int64_t size() const { return static_cast<int64_t>(areas_.size()); }
  int64_t area(int64_t region) const { return areas_[region]; }

  // Toggles of every region, at index `region`.
  void collect(std::vector<std::vector<uint32_t>>* toggles) const {
    toggles->assign(size(), {});
    for (const Interval& interval : intervals_) append(interval, &(*toggles)[interval.region]);
  }

  // Appends the toggles of the regions for which keep(region) is true.
  template <class Keep>
  void append_if(const Keep& keep, std::vector<uint32_t>* toggles) const {
    for (const Interval& interval : intervals_) {
      if (keep(interval.region)) append(interval, toggles);
    }
  }

 private:
  struct Interval {
    uint32_t begin, end, column, region;
  };

  // The first interval of a region stands for it.
  uint32_t root_of(uint32_t i) {
    while (parent_[i] != i) i = parent_[i] = parent_[parent_[i]];
    return i;
  }

  // Joins intervals [a, b) of a column with those from b on in the next where they touch.
  void join(int64_t a, int64_t b, bool diagonals) {
    const int64_t a_end = b, b_end = intervals_.size();
    while (a < a_end && b < b_end) {
      const Interval left = intervals_[a], right = intervals_[b];
      const uint32_t begin = std::max(left.begin, right.begin);
      const uint32_t end = std::min(left.end, right.end);
      if (begin < end || (diagonals && begin == end)) {
        const uint32_t i = root_of(a), j = root_of(b);
        parent_[std::max(i, j)] = std::min(i, j);
      }
      left.end < right.end ? ++a : ++b;
    }
  }

  void number() {
    areas_.clear();
    for (size_t i = 0; i < intervals_.size(); ++i) {
      const uint32_t root = root_of(i);
      if (root == i) areas_.push_back(0);
      intervals_[i].region = root == i ? areas_.size() - 1 : intervals_[root].region;
      areas_[intervals_[i].region] += intervals_[i].end - intervals_[i].begin;
    }
  }

  void append(const Interval& interval, std::vector<uint32_t>* toggles) const {
    const int64_t column_start = interval.column * height_;
    append_toggle(static_cast<uint32_t>(column_start + interval.begin), toggles);
    toggles->push_back(static_cast<uint32_t>(column_start + interval.end));
  }

  Columns columns_;
  int64_t height_ = 0;
  std::vector<Interval> intervals_;  // in order of columns
  std::vector<uint32_t> parent_;     // an interval of the same region, not after it
  std::vector<int64_t> areas_;
};

}  // namespace fastseg
