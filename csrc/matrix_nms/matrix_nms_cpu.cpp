// Matrix NMS on the CPU. Masks are ordered by label and score, so that those which may lower a
// mask's score are the ones before it in its label's part. Columns are independent.
#include <algorithm>
#include <numeric>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/parallel.h"
#include "matrix_nms/matrix_nms_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kPairsPerTask = 1 << 15;  // some 50 us

// Masks of one image by label, then from the best to the worst.
struct Order {
  std::vector<int64_t> masks;
  std::vector<int64_t> label_begin;  // for each position, the first one of its label
};

template <class T>
Order order_masks(const MatrixNmsParams& p, int64_t image) {
  const int64_t n = p.scores.size[1];
  Order order{std::vector<int64_t>(n), std::vector<int64_t>(n)};
  std::vector<decltype(descending_key(T{}))> keys(n);
  for (int64_t i = 0; i < n; ++i) keys[i] = descending_key(*p.scores.at<const T>(image, i));
  const auto label = [&](int64_t i) { return *p.labels.at<const int64_t>(image, i); };
  std::iota(order.masks.begin(), order.masks.end(), 0);
  std::sort(order.masks.begin(), order.masks.end(), [&](int64_t a, int64_t b) {
    if (label(a) != label(b)) return label(a) < label(b);
    return is_before(keys[a], a, keys[b], b);
  });
  for (int64_t i = 1; i < n; ++i) {
    const bool same = label(order.masks[i]) == label(order.masks[i - 1]);
    order.label_begin[i] = same ? order.label_begin[i - 1] : i;
  }
  return order;
}

// Calls f(better mask, IoU) for the better masks of its label that the mask at `position` overlaps.
template <class F>
void visit_better(const MatrixNmsParams& p, int64_t image, const Order& order,
                  const std::vector<float>& areas, int64_t position, F&& f) {
  const int64_t mask = order.masks[position], stride = p.intersections.stride[2];
  const int64_t* row = p.intersections.at<const int64_t>(image, mask);
  for (int64_t i = order.label_begin[position]; i < position; ++i) {
    const int64_t better = order.masks[i], shared = row[better * stride];
    if (shared > 0) f(better, matrix_nms_iou(shared, areas[better], areas[mask]));
  }
}

template <class T>
void decay_image(const MatrixNmsParams& p, int64_t image) {
  const int64_t n = p.scores.size[1];
  const Order order = order_masks<T>(p, image);
  std::vector<float> areas(n);
  for (int64_t i = 0; i < n; ++i) areas[i] = matrix_nms_area(p.areas, image, i);
  const int64_t grain = kPairsPerTask / std::max<int64_t>(n, 1);
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      float largest = 0;
      visit_better(p, image, order, areas, position,
                   [&](int64_t, float iou) { largest = std::max(largest, iou); });
      *p.divisors.at<float>(image, order.masks[position]) = decay_of(p.kernel, p.sigma, largest);
    }
  });
  parallel_for(n, grain, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      float factor = 1;
      visit_better(p, image, order, areas, position, [&](int64_t better, float iou) {
        const float divisor = *p.divisors.at<const float>(image, better);
        const float decay = decay_of(p.kernel, p.sigma, iou) / divisor;
        if (decay < factor) factor = decay;  // 0 / 0 is not: it counts as 1
      });
      const int64_t mask = order.masks[position];
      *p.decayed.at<T>(image, mask) = *p.scores.at<const T>(image, mask) * T(factor);
    }
  });
}

template <class T>
void select_image(const MatrixNmsSelectParams& p, int64_t image) {
  struct Entry {
    decltype(descending_key(T{})) decayed, score;
    int64_t index;
  };
  const int64_t n = p.scores.size[1], limit = p.indices.size[1];
  std::vector<Entry> entries;
  entries.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    const T score = *p.scores.at<const T>(image, i), decayed = *p.decayed.at<const T>(image, i);
    if (is_kept(p, score, decayed)) {
      entries.push_back({descending_key(decayed), descending_key(score), i});
    }
  }
  const int64_t count = std::min<int64_t>(entries.size(), limit);
  std::partial_sort(entries.begin(), entries.begin() + count, entries.end(),
                    [](const Entry& a, const Entry& b) {
                      if (a.decayed != b.decayed) return a.decayed < b.decayed;
                      return is_before(a.score, a.index, b.score, b.index);
                    });
  for (int64_t i = 0; i < limit; ++i) {
    const int64_t index = i < count ? entries[i].index : -1;
    const bool some = index >= 0;
    *p.kept_scores.at<T>(image, i) = some ? *p.decayed.at<const T>(image, index) : T(0);
    *p.kept_labels.at<int64_t>(image, i) = some ? *p.labels.at<const int64_t>(image, index) : 0;
    *p.indices.at<int64_t>(image, i) = index;
  }
  *p.count.at<int64_t>(image) = count;
}

}  // namespace

void matrix_nms_cpu(const MatrixNmsParams& params) {
  for (int64_t image = 0; image < params.scores.size[0]; ++image) {
    if (params.scores.dtype == DType::f64) {
      decay_image<double>(params, image);
    } else {
      decay_image<float>(params, image);
    }
  }
}

void matrix_nms_select_cpu(const MatrixNmsSelectParams& params) {
  for (int64_t image = 0; image < params.scores.size[0]; ++image) {
    if (params.scores.dtype == DType::f64) {
      select_image<double>(params, image);
    } else {
      select_image<float>(params, image);
    }
  }
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(matrix_nms_cpu, MatrixNmsParams)
FASTSEG_CPU_LAUNCHER(matrix_nms_select_cpu, MatrixNmsSelectParams)
