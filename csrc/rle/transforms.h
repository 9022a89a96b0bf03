// Masks turned, cut and scaled, column by column.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "rle/columns.h"
#include "rle/runs.h"

namespace fastseg {

// Left becomes right.
inline void flip_columns(const Columns& columns, int64_t height, int64_t width,
                         std::vector<uint32_t>* toggles) {
  for (int64_t x = columns.size() - 1; x >= 0; --x) {
    append_column(columns[x], (width - 1 - columns.first() - x) * height, toggles);
  }
}

// Top becomes bottom.
inline void flip_rows(const Columns& columns, int64_t height, std::vector<uint32_t>* toggles) {
  std::vector<uint32_t> rows;
  for (int64_t x = 0; x < columns.size(); ++x) {
    const Intervals column = columns[x];
    rows.resize(column.size);
    for (int64_t i = 0; i < column.size; ++i) {
      rows[i] = static_cast<uint32_t>(height - column.rows[column.size - 1 - i]);
    }
    append_column({rows.data(), column.size}, (columns.first() + x) * height, toggles);
  }
}

// Appends an interval that comes after all others, unless it is empty.
inline void append_interval(uint32_t begin, uint32_t end, std::vector<uint32_t>* rows) {
  if (begin == end) return;
  if (!rows->empty() && rows->back() == begin) {
    rows->back() = end;
  } else {
    rows->push_back(begin);
    rows->push_back(end);
  }
}

// What lies inside the box, which may reach past the mask: nothing is inside there.
inline void crop_columns(const Columns& columns, const PixelBox& box,
                         std::vector<uint32_t>* toggles) {
  const int64_t height = box.y1 - box.y0;
  const auto row_in_box = [&](uint32_t row) {
    return static_cast<uint32_t>(std::clamp<int64_t>(row - box.y0, 0, height));
  };
  const int64_t begin = std::max<int64_t>(box.x0 - columns.first(), 0);
  const int64_t end = std::min(box.x1 - columns.first(), columns.size());
  std::vector<uint32_t> rows;
  for (int64_t x = begin; x < end; ++x) {
    const Intervals column = columns[x];
    rows.clear();
    for (int64_t i = 0; i < column.size; i += 2) {
      append_interval(row_in_box(column.rows[i]), row_in_box(column.rows[i + 1]), &rows);
    }
    append_column({rows.data(), static_cast<int64_t>(rows.size())},
                  (columns.first() + x - box.x0) * height, toggles);
  }
}

// Nearest neighbours between two lengths, in integers: place i of `to` shows place
// floor((i + 1/2) * from / to) of `from`.
struct Scale {
  int64_t from, to;  // at most 2^30

  int64_t source(int64_t i) const { return (2 * i + 1) * from / (2 * to); }
  // The first place of `to` that shows place `s` or one after it.
  int64_t first_showing(int64_t s) const { return (2 * s * to + from - 1) / (2 * from); }
};

// The columns of a mask of size [y.from, x.from] as one of size [y.to, x.to].
inline void resize_columns(const Columns& columns, Scale y, Scale x,
                           std::vector<uint32_t>* toggles) {
  if (columns.size() == 0) return;
  const int64_t end = x.first_showing(columns.first() + columns.size());
  std::vector<uint32_t> rows;
  int64_t scaled = -1;  // the source column that rows hold
  for (int64_t target = x.first_showing(columns.first()); target < end; ++target) {
    const int64_t source = x.source(target) - columns.first();
    if (source != scaled) {
      rows.clear();
      const Intervals column = columns[source];
      for (int64_t i = 0; i < column.size; i += 2) {
        append_interval(static_cast<uint32_t>(y.first_showing(column.rows[i])),
                        static_cast<uint32_t>(y.first_showing(column.rows[i + 1])), &rows);
      }
      scaled = source;
    }
    append_column({rows.data(), static_cast<int64_t>(rows.size())}, target * y.to, toggles);
  }
}

// Inside becomes outside.
inline void complement(std::vector<uint32_t>* toggles) {
  if (!toggles->empty() && toggles->front() == 0) {
    toggles->erase(toggles->begin());
  } else {
    toggles->insert(toggles->begin(), 0);
  }
}

}  // namespace fastseg
