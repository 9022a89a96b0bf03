// Both ends of a semantic map on the CPU, in strips of 64 columns (core/resized_rows.h).
#include <algorithm>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/float_masks.h"
#include "core/resized_rows.h"
#include "semantic_map/semantic_map_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

// The best class so far of some rows of a strip.
class BestClasses {
 public:
  explicit BestClasses(int64_t rows) : best_(rows * kStripColumns), labels_(best_.size()) {}

  void begin() {
    std::fill(best_.begin(), best_.end(), BestClass().score);
    std::fill(labels_.begin(), labels_.end(), 0);
  }
  void add(int64_t row, const float* __restrict scores, int64_t columns, int label) {
    float* __restrict best = best_.data() + row * kStripColumns;
    int* __restrict labels = labels_.data() + row * kStripColumns;
    for (int64_t i = 0; i < columns; ++i) {
      BestClass pixel = {best[i], labels[i]};
      pixel.add(scores[i], label);
      best[i] = pixel.score;
      labels[i] = pixel.label;
    }
  }
  const int* labels(int64_t row) const { return labels_.data() + row * kStripColumns; }

 private:
  std::vector<float> best_;
  std::vector<int> labels_;
};

}  // namespace

void mask_probabilities_cpu(const MaskProbabilitiesParams& p) {
  const ResizePlan plan(p.steps);
  const FloatMasks masks(p.masks);
  const int64_t rows = p.output.size[1], width = p.output.size[2];
  const int64_t strips = (width + kStripColumns - 1) / kStripColumns;
  parallel_for(p.output.size[0], 1, [&](int64_t begin, int64_t end) {
    ResizedRows resized(plan);
    float values[kStripColumns];
    for (int64_t q = begin; q < end; ++q) {
      for (int64_t strip = 0; strip < strips; ++strip) {
        const int64_t left = strip * kStripColumns;
        const int64_t columns = std::min(kStripColumns, width - left);
        resized.begin(masks.mask(q), masks.row_stride(), strip);
        for (int64_t y = 0; y < rows; ++y) {
          resized.write(p.first_row + y, values);
          for (int64_t i = 0; i < kStripColumns; ++i) values[i] = sigmoid(values[i]);
          std::copy(values, values + columns, p.output.at<float>(q, y) + left);
        }
      }
    }
  });
}

void resized_argmax_cpu(const ResizedArgmaxParams& p) {
  const int64_t classes = p.scores.size[0], rows = p.labels.size[0], width = p.labels.size[1];
  ResizeSteps steps;
  steps.cells[0] = p.score_rows;
  steps.cells[1] = p.scores.size[2];
  steps.size[0] = p.rows;
  steps.size[1] = width;
  const ResizePlan plan(steps);
  parallel_for(plan.num_strips(), 1, [&](int64_t begin, int64_t end) {
    StageRows resized(plan.stages[0]);
    BestClasses best(rows);
    float values[kStripColumns];
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t left = strip * kStripColumns, columns = std::min(kStripColumns, width - left);
      best.begin();
      for (int64_t k = 0; k < classes; ++k) {
        const auto input = [&](int row) {
          return p.scores.at<const float>(k, row - p.first_score_row);
        };
        resized.begin(left, kStripColumns);
        for (int64_t y = 0; y < rows; ++y) {
          const int64_t row = p.first_row + y;
          if (!p.same_size()) resized.write(row, input, values);
          const float* scores = p.same_size() ? input(static_cast<int>(row)) + left : values;
          best.add(y, scores, columns, static_cast<int>(k));
        }
      }
      for (int64_t y = 0; y < rows; ++y) {
        std::copy(best.labels(y), best.labels(y) + columns, p.labels.at<int>(y) + left);
      }
    }
  });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(mask_probabilities_cpu, MaskProbabilitiesParams)
FASTSEG_CPU_LAUNCHER(resized_argmax_cpu, ResizedArgmaxParams)
