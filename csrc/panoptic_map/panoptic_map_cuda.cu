// The winners on CUDA. A block has a tile of 32 columns and 64 rows; a lane walks down 8 rows of a
// column, with the best mask so far of each in registers. From the cells around the tile most masks
// are known to lose all of it, and often one to win all of it; only the others are resized.
#include "core/resized_columns.cuh"
#include "panoptic_map/panoptic_map_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRows = 8;  // of a warp
constexpr int kTileRows = kRows * kWarps;
constexpr int kChunk = kThreads;  // masks whose bounds are in shared memory at a time

struct Min {
  __device__ float operator()(float a, float b) const { return a < b ? a : b; }
};

struct Tile {
  int64_t left, top, right, bottom;  // pixels, the last ones included
  CellRange rows, columns;           // of cells

  __device__ Tile(const ResizeSteps& steps, int64_t strip, int64_t band)
      : left(strip * kWarpSize),
        top(band * kTileRows),
        right(min(left + kWarpSize, steps.size[1]) - 1),
        bottom(min(top + kTileRows, steps.size[0]) - 1),
        rows(cell_range(steps, 0, top, bottom)),
        columns(cell_range(steps, 1, left, right)) {}
};

// The whole warp looks.
__device__ TileBounds find_bounds(const MaskCells& mask, const Tile& tile, float score) {
  const int64_t width = tile.columns.last - tile.columns.first + 1;
  const int64_t cells = (tile.rows.last - tile.rows.first + 1) * width;
  CellBounds bounds;
  for (int64_t i = lane_id(); i < cells; i += kWarpSize) {
    bounds.add(mask.cell(tile.rows.first + i / width, tile.columns.first + i % width));
  }
  bounds.least = warp_reduce(bounds.least, Min());
  bounds.greatest = warp_reduce_max(bounds.greatest);
  return TileBounds(bounds, score);
}

__device__ void add_area(const PanopticMapParams& p, int kind, int64_t q, int pixels) {
  if (pixels == 0) return;
  atomicAdd(p.areas.at<unsigned long long>(kind, q), static_cast<unsigned long long>(pixels));
}

// A warp's part of the tile: rows [top, top + count), of which a lane has one column.
struct Pixels {
  const PanopticMapParams& p;
  int64_t x, top;
  int count;        // of this lane's pixels: 0 where its column is past the image
  int warp_pixels;  // of all lanes
  Tap own_row;      // of row top + lane
  float best[kRows];
  int codes[kRows];  // see winner_code()

  __device__ Pixels(const PanopticMapParams& params, const Tile& tile)
      : p(params), x(tile.left + lane_id()), top(tile.top + warp_id() * kRows) {
    const int64_t rows = min(int64_t(kRows), tile.bottom + 1 - top);
    count = x <= tile.right && rows > 0 ? static_cast<int>(rows) : 0;
    warp_pixels = warp_reduce_sum(count);
    own_row = last_tap(p.steps, 0, min(top + lane_id() % kRows, tile.bottom));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      best[r] = -1.0f;
      codes[r] = -1;
    }
  }

  __device__ void set(int code) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) codes[r] = code;
  }

  // One mask, pixel by pixel.
  template <bool kVia>
  __device__ void resize(const ColumnTaps<kVia>& taps, int q, float score, bool can_win) {
    const MaskCells mask{p.masks, p.steps, q};
    ResizedColumn<kVia> column(mask, taps);
    int inside_pixels = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float probability = sigmoid(column.value(shuffle(own_row, r)));
      const bool inside = is_inside(probability);
      inside_pixels += inside && r < count;
      const float value = bid(score, probability);
      if (can_win && value > best[r]) {
        best[r] = value;
        codes[r] = winner_code(q, inside);
      }
    }
    inside_pixels = warp_reduce_sum(inside_pixels);
    if (lane_id() == 0) add_area(p, 1, q, inside_pixels);
  }

  __device__ void write() const {
    unsigned left = 0;  // rows whose winner is not counted yet
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) continue;
      *p.winners.at<int>(top + r, x) = codes[r] >= 0 || !p.inside_only ? winner_of(codes[r]) : -1;
      left |= 1u << r;
    }
    // One winner after the other: mostly there is one.
    for (unsigned lanes = ballot(left != 0); lanes != 0; lanes = ballot(left != 0)) {
      int next = 0;
#pragma unroll
      for (int r = kRows - 1; r >= 0; --r) {
        if (left >> r & 1u) next = winner_of(codes[r]);
      }
      const int q = __shfl_sync(kFullMask, next, __ffs(static_cast<int>(lanes)) - 1);
      int won = 0, both = 0;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const bool inside = codes[r] == q;
        if (!(left >> r & 1u) || (!inside && codes[r] != ~q)) continue;
        left &= ~(1u << r);
        ++won;
        both += inside;
      }
      won = warp_reduce_sum(won);
      both = warp_reduce_sum(both);
      if (lane_id() == 0) {
        add_area(p, 0, q, won);
        add_area(p, 2, q, both);
      }
    }
  }
};

template <bool kVia>
__global__ void __launch_bounds__(kThreads)
    panoptic_map_kernel(PanopticMapParams p, int64_t strips) {
  __shared__ float upper[kChunk], scratch[kWarpSize];
  __shared__ int sides[kChunk], int_scratch[kWarpSize];
  const Tile tile(p.steps, blockIdx.x % strips, blockIdx.x / strips);
  const ColumnTaps<kVia> taps(p.steps, min(tile.left + lane_id(), tile.right));
  Pixels pixels(p, tile);
  const int num_masks = static_cast<int>(p.masks.size[0]);
  float least_bid = -INFINITY;  // of the winner, anywhere in the tile
  bool any = false;             // mask takes part
  for (int first = 0; first < num_masks; first += kChunk) {
    const int chunk = min(kChunk, num_masks - first);
    float lower = -INFINITY;
    for (int i = warp_id(); i < chunk; i += kWarps) {
      const float score = *p.scores.at<float>(first + i);
      TileBounds bounds;
      if (score > 0) bounds = find_bounds({p.masks, p.steps, first + i}, tile, score);
      if (score > 0) lower = max(lower, bounds.lower);
      if (lane_id() == 0) {
        upper[i] = score > 0 ? bounds.upper : -INFINITY;
        sides[i] = bounds.side;
      }
    }
    least_bid = max(least_bid, block_reduce(lower, Max(), -INFINITY, scratch));
    const int i = thread_rank();
    const int own = i < chunk && upper[i] > -INFINITY && upper[i] >= least_bid;
    const int candidates = block_reduce_sum(own, int_scratch);
    const bool sole = num_masks <= kChunk && candidates == 1;
    for (int i = 0; i < chunk; ++i) {
      if (upper[i] == -INFINITY) continue;
      any = true;
      const int q = first + i;
      const bool can_win = upper[i] >= least_bid;
      if (sides[i] == 0 || (can_win && !sole)) {
        pixels.resize<kVia>(taps, q, *p.scores.at<float>(q), can_win);
        continue;
      }
      if (sides[i] > 0 && lane_id() == 0) add_area(p, 1, q, pixels.warp_pixels);
      if (can_win) pixels.set(winner_code(q, sides[i] > 0));
    }
    __syncthreads();  // the bounds are free for the next masks
  }
  if (any) return pixels.write();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r < pixels.count) *p.winners.at<int>(pixels.top + r, pixels.x) = -1;
  }
}

}  // namespace

void panoptic_map_cuda(const PanopticMapParams& p, cudaStream_t stream) {
  const int64_t strips = ceil_div<int64_t>(p.steps.size[1], kWarpSize);
  const int64_t bands = ceil_div<int64_t>(p.steps.size[0], kTileRows);
  launch("panoptic_map", p.steps.has_via() ? panoptic_map_kernel<true> : panoptic_map_kernel<false>,
         make_grid(strips * bands), kThreads, 0, stream, p, strips);
}

}  // namespace fastseg
