// Packing on the CPU. Rows become words directly; where columns are contiguous, squares of 64 x 64
// pixels are read by column and transposed as bits. Work is split over masks and blocks of rows.
#include <algorithm>
#include <cstdlib>
#include <vector>

#include "core/bits.h"
#include "core/cpu_dispatch.h"
#include "core/huge_pages.h"
#include "core/parallel.h"
#include "pack_masks/pack_masks_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kBlockPixels = 1 << 20;  // of one mask that a thread takes at a time
constexpr int64_t kTaskPixels = 1 << 21;   // 50-100 us: less is not worth a thread's wake-up
constexpr int64_t kRunWordsPerTask = 1 << 16;

// Area and bounding box of a mask, or of some of its rows.
class Extent {
 public:
  explicit Extent(int64_t row_words) : columns_(row_words, 0) {}

  void clear() {
    std::fill(columns_.begin(), columns_.end(), 0);
    area_ = y0_ = y1_ = 0;
  }

  // Rows come from top to bottom.
  void add_row(int64_t y, const uint64_t* words) {
    uint64_t any = 0;
    int64_t area = 0;
    for (size_t i = 0; i < columns_.size(); ++i) {
      any |= words[i];
      columns_[i] |= words[i];
      area += __builtin_popcountll(words[i]);
    }
    if (any == 0) return;
    if (area_ == 0) y0_ = y;
    y1_ = y + 1;
    area_ += area;
  }

  // [5]: area, x0, y0, x1, y1.
  void store(int64_t* summary) const {
    std::fill(summary, summary + 5, 0);
    if (area_ == 0) return;
    size_t first = 0, last = columns_.size() - 1;
    while (columns_[first] == 0) ++first;
    while (columns_[last] == 0) --last;
    summary[0] = area_;
    summary[1] = kWordPixels * first + __builtin_ctzll(columns_[first]);
    summary[2] = y0_;
    summary[3] = kWordPixels * last + 64 - __builtin_clzll(columns_[last]);
    summary[4] = y1_;
  }

 private:
  std::vector<uint64_t> columns_;  // the OR of all rows
  int64_t area_ = 0, y0_ = 0, y1_ = 0;
};

// Joins the summaries of a mask's `count` blocks of rows.
void join(const int64_t* summaries, int64_t count, int64_t* area, int64_t* box) {
  *area = 0;
  std::fill(box, box + 4, 0);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* part = summaries + 5 * i;
    if (part[0] == 0) continue;
    const bool first = *area == 0;
    *area += part[0];
    for (int side = 0; side < 4; ++side) {
      const int64_t value = part[1 + side];
      const int64_t joined = side < 2 ? std::min(box[side], value) : std::max(box[side], value);
      box[side] = first ? value : joined;
    }
  }
}

template <class T, class Inside>
void pack_rows(const View<3>& masks, const Inside& inside, const View<3>& words, int64_t n,
               int64_t begin, int64_t end) {
  const int64_t width = masks.size[2], stride = masks.stride[2];
  for (int64_t y = begin; y < end; ++y) {
    const T* row = masks.at<T>(n, y);
    uint64_t* to = words.at<uint64_t>(n, y);
    for (int64_t x = 0; x < width; x += kWordPixels) {
      *to++ = load_bits(row + x * stride, stride, std::min(kWordPixels, width - x), inside);
    }
  }
}

template <class T, class Inside>
void pack_columns(const View<3>& masks, const Inside& inside, const View<3>& words, int64_t n,
                  int64_t begin, int64_t end) {
  const int64_t width = masks.size[2];
  alignas(64) uint64_t square[64];
  for (int64_t y = begin; y < end; y += 64) {
    const int64_t rows = std::min<int64_t>(64, end - y);
    for (int64_t i = 0; i < words.size[2]; ++i) {
      const int64_t x = i * kWordPixels, columns = std::min(kWordPixels, width - x);
      for (int64_t c = 0; c < 64; ++c) {
        const T* column = masks.at<T>(n, y, x + c);
        square[c] = c < columns ? load_bits(column, masks.stride[1], rows, inside) : 0;
      }
      transpose_bits(square);
      for (int64_t r = 0; r < rows; ++r) *words.at<uint64_t>(n, y + r, i) = square[r];
    }
  }
}

template <class T, class Inside>
void pack(const PackMasksParams& p, const Inside& inside) {
  const View<3>& masks = p.masks;
  const int64_t num_masks = masks.size[0], height = masks.size[1], width = masks.size[2];
  const bool by_columns =
      masks.stride[2] != 1 &&
      (masks.stride[1] == 1 || std::abs(masks.stride[1]) < std::abs(masks.stride[2]));
  const int64_t wanted_rows = kBlockPixels / std::max<int64_t>(width, 1) / 64 * 64;
  const int64_t block_rows = std::max<int64_t>(wanted_rows, 64);
  const int64_t blocks = std::max<int64_t>((height + block_rows - 1) / block_rows, 1);
  const int64_t grain = kTaskPixels / std::max<int64_t>(std::min(block_rows, height) * width, 1);
  std::vector<int64_t> summaries(5 * num_masks * blocks);
  parallel_for(num_masks * blocks, grain, [&](int64_t first, int64_t last) {
    Extent extent(p.words.size[2]);
    for (int64_t task = first; task < last; ++task) {
      const int64_t n = task / blocks, begin = task % blocks * block_rows;
      const int64_t end = std::min(begin + block_rows, height);
      extent.clear();
      for (int64_t y = begin; y < end; y += 64) {  // the words are still in the cache
        const int64_t stop = std::min(y + 64, end);
        if (by_columns) {
          pack_columns<T>(masks, inside, p.words, n, y, stop);
        } else {
          pack_rows<T>(masks, inside, p.words, n, y, stop);
        }
        for (int64_t r = y; r < stop; ++r) extent.add_row(r, p.words.at<uint64_t>(n, r));
      }
      extent.store(summaries.data() + 5 * task);
    }
  });
  for (int64_t n = 0; n < num_masks; ++n) {
    join(summaries.data() + 5 * n * blocks, blocks, p.areas.at<int64_t>(n), p.boxes.at<int64_t>(n));
  }
}

// A toggle flips all pixels of its column from its row down, so each becomes one bit, and then
// every row takes in the one above it.
void pack_one(const PackRunsParams& p, int64_t n, Extent* extent) {
  const int64_t height = p.words.size[1], row_words = p.words.size[2];
  const int64_t begin = p.offsets.as<int64_t>()[n], end = p.offsets.as<int64_t>()[n + 1];
  const uint32_t* toggles = p.toggles.as<uint32_t>();
  uint64_t* const words = p.words.at<uint64_t>(n);
  std::fill(words, words + height * row_words, 0);
  const auto flip = [&](int64_t x, int64_t y) {
    words[y * row_words + x / kWordPixels] ^= uint64_t(1) << x % kWordPixels;
  };
  int64_t x = 0, column_end = height;  // of the column that the next toggle is compared with
  bool inside = false;
  // Moves on to the column of `position`; a run that enters a column fills it from the top.
  const auto advance = [&](int64_t position) {
    while (position >= column_end && x < p.width) {
      x = inside ? x + 1 : position / height;
      column_end = (x + 1) * height;
      if (inside && x < p.width) flip(x, 0);
    }
  };
  for (int64_t i = begin; i < end; ++i) {
    advance(toggles[i]);
    if (x < p.width) flip(x, toggles[i] - (column_end - height));
    inside = !inside;
  }
  if (inside) advance(height * p.width);
  extent->clear();
  for (int64_t y = 0; y < height; ++y) {
    uint64_t* const row = words + y * row_words;
    for (int64_t i = 0; y > 0 && i < row_words; ++i) row[i] ^= row[i - row_words];
    extent->add_row(y, row);
  }
}

void unpack_row(const uint64_t* words, int64_t width, uint8_t* pixels) {
  int64_t x = 0;
  for (; x + kWordPixels <= width; x += kWordPixels) unpack_bits(*words++, pixels + x);
  if (x == width) return;
  uint8_t rest[kWordPixels];
  unpack_bits(*words, rest);
  memcpy(pixels + x, rest, width - x);
}

}  // namespace

void pack_masks_cpu(const PackMasksParams& params) {
  advise_huge_pages(params.words.data, params.words.numel() * sizeof(uint64_t));
  dispatch_inside(params,
                  [&](auto zero, const auto& inside) { pack<decltype(zero)>(params, inside); });
}

void pack_runs_cpu(const PackRunsParams& params) {
  const View<3>& words = params.words;
  const int64_t mask_words = words.size[1] * words.size[2];
  advise_huge_pages(words.data, words.numel() * sizeof(uint64_t));
  parallel_for(words.size[0], kRunWordsPerTask / std::max<int64_t>(mask_words, 1),
               [&](int64_t begin, int64_t end) {
                 Extent extent(words.size[2]);
                 for (int64_t n = begin; n < end; ++n) {
                   int64_t summary[5] = {};
                   if (mask_words > 0) {
                     pack_one(params, n, &extent);
                     extent.store(summary);
                   }
                   *params.areas.at<int64_t>(n) = summary[0];
                   std::copy(summary + 1, summary + 5, params.boxes.at<int64_t>(n));
                 }
               });
}

void measure_words_cpu(const MeasureWordsParams& params) {
  const View<3>& words = params.words;
  const int64_t height = words.size[1], row_words = words.size[2];
  parallel_for(words.size[0], kRunWordsPerTask / std::max<int64_t>(height * row_words, 1),
               [&](int64_t begin, int64_t end) {
                 Extent extent(row_words);
                 for (int64_t n = begin; n < end; ++n) {
                   extent.clear();
                   for (int64_t y = 0; y < height; ++y) {
                     extent.add_row(y, words.at<uint64_t>(n, y));
                   }
                   int64_t summary[5];
                   extent.store(summary);
                   *params.areas.at<int64_t>(n) = summary[0];
                   std::copy(summary + 1, summary + 5, params.boxes.at<int64_t>(n));
                 }
               });
}

void unpack_masks_cpu(const UnpackMasksParams& params) {
  const View<3>& masks = params.masks;
  const int64_t height = masks.size[1], width = masks.size[2];
  if (masks.numel() == 0) return;
  advise_huge_pages(masks.data, masks.numel());
  parallel_for(masks.size[0] * height, std::max<int64_t>(kTaskPixels / width, 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   const int64_t n = row / height, y = row % height;
                   unpack_row(params.words.at<uint64_t>(n, y), width, masks.at<uint8_t>(n, y));
                 }
               });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(pack_masks_cpu, PackMasksParams)
FASTSEG_CPU_LAUNCHER(pack_runs_cpu, PackRunsParams)
FASTSEG_CPU_LAUNCHER(measure_words_cpu, MeasureWordsParams)
FASTSEG_CPU_LAUNCHER(unpack_masks_cpu, UnpackMasksParams)
