// Resizing on the CPU, in strips of 64 columns, so that a row of a strip is one word of bits. Where
// all the cells behind a strip's rows are far from the threshold on the same side, as in most of a
// usual mask, its rows are known at once. Elsewhere core/resized_rows.h computes them.
#include <algorithm>
#include <vector>

#include "core/bits.h"
#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/lanes.h"
#include "core/parallel.h"
#include "core/resized_rows.h"
#include "resize_masks/resize_masks_math.h"
#include "rle/rle_math.h"
#include "rle/transitions.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

// What all masks share.
struct Plan : ResizePlan {
  int64_t cells[2];  // of a mask: height, width
  std::vector<int64_t>
      first_row;  // [cells[0] + 1]: the first row that comes from this one or below
  CertainLimits limits;
  float threshold;

  explicit Plan(const ResizeMasksParams& p)
      : ResizePlan(p.steps),
        cells{p.steps.cells[0], p.steps.cells[1]},
        limits(p.threshold),
        threshold(p.threshold) {
    first_row.assign(cells[0] + 1, height);
    int64_t row = 0;
    for (int64_t cell = 0; cell < cells[0]; ++cell) {
      while (row < height && last_cell[row] < cell) ++row;
      first_row[cell] = row;
    }
  }
};

// Resizes one mask after the other.
class MaskResizer {
 public:
  explicit MaskResizer(const Plan& plan) : plan_(plan), rows_(plan) {
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
    const int64_t columns = std::min(kStripColumns, plan_.width - i * kStripColumns);
    const uint64_t full = ~uint64_t(0) >> (kStripColumns - columns);
    begin_strip(i);
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

  // As MaskScoresParams::tallies; `sum` is not in units yet.
  void add_scores(int64_t i, double* sum, int64_t* pixels) {
    const int64_t columns = std::min(kStripColumns, plan_.width - i * kStripColumns);
    begin_strip(i);
    for (int64_t y = 0; y < plan_.height; ++y) {
      const int cell = plan_.first_cell[y];
      if (sides_[cell] == Side::below && plan_.last_cell[y] < side_end_[cell]) {
        y = plan_.first_row[side_end_[cell]] - 1;
        continue;
      }
      float values[kStripColumns];
      rows_.write(y, values);
      std::fill(values + columns, values + kStripColumns, -INFINITY);
      const uint64_t bits = pack_greater(values, plan_.threshold);
      if (bits == 0) continue;
      *sum += sum_inside(values);
      *pixels += __builtin_popcountll(bits);
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

  void begin_strip(int64_t i) {
    const int west = plan_.first_column(i), east = plan_.last_column(i);
    rows_.begin(cells_, row_stride_, i);
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
    rows_.write(y, values);
    return pack_greater(values, plan_.threshold);
  }

  float sum_inside(const float* values) const {
    float inside[kStripColumns];
    // Two loops: in one, compilers would skip the sigmoid by a branch and not vectorise.
    for (int64_t i = 0; i < kStripColumns; ++i) inside[i] = sigmoid(values[i]);
    for (int64_t i = 0; i < kStripColumns; ++i) {
      inside[i] = values[i] > plan_.threshold ? inside[i] : 0.0f;
    }
    Lanes<float> sum = {};
    for (int64_t i = 0; i < kStripColumns; i += kLanes<float>) sum += load_lanes<float>(inside + i);
    return sum_lanes<float>(sum);
  }

  const Plan& plan_;
  ResizedRows rows_;
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

void mask_scores_cpu(const MaskScoresParams& params) {
  const Plan plan(params.resize);
  parallel_for(params.resize.masks.size[0], 1, [&](int64_t begin, int64_t end) {
    MaskResizer resizer(plan);
    for (int64_t n = begin; n < end; ++n) {
      double sum = 0.0;
      int64_t pixels = 0;
      resizer.begin(params.resize.masks, n);
      for (int64_t i = 0; i < plan.num_strips(); ++i) resizer.add_scores(i, &sum, &pixels);
      int64_t* tallies = params.tallies.at<int64_t>(n);
      tallies[0] += std::llround(sum * kScoreUnits);
      tallies[1] += pixels;
    }
  });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(resize_masks_cpu, ResizeMasksToPixelsParams)
FASTSEG_CPU_LAUNCHER(resize_masks_rle_cpu, ResizeMasksRleParams)
FASTSEG_CPU_LAUNCHER(mask_scores_cpu, MaskScoresParams)
