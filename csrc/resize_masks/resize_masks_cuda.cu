// Resizing on CUDA. A warp makes 32 x 32 pixels as bits: a lane walks down one column
// (core/resized_columns.cuh). Where all the cells behind the pixels are far from the threshold on
// the same side, as in most of a usual mask, the walk is left out. So nearly all memory traffic is
// the output, of a bit or a byte a pixel.
#include "core/resized_columns.cuh"
#include "resize_masks/resize_masks_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBlocksPerSm = 3;         // left alone, the compiler aims at 4 and spills
constexpr int kMaxCheckedCells = 4096;  // of a warp; a larger area is hardly on one side

// Whether these cells are all far above the threshold (1) or all far below it (-1); 0 otherwise.
// The whole warp looks.
__device__ int certain_side(const MaskCells& mask, float threshold, const CellRange& rows,
                            const CellRange& columns) {
  const int64_t width = columns.last - columns.first + 1;
  const int64_t cells = (rows.last - rows.first + 1) * width;
  if (cells > kMaxCheckedCells) return 0;
  const CertainLimits limits(threshold);
  bool above = true, below = true;
  for (int64_t first = 0; first < cells; first += kWarpSize) {
    const int64_t i = first + lane_id() < cells ? first + lane_id() : cells - 1;
    const float cell = mask.cell(rows.first + i / width, columns.first + i % width);
    above = above && limits.is_above(cell);
    below = below && limits.is_below(cell);
    if (ballot(above) != kFullMask && ballot(below) != kFullMask) return 0;
  }
  return ballot(above) == kFullMask ? 1 : -1;
}

// A warp's pixels: 32 columns, of which a lane has one, from `left`, and up to 32 rows from `top`.
// Columns past the image have no rows.
struct WarpTile {
  int64_t top, bottom, column;  // the last row included; of the lane, within the image
  int rows, lane_rows;          // of the tile, of the lane
  int side;                     // see certain_side()

  __device__ WarpTile(const MaskCells& mask, float threshold, int64_t left, int64_t y) : top(y) {
    const ResizeSteps& steps = mask.steps;
    const int64_t right = min(left + kWarpSize, steps.size[1]) - 1;
    bottom = min(top + kWarpSize, steps.size[0]) - 1;
    column = min(left + lane_id(), right);
    rows = static_cast<int>(bottom - top + 1);
    lane_rows = left + lane_id() <= right ? rows : 0;
    side = certain_side(mask, threshold, cell_range(steps, 0, top, bottom),
                        cell_range(steps, 1, min(left, right), right));
  }

  // visit(r, value) for each of the tile's rows, in the lane's column; all lanes call it.
  template <bool kVia, class Visit>
  __device__ void for_values(const MaskCells& mask, Visit&& visit) const {
    const ColumnTaps<kVia> taps(mask.steps, column);
    ResizedColumn<kVia> resized(mask, taps);
    const Tap own_row = last_tap(mask.steps, 0, min(top + lane_id(), bottom));
    for (int r = 0; r < rows; ++r) visit(r, resized.value(shuffle(own_row, r)));
  }
};

// Bit r of the result is pixel (x of the lane, y + r); bits past the image are 0.
template <bool kVia>
__device__ unsigned column_bits(const MaskCells& mask, float threshold, int64_t left, int64_t y) {
  const WarpTile tile(mask, threshold, left, y);
  const unsigned full = tile.lane_rows > 0 ? kFullMask >> (kWarpSize - tile.lane_rows) : 0u;
  if (tile.side != 0) return tile.side > 0 ? full : 0u;
  unsigned bits = 0;
  tile.template for_values<kVia>(
      mask, [&](int r, float value) { bits |= unsigned(value > threshold) << r; });
  return bits & full;
}

// What becomes of a warp's bits: `store(n, chunk, left, bits)`.

struct StoreColumnWords {
  View<3> words;  // as RleBitsParams

  __device__ void operator()(int64_t n, int64_t chunk, int64_t left, unsigned bits) const {
    const int64_t x = left + lane_id();
    if (x < words.size[2]) *words.at<unsigned>(n, chunk, x) = bits;
  }
};

struct StoreRowWords {
  View<3> output;  // as PackMasksParams::words, here in halves of 32 bits

  __device__ void operator()(int64_t n, int64_t chunk, int64_t left, unsigned bits) const {
    const unsigned row_bits = transpose_bits(bits);  // of row 32 * chunk + lane
    const int64_t y = chunk * kWarpSize + lane_id();
    if (y < output.size[1])
      output.at<Vec<unsigned, 2>>(n, y, left / 64)->data[left / 32 % 2] = row_bits;
  }
};

struct StoreBytes {
  View<3> output;
  bool aligned;  // rows allow stores of 4

  // A store is 4 rows of 32 pixels: 4 pixels a lane.
  __device__ void operator()(int64_t n, int64_t chunk, int64_t left, unsigned bits) const {
    const unsigned row_bits = transpose_bits(bits);  // of row 32 * chunk + lane
    const int64_t height = output.size[1], width = output.size[2];
    const int column = lane_id() % 8 * 4;
    const int64_t x = left + column;
#pragma unroll
    for (int r = 0; r < kWarpSize; r += 4) {
      const unsigned pixels = __shfl_sync(kFullMask, row_bits, r + lane_id() / 8) >> column;
      const int64_t y = chunk * kWarpSize + r + lane_id() / 8;
      if (y >= height) continue;
      uint8_t* to = output.at<uint8_t>(n, y) + x;
      if (aligned && x < width) {
        const unsigned bytes =
            (pixels & 1u) | (pixels & 2u) << 7 | (pixels & 4u) << 14 | (pixels & 8u) << 21;
        *reinterpret_cast<unsigned*>(to) = bytes;
      } else {
        for (int i = 0; i < 4 && x + i < width; ++i) to[i] = pixels >> i & 1u;
      }
    }
  }
};

template <bool kVia, class Store>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    resize_kernel(ResizeMasksParams p, Store store, int64_t groups) {
  const int64_t chunks = ceil_div<int64_t>(p.steps.size[0], kWarpSize);
  const int64_t warp = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = warp / (groups * chunks), chunk = warp / groups % chunks;
  const int64_t left = warp % groups * kWarpSize;
  if (n >= p.masks.size[0]) return;  // the whole warp
  const MaskCells mask{p.masks, p.steps, n};
  store(n, chunk, left, column_bits<kVia>(mask, p.threshold, left, chunk * kWarpSize));
}

template <bool kVia>
__global__ void __launch_bounds__(kThreads)
    score_kernel(ResizeMasksParams p, View<2> tallies, int64_t groups) {
  const int64_t chunks = ceil_div<int64_t>(p.steps.size[0], kWarpSize);
  const int64_t warp = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = warp / (groups * chunks), chunk = warp / groups % chunks;
  if (n >= p.masks.size[0]) return;  // the whole warp
  const MaskCells mask{p.masks, p.steps, n};
  const WarpTile tile(mask, p.threshold, warp % groups * kWarpSize, chunk * kWarpSize);
  if (tile.side < 0) return;
  float sum = 0.0f;
  int pixels = 0;
  tile.template for_values<kVia>(mask, [&](int r, float value) {
    if (r >= tile.lane_rows || !(value > p.threshold)) return;
    sum += sigmoid(value);
    ++pixels;
  });
  sum = warp_reduce_sum(sum);
  pixels = warp_reduce_sum(pixels);
  if (lane_id() != 0 || pixels == 0) return;
  const double units = double(sum) * kScoreUnits + 0.5;
  atomicAdd(tallies.at<unsigned long long>(n, 0), static_cast<unsigned long long>(units));
  atomicAdd(tallies.at<unsigned long long>(n, 1), static_cast<unsigned long long>(pixels));
}

// `group_columns`: the result's columns are made in multiples of these, past its width as zeros.
template <class Store>
void launch_resize(const ResizeMasksParams& p, Store store, cudaStream_t stream,
                   int64_t group_columns = kWarpSize) {
  const int64_t* size = p.steps.size;
  const int64_t groups = ceil_div<int64_t>(size[1], group_columns) * (group_columns / kWarpSize);
  const int64_t warps = p.masks.size[0] * ceil_div<int64_t>(size[0], kWarpSize) * groups;
  const auto kernel = p.steps.has_via() ? resize_kernel<true, Store> : resize_kernel<false, Store>;
  launch("resize_masks", kernel, make_grid(ceil_div<int64_t>(warps, kWarps)), kThreads, 0, stream,
         p, store, groups);
}

}  // namespace

void resize_masks_cuda(const ResizeMasksToPixelsParams& params, cudaStream_t stream) {
  const View<3>& output = params.output;
  if (params.packed()) return launch_resize(params.resize, StoreRowWords{output}, stream, 64);
  const bool aligned = output.size[2] % 4 == 0 && reinterpret_cast<uintptr_t>(output.data) % 4 == 0;
  launch_resize(params.resize, StoreBytes{output, aligned}, stream);
}

void resize_masks_bits_cuda(const ResizeMasksBitsParams& params, cudaStream_t stream) {
  launch_resize(params.resize, StoreColumnWords{params.words}, stream);
}

void mask_scores_cuda(const MaskScoresParams& params, cudaStream_t stream) {
  const ResizeMasksParams& p = params.resize;
  const int64_t groups = ceil_div<int64_t>(p.steps.size[1], kWarpSize);
  const int64_t warps = p.masks.size[0] * ceil_div<int64_t>(p.steps.size[0], kWarpSize) * groups;
  launch("mask_scores", p.steps.has_via() ? score_kernel<true> : score_kernel<false>,
         make_grid(ceil_div<int64_t>(warps, kWarps)), kThreads, 0, stream, p, params.tallies,
         groups);
}

}  // namespace fastseg
