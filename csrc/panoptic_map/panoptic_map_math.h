// How masks compete for a pixel, and what the cells around a tile of pixels tell without looking at
// the pixels.
//
// Resized logits are weighted means of cells, so they lie between the least and the greatest cell
// but for rounding, and sigmoid is monotonic but for rounding. The slacks below are ample for both.
#pragma once

#include "core/sigmoid.h"
#include "panoptic_map/panoptic_map.h"

namespace fastseg {

FASTSEG_HD bool is_inside(float probability) { return probability >= 0.5f; }

// What masks compete by. NaN is above all numbers, as for torch's argmax.
FASTSEG_HD float bid(float score, float probability) {
  const float value = score * probability;
  return value == value ? value : INFINITY;
}

// Mask q as the winner of a pixel; ~q where the pixel is outside of the mask.
FASTSEG_HD int winner_code(int q, bool inside) { return inside ? q : ~q; }
FASTSEG_HD int winner_of(int code) { return code < 0 ? ~code : code; }

// The least and the greatest cell; both are infinite where a cell is NaN or sums may overflow.
struct CellBounds {
  float least = INFINITY, greatest = -INFINITY;

  FASTSEG_HD static bool is_ordinary(float cell) { return std::fabs(cell) < 1e30f; }

  FASTSEG_HD void add(float cell) {
    const float low = is_ordinary(cell) ? cell : -INFINITY;
    const float high = is_ordinary(cell) ? cell : INFINITY;
    least = low < least ? low : least;
    greatest = high > greatest ? high : greatest;
  }
};

// What is certain of all pixels of a tile.
struct TileBounds {
  float lower = -INFINITY, upper = INFINITY;  // of bids
  int side = 0;                               // 1: all inside, -1: all outside, 0: not certain

  TileBounds() = default;
  FASTSEG_HD TileBounds(const CellBounds& cells, float score) {
    if (!(cells.greatest < INFINITY)) return;
    const float slack =
        1e-30f + 1e-5f * std::fmax(std::fabs(cells.least), std::fabs(cells.greatest));
    const float low = cells.least - slack, high = cells.greatest + slack;
    lower = score * sigmoid(low) * (1.0f - 1e-6f) - 1e-37f;
    upper = score * sigmoid(high) * (1.0f + 1e-6f) + 1e-37f;
    // sigmoid rounds to 0.5 from some -1e-7 on.
    side = low >= 0.0f ? 1 : high < -1e-6f ? -1 : 0;
  }
};

}  // namespace fastseg
