// NMS on the CPU. Boxes are walked by score; a candidate is compared with the kept boxes of its
// class, which lie in blocks of structure-of-arrays chained per class, so that a block is a few
// vector instructions. Where many are kept, a batch of candidates is compared ahead with all of
// them, by several threads, and then one after the other with those kept since.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "nms/nms_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int kBlock = 64;  // boxes; amortises the reduction of their comparisons to one flag
constexpr int kPart = 16;   // boxes; for blocks that are nearly empty, and for exact comparisons
constexpr int64_t kBatch = 256;  // candidates that are read, or compared with a block, at a time
// Boxes kept per class from which on candidates are compared ahead: no longer at home in L1.
constexpr int64_t kManyKept = 1024;
constexpr int64_t kParallelPairs = 1 << 22;  // ~0.4 ms of comparisons: worth waking the threads
constexpr size_t kRadixMinimum = 64;  // below, a comparison sort beats clearing the histograms

// ---- order of scores

template <class Key>
struct Ranked {
  Key key;
  int32_t index;
};

// Stable: least significant digit first, digits that all keys share are skipped.
template <class Key>
void sort_by_key(std::vector<Ranked<Key>>& items) {
  if (items.size() < kRadixMinimum) {
    std::stable_sort(items.begin(), items.end(),
                     [](const auto& a, const auto& b) { return a.key < b.key; });
    return;
  }
  std::array<std::array<uint32_t, 256>, sizeof(Key)> counts{};
  for (const auto& item : items) {
    for (size_t digit = 0; digit < sizeof(Key); ++digit) {
      ++counts[digit][(item.key >> (8 * digit)) & 255];
    }
  }
  std::vector<Ranked<Key>> sorted(items.size());
  for (size_t digit = 0; digit < sizeof(Key); ++digit) {
    auto& offsets = counts[digit];
    if (offsets[(items[0].key >> (8 * digit)) & 255] == items.size()) continue;
    uint32_t sum = 0;
    for (uint32_t& offset : offsets) sum += std::exchange(offset, sum);
    for (const auto& item : items) sorted[offsets[(item.key >> (8 * digit)) & 255]++] = item;
    items.swap(sorted);
  }
}

template <class T>
std::vector<int32_t> sort_scores(const NmsParams& p, int64_t image) {
  using Acc = accumulate_t<T>;
  using Key = decltype(descending_key(Acc{}));
  const int64_t n = p.scores.size[1], stride = p.scores.stride[1];
  const T* scores = p.scores.template at<const T>(image);
  std::vector<Ranked<Key>> items;
  items.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    const Acc score = static_cast<Acc>(scores[i * stride]);
    if (p.skip_absent && score == -std::numeric_limits<Acc>::infinity()) continue;
    items.push_back({descending_key(score), static_cast<int32_t>(i)});
  }
  sort_by_key(items);
  std::vector<int32_t> order(items.size());
  for (size_t i = 0; i < items.size(); ++i) order[i] = items[i].index;
  return order;
}

// ---- kept boxes

// Unused places are boxes without extent, which no condition holds for.
template <class Acc>
struct KeptBlock {
  Acc x1[kBlock] = {}, y1[kBlock] = {}, x2[kBlock] = {}, y2[kBlock] = {}, area[kBlock] = {};
  int size = 0, next = -1;

  bool suppresses(const NmsBox<Acc>& box, const NmsThreshold<Acc>& threshold) const {
    if (threshold.quick) {
      const bool maybe = size <= kPart ? may_exceed<kPart>(box, threshold.share)
                                       : may_exceed<kBlock>(box, threshold.share);
      if (!maybe) return false;
    }
    for (int begin = 0; begin < size; begin += kPart) {
      if (part_exceeds(begin, box, threshold.iou)) return true;
    }
    return false;
  }

 private:
  template <int kCount>
  bool may_exceed(const NmsBox<Acc>& box, Acc share) const {
    int any = 0;
    for (int i = 0; i < kCount; ++i) {
      any |= iou_may_exceed(x1[i], y1[i], x2[i], y2[i], area[i], box, share);
    }
    return any != 0;
  }

  bool part_exceeds(int begin, const NmsBox<Acc>& box, Acc threshold) const {
    int any = 0;
    for (int i = begin; i < begin + kPart; ++i) {
      any |= iou_exceeds({x1[i], y1[i], x2[i], y2[i], area[i]}, box, threshold) & (i < size);
    }
    return any != 0;
  }
};

template <class Acc>
class KeptBoxes {
 public:
  int64_t size() const { return size_; }
  int64_t size_per_class() const { return size_ / std::max<int64_t>(classes_, 1); }

  // First block of a class, -1 when nothing of it is kept.
  int first_block(int64_t label) const { return slots_[slot(label)].first; }

  const KeptBlock<Acc>& block(int i) const { return blocks_[i]; }

  void add(int64_t label, const NmsBox<Acc>& box) {
    if (2 * classes_ >= static_cast<int64_t>(slots_.size())) grow();
    Slot& chain = slots_[slot(label)];
    if (chain.first < 0 || blocks_[chain.last].size == kBlock) {
      const int block = static_cast<int>(blocks_.size());
      blocks_.emplace_back();
      if (chain.first < 0) {
        chain = {label, block, block};
        ++classes_;
      } else {
        blocks_[chain.last].next = block;
        chain.last = block;
      }
    }
    KeptBlock<Acc>& kept = blocks_[chain.last];
    const int i = kept.size++;
    kept.x1[i] = box.x1, kept.y1[i] = box.y1, kept.x2[i] = box.x2, kept.y2[i] = box.y2;
    kept.area[i] = box.area;
    ++size_;
  }

 private:
  struct Slot {
    int64_t label = 0;
    int first = -1, last = -1;
  };

  // Where a class is, or would be put: open addressing, at most half of the slots are taken.
  size_t slot(int64_t label) const {
    const size_t mask = slots_.size() - 1;
    size_t i = (static_cast<uint64_t>(label) * 0x9e3779b97f4a7c15u >> 32) & mask;
    while (slots_[i].first >= 0 && slots_[i].label != label) i = (i + 1) & mask;
    return i;
  }

  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot& chain : old) {
      if (chain.first >= 0) slots_[slot(chain.label)] = chain;
    }
  }

  std::vector<Slot> slots_ = std::vector<Slot>(64);
  std::vector<KeptBlock<Acc>> blocks_;
  int64_t classes_ = 0, size_ = 0;
};

// ---- the walk

template <class Acc>
struct Candidate {
  NmsBox<Acc> box;
  int64_t label;
  int32_t index;
  int tested, tested_size;  // the last block that it was compared with, -1: none
  bool suppressed;
};

template <class T>
Candidate<accumulate_t<T>> read_candidate(const NmsParams& p, int64_t image, int32_t index) {
  using Acc = accumulate_t<T>;
  const T* box = p.boxes.template at<const T>(image, index);
  const int64_t stride = p.boxes.stride[2];
  Candidate<Acc> candidate;
  candidate.box =
      make_nms_box<Acc>(static_cast<Acc>(box[0]), static_cast<Acc>(box[stride]),
                        static_cast<Acc>(box[2 * stride]), static_cast<Acc>(box[3 * stride]));
  candidate.label = p.idxs.data == nullptr ? 0 : *p.idxs.template at<const int64_t>(image, index);
  candidate.index = index;
  candidate.tested = -1;
  candidate.tested_size = 0;
  candidate.suppressed = false;
  return candidate;
}

// Compares a candidate with the kept boxes from `block` on. False when they suppress it.
template <class Acc>
bool survives(const KeptBoxes<Acc>& kept, int block, const NmsBox<Acc>& box,
              const NmsThreshold<Acc>& threshold) {
  for (; block >= 0; block = kept.block(block).next) {
    if (kept.block(block).suppresses(box, threshold)) return false;
  }
  return true;
}

// Compares up to kBatch candidates with all boxes kept so far, in rounds: each takes one block of
// its chain, so that a block is read from L1 by all candidates of its class but the first.
template <class Acc>
void compare_batch(const KeptBoxes<Acc>& kept, const NmsThreshold<Acc>& threshold,
                   Candidate<Acc>* begin, Candidate<Acc>* end) {
  struct Pending {
    Candidate<Acc>* candidate;
    int block;
  };
  std::array<Pending, kBatch> pending;
  int size = 0;
  for (Candidate<Acc>* c = begin; c < end; ++c) {
    const int block = kept.first_block(c->label);
    if (block >= 0) pending[size++] = {c, block};
  }
  while (size > 0) {
    int left = 0;
    for (int i = 0; i < size; ++i) {
      auto [c, index] = pending[i];
      const KeptBlock<Acc>& block = kept.block(index);
      c->tested = index;
      c->tested_size = block.size;
      c->suppressed = block.suppresses(c->box, threshold);
      if (!c->suppressed && block.next >= 0) pending[left++] = {c, block.next};
    }
    size = left;
  }
}

template <class Acc>
void compare_ahead(const KeptBoxes<Acc>& kept, const NmsThreshold<Acc>& threshold,
                   std::vector<Candidate<Acc>>& candidates) {
  const int64_t size = static_cast<int64_t>(candidates.size());
  const bool parallel = size * kept.size_per_class() >= kParallelPairs;
  parallel_for(size, parallel ? kBatch : size, [&](int64_t first, int64_t last) {
    for (int64_t begin = first; begin < last; begin += kBatch) {
      compare_batch(kept, threshold, candidates.data() + begin,
                    candidates.data() + std::min(begin + kBatch, last));
    }
  });
}

template <class T>
void walk_image(const NmsParams& p, int64_t image, const std::vector<int32_t>& order) {
  using Acc = accumulate_t<T>;
  const NmsThreshold<Acc> threshold = make_nms_threshold<Acc>(p.iou_threshold);
  const int64_t n = static_cast<int64_t>(order.size()), limit = p.indices.size[1];
  KeptBoxes<Acc> kept;
  std::vector<Candidate<Acc>> candidates;
  int64_t count = 0;
  for (int64_t begin = 0; begin < n && count < limit; begin += candidates.size()) {
    const bool ahead = kept.size_per_class() >= kManyKept;
    // Half of what is kept: four times as many comparisons are ahead as among the candidates.
    const int64_t end = std::min(n, begin + (ahead ? kept.size() / 2 : kBatch));
    candidates.resize(end - begin);
    for (int64_t i = begin; i < end; ++i) {
      candidates[i - begin] = read_candidate<T>(p, image, order[i]);
    }
    if (ahead) compare_ahead(kept, threshold, candidates);
    for (size_t i = 0; i < candidates.size() && count < limit; ++i) {
      Candidate<Acc>& c = candidates[i];
      if (c.suppressed) continue;
      if (!(threshold.iou >= Acc(0)) || can_overlap(c.box)) {
        // The last block tested may have filled up since.
        const int block = c.tested >= 0 ? c.tested : kept.first_block(c.label);
        const bool stale =
            block >= 0 && (kept.block(block).size != c.tested_size || kept.block(block).next >= 0);
        if (stale && !survives(kept, block, c.box, threshold)) continue;
        kept.add(c.label, c.box);
      }
      *p.indices.template at<int64_t>(image, count++) = c.index;
    }
  }
  *p.count.template at<int64_t>(image) = count;
  for (int64_t i = count; i < limit; ++i) *p.indices.template at<int64_t>(image, i) = -1;
}

}  // namespace

void nms_cpu(const NmsParams& p) {
  parallel_for(p.boxes.size[0], 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      std::vector<int32_t> order;
      dispatch_floating(p.scores.dtype, "scores",
                        [&](auto zero) { order = sort_scores<decltype(zero)>(p, image); });
      dispatch_floating(p.boxes.dtype, "boxes",
                        [&](auto zero) { walk_image<decltype(zero)>(p, image, order); });
    }
  });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(nms_cpu, NmsParams)
