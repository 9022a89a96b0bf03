// Resizing on the CPU, in strips of 64 columns, so that a row of a strip is one word of bits. Where
// all the cells behind a strip's rows are far from the threshold on the same side, as in most of a
// usual mask, its rows are known at once. Elsewhere they are computed from top to bottom, and rows
// that lie between the same two rows of a stage's input share these, resampled to its columns.
#include <algorithm>
#include <vector>

#include "core/bits.h"
#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/parallel.h"
#include "resize_masks/resize_masks_math.h"
#include "rle/rle_math.h"
#include "rle/transitions.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kStripColumns = 64;

// One resize: from which cells each of its rows and columns comes.
struct Stage {
  Blend blend;
  std::vector<Tap> rows;
  std::vector<int> low, high;  // per column
  std::vector<float> low_weight, high_weight;

  // From `cells` (height, width) to `pixels`, of which `rows` and `columns` are needed; the last
  // column is repeated until whole strips are full.
  Stage(const int64_t* cells, const int64_t* pixels, int64_t num_rows, int64_t columns)
      : blend(cpu_interpolate_blend(pixels[0], pixels[1])), rows(num_rows) {
    for (int64_t y = 0; y < num_rows; ++y) {
      rows[y] = stretched_tap(y, pixels[0], static_cast<int>(cells[0]));
    }
    const int64_t padded = (columns + kStripColumns - 1) / kStripColumns * kStripColumns;
    for (int64_t x = 0; x < padded; ++x) {
      const Tap tap =
          stretched_tap(std::min(x, columns - 1), pixels[1], static_cast<int>(cells[1]));
      low.push_back(tap.low);
      high.push_back(tap.high);
      low_weight.push_back(tap.low_weight);
      high_weight.push_back(tap.high_weight);
    }
  }
};

// What all masks share.
struct Plan {
  int64_t cells[2];             // of a mask: height, width
  int64_t height, width;        // of the result
  std::vector<Stage> stages;    // one or two
  std::vector<int> first_cell;  // the rows of cells that a row of the result comes from
  std::vector<int> last_cell;
  std::vector<int64_t>
      first_row;  // [cells[0] + 1]: the first row that comes from this one or below
  CertainLimits limits;
  float threshold;

  explicit Plan(const ResizeMasksParams& p)
      : cells{p.masks.size[1], p.masks.size[2]},
        height(p.height),
        width(p.width),
        limits(p.threshold),
        threshold(p.threshold) {
    const int64_t size[2] = {height, width};
    if (p.has_via()) stages.emplace_back(cells, p.via, p.crop[0], p.crop[1]);
    stages.emplace_back(p.has_via() ? p.crop : cells, size, height, width);
    for (const Tap& tap : stages.back().rows) {
      first_cell.push_back(p.has_via() ? stages[0].rows[tap.low].low : tap.low);
      last_cell.push_back(p.has_via() ? stages[0].rows[tap.high].high : tap.high);
    }
    first_row.assign(cells[0] + 1, height);
    int64_t row = 0;
    for (int64_t cell = 0; cell < cells[0]; ++cell) {
      while (row < height && last_cell[row] < cell) ++row;
      first_row[cell] = row;
    }
  }

  int64_t num_strips() const { return (width + kStripColumns - 1) / kStripColumns; }
};

// The rows of a stage's output at some of its columns, best from top to bottom.
class StageRows {
 public:
  explicit StageRows(const Stage& stage) : stage_(stage) {}

  // Restricts the rows to columns [first, first + count).
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
    const float* low_weight = stage_.low_weight.data() + first_;
    const float* high_weight = stage_.high_weight.data() + first_;
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
    const int* __restrict low = stage_.low.data() + first_;
    const int* __restrict high = stage_.high.data() + first_;
    line.west.resize(std::max<size_t>(line.west.size(), count_));
    float* __restrict west = line.west.data();
    if (stage_.blend == Blend::separable) {
      const float* __restrict low_weight = stage_.low_weight.data() + first_;
      const float* __restrict high_weight = stage_.high_weight.data() + first_;
      for (int64_t i = 0; i < count_; ++i) {
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

  const Stage& stage_;
  int64_t first_ = 0, count_ = 0;
  Line lines_[2];
};

// Resizes one mask after the other.
class MaskResizer {
 public:
  explicit MaskResizer(const Plan& plan)
      : plan_(plan), last_(plan.stages.back()), first_(plan.stages.front()) {
    if (plan.stages.size() > 1) via_row_.resize(plan.stages.front().low.size());
    cell_words_ = (plan.cells[1] + 63) / 64;
    above_.resize(plan.cells[0] * cell_words_);
    below_.resize(plan.cells[0] * cell_words_);
    sides_.resize(plan.cells[0]);
    side_end_.resize(plan.cells[0]);
  }

  void begin(const View<3>& masks, int64_t n) {
    dispatch_floating(masks.dtype, "masks", [&](auto zero) { read<decltype(zero)>(masks, n); });
    for (int64_t r = 0; r < plan_.cells[0]; ++r) mark_certain(r);
  }

  // The bits of strip i go to sink(begin, end, word), the same for rows [begin, end), from top to
  // bottom.
  template <class Sink>
  void strip(int64_t i, Sink&& sink) {
    const int64_t first = i * kStripColumns;
    const int64_t columns = std::min(kStripColumns, plan_.width - first);
    const uint64_t full = ~uint64_t(0) >> (kStripColumns - columns);
    begin_strip(first);
    for (int64_t y = 0; y < plan_.height;) {
      const int cell = plan_.first_cell[y];
      if (sides_[cell] != Side::unknown && plan_.last_cell[y] < side_end_[cell]) {
        const int64_t end = plan_.first_row[side_end_[cell]];
        sink(y, end, sides_[cell] == Side::above ? full : 0);
        y = end;
      } else {
        sink(y, y + 1, row_bits(y) & full);
        ++y;
      }
    }
  }

 private:
  enum class Side : uint8_t { unknown, above, below };

  template <class T>
  void read(const View<3>& masks, int64_t n) {
    const int64_t height = plan_.cells[0], width = plan_.cells[1];
    const T* from = masks.template at<T>(n);
    if (masks.dtype == DType::f32 && masks.stride[2] == 1) {
      cells_ = reinterpret_cast<const float*>(from);
      row_stride_ = masks.stride[1];
      return;
    }
    converted_.resize(height * width);
    for (int64_t r = 0; r < height; ++r) {
      const T* row = from + r * masks.stride[1];
      float* to = converted_.data() + r * width;
      for (int64_t c = 0; c < width; ++c) to[c] = static_cast<float>(row[c * masks.stride[2]]);
    }
    cells_ = converted_.data();
    row_stride_ = width;
  }

  // One bit a cell of row r: whether it is far above or far below the threshold.
  void mark_certain(int64_t r) {
    constexpr float kLargest = CertainLimits::kLargest;
    const float* row = cells_ + r * row_stride_;
    for (int64_t i = 0; i < cell_words_; ++i) {
      const int64_t count = std::min<int64_t>(64, plan_.cells[1] - 64 * i);
      const float* cells = row + 64 * i;
      float padded[64];
      if (count < 64) {
        std::fill(std::copy(cells, cells + count, padded), padded + 64, 0.0f);
        cells = padded;
      }
      above_[r * cell_words_ + i] =
          pack_greater(cells, plan_.limits.above) & ~pack_greater(cells, kLargest);
      below_[r * cell_words_ + i] =
          ~pack_greater(cells, plan_.limits.below) & pack_greater(cells, -kLargest);
    }
  }

  // Whether bits [first, last] are all set.
  static bool all_set(const uint64_t* bits, int first, int last) {
    for (int i = first / 64; i <= last / 64; ++i) {
      uint64_t wanted = ~uint64_t(0);
      if (i == first / 64) wanted &= ~uint64_t(0) << first % 64;
      if (i == last / 64) wanted &= ~uint64_t(0) >> (63 - last % 64);
      if (wanted & ~bits[i]) return false;
    }
    return true;
  }

  void begin_strip(int64_t first) {
    int west = plan_.stages.back().low[first];
    int east = plan_.stages.back().high[first + kStripColumns - 1];
    last_.begin(first, kStripColumns);
    if (plan_.stages.size() > 1) {
      via_first_ = west;
      first_.begin(west, east - west + 1);
      east = plan_.stages[0].high[east];
      west = plan_.stages[0].low[west];
    }
    const int rows = static_cast<int>(plan_.cells[0]);
    for (int r = rows - 1; r >= 0; --r) {
      sides_[r] = all_set(above_.data() + r * cell_words_, west, east)   ? Side::above
                  : all_set(below_.data() + r * cell_words_, west, east) ? Side::below
                                                                         : Side::unknown;
      side_end_[r] = r + 1 < rows && sides_[r + 1] == sides_[r] ? side_end_[r + 1] : r + 1;
    }
  }

  uint64_t row_bits(int64_t y) {
    float values[kStripColumns];
    const auto cells = [&](int row) { return cells_ + row * row_stride_; };
    if (plan_.stages.size() == 1) {
      last_.write(y, cells, values);
    } else {
      const auto via = [&](int row) {
        first_.write(row, cells, via_row_.data() + via_first_);
        return via_row_.data();
      };
      last_.write(y, via, values);
    }
    return pack_greater(values, plan_.threshold);
  }

  const Plan& plan_;
  StageRows last_, first_;
  std::vector<float> via_row_;  // of the first stage's output, the strip's columns are set
  int64_t via_first_ = 0;
  std::vector<float> converted_;
  const float* cells_ = nullptr;
  int64_t row_stride_ = 0;
  int64_t cell_words_;
  std::vector<uint64_t> above_, below_;  // [cells[0], cell_words]
  std::vector<Side> sides_;              // of the rows of cells, at the strip's columns
  std::vector<int> side_end_;            // where the next side begins
};

// The toggles (rle/rle_math.h) of one mask.
void find_toggles(const Plan& plan, MaskResizer* resizer, ColumnTransitions* transitions,
                  std::vector<uint32_t>* toggles) {
  constexpr int64_t kStrips = ColumnTransitions::kMaxColumns / kStripColumns;
  toggles->clear();
  for (int64_t first = 0; first < plan.num_strips(); first += kStrips) {
    const int64_t column = first * kStripColumns;
    const int64_t columns = std::min(ColumnTransitions::kMaxColumns, plan.width - column);
    const int64_t last = std::min(first + kStrips, plan.num_strips());
    transitions->begin(plan.height, column, columns);
    for (int64_t i = first; i < last; ++i) {
      resizer->strip(i, [&](int64_t begin, int64_t, uint64_t word) {
        transitions->add_word(begin, i - first, word);
      });
    }
    transitions->finish(plan.height, toggles);
  }
}

// Rows of 64-bit words, bit = column.
void write_words(const Plan& plan, MaskResizer* resizer, uint64_t* words) {
  const int64_t strips = plan.num_strips();
  for (int64_t i = 0; i < strips; ++i) {
    resizer->strip(i, [&](int64_t begin, int64_t end, uint64_t word) {
      for (int64_t y = begin; y < end; ++y) words[y * strips + i] = word;
    });
  }
}

void unpack_rows(const Plan& plan, const uint64_t* words, uint8_t* pixels) {
  const int64_t whole = plan.width / kStripColumns, rest = plan.width % kStripColumns;
  for (int64_t y = 0; y < plan.height; ++y) {
    for (int64_t i = 0; i < whole; ++i) unpack_bits(*words++, pixels + kStripColumns * i);
    pixels += kStripColumns * whole;
    if (rest == 0) continue;
    uint8_t last[kStripColumns];
    unpack_bits(*words++, last);
    memcpy(pixels, last, rest);
    pixels += rest;
  }
}

}  // namespace

void resize_masks_cpu(const ResizeMasksToPixelsParams& params) {
  const Plan plan(params.resize);
  const View<3>& output = params.output;
  advise_huge_pages(output.data, output.numel() * bytes_of(output.dtype));
  parallel_for(output.size[0], 1, [&](int64_t begin, int64_t end) {
    MaskResizer resizer(plan);
    std::vector<uint64_t> words(params.packed() ? 0 : plan.height * plan.num_strips());
    for (int64_t n = begin; n < end; ++n) {
      resizer.begin(params.resize.masks, n);
      if (params.packed()) {
        write_words(plan, &resizer, output.at<uint64_t>(n));
      } else {
        write_words(plan, &resizer, words.data());  // an eighth of the pixels: stays in the cache
        unpack_rows(plan, words.data(), output.at<uint8_t>(n));
      }
    }
  });
}

void resize_masks_rle_cpu(const ResizeMasksRleParams& params) {
  const Plan plan(params.resize);
  const uint32_t area = static_cast<uint32_t>(plan.height * plan.width);
  parallel_for(params.resize.masks.size[0], 1, [&](int64_t begin, int64_t end) {
    MaskResizer resizer(plan);
    ColumnTransitions transitions;
    std::vector<uint32_t> toggles;
    for (int64_t n = begin; n < end; ++n) {
      resizer.begin(params.resize.masks, n);
      find_toggles(plan, &resizer, &transitions, &toggles);
      append_counts(toggles.data(), static_cast<int64_t>(toggles.size()), area, &params.counts[n]);
    }
  });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(resize_masks_cpu, ResizeMasksToPixelsParams)
FASTSEG_CPU_LAUNCHER(resize_masks_rle_cpu, ResizeMasksRleParams)
