// The winners on the CPU, in tiles of 16 rows and 64 columns. From the cells around a tile most
// masks are known to lose all of it, and often one to win all of it; only the others are resized.
#include <algorithm>
#include <mutex>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/float_masks.h"
#include "core/resized_rows.h"
#include "panoptic_map/panoptic_map_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kTileRows = 16;

// What all bands of rows share.
struct Inputs {
  const PanopticMapParams& p;
  ResizePlan plan;
  FloatMasks masks;
  std::vector<int> queries;  // those that take part

  explicit Inputs(const PanopticMapParams& params)
      : p(params), plan(params.steps), masks(params.masks) {
    for (int64_t q = 0; q < p.scores.size[0]; ++q) {
      if (*p.scores.at<float>(q) > 0) queries.push_back(static_cast<int>(q));
    }
  }
  float score(int q) const { return *p.scores.at<float>(q); }
};

// Rows [begin, end) of the result, at most kTileRows.
class Band {
 public:
  explicit Band(const Inputs& inputs)
      : inputs_(inputs),
        plan_(inputs.plan),
        rows_(plan_),
        least_(inputs.p.steps.cells[1]),
        greatest_(least_.size()),
        bounds_(inputs.queries.size() * plan_.num_strips()),
        tally_(inputs.p.areas.numel()) {}

  void run(int64_t begin, int64_t end) {
    begin_ = begin;
    end_ = end;
    for (size_t i = 0; i < inputs_.queries.size(); ++i) find_bounds(i);
    for (int64_t strip = 0; strip < plan_.num_strips(); ++strip) run_tile(strip);
  }

  void add_areas(int64_t* areas) const {
    for (size_t i = 0; i < tally_.size(); ++i) areas[i] += tally_[i];
  }

 private:
  int64_t& area(int kind, int q) { return tally_[kind * inputs_.p.areas.size[1] + q]; }
  TileBounds& bounds(size_t i, int64_t strip) { return bounds_[i * plan_.num_strips() + strip]; }
  int64_t width_of(int64_t strip) const {
    return std::min(kStripColumns, plan_.width - strip * kStripColumns);
  }

  void find_bounds(size_t i) {
    const int q = inputs_.queries[i];
    const int64_t num_columns = inputs_.p.steps.cells[1];
    std::fill(least_.begin(), least_.end(), INFINITY);
    std::fill(greatest_.begin(), greatest_.end(), -INFINITY);
    for (int r = plan_.first_cell[begin_]; r <= plan_.last_cell[end_ - 1]; ++r) {
      const float* __restrict cells = inputs_.masks.row(q, r);
      float* __restrict least = least_.data();
      float* __restrict greatest = greatest_.data();
      for (int64_t x = 0; x < num_columns; ++x) {
        CellBounds column = {least[x], greatest[x]};
        column.add(cells[x]);
        least[x] = column.least;
        greatest[x] = column.greatest;
      }
    }
    for (int64_t strip = 0; strip < plan_.num_strips(); ++strip) {
      CellBounds tile;
      for (int x = plan_.first_column(strip); x <= plan_.last_column(strip); ++x) {
        tile.least = std::min(tile.least, least_[x]);
        tile.greatest = std::max(tile.greatest, greatest_[x]);
      }
      bounds(i, strip) = TileBounds(tile, inputs_.score(q));
    }
  }

  void run_tile(int64_t strip) {
    const int64_t pixels = (end_ - begin_) * width_of(strip);
    float least_bid = -INFINITY;  // of the winner, anywhere in the tile
    for (size_t i = 0; i < inputs_.queries.size(); ++i) {
      least_bid = std::max(least_bid, bounds(i, strip).lower);
    }
    const auto can_win = [&](size_t i) { return bounds(i, strip).upper >= least_bid; };
    size_t candidates = 0;
    for (size_t i = 0; i < inputs_.queries.size(); ++i) candidates += can_win(i);

    std::fill(best_, best_ + kTileRows * kStripColumns, -1.0f);
    std::fill(codes_, codes_ + kTileRows * kStripColumns, -1);
    bool resized = false;
    for (size_t i = 0; i < inputs_.queries.size(); ++i) {
      const int q = inputs_.queries[i], side = bounds(i, strip).side;
      if (side == 0 || (can_win(i) && candidates > 1)) {
        resize(q, strip, can_win(i));
        resized = resized || can_win(i);
        continue;
      }
      if (side > 0) area(1, q) += pixels;
      if (can_win(i)) {
        area(0, q) += pixels;
        if (side > 0) area(2, q) += pixels;
        std::fill(codes_, codes_ + kTileRows * kStripColumns, winner_code(q, side > 0));
      }
    }
    write(strip, resized);
  }

  // One mask of a tile, pixel by pixel.
  void resize(int q, int64_t strip, bool can_win) {
    const int64_t columns = width_of(strip);
    const float score = inputs_.score(q);
    rows_.begin(inputs_.masks.mask(q), inputs_.masks.row_stride(), strip);
    int64_t inside_pixels = 0;
    for (int64_t y = begin_; y < end_; ++y) {
      float values[kStripColumns];
      rows_.write(y, values);
      for (int64_t i = 0; i < kStripColumns; ++i) values[i] = sigmoid(values[i]);
      for (int64_t i = 0; i < columns; ++i) inside_pixels += is_inside(values[i]);
      if (can_win) compete(q, score, values, y - begin_);
    }
    area(1, q) += inside_pixels;
  }

  void compete(int q, float score, const float* __restrict probabilities, int64_t row) {
    float* __restrict best = best_ + row * kStripColumns;
    int* __restrict codes = codes_ + row * kStripColumns;
    for (int64_t i = 0; i < kStripColumns; ++i) {
      const float value = bid(score, probabilities[i]);
      const int code = winner_code(q, is_inside(probabilities[i]));
      codes[i] = value > best[i] ? code : codes[i];
      best[i] = value > best[i] ? value : best[i];
    }
  }

  // `count`: the areas of the winners are not known yet.
  void write(int64_t strip, bool count) {
    const int64_t columns = width_of(strip);
    const bool show_all = !inputs_.p.inside_only && !inputs_.queries.empty();
    for (int64_t y = begin_; y < end_; ++y) {
      const int* codes = codes_ + (y - begin_) * kStripColumns;
      int* winners = inputs_.p.winners.at<int>(y) + strip * kStripColumns;
      for (int64_t i = 0; i < columns; ++i) {
        winners[i] = codes[i] >= 0 || show_all ? winner_of(codes[i]) : -1;
      }
      if (!count) continue;
      for (int64_t i = 0; i < columns; ++i) {
        ++area(0, winner_of(codes[i]));
        if (codes[i] >= 0) ++area(2, codes[i]);
      }
    }
  }

  const Inputs& inputs_;
  const ResizePlan& plan_;
  ResizedRows rows_;
  // CellBounds of one mask's columns over the band's rows of cells.
  std::vector<float> least_, greatest_;
  std::vector<TileBounds> bounds_;  // [queries, strips]
  std::vector<int64_t> tally_;      // as PanopticMapParams::areas
  int64_t begin_ = 0, end_ = 0;
  float best_[kTileRows * kStripColumns];
  int codes_[kTileRows * kStripColumns];  // see winner_code()
};

}  // namespace

void panoptic_map_cpu(const PanopticMapParams& params) {
  const Inputs inputs(params);
  const int64_t height = inputs.plan.height;
  std::mutex mutex;
  parallel_for(height, kTileRows, [&](int64_t begin, int64_t end) {
    Band band(inputs);
    for (int64_t y = begin; y < end; y += kTileRows) band.run(y, std::min(y + kTileRows, end));
    const std::lock_guard<std::mutex> lock(mutex);
    band.add_areas(params.areas.as<int64_t>());
  });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(panoptic_map_cpu, PanopticMapParams)
