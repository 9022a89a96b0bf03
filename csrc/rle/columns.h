// A mask as intervals of rows in each column: what works on shapes (boundaries, regions, contours)
// reads, at a cost of the runs and the columns, never of the pixels.
#pragma once

#include <cstdint>
#include <vector>

#include "rle/rle_math.h"
#include "rle/runs.h"

namespace fastseg {

// Ascending rows where a column changes, first to 1: intervals [rows[0], rows[1]), [rows[2], ...
// with gaps between them.
struct Intervals {
  const uint32_t* rows;
  int64_t size;  // even

  bool empty() const { return size == 0; }
};

// The columns of a mask from the first that holds a pixel to the last. May be assigned again.
class Columns {
 public:
  void assign(const Runs& runs, int64_t height) {
    rows_.clear();
    ends_.clear();
    for (int64_t i = 0; i < runs.count(); ++i) {
      int64_t begin = runs.first(i);
      const int64_t end = runs.last(i);
      if (begin == end) continue;
      if (ends_.empty()) start_at(begin / height, height);
      while (begin < end) {
        go_to(begin, height);
        const int64_t stop = std::min(end, column_start_ + height);
        append(static_cast<uint32_t>(begin - column_start_),
               static_cast<uint32_t>(stop - column_start_));
        begin = stop;
      }
    }
  }

  int64_t first() const { return first_; }  // column that [0] is; meaningless for an empty mask
  int64_t size() const { return static_cast<int64_t>(ends_.size()); }
  int64_t bounds() const { return static_cast<int64_t>(rows_.size()); }  // rows in all columns

  Intervals operator[](int64_t column) const {
    const int64_t begin = column == 0 ? 0 : ends_[column - 1];
    return {rows_.data() + begin, ends_[column] - begin};
  }

 private:
  void start_at(int64_t column, int64_t height) {
    first_ = column;
    column_start_ = column * height;
    ends_.push_back(0);
  }

  void go_to(int64_t position, int64_t height) {
    while (position >= column_start_ + height) {
      column_start_ += height;
      ends_.push_back(ends_.back());
    }
  }

  // Runs that a run of length 0 separates become one interval.
  void append(uint32_t begin, uint32_t end) {
    const int64_t column_begin = ends_.size() > 1 ? ends_[ends_.size() - 2] : 0;
    if (ends_.back() > column_begin && rows_.back() == begin) {
      rows_.back() = end;
      return;
    }
    rows_.push_back(begin);
    rows_.push_back(end);
    ends_.back() += 2;
  }

  int64_t first_ = 0, column_start_ = 0;
  std::vector<uint32_t> rows_;
  std::vector<int64_t> ends_;  // of each column in rows_
};

// Back to toggles; columns in ascending order.
inline void append_column(Intervals intervals, int64_t column_start,
                          std::vector<uint32_t>* toggles) {
  if (intervals.empty()) return;
  append_toggle(static_cast<uint32_t>(column_start + intervals.rows[0]), toggles);
  for (int64_t i = 1; i < intervals.size; ++i) {
    toggles->push_back(static_cast<uint32_t>(column_start + intervals.rows[i]));
  }
}

// Appends the rows in both, as intervals.
inline void append_intersection(Intervals a, Intervals b, std::vector<uint32_t>* rows) {
  for (int64_t i = 0, j = 0; i < a.size && j < b.size;) {
    const uint32_t a_end = a.rows[i + 1], b_end = b.rows[j + 1];
    const uint32_t begin = std::max(a.rows[i], b.rows[j]), end = std::min(a_end, b_end);
    if (begin < end) {
      rows->push_back(begin);
      rows->push_back(end);
    }
    if (a_end <= b_end) i += 2;
    if (b_end <= a_end) j += 2;
  }
}

}  // namespace fastseg
