// Pasting on the CPU: only within the boxes, row by row with columns in the vector lanes. Rows of
// the image between the same two rows of the mask share these, resampled to the image's columns.
// For run lengths a row lives in a buffer just long enough to become bits.
#include <algorithm>
#include <vector>

#include "core/bits.h"
#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/parallel.h"
#include "paste_masks/paste_masks_math.h"
#include "rle/rle_math.h"
#include "rle/transitions.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kRowBlock = 256;  // rows of one mask that a thread fills at a time

Blend paste_blend(PasteMode mode, const PasteBox& box) {
  if (mode == PasteMode::detectron2) return Blend::west_first;
  return cpu_interpolate_blend(box.y.size, box.x.size);
}

// Computes rows of one pasted mask, best from top to bottom.
class PastedMask {
 public:
  PastedMask(const PasteMasksParams& params, int64_t n) : params_(params) {
    box_ = paste_box(params, n);
    blend_ = paste_blend(params.mode, box_);
    dispatch_floating(params.masks.dtype, "masks", [&](auto zero) { read<decltype(zero)>(n); });
    set_columns(box_.x.begin, box_.x.end);
  }

  const PasteBox& box() const { return box_; }

  // Restricts the rows to columns [begin, end) of the image.
  void set_columns(int64_t begin, int64_t end) {
    columns_ = end - begin;
    low_.resize(columns_);
    high_.resize(columns_);
    low_weight_.resize(columns_);
    high_weight_.resize(columns_);
    for (int64_t i = 0; i < columns_; ++i) {
      const Tap tap = paste_tap(params_.mode, box_.x, begin + i);
      low_[i] = tap.low;
      high_[i] = tap.high;
      low_weight_[i] = tap.low_weight;
      high_weight_[i] = tap.high_weight;
    }
    for (Line& line : lines_) line.row = -1;
  }

  // Writes convert(value) for the columns of row y of the image, y in [box().y.begin, end).
  template <class Out, class Convert>
  void paint(int64_t y, Out* __restrict out, Convert convert) {
    const Tap tap = paste_tap(params_.mode, box_.y, y);
    const Line& north = line(tap.low);
    const Line& south = line(tap.high);
    switch (blend_) {
      case Blend::separable:
        return paint_separable(tap, north.west.data(), south.west.data(), out, convert);
      case Blend::east_first:
        return paint_four<Blend::east_first>(tap, north, south, out, convert);
      case Blend::west_first:
        return paint_four<Blend::west_first>(tap, north, south, out, convert);
    }
  }

 private:
  // A row of the mask at the image's columns: the cells west and east of each, or for a separable
  // blend their mean in `west`.
  struct Line {
    int row = -1;
    std::vector<float> west, east;
  };

  template <class T>
  void read(int64_t n) {
    const int64_t size = params_.masks.size[1], cells = size + 2;
    const int64_t row_stride = params_.masks.stride[1], stride = params_.masks.stride[2];
    cells_.assign(cells * cells, 0.0f);
    if (box_.y.begin == box_.y.end) return;
    for (int64_t r = 0; r < size; ++r) {
      const T* from = params_.masks.template at<const T>(n) + r * row_stride;
      float* to = cells_.data() + (r + 1) * cells + 1;
      for (int64_t c = 0; c < size; ++c) to[c] = static_cast<float>(from[c * stride]);
    }
  }

  // Neighbouring rows of the mask differ in parity, so that both that a row needs are kept.
  const Line& line(int row) {
    Line& line = lines_[row % 2];
    if (line.row == row) return line;
    line.row = row;
    line.west.resize(columns_);
    const float* __restrict cells = cells_.data() + int64_t(row) * box_.x.cells;
    const int* __restrict low = low_.data();
    const int* __restrict high = high_.data();
    float* __restrict west = line.west.data();
    if (blend_ == Blend::separable) {
      const float* __restrict low_weight = low_weight_.data();
      const float* __restrict high_weight = high_weight_.data();
      for (int64_t i = 0; i < columns_; ++i) {
        west[i] = blend_pair(cells[low[i]], low_weight[i], cells[high[i]], high_weight[i]);
      }
      return line;
    }
    line.east.resize(columns_);
    float* __restrict east = line.east.data();
    for (int64_t i = 0; i < columns_; ++i) {
      west[i] = cells[low[i]];
      east[i] = cells[high[i]];
    }
    return line;
  }

  template <class Out, class Convert>
  void paint_separable(const Tap& tap, const float* north, const float* south, Out* __restrict out,
                       Convert convert) const {
    const float north_weight = tap.low_weight, south_weight = tap.high_weight;
    for (int64_t i = 0; i < columns_; ++i) {
      out[i] = convert(blend_pair(north[i], north_weight, south[i], south_weight));
    }
  }

  template <Blend kBlend, class Out, class Convert>
  void paint_four(const Tap& tap, const Line& north, const Line& south, Out* __restrict out,
                  Convert convert) const {
    const float* low_weight = low_weight_.data();
    const float* high_weight = high_weight_.data();
    const float *north_west = north.west.data(), *north_east = north.east.data();
    const float *south_west = south.west.data(), *south_east = south.east.data();
    for (int64_t i = 0; i < columns_; ++i) {
      out[i] = convert(blend_four(kBlend, tap, low_weight[i], high_weight[i], north_west[i],
                                  north_east[i], south_west[i], south_east[i]));
    }
  }

  const PasteMasksParams& params_;
  PasteBox box_;
  Blend blend_;
  int64_t columns_ = 0;
  std::vector<float> cells_;  // the mask with its border
  std::vector<int> low_, high_;
  std::vector<float> low_weight_, high_weight_;
  Line lines_[2];
};

template <class Out, class Convert>
void paste(const PasteMasksParams& p, Convert convert) {
  const int64_t height = p.output.size[1], width = p.output.size[2];
  const int64_t blocks = (height + kRowBlock - 1) / kRowBlock;
  const Out background = convert(0.0f);
  parallel_for(p.output.size[0] * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t n = block / blocks, first = block % blocks * kRowBlock;
      const int64_t last = std::min(first + kRowBlock, height);
      PastedMask mask(p, n);
      const PasteAxis& columns = mask.box().x;
      const int64_t top = std::clamp(mask.box().y.begin, first, last);
      const int64_t bottom = std::clamp(mask.box().y.end, top, last);
      Out* rows = p.output.template at<Out>(n);
      std::fill(rows + first * width, rows + top * width, background);
      for (int64_t y = top; y < bottom; ++y) {
        Out* row = rows + y * width;
        std::fill(row, row + columns.begin, background);
        mask.paint(y, row + columns.begin, convert);
        std::fill(row + columns.end, row + width, background);
      }
      std::fill(rows + bottom * width, rows + last * width, background);
    }
  });
}

// The toggles (rle/rle_math.h) of one pasted mask. A background that is inside the mask (a
// threshold below 0) is encoded inverted, so that there too only pixels of the box are looked at.
template <class Inside>
void find_toggles(const PasteMasksParams& p, int64_t n, Inside inside,
                  ColumnTransitions* transitions, std::vector<uint32_t>* toggles) {
  const int64_t height = p.output.size[1], width = p.output.size[2];
  const bool background = inside(0.0f);
  PastedMask mask(p, n);
  const PasteAxis rows = mask.box().y, columns = mask.box().x;
  std::vector<uint8_t> row;
  toggles->clear();
  for (int64_t first = columns.begin; first < columns.end;) {
    const int64_t last = std::min(first + ColumnTransitions::kMaxColumns, columns.end);
    const int64_t words = (last - first + 63) / 64;
    row.assign(words * 64, 0);
    mask.set_columns(first, last);
    transitions->begin(height, first, last - first);
    for (int64_t y = rows.begin; y < rows.end; ++y) {
      mask.paint(y, row.data(), [=](float value) { return uint8_t(inside(value) != background); });
      for (int64_t i = 0; i < words; ++i) {
        transitions->add_word(y, i, pack_bits(row.data() + 64 * i));
      }
    }
    transitions->finish(rows.end, toggles);
    first = last;
  }
  if (!background || height * width == 0) return;
  if (!toggles->empty() && toggles->front() == 0) {
    toggles->erase(toggles->begin());
  } else {
    toggles->insert(toggles->begin(), 0);
  }
}

}  // namespace

void paste_masks_cpu(const PasteMasksParams& p) {
  advise_huge_pages(p.output.data, p.output.numel() * bytes_of(p.output.dtype));
  if (p.output.dtype == DType::f32) {
    return paste<float>(p, [](float value) { return value; });
  }
  with_comparison(p, [&](auto inside) {
    paste<uint8_t>(p, [=](float value) { return uint8_t(inside(value)); });
  });
}

void paste_masks_rle_cpu(const PasteMasksRleParams& params) {
  const PasteMasksParams& p = params.paste;
  const uint32_t area = static_cast<uint32_t>(p.output.size[1] * p.output.size[2]);
  with_comparison(p, [&](auto inside) {
    parallel_for(p.output.size[0], 1, [&](int64_t begin, int64_t end) {
      ColumnTransitions transitions;
      std::vector<uint32_t> toggles;
      for (int64_t n = begin; n < end; ++n) {
        find_toggles(p, n, inside, &transitions, &toggles);
        params.counts[n].clear();
        append_counts(toggles.data(), static_cast<int64_t>(toggles.size()), area,
                      &params.counts[n]);
      }
    });
  });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(paste_masks_cpu, PasteMasksParams)
FASTSEG_CPU_LAUNCHER(paste_masks_rle_cpu, PasteMasksRleParams)
