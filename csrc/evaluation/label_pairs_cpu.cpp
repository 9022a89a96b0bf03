// Label pairs on the CPU, in one pass over both maps. Neighbours mostly have the same labels, so
// pixels are first compared with the ones before them, 64 at a time, and the hash table is asked
// once per run of equal pairs. Threads take blocks of rows.
#include <algorithm>
#include <mutex>

#include "core/bits.h"
#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "evaluation/label_pairs.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kTaskPixels = 1 << 20;  // 100 us and more: less is not worth a thread's wake-up

// Maps from memory are read twice as fast when asked for early: processors do not look ahead over
// the ends of pages.
constexpr int64_t kPrefetchBytes = 2048;

// Open addressing with linear probing; a slot without pixels is free.
class PairTable {
 public:
  void add(int64_t first, int64_t second, int64_t pixels) {
    LabelPair& slot = find(first, second);
    if (slot.pixels == 0) {
      slot.first = first;
      slot.second = second;
      ++used_;
    }
    slot.pixels += pixels;
    if (2 * used_ > slots_.size()) grow();
  }

  void append_to(std::vector<LabelPair>* pairs) const {
    for (const LabelPair& pair : slots_) {
      if (pair.pixels != 0) pairs->push_back(pair);
    }
  }

 private:
  LabelPair& find(int64_t first, int64_t second) {
    // Odd multipliers spread neighbouring labels over the upper bits, which pick the slot.
    const uint64_t hash =
        (static_cast<uint64_t>(first) * 0x9e3779b97f4a7c15u ^ static_cast<uint64_t>(second)) *
        0xd6e8feb86659fd93u;
    size_t index = hash >> shift_;
    while (slots_[index].pixels != 0 &&
           (slots_[index].first != first || slots_[index].second != second)) {
      index = (index + 1) & (slots_.size() - 1);
    }
    return slots_[index];
  }

  void grow() {
    const std::vector<LabelPair> old = std::move(slots_);
    slots_.assign(2 * old.size(), {});
    --shift_;
    for (const LabelPair& pair : old) {
      if (pair.pixels != 0) find(pair.first, pair.second) = pair;
    }
  }

  int shift_ = 64 - 8;
  size_t used_ = 0;
  std::vector<LabelPair> slots_ = std::vector<LabelPair>(1 << 8);
};

// Rows of a map, contiguous in memory. C elements of type T make a pixel.
template <class T, int C>
class Rows {
 public:
  explicit Rows(const View<3>& map) : map_(map) {
    contiguous_ = map.stride[1] == C && (C == 1 || map.stride[2] == 1);
    if (!contiguous_) copy_.resize(map.size[1] * C);
  }

  void read(int64_t y) {
    row_ = map_.at<T>(y);
    if (contiguous_) return;
    for (int64_t x = 0; x < map_.size[1]; ++x) {
      for (int c = 0; c < C; ++c) copy_[x * C + c] = *map_.at<T>(y, x, c);
    }
    row_ = copy_.data();
  }

  int64_t label(int64_t x) const {
    if constexpr (C == 1) return static_cast<int64_t>(row_[x]);
    const T* pixel = row_ + x * C;
    return pixel[0] + 256 * pixel[1] + 65536 * pixel[2];
  }

  // Bit i tells whether pixel x + i differs from the one before it; x is at least 1.
  uint64_t changes(int64_t x, int64_t count) const {
    alignas(64) uint8_t differs[64 * C];
    if (count < 64) memset(differs, 0, sizeof(differs));
    const T* first = row_ + x * C;
    for (size_t line = 0; line < 64 * C * sizeof(T); line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(first) + kPrefetchBytes + line);
    }
    if (count == 64) {
      for (int64_t i = 0; i < 64 * C; ++i) differs[i] = first[i] != first[i - C];
    } else {
      for (int64_t i = 0; i < count * C; ++i) differs[i] = first[i] != first[i - C];
    }
    if constexpr (C == 1) return pack_bits(differs);
    uint64_t changed = 0;
    for (int word = 0; word < C; ++word) {
      for (uint64_t bits = pack_bits(differs + 64 * word); bits != 0;) {
        const int pixel = (64 * word + __builtin_ctzll(bits)) / C;
        changed |= uint64_t(1) << pixel;
        const int next = (pixel + 1) * C - 64 * word;  // the first bit of the pixel after it
        bits = next < 64 ? bits >> next << next : 0;
      }
    }
    return changed;
  }

 private:
  const View<3>& map_;
  const T* row_ = nullptr;
  bool contiguous_;
  std::vector<T> copy_;
};

template <class First, class Second>
void count_row(const First& first, const Second& second, int64_t width, PairTable* table) {
  int64_t begin = 0;  // of the run
  const auto end_run = [&](int64_t end) {
    table->add(first.label(begin), second.label(begin), end - begin);
    begin = end;
  };
  for (int64_t x = 1; x < width; x += 64) {
    const int64_t count = std::min<int64_t>(64, width - x);
    uint64_t changed = first.changes(x, count) | second.changes(x, count);
    for (; changed != 0; changed &= changed - 1) end_run(x + __builtin_ctzll(changed));
  }
  end_run(width);
}

// Sorts pairs and joins those that several threads found.
void join(std::vector<LabelPair>* pairs) {
  const auto same = [](const LabelPair& a, const LabelPair& b) {
    return a.first == b.first && a.second == b.second;
  };
  std::sort(pairs->begin(), pairs->end(), [](const LabelPair& a, const LabelPair& b) {
    return a.first != b.first ? a.first < b.first : a.second < b.second;
  });
  size_t kept = 0;
  for (const LabelPair& pair : *pairs) {
    if (kept > 0 && same((*pairs)[kept - 1], pair)) {
      (*pairs)[kept - 1].pixels += pair.pixels;
    } else {
      (*pairs)[kept++] = pair;
    }
  }
  pairs->resize(kept);
}

template <class First, class Second>
void count(const LabelPairsParams& p) {
  const int64_t height = p.first.size[0], width = p.first.size[1];
  const int64_t grain = kTaskPixels / std::max<int64_t>(width, 1) + 1;
  std::mutex mutex;
  parallel_for(height, grain, [&](int64_t begin, int64_t end) {
    PairTable table;
    First first(p.first);
    Second second(p.second);
    for (int64_t y = begin; y < end; ++y) {
      first.read(y);
      second.read(y);
      count_row(first, second, width, &table);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    table.append_to(p.pairs);
  });
  join(p.pairs);
}

// Calls f(Rows type) for the element type and the channels of a map.
template <class F>
void dispatch_rows(const View<3>& map, F&& f) {
  if (map.size[2] == 3) return f(static_cast<Rows<uint8_t, 3>*>(nullptr));
  switch (map.dtype) {
    case DType::boolean:
    case DType::u8:
      return f(static_cast<Rows<uint8_t, 1>*>(nullptr));
    case DType::i8:
      return f(static_cast<Rows<int8_t, 1>*>(nullptr));
    case DType::u16:
      return f(static_cast<Rows<uint16_t, 1>*>(nullptr));
    case DType::i16:
      return f(static_cast<Rows<int16_t, 1>*>(nullptr));
    case DType::u32:
      return f(static_cast<Rows<uint32_t, 1>*>(nullptr));
    case DType::i32:
      return f(static_cast<Rows<int32_t, 1>*>(nullptr));
    default:
      return f(static_cast<Rows<int64_t, 1>*>(nullptr));
  }
}

}  // namespace

void label_pairs_cpu(const LabelPairsParams& params) {
  params.pairs->clear();
  if (params.first.size[0] == 0 || params.first.size[1] == 0) return;
  dispatch_rows(params.first, [&](auto* first) {
    dispatch_rows(params.second, [&](auto* second) {
      count<std::remove_pointer_t<decltype(first)>, std::remove_pointer_t<decltype(second)>>(
          params);
    });
  });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(label_pairs_cpu, LabelPairsParams)
