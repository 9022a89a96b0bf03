// A mask given as rows of bits becomes toggles in column order (rle_math.h), without a transpose:
// the XOR of successive rows has a bit for each change along a column, and few bits are set, so a
// counting sort of these by column costs little. For *_cpu.cpp files alone.
//
//   ColumnTransitions transitions;
//   transitions.begin(height, first_column, columns);       // may be a window of the mask
//   for (y from y0 to y1) transitions.add_row(y, words);    // rows left out repeat the one before;
//                                                           // above y0 the mask is 0
//   transitions.finish(y1, &toggles);                       // below y1 the mask is 0
//   append_counts(toggles.data(), toggles.size(), height * width, &string);
//
// An object may be used again after finish(); it keeps its memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace fastseg {
namespace FASTSEG_ISA {

class ColumnTransitions {
 public:
  // Events of a window wait in memory until finish(), so wide masks go through in windows of this
  // many columns, from left to right.
  static constexpr int64_t kMaxColumns = 2048;

  // The window: columns [first_column, first_column + columns) of a mask of `height` rows.
  void begin(int64_t height, int64_t first_column, int64_t columns) {
    height_ = height;
    first_column_ = first_column;
    columns_ = columns;
    num_events_ = 0;
    row_.assign((columns + 63) / 64, 0);
    if (events_.empty()) events_.resize(1024);
  }

  // Bit b of bits[i] is the pixel of column first_column + 64 * i + b; bits past the window are 0.
  void add_row(int64_t y, const uint64_t* bits) {
    for (int64_t i = 0; i < static_cast<int64_t>(row_.size()); ++i) add_word(y, i, bits[i]);
  }

  // One word of row y. Each word's rows come from top to bottom, the words in any order.
  void add_word(int64_t y, int64_t i, uint64_t bits) {
    const uint64_t changed = row_[i] ^ bits;
    if (__builtin_expect(changed != 0, 0)) add_events(y, i, changed);
  }

  // Closes the window at row `end` (at most its height) and appends its toggles.
  void finish(int64_t end, std::vector<uint32_t>* toggles) {
    for (int64_t i = 0; i < static_cast<int64_t>(row_.size()); ++i) add_word(end, i, 0);
    column_end_.assign(columns_ + 1, 0);
    for (int64_t e = 0; e < num_events_; ++e) ++column_end_[events_[e].column + 1];
    for (int64_t c = 0; c < columns_; ++c) column_end_[c + 1] += column_end_[c];
    sorted_.resize(std::max<size_t>(sorted_.size(), num_events_));
    const uint32_t first = static_cast<uint32_t>(first_column_ * height_);
    for (int64_t e = 0; e < num_events_; ++e) {
      const Event event = events_[e];
      const uint32_t column_start = first + event.column * static_cast<uint32_t>(height_);
      sorted_[column_end_[event.column]++] = column_start + event.row;
    }
    append(toggles);
  }

 private:
  struct Event {
    uint32_t column, row;
  };

  void add_events(int64_t y, int64_t i, uint64_t changed) {
    row_[i] ^= changed;
    if (num_events_ + 64 > static_cast<int64_t>(events_.size())) events_.resize(2 * events_.size());
    Event* event = events_.data() + num_events_;
    for (; changed != 0; changed &= changed - 1) {
      const int bit = __builtin_ctzll(changed);
      *event++ = {static_cast<uint32_t>(64 * i + bit), static_cast<uint32_t>(y)};
    }
    num_events_ = event - events_.data();
  }

  // A run that reaches the foot of a column and goes on in the next has two equal toggles there.
  void append(std::vector<uint32_t>* toggles) {
    const size_t kept = toggles->size();
    toggles->resize(kept + num_events_);
    uint32_t* const start = toggles->data();
    uint32_t* end = start + kept;
    for (int64_t e = 0; e < num_events_; ++e) {
      if (end != start && end[-1] == sorted_[e]) {
        --end;
      } else {
        *end++ = sorted_[e];
      }
    }
    toggles->resize(end - start);
  }

  int64_t height_ = 0, first_column_ = 0, columns_ = 0, num_events_ = 0;
  std::vector<uint64_t> row_;         // the last row seen
  std::vector<Event> events_;         // in order of rows
  std::vector<uint32_t> column_end_;  // where a column's next toggle goes
  std::vector<uint32_t> sorted_;
};

}  // namespace FASTSEG_ISA
}  // namespace fastseg
