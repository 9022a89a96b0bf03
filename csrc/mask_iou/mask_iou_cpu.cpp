// Intersections of masks on the CPU. Bits: tiles of pairs, band of rows by band, so that the words
// of a tile's masks stay in the cache while its pairs are counted, each within the overlap of its
// boxes. Runs: for each mask of one set a table that tells how many of its pixels come before any
// position; then each end of a run of the other set takes one look into it.
#include <algorithm>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/parallel.h"
#include "core/popcount.h"
#include "mask_iou/mask_iou_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kTile = 16;               // masks a side
constexpr int64_t kBandBytes = 4096;        // of a mask
constexpr int64_t kTaskWords = 1 << 20;     // compared; 100-200 us
constexpr int64_t kLooksPerTask = 1 << 18;  // into tables, if all boxes overlapped
constexpr int64_t kEntriesPerLook = 2;  // of a table, that cost as much to build as a look saves
constexpr int64_t kQuotientsPerTask = 1 << 16;

struct Pair {
  int64_t a, b;
  WordRange overlap;
  int64_t common;
};

// ---- bits

std::vector<MaskBox> mask_boxes(const View<2>& boxes, const View<3>& words) {
  std::vector<MaskBox> result(words.size[0]);
  for (int64_t n = 0; n < words.size[0]; ++n) result[n] = mask_box(boxes, n, words);
  return result;
}

class TileCounter {
 public:
  TileCounter(const MaskIntersectionsParams& params, const std::vector<MaskBox>& boxes_a,
              const std::vector<MaskBox>& boxes_b)
      : p_(params),
        boxes_a_(boxes_a),
        boxes_b_(boxes_b),
        row_words_(params.words_a.size[2]),
        band_(std::max<int64_t>(kBandBytes / (8 * std::max<int64_t>(row_words_, 1)), 1)) {}

  // Pairs [a, a + kTile) x [b, b + kTile).
  void count(int64_t a, int64_t b) {
    collect(a, b);
    for (int64_t y = top_; y < bottom_; y += band_) {
      for (Pair& pair : pairs_) {
        const int64_t begin = std::max<int64_t>(pair.overlap.top, y);
        const int64_t end = std::min<int64_t>(pair.overlap.top + pair.overlap.rows, y + band_);
        if (begin < end) pair.common += count_rows(pair, begin, end);
      }
    }
    for (const Pair& pair : pairs_) {
      *p_.intersections.at<int64_t>(pair.a, pair.b) = pair.common;
      if (p_.symmetric) *p_.intersections.at<int64_t>(pair.b, pair.a) = pair.common;
    }
  }

 private:
  // Pairs whose boxes overlap; of the others, the result.
  void collect(int64_t first_a, int64_t first_b) {
    const int64_t end_a = std::min(first_a + kTile, p_.words_a.size[0]);
    const int64_t end_b = std::min(first_b + kTile, p_.words_b.size[0]);
    pairs_.clear();
    top_ = p_.words_a.size[1];
    bottom_ = 0;
    for (int64_t a = first_a; a < end_a; ++a) {
      for (int64_t b = p_.symmetric ? std::max(first_b, a) : first_b; b < end_b; ++b) {
        const WordRange overlap(boxes_a_[a], boxes_b_[b]);
        if (overlap.empty()) {
          *p_.intersections.at<int64_t>(a, b) = 0;
          if (p_.symmetric) *p_.intersections.at<int64_t>(b, a) = 0;
          continue;
        }
        pairs_.push_back({a, b, overlap, 0});
        top_ = std::min<int64_t>(top_, overlap.top);
        bottom_ = std::max<int64_t>(bottom_, overlap.top + overlap.rows);
      }
    }
  }

  int64_t count_rows(const Pair& pair, int64_t begin, int64_t end) const {
    const int64_t words = pair.overlap.columns;
    const uint64_t* a = p_.words_a.at<uint64_t>(pair.a, begin, pair.overlap.first);
    const uint64_t* b = p_.words_b.at<uint64_t>(pair.b, begin, pair.overlap.first);
    if (words == row_words_) return count_common_(a, b, 1, (end - begin) * words, 0);
    return count_common_(a, b, end - begin, words, row_words_);
  }

  const MaskIntersectionsParams& p_;
  const std::vector<MaskBox>&boxes_a_, &boxes_b_;
  const CountCommon count_common_ = best_count_common();
  const int64_t row_words_, band_;
  int64_t top_ = 0, bottom_ = 0;  // rows of any overlap
  std::vector<Pair> pairs_;
};

// ---- runs

// Pixels of a mask before a position, in constant time.
class RankTable {
 public:
  // Positions [begin, end) hold all pixels of the mask.
  void build(const Runs& runs, int64_t begin, int64_t end) {
    begin_ = begin;
    entries_.assign((end - begin) / 64 + 1, {0, 0});
    for (int64_t i = 0; i < runs.count(); ++i) {
      if (runs.first(i) < runs.last(i)) set(runs.first(i) - begin, runs.last(i) - begin);
    }
    uint64_t before = 0;
    for (Entry& entry : entries_) {
      entry.before = before;
      before += __builtin_popcountll(entry.bits);
    }
  }

  // `position` in [begin, end].
  int64_t before(int64_t position) const {
    const uint64_t offset = position - begin_;
    const Entry& entry = entries_[offset / 64];
    const uint64_t below = (uint64_t(1) << offset % 64) - 1;
    return entry.before + __builtin_popcountll(entry.bits & below);
  }

 private:
  struct Entry {
    uint64_t bits, before;
  };

  void set(int64_t first, int64_t last) {
    const int64_t first_word = first / 64, last_word = (last - 1) / 64;
    const uint64_t from = ~uint64_t(0) << first % 64, to = ~uint64_t(0) >> (63 - (last - 1) % 64);
    if (first_word == last_word) {
      entries_[first_word].bits |= from & to;
      return;
    }
    entries_[first_word].bits |= from;
    for (int64_t i = first_word + 1; i < last_word; ++i) entries_[i].bits = ~uint64_t(0);
    entries_[last_word].bits |= to;
  }

  int64_t begin_ = 0;
  std::vector<Entry> entries_;
};

// Toggles of `runs` with positions in (begin, end): indices [first, last).
void toggles_between(const Runs& runs, int64_t begin, int64_t end, int64_t* first, int64_t* last) {
  const uint32_t* const stop = runs.toggles + runs.size;
  const auto low = std::upper_bound(runs.toggles, stop, begin);
  *first = low - runs.toggles;
  *last = std::lower_bound(low, stop, end) - runs.toggles;
}

// Pixels inside both of the table's mask, which lies in positions [begin, end), and `runs`.
int64_t common_pixels(const RankTable& table, int64_t begin, int64_t end, const Runs& runs) {
  int64_t i, last;
  toggles_between(runs, begin, end, &i, &last);
  int64_t common = 0;
  if (i < last && i % 2 != 0) common += table.before(runs.toggles[i++]);
  for (; i + 1 < last; i += 2) {
    common += table.before(runs.toggles[i + 1]) - table.before(runs.toggles[i]);
  }
  if (i < last) common -= table.before(runs.toggles[i]);
  if (last % 2 != 0) {
    const int64_t run_end = last == runs.size ? std::max(runs.end, begin) : end;
    common += table.before(std::min(run_end, end));
  }
  return common;
}

// The same by walking along both, for when a table is not worth building.
int64_t common_by_walking(const Runs& a, const Runs& b) {
  int64_t i, j, unused;
  toggles_between(a, b.first(0) - 1, INT64_MAX, &i, &unused);
  toggles_between(b, a.first(0) - 1, INT64_MAX, &j, &unused);
  const int64_t a_count = a.count(), b_count = b.count();
  int64_t common = 0;
  for (i /= 2, j /= 2; i < a_count && j < b_count;) {
    const int64_t a_end = a.last(i), b_end = b.last(j);
    common += std::max<int64_t>(std::min(a_end, b_end) - std::max(a.first(i), b.first(j)), 0);
    i += a_end <= b_end;
    j += b_end <= a_end;
  }
  return common;
}

// Row a of the result.
class RunRow {
 public:
  explicit RunRow(const RunIntersectionsParams& params) : p_(params) {}

  void count(int64_t a) {
    const Runs& runs = p_.runs_a[a];
    int64_t looks = 0;
    others_.clear();
    for (int64_t b = p_.symmetric ? a : 0; b < p_.num_b; ++b) {
      store(a, b, 0);
      if (!overlap(p_.boxes_a[a], p_.boxes_b[b])) continue;
      others_.push_back(b);
      looks += p_.runs_b[b].size;
    }
    if (others_.empty()) return;
    const int64_t begin = runs.first(0), end = runs.last(runs.count() - 1);
    const bool by_table = (end - begin) / 64 < kEntriesPerLook * looks;
    if (by_table) table_.build(runs, begin, end);
    for (int64_t b : others_) {
      store(a, b,
            by_table ? common_pixels(table_, begin, end, p_.runs_b[b])
                     : common_by_walking(runs, p_.runs_b[b]));
    }
  }

 private:
  void store(int64_t a, int64_t b, int64_t common) {
    p_.intersections[a * p_.num_b + b] = common;
    if (p_.symmetric) p_.intersections[b * p_.num_b + a] = common;
  }

  const RunIntersectionsParams& p_;
  RankTable table_;
  std::vector<int64_t> others_;  // masks whose boxes overlap the row's
};

}  // namespace

void mask_intersections_cpu(const MaskIntersectionsParams& params) {
  const int64_t tiles_a = (params.words_a.size[0] + kTile - 1) / kTile;
  const int64_t tiles_b = (params.words_b.size[0] + kTile - 1) / kTile;
  const int64_t mask_words = params.words_a.size[1] * params.words_a.size[2];
  const int64_t grain = kTaskWords / std::max<int64_t>(kTile * kTile * mask_words, 1);
  const std::vector<MaskBox> boxes_a = mask_boxes(params.boxes_a, params.words_a);
  const std::vector<MaskBox> boxes_b = mask_boxes(params.boxes_b, params.words_b);
  parallel_for(tiles_a * tiles_b, grain, [&](int64_t begin, int64_t end) {
    TileCounter counter(params, boxes_a, boxes_b);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t a = tile / tiles_b, b = tile % tiles_b;
      if (!params.symmetric || a <= b) counter.count(a * kTile, b * kTile);
    }
  });
}

void run_intersections_cpu(const RunIntersectionsParams& params) {
  int64_t looks = 1;
  for (int64_t b = 0; b < params.num_b; ++b) looks += params.runs_b[b].size;
  parallel_for(params.num_a, kLooksPerTask / looks, [&](int64_t begin, int64_t end) {
    RunRow row(params);
    for (int64_t a = begin; a < end; ++a) row.count(a);
  });
}

void mask_iou_cpu(const MaskIouParams& params) {
  const int64_t num_a = params.ious.size[0], num_b = params.ious.size[1];
  parallel_for(num_a, kQuotientsPerTask / std::max<int64_t>(num_b, 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t a = begin; a < end; ++a) {
                   for (int64_t b = 0; b < num_b; ++b) {
                     *params.ious.at<double>(a, b) = iou_at(params, a, b);
                   }
                 }
               });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(mask_intersections_cpu, MaskIntersectionsParams)
FASTSEG_CPU_LAUNCHER(run_intersections_cpu, RunIntersectionsParams)
FASTSEG_CPU_LAUNCHER(mask_iou_cpu, MaskIouParams)
