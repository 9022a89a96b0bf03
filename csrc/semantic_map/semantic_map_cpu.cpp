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

constexpr int64_t kBandRows = 16;  // of labels: enough that few rows of scores are read twice

// The best class so far of each pixel of some rows.
class BestClasses {
 public:
  explicit BestClasses(int64_t width)
      : width_(width), best_(kBandRows * width), labels_(best_.size()) {}

  void begin() {
    std::fill(best_.begin(), best_.end(), BestClass().score);
    std::fill(labels_.begin(), labels_.end(), 0);
  }
  void add(int64_t row, const float* __restrict scores, int label) {
    float* __restrict best = best_.data() + row * width_;
    int* __restrict labels = labels_.data() + row * width_;
    for (int64_t i = 0; i < width_; ++i) {
      BestClass pixel = {best[i], labels[i]};
      pixel.add(scores[i], label);
      best[i] = pixel.score;
      labels[i] = pixel.label;
    }
  }
  const int* labels(int64_t row) const { return labels_.data() + row * width_; }

 private:
  int64_t width_;
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
  // Whole rows: of a class, those of a band lie in a row in memory.
  parallel_for(rows, kBandRows, [&](int64_t begin, int64_t end) {
    StageRows resized(plan.stages[0]);
    BestClasses best(width);
    std::vector<float> values(width);
    for (int64_t band = begin; band < end; band += kBandRows) {
      const int64_t band_rows = std::min(kBandRows, end - band);
      best.begin();
      for (int64_t k = 0; k < classes; ++k) {
        const auto input = [&](int row) {
          return p.scores.at<const float>(k, row - p.first_score_row);
        };
        resized.begin(0, width);
        for (int64_t y = 0; y < band_rows; ++y) {
          const int64_t row = p.first_row + band + y;
          if (!p.same_size()) resized.write(row, input, values.data());
          const float* scores = p.same_size() ? input(static_cast<int>(row)) : values.data();
          best.add(y, scores, static_cast<int>(k));
        }
      }
      for (int64_t y = 0; y < band_rows; ++y) {
        std::copy(best.labels(y), best.labels(y) + width, p.labels.at<int>(band + y));
      }
    }
  });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(mask_probabilities_cpu, MaskProbabilitiesParams)
FASTSEG_CPU_LAUNCHER(resized_argmax_cpu, ResizedArgmaxParams)
