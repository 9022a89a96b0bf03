#include <algorithm>

#include "core/cpu_dispatch.h"
#include "core/parallel.h"
#include "evaluation/evaluation.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

// Precision changes for the better at true positives alone, so these are all that is kept.
struct TruePositive {
  int64_t false_positives;  // that score better
  double score;
};

class Accumulator {
 public:
  explicit Accumulator(const AccumulateParams& params)
      : p_(params),
        cells_(params.num_ranges * params.num_thresholds),
        false_positives_(cells_),
        found_(cells_) {}

  void run(int64_t category) {
    sort(category);
    for (int64_t limit = 0; limit < p_.num_limits; ++limit) {
      const double best_score = collect(p_.max_detections[limit]);
      for (int64_t cell = 0; cell < cells_; ++cell) write(category, limit, cell, best_score);
    }
  }

 private:
  // The category's detections by falling score; equal scores in order of images.
  void sort(int64_t category) {
    const int64_t begin = category == 0 ? 0 : p_.category_ends[category - 1];
    order_.resize(p_.category_ends[category] - begin);
    for (int64_t i = 0; i < static_cast<int64_t>(order_.size()); ++i) {
      order_[i] = {p_.scores[p_.kept[begin + i]], begin + i};
    }
    std::sort(order_.begin(), order_.end(), [](const Scored& a, const Scored& b) {
      return a.score != b.score ? a.score > b.score : a.position < b.position;
    });
  }

  // Fills found_ with the detections within the limit per image; tells the best score.
  double collect(int64_t max_detections) {
    std::fill(false_positives_.begin(), false_positives_.end(), 0);
    for (std::vector<TruePositive>& found : found_) found.clear();
    double best_score = 0;
    bool first = true;
    for (const Scored& one : order_) {
      if (p_.ranks[one.position] >= max_detections) continue;
      if (first) best_score = one.score;
      first = false;
      const Match* const row = p_.matches + one.position * cells_;
      for (int64_t cell = 0; cell < cells_; ++cell) {
        false_positives_[cell] += row[cell] == Match::false_positive;
      }
      for (int64_t cell = 0; cell < cells_; ++cell) {
        if (row[cell] != Match::true_positive) continue;
        found_[cell].push_back({false_positives_[cell], one.score});
      }
    }
    return best_score;
  }

  void write(int64_t category, int64_t limit, int64_t cell, double best_score) {
    const int64_t range = cell / p_.num_thresholds, threshold = cell % p_.num_thresholds;
    const int64_t positives = p_.positives[category * p_.num_ranges + range];
    if (positives == 0) return;
    const std::vector<TruePositive>& found = found_[cell];
    const int64_t size = static_cast<int64_t>(found.size());
    envelope_.resize(size);
    double best = 0;  // the best precision at this recall or a higher one
    for (int64_t i = size - 1; i >= 0; --i) {
      // As NumPy's spacing(1), which the definition adds to the count.
      const double count = static_cast<double>(found[i].false_positives + i + 1) + 0x1p-52;
      best = std::max(best, static_cast<double>(i + 1) / count);
      envelope_[i] = best;
    }
    const auto recall = [&](int64_t i) { return static_cast<double>(i) / positives; };
    const int64_t per_category = p_.num_ranges * p_.num_limits;
    const int64_t column = category * per_category + range * p_.num_limits + limit;
    const int64_t row = p_.num_categories * per_category;
    p_.best_recall[threshold * row + column] = recall(size);
    for (int64_t level = 0, needed = 0; level < p_.num_recalls; ++level) {
      while (needed <= size && recall(needed) < p_.recalls[level]) ++needed;
      const int64_t at = (threshold * p_.num_recalls + level) * row + column;
      p_.precision[at] = needed > size ? 0 : needed > 0 ? envelope_[needed - 1] : best;
      p_.scores_at[at] = needed > size ? 0 : needed > 0 ? found[needed - 1].score : best_score;
    }
  }

  struct Scored {
    double score;
    int64_t position;  // among the kept
  };

  const AccumulateParams& p_;
  int64_t cells_;
  std::vector<Scored> order_;
  std::vector<int64_t> false_positives_;          // [cells]
  std::vector<std::vector<TruePositive>> found_;  // [cells]
  std::vector<double> envelope_;
};

}  // namespace

void evaluation_accumulate_cpu(const AccumulateParams& params) {
  parallel_for(params.num_categories, 1, [&](int64_t begin, int64_t end) {
    Accumulator accumulator(params);
    for (int64_t category = begin; category < end; ++category) accumulator.run(category);
  });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(evaluation_accumulate_cpu, AccumulateParams)
