// Resizing on CUDA. A warp makes 32 x 32 pixels as bits: a lane walks down one column, in registers
// the two lines that each resize blends, which change with the rows of its input only. Where all
// the cells behind the pixels are far from the threshold on the same side, as in most of a usual
// mask, the walk is left out. So nearly all memory traffic is the output, of a bit or a byte a
// pixel.
#include "core/cuda.cuh"
#include "resize_masks/resize_masks_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kBlocksPerSm = 3;         // left alone, the compiler aims at 4 and spills
constexpr int kMaxCheckedCells = 4096;  // of a warp; a larger area is hardly on one side

struct Mask {
  const ResizeMasksParams& p;
  int64_t n;

  __device__ float cell(int64_t row, int64_t column) const {
    switch (p.masks.dtype) {  // the same for all threads, and rare: no reason for more kernels
      case DType::f16:
        return *p.masks.at<const half_t>(n, row, column);
      case DType::bf16:
        return *p.masks.at<const bfloat16_t>(n, row, column);
      default:
        return *p.masks.at<const float>(n, row, column);
    }
  }
  __device__ float between(int row, const Tap& x) const {
    return blend_pair(cell(row, x.low), x.low_weight, cell(row, x.high), x.high_weight);
  }
  __device__ Tap cell_row(int64_t pixel, int64_t pixels) const {
    return stretched_tap(pixel, pixels, static_cast<int>(p.masks.size[1]));
  }
  __device__ Tap cell_column(int64_t pixel, int64_t pixels) const {
    return stretched_tap(pixel, pixels, static_cast<int>(p.masks.size[2]));
  }
};

// The lines north and south of a row, of kValues values each; `load(row, values)` makes one.
template <int kValues>
struct Lines {
  int north_row = -1, south_row = -1;
  float north[kValues], south[kValues];

  template <class Load>
  __device__ void move_to(const Tap& y, Load&& load) {
    if (y.low != north_row) {
      if (y.low == south_row) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) north[i] = south[i];
      } else {
        load(y.low, north);
      }
      north_row = y.low;
    }
    if (y.high != south_row) {
      load(y.high, south);
      south_row = y.high;
    }
  }
  __device__ float value(const Tap& y, int i) const {
    return blend_pair(north[i], y.low_weight, south[i], y.high_weight);
  }
};

// One column of the result; rows are best asked for from top to bottom. All lanes of a warp ask for
// the same rows, so that they branch alike.
template <bool kVia>
class ResizedColumn;

template <>
class ResizedColumn<false> {
 public:
  __device__ ResizedColumn(const Mask& mask, int64_t column)
      : mask_(mask), x_(mask.cell_column(column, mask.p.width)) {}

  __device__ int west() const { return x_.low; }
  __device__ int east() const { return x_.high; }
  __device__ int north(const Tap& y) const { return y.low; }
  __device__ int south(const Tap& y) const { return y.high; }
  __device__ Tap row(int64_t y) const { return mask_.cell_row(y, mask_.p.height); }

  __device__ float value(const Tap& y) {
    lines_.move_to(y, [&](int row, float* line) { line[0] = mask_.between(row, x_); });
    return lines_.value(y, 0);
  }

 private:
  const Mask& mask_;
  Tap x_;
  Lines<1> lines_;
};

template <>
class ResizedColumn<true> {
 public:
  __device__ ResizedColumn(const Mask& mask, int64_t column)
      : mask_(mask),
        x_(stretched_tap(column, mask.p.width, static_cast<int>(mask.p.crop[1]))),
        via_low_(mask.cell_column(x_.low, mask.p.via[1])),
        via_high_(mask.cell_column(x_.high, mask.p.via[1])) {}

  __device__ int west() const { return via_low_.low; }
  __device__ int east() const { return via_high_.high; }
  __device__ int north(const Tap& y) const { return via_row(y.low).low; }
  __device__ int south(const Tap& y) const { return via_row(y.high).high; }
  __device__ Tap row(int64_t y) const {
    return stretched_tap(y, mask_.p.height, static_cast<int>(mask_.p.crop[0]));
  }

  __device__ float value(const Tap& y) {
    lines_.move_to(y, [&](int row, float* line) {
      const Tap via = via_row(row);
      via_lines_.move_to(via, [&](int cells, float* via_line) {
        via_line[0] = mask_.between(cells, via_low_);
        via_line[1] = mask_.between(cells, via_high_);
      });
      line[0] = blend_pair(via_lines_.value(via, 0), x_.low_weight, via_lines_.value(via, 1),
                           x_.high_weight);
    });
    return lines_.value(y, 0);
  }

 private:
  __device__ Tap via_row(int64_t row) const { return mask_.cell_row(row, mask_.p.via[0]); }

  const Mask& mask_;
  Tap x_, via_low_, via_high_;
  Lines<1> lines_;
  Lines<2> via_lines_;
};

// Whether cells of rows [top, bottom], columns [left, right] are all far above the threshold (1) or
// all far below it (-1); 0 otherwise. The whole warp looks.
__device__ int certain_side(const Mask& mask, int top, int bottom, int left, int right) {
  const int64_t width = right - left + 1, cells = (bottom - top + 1) * width;
  if (cells > kMaxCheckedCells) return 0;
  const CertainLimits limits(mask.p.threshold);
  bool above = true, below = true;
  for (int64_t first = 0; first < cells; first += kWarpSize) {
    const int64_t i = first + lane_id() < cells ? first + lane_id() : cells - 1;
    const float cell = mask.cell(top + i / width, left + i % width);
    above = above && limits.is_above(cell);
    below = below && limits.is_below(cell);
    if (ballot(above) != kFullMask && ballot(below) != kFullMask) return 0;
  }
  return ballot(above) == kFullMask ? 1 : -1;
}

__device__ Tap shuffle(const Tap& tap, int lane) {
  return {__shfl_sync(kFullMask, tap.low, lane), __shfl_sync(kFullMask, tap.high, lane),
          __shfl_sync(kFullMask, tap.low_weight, lane),
          __shfl_sync(kFullMask, tap.high_weight, lane)};
}

// Bit r of the result is pixel (x of the lane, y + r); bits past the image are 0.
template <bool kVia>
__device__ unsigned column_bits(const Mask& mask, int64_t left, int64_t y) {
  const int64_t width = mask.p.width, x = left + lane_id();
  const int64_t left_rows = mask.p.height - y;
  const int rows = static_cast<int>(left_rows < kWarpSize ? left_rows : kWarpSize);
  ResizedColumn<kVia> column(mask, x < width ? x : width - 1);
  const unsigned full = x < width ? kFullMask >> (kWarpSize - rows) : 0u;
  const Tap own_row = column.row(lane_id() < rows ? y + lane_id() : y + rows - 1);
  const Tap first_row = shuffle(own_row, 0), last_row = shuffle(own_row, kWarpSize - 1);
  const int side = certain_side(mask, column.north(first_row), column.south(last_row),
                                __shfl_sync(kFullMask, column.west(), 0),
                                __shfl_sync(kFullMask, column.east(), kWarpSize - 1));
  if (side != 0) return side > 0 ? full : 0u;
  unsigned bits = 0;
  for (int r = 0; r < rows; ++r) {
    const float value = column.value(shuffle(own_row, r));
    bits |= unsigned(value > mask.p.threshold) << r;
  }
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
  const int64_t chunks = ceil_div<int64_t>(p.height, kWarpSize);
  const int64_t warp = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = warp / (groups * chunks), chunk = warp / groups % chunks;
  const int64_t left = warp % groups * kWarpSize;
  if (n >= p.masks.size[0]) return;  // the whole warp
  const Mask mask{p, n};
  store(n, chunk, left, column_bits<kVia>(mask, left, chunk * kWarpSize));
}

// `group_columns`: the result's columns are made in multiples of these, past its width as zeros.
template <class Store>
void launch_resize(const ResizeMasksParams& p, Store store, cudaStream_t stream,
                   int64_t group_columns = kWarpSize) {
  const int64_t groups = ceil_div<int64_t>(p.width, group_columns) * (group_columns / kWarpSize);
  const int64_t warps = p.masks.size[0] * ceil_div<int64_t>(p.height, kWarpSize) * groups;
  launch("resize_masks", p.has_via() ? resize_kernel<true, Store> : resize_kernel<false, Store>,
         make_grid(ceil_div<int64_t>(warps, kWarps)), kThreads, 0, stream, p, store, groups);
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

}  // namespace fastseg
