// NMS of masks on the CPU, one image after the other.
#include <algorithm>
#include <vector>

#include "core/cpu_dispatch.h"
#include "mask_nms/mask_nms_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

template <class T>
struct Candidate {
  int64_t index, label;
  T score;
};

// By score as it is now, equal ones by index.
template <class T>
bool is_better(const Candidate<T>& a, const Candidate<T>& b) {
  const auto key_a = descending_key(a.score), key_b = descending_key(b.score);
  return key_a < key_b || (key_a == key_b && a.index < b.index);
}

template <class T>
std::vector<Candidate<T>> read_candidates(const MaskNmsParams& p, int64_t image) {
  std::vector<Candidate<T>> candidates;
  for (int64_t i = 0; i < p.scores.size[1]; ++i) {
    const T score = *p.scores.at<const T>(image, i);
    if (may_be_kept(p, score)) {
      candidates.push_back({i, *p.labels.at<const int64_t>(image, i), score});
    }
  }
  return candidates;
}

// Removes the candidates of a label whose part of the image is taken by another one.
template <class T>
void suppress(const MaskNmsParams& p, int64_t image, const Candidate<T>& selected,
              std::vector<Candidate<T>>* candidates) {
  const auto removed = [&](Candidate<T>& other) {
    if (other.label != selected.label) return false;
    return !survives(p, mask_nms_iou(p, image, selected.index, other.index), &other.score);
  };
  candidates->erase(std::remove_if(candidates->begin(), candidates->end(), removed),
                    candidates->end());
}

// Fast NMS decides on all at once.
template <class T>
void suppress_by_any(const MaskNmsParams& p, int64_t image, std::vector<Candidate<T>>* candidates) {
  const std::vector<Candidate<T>> all = *candidates;
  const auto removed = [&](Candidate<T>& one) {
    return std::any_of(all.begin(), all.end(), [&](const Candidate<T>& other) {
      return other.label == one.label && is_better(other, one) &&
             !survives(p, mask_nms_iou(p, image, other.index, one.index), &one.score);
    });
  };
  candidates->erase(std::remove_if(candidates->begin(), candidates->end(), removed),
                    candidates->end());
}

template <class T>
void walk(const MaskNmsParams& p, int64_t image) {
  std::vector<Candidate<T>> candidates = read_candidates<T>(p, image);
  if (p.method == MaskNmsMethod::fast) suppress_by_any(p, image, &candidates);
  const int64_t limit = p.indices.size[1];
  int64_t count = 0;
  for (; count < limit && !candidates.empty(); ++count) {
    const auto best = std::min_element(candidates.begin(), candidates.end(), is_better<T>);
    const Candidate<T> selected = *best;
    *p.indices.at<int64_t>(image, count) = selected.index;
    *p.kept_scores.at<T>(image, count) = selected.score;
    candidates.erase(best);
    if (p.method != MaskNmsMethod::fast) suppress(p, image, selected, &candidates);
  }
  *p.count.at<int64_t>(image) = count;
  for (; count < limit; ++count) {
    *p.indices.at<int64_t>(image, count) = -1;
    *p.kept_scores.at<T>(image, count) = T(0);
  }
}

}  // namespace

void mask_nms_cpu(const MaskNmsParams& params) {
  for (int64_t image = 0; image < params.scores.size[0]; ++image) {
    params.scores.dtype == DType::f64 ? walk<double>(params, image) : walk<float>(params, image);
  }
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(mask_nms_cpu, MaskNmsParams)
