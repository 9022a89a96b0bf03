// RLE on the CPU. Work is split over masks and, where these are few, over windows of columns;
// each window's toggles are complete in themselves and join by cancelling at the seam.
#include <algorithm>
#include <cstdlib>

#include "core/bits.h"
#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "rle/rle.h"
#include "rle/rle_math.h"
#include "rle/transitions.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kTaskPixels = 1 << 22;  // 100-200 us: less is not worth a thread's wake-up
constexpr int64_t kWindowColumns = 256;   // least width that keeps row reads efficient

// A mask cut into windows of columns for the threads to share.
struct Windows {
  int64_t per_mask, columns;  // columns of each window but the last

  Windows(int64_t masks, int64_t height, int64_t width) {
    const int64_t wanted = masks >= 2 * max_threads() ? 1 : 2 * max_threads();
    const int64_t by_size = std::max<int64_t>(height * width / kTaskPixels, 1);
    const int64_t count = std::min({wanted, by_size, std::max<int64_t>(width / kWindowColumns, 1)});
    columns = std::max<int64_t>((width + count - 1) / count, 1);
    columns = (columns + 63) / 64 * 64;
    per_mask = std::max<int64_t>((width + columns - 1) / columns, 1);
  }
};

int64_t masks_per_task(int64_t height, int64_t width) {
  return std::max<int64_t>(kTaskPixels / std::max<int64_t>(height * width, 1), 1);
}

// Appends the toggles of `length` pixels that follow each other from `position` on; the pixel
// before them has the value `inside`. Returns the last pixel's value.
template <class T>
bool scan_line(const T* pixels, int64_t stride, int64_t length, int64_t position, bool inside,
               std::vector<uint32_t>* toggles) {
  for (int64_t begin = 0; begin < length; begin += 64) {
    const int64_t count = std::min<int64_t>(64, length - begin);
    const uint64_t bits = load_bits(pixels + begin * stride, stride, count, NonZero());
    uint64_t changed = bits ^ (bits << 1 | uint64_t(inside));
    inside = bits >> (count - 1) & 1;
    if (count < 64) changed &= (uint64_t(1) << count) - 1;
    if (changed == 0) continue;
    const size_t kept = toggles->size();
    toggles->resize(kept + __builtin_popcountll(changed));
    for (uint32_t* next = toggles->data() + kept; changed != 0; changed &= changed - 1) {
      *next++ = static_cast<uint32_t>(position + begin + __builtin_ctzll(changed));
    }
  }
  return inside;
}

template <class T>
void scan_columns(const View<3>& masks, int64_t n, int64_t begin, int64_t end,
                  std::vector<uint32_t>* toggles) {
  const int64_t height = masks.size[1];
  const T* first = masks.at<T>(n, 0, begin);
  bool inside = false;
  if (masks.stride[2] == height * masks.stride[1]) {
    inside =
        scan_line(first, masks.stride[1], (end - begin) * height, begin * height, inside, toggles);
  } else {
    for (int64_t x = begin; x < end; ++x) {
      inside =
          scan_line(masks.at<T>(n, 0, x), masks.stride[1], height, x * height, inside, toggles);
    }
  }
  if (inside) toggles->push_back(static_cast<uint32_t>(end * height));
}

template <class T>
void scan_rows(const View<3>& masks, int64_t n, int64_t begin, int64_t end,
               ColumnTransitions* transitions, std::vector<uint32_t>* toggles) {
  const int64_t height = masks.size[1], stride = masks.stride[2];
  for (int64_t x = begin; x < end; x += ColumnTransitions::kMaxColumns) {
    const int64_t columns = std::min(ColumnTransitions::kMaxColumns, end - x);
    transitions->begin(height, x, columns);
    for (int64_t y = 0; y < height; ++y) {
      const T* row = masks.at<T>(n, y, x);
      for (int64_t c = 0; c < columns; c += 64) {
        const int64_t count = std::min<int64_t>(64, columns - c);
        transitions->add_word(y, c / 64, load_bits(row + c * stride, stride, count, NonZero()));
      }
    }
    transitions->finish(height, toggles);
  }
}

template <class T>
void encode(const RleEncodeParams& p) {
  const View<3>& masks = p.masks;
  const int64_t num_masks = masks.size[0], height = masks.size[1], width = masks.size[2];
  const Windows windows(num_masks, height, width);
  const bool by_columns =
      masks.stride[1] == 1 ||
      (masks.stride[2] != 1 && std::abs(masks.stride[1]) <= std::abs(masks.stride[2]));
  const uint32_t area = static_cast<uint32_t>(height * width);
  const bool whole = windows.per_mask == 1;
  std::vector<std::vector<uint32_t>> parts(whole ? 0 : num_masks * windows.per_mask);
  parallel_for(num_masks * windows.per_mask, masks_per_task(height, width),
               [&](int64_t begin, int64_t end) {
                 ColumnTransitions transitions;
                 std::vector<uint32_t> of_mask;
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t n = task / windows.per_mask;
                   const int64_t first = task % windows.per_mask * windows.columns;
                   const int64_t last = std::min(first + windows.columns, width);
                   std::vector<uint32_t>& toggles = whole ? of_mask : parts[task];
                   toggles.clear();
                   if (height > 0 && by_columns) {
                     scan_columns<T>(masks, n, first, last, &toggles);
                   } else {
                     scan_rows<T>(masks, n, first, last, &transitions, &toggles);
                   }
                   if (whole) append_counts(toggles.data(), toggles.size(), area, &p.counts[n]);
                 }
               });
  if (whole) return;
  for (int64_t n = 0; n < num_masks; ++n) {
    std::vector<uint32_t> toggles;
    for (int64_t i = 0; i < windows.per_mask; ++i) {
      const std::vector<uint32_t>& part = parts[n * windows.per_mask + i];
      const bool goes_on = !toggles.empty() && !part.empty() && toggles.back() == part.front();
      if (goes_on) toggles.pop_back();
      toggles.insert(toggles.end(), part.begin() + goes_on, part.end());
    }
    append_counts(toggles.data(), toggles.size(), area, &p.counts[n]);
  }
}

struct Toggles {
  const uint32_t* data;
  int64_t size;
};

// Sets `length` bytes; may write up to 64 bytes past them, never past `limit`. Short runs are the
// common case, and one store of fixed size is far cheaper than a call of memset.
inline void set_run(uint8_t* bytes, int64_t length, int value, const uint8_t* limit) {
  if (length > 512) {
    memset(bytes, value, length);
    return;
  }
  for (; length > 0 && limit - bytes >= 64; length -= 64, bytes += 64) memset(bytes, value, 64);
  if (length > 0) memset(bytes, value, length);
}

// Columns [begin, end) where columns are contiguous: each run is set in the columns it crosses.
void fill_columns(const View<3>& masks, int64_t n, int64_t begin, int64_t end, Toggles toggles) {
  const int64_t height = masks.size[1];
  const bool joined = masks.stride[2] == height;  // columns follow each other without a gap
  const int64_t line = joined ? (end - begin) * height : height;
  int64_t next =
      std::upper_bound(toggles.data, toggles.data + toggles.size, begin * height) - toggles.data;
  int64_t position = begin * height;
  for (int64_t x = begin; x < end; x += joined ? end - begin : 1) {
    uint8_t* const column = masks.at<uint8_t>(n, 0, x);
    const int64_t start = position, stop = position + line;
    while (position < stop) {
      const int64_t run_end =
          next < toggles.size ? std::min<int64_t>(toggles.data[next], stop) : stop;
      set_run(column + (position - start), run_end - position, next & 1, column + line);
      position = run_end;
      if (run_end < stop || (next < toggles.size && toggles.data[next] == stop)) ++next;
    }
  }
}

// Columns [begin, end) where rows are contiguous: toggles sorted by row flip bits of the current
// row, which is then written out. Toggles within a column become events; a run that enters a column
// from the one before toggles it at row 0.
class RowFiller {
 public:
  void fill(const View<3>& masks, int64_t n, int64_t begin, int64_t end, Toggles toggles) {
    const int64_t height = masks.size[1];
    row_.assign((end - begin + 63) / 64, 0);
    row_begin_.assign(height + 2, 0);
    for_events(toggles, height, begin, end, [&](int64_t, int64_t y) { ++row_begin_[y + 2]; });
    for (int64_t y = 0; y < height; ++y) row_begin_[y + 2] += row_begin_[y + 1];
    columns_.resize(std::max<size_t>(columns_.size(), row_begin_[height + 1]));
    for_events(toggles, height, begin, end, [&](int64_t x, int64_t y) {
      columns_[row_begin_[y + 1]++] = static_cast<uint32_t>(x);
    });
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t e = row_begin_[y]; e < row_begin_[y + 1]; ++e) {
        row_[columns_[e] / 64] ^= uint64_t(1) << (columns_[e] % 64);
      }
      write_row(masks.at<uint8_t>(n, y, begin), end - begin);
    }
  }

 private:
  // f(column - begin, row) for each change along a column of the window.
  template <class F>
  static void for_events(Toggles toggles, int64_t height, int64_t begin, int64_t end, F&& f) {
    int64_t next =
        std::upper_bound(toggles.data, toggles.data + toggles.size, begin * height) - toggles.data;
    int64_t column_start = begin * height;
    for (int64_t x = 0; x < end - begin; ++x, column_start += height) {
      if (next & 1) f(x, 0);
      const int64_t column_end = column_start + height;
      for (; next < toggles.size && toggles.data[next] < column_end; ++next) {
        f(x, toggles.data[next] - column_start);
      }
      while (next < toggles.size && toggles.data[next] == column_end) ++next;
    }
  }

  void write_row(uint8_t* pixels, int64_t width) {
    int64_t i = 0;
    for (; 64 * (i + 1) <= width; ++i) unpack_bits(row_[i], pixels + 64 * i);
    if (64 * i == width) return;
    uint8_t rest[64];
    unpack_bits(row_[i], rest);
    memcpy(pixels + 64 * i, rest, width - 64 * i);
  }

  std::vector<uint64_t> row_;
  std::vector<uint32_t> columns_;   // of the events, in order of rows
  std::vector<int64_t> row_begin_;  // where a row's events begin
};

}  // namespace

void rle_encode_cpu(const RleEncodeParams& params) {
  dispatch_width(params.masks.dtype, "masks", [&](auto zero) { encode<decltype(zero)>(params); });
}

void rle_encode_words_cpu(const RleEncodeWordsParams& params) {
  constexpr int64_t kMaxColumns = ColumnTransitions::kMaxColumns;
  const View<3>& words = params.words;
  const int64_t height = words.size[1], width = params.width;
  const uint32_t area = static_cast<uint32_t>(height * width);
  parallel_for(words.size[0], masks_per_task(height, width), [&](int64_t begin, int64_t end) {
    ColumnTransitions transitions;
    std::vector<uint32_t> toggles;
    for (int64_t n = begin; n < end; ++n) {
      toggles.clear();
      for (int64_t x = 0; x < width; x += kMaxColumns) {
        transitions.begin(height, x, std::min(kMaxColumns, width - x));
        for (int64_t y = 0; y < height; ++y) {
          transitions.add_row(y, words.at<const uint64_t>(n, y, x / 64));
        }
        transitions.finish(height, &toggles);
      }
      append_counts(toggles.data(), toggles.size(), area, &params.counts[n]);
    }
  });
}

void rle_fill_cpu(const RleFillParams& params) {
  const View<3>& masks = params.masks;
  const int64_t height = masks.size[1], width = masks.size[2];
  if (masks.numel() == 0) return;
  const Windows windows(masks.size[0], height, width);
  parallel_for(masks.size[0] * windows.per_mask, masks_per_task(height, width),
               [&](int64_t begin, int64_t end) {
                 RowFiller rows;
                 for (int64_t task = begin; task < end; ++task) {
                   const int64_t n = task / windows.per_mask;
                   const int64_t first = task % windows.per_mask * windows.columns;
                   const int64_t last = std::min(first + windows.columns, width);
                   const int64_t* offsets = params.offsets.as<int64_t>() + n;
                   const Toggles toggles = {params.toggles.as<uint32_t>() + offsets[0],
                                            offsets[1] - offsets[0]};
                   if (masks.stride[2] == 1) {
                     rows.fill(masks, n, first, last, toggles);
                   } else {
                     fill_columns(masks, n, first, last, toggles);
                   }
                 }
               });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(rle_encode_cpu, RleEncodeParams)
FASTSEG_CPU_LAUNCHER(rle_encode_words_cpu, RleEncodeWordsParams)
FASTSEG_CPU_LAUNCHER(rle_fill_cpu, RleFillParams)
