// Bilinear resizing on the CPU in strips of 64 columns, whose rows are computed from top to bottom:
// rows that lie between the same two rows of a stage's input share these, resampled to its columns.
// Only *_cpu.cpp files include this, hence the namespace.
#pragma once

#include <algorithm>
#include <vector>

#include "core/bilinear.h"
#include "core/lanes.h"
#include "core/resize_steps.h"

namespace fastseg {
namespace FASTSEG_ISA {

constexpr int64_t kStripColumns = 64;

// From which two cells of an axis each of its pixels comes, as arrays for loops over pixels.
struct Taps {
  std::vector<int> low, high;
  std::vector<float> low_weight, high_weight;

  // Of the first `count` of `pixels`; the last one is repeated until there are `padded`.
  Taps(int64_t cells, int64_t pixels, int64_t count, int64_t padded) {
    for (int64_t x = 0; x < padded; ++x) {
      const Tap tap = stretched_tap(std::min(x, count - 1), pixels, static_cast<int>(cells));
      low.push_back(tap.low);
      high.push_back(tap.high);
      low_weight.push_back(tap.low_weight);
      high_weight.push_back(tap.high_weight);
    }
  }
};

// One resize: from which cells each of its rows and columns comes.
struct ResizeStage {
  Blend blend;
  std::vector<Tap> rows;
  Taps columns;  // padded to whole strips

  // From `cells` (height, width) to `pixels`, of which rows and columns are needed.
  ResizeStage(const int64_t* cells, const int64_t* pixels, int64_t num_rows, int64_t num_columns)
      : blend(cpu_interpolate_blend(pixels[0], pixels[1])),
        rows(num_rows),
        columns(cells[1], pixels[1], num_columns,
                (num_columns + kStripColumns - 1) / kStripColumns * kStripColumns) {
    for (int64_t y = 0; y < num_rows; ++y) {
      rows[y] = stretched_tap(y, pixels[0], static_cast<int>(cells[0]));
    }
  }
};

// What all masks of a call share.
struct ResizePlan {
  int64_t height, width;            // of the result
  std::vector<ResizeStage> stages;  // one or two
  std::vector<int> first_cell;      // the rows of cells that a row of the result comes from
  std::vector<int> last_cell;

  explicit ResizePlan(const ResizeSteps& steps) : height(steps.size[0]), width(steps.size[1]) {
    const bool via = steps.has_via();
    if (via) stages.emplace_back(steps.cells, steps.via, steps.crop[0], steps.crop[1]);
    stages.emplace_back(via ? steps.crop : steps.cells, steps.size, height, width);
    for (const Tap& tap : stages.back().rows) {
      first_cell.push_back(via ? stages[0].rows[tap.low].low : tap.low);
      last_cell.push_back(via ? stages[0].rows[tap.high].high : tap.high);
    }
  }

  int64_t num_strips() const { return (width + kStripColumns - 1) / kStripColumns; }
  // Columns of the input of the last stage that a strip comes from.
  int west(int64_t strip) const { return stages.back().columns.low[strip * kStripColumns]; }
  int east(int64_t strip) const {
    return stages.back().columns.high[(strip + 1) * kStripColumns - 1];
  }
  // Columns of cells that a strip comes from.
  int first_column(int64_t strip) const {
    return stages.size() > 1 ? stages[0].columns.low[west(strip)] : west(strip);
  }
  int last_column(int64_t strip) const {
    return stages.size() > 1 ? stages[0].columns.high[east(strip)] : east(strip);
  }
};

// The rows of a stage's output at some of its columns, best from top to bottom.
class StageRows {
 public:
  explicit StageRows(const ResizeStage& stage) : stage_(stage) {}

  // Restricts the rows to columns [first, first + count) of a new input.
  void begin(int64_t first, int64_t count) {
    first_ = first;
    count_ = count;
    for (Line& line : lines_) line.row = -1;
  }

  // Writes `count` values of row y; input(r) gives row r of the stage's input from its column 0.
  template <class Input>
  void write(int64_t y, Input&& input, float* __restrict out) {
    const Tap& tap = stage_.rows[y];
    const Line& north = line(tap.low, input);
    const Line& south = line(tap.high, input);
    const float* north_west = north.west.data();
    const float* south_west = south.west.data();
    if (stage_.blend == Blend::separable) {
      const float north_weight = tap.low_weight, south_weight = tap.high_weight;
      for (int64_t i = 0; i < count_; ++i) {
        out[i] = blend_pair(north_west[i], north_weight, south_west[i], south_weight);
      }
      return;
    }
    const float *north_east = north.east.data(), *south_east = south.east.data();
    const float* low_weight = stage_.columns.low_weight.data() + first_;
    const float* high_weight = stage_.columns.high_weight.data() + first_;
    for (int64_t i = 0; i < count_; ++i) {
      out[i] = blend_four(Blend::east_first, tap, low_weight[i], high_weight[i], north_west[i],
                          north_east[i], south_west[i], south_east[i]);
    }
  }

 private:
  // A row of the input at the output's columns: the cells west and east of each, or for a separable
  // blend their mean in `west`.
  struct Line {
    int row = -1;
    std::vector<float> west, east;
  };

  // Neighbouring rows differ in parity, so that both that a row needs are kept.
  template <class Input>
  const Line& line(int row, Input&& input) {
    Line& line = lines_[row % 2];
    if (line.row == row) return line;
    line.row = row;
    const float* __restrict cells = input(row);
    const int* __restrict low = stage_.columns.low.data() + first_;
    const int* __restrict high = stage_.columns.high.data() + first_;
    line.west.resize(std::max<size_t>(line.west.size(), count_));
    float* __restrict west = line.west.data();
    if (stage_.blend == Blend::separable) {
      const float* __restrict low_weight = stage_.columns.low_weight.data() + first_;
      const float* __restrict high_weight = stage_.columns.high_weight.data() + first_;
      int64_t i = 0;
      for (constexpr int n = kLanes<float>; i + n <= count_; i += n) {
        const Lanes<float> east_part =
            load_ascending(cells, high + i) * load_lanes<float>(high_weight + i);
        const Lanes<float> pair = multiply_add(load_ascending(cells, low + i),
                                               load_lanes<float>(low_weight + i), east_part);
        store_lanes<float, float>(west + i, pair);
      }
      for (; i < count_; ++i) {
        west[i] = blend_pair(cells[low[i]], low_weight[i], cells[high[i]], high_weight[i]);
      }
      return line;
    }
    line.east.resize(line.west.size());
    float* __restrict east = line.east.data();
    for (int64_t i = 0; i < count_; ++i) {
      west[i] = cells[low[i]];
      east[i] = cells[high[i]];
    }
    return line;
  }

  const ResizeStage& stage_;
  int64_t first_ = 0, count_ = 0;
  Line lines_[2];
};

// Rows of one mask after the other, resized, a strip at a time.
class ResizedRows {
 public:
  explicit ResizedRows(const ResizePlan& plan)
      : plan_(plan), last_(plan.stages.back()), first_(plan.stages.front()) {
    if (plan.stages.size() > 1) via_row_.resize(plan.stages.front().columns.low.size());
  }

  // `cells` is where row 0 of the mask would lie; only the rows behind those asked for are read.
  void begin(const float* cells, int64_t row_stride, int64_t strip) {
    cells_ = cells;
    row_stride_ = row_stride;
    last_.begin(strip * kStripColumns, kStripColumns);
    if (plan_.stages.size() == 1) return;
    via_first_ = plan_.west(strip);
    first_.begin(via_first_, plan_.east(strip) - via_first_ + 1);
  }

  // Writes kStripColumns values of row y.
  void write(int64_t y, float* values) {
    const auto cells = [&](int row) { return cells_ + row * row_stride_; };
    if (plan_.stages.size() == 1) return last_.write(y, cells, values);
    const auto via = [&](int row) {
      first_.write(row, cells, via_row_.data() + via_first_);
      return via_row_.data();
    };
    last_.write(y, via, values);
  }

 private:
  const ResizePlan& plan_;
  StageRows last_, first_;
  std::vector<float> via_row_;  // of the first stage's output, the strip's columns are set
  int64_t via_first_ = 0;
  const float* cells_ = nullptr;
  int64_t row_stride_ = 0;
};

}  // namespace FASTSEG_ISA
}  // namespace fastseg
