// Pasting on CUDA. A thread walks down columns of the image with the cells of the mask that it lies
// between in registers, which change with every row of the mask only, so that nearly all memory
// traffic is the output. Run lengths come from two walks, one that counts the changes of each
// column and one that writes their positions in order; neither leaves pixels in memory.
#include "core/cuda.cuh"
#include "paste_masks/paste_masks_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kStrip = kWarpSize;  // rows that a warp fills: each lane prepares the taps of one
constexpr int kColumns = 4;        // columns of a thread: a store of 4 or of 16 bytes

// Left alone, the compiler takes 89 registers for paste_kernel, so that two blocks fit; the 80 of
// three cost a few spilled words (sm_75 to sm_90).
constexpr int kBlocksPerSm = 3;

struct Probability {
  __device__ float operator()(float value) const { return value; }
};

// One column of a pasted mask; rows are best asked for from top to bottom.
struct MaskColumn {
  Tap x;
  int north_row = -1, south_row = -1;
  float north[2], south[2];  // the cells west and east, or their mean for a separable blend

  __device__ void start(const PasteMasksParams& p, const PasteBox& box, int64_t column) {
    x = paste_tap(p.mode, box.x, column);
    north_row = south_row = -1;
  }

  __device__ float value(const PasteMasksParams& p, int64_t n, const Tap& y) {
    if (y.low != north_row) {
      if (y.low == south_row) {
        north[0] = south[0];
        north[1] = south[1];
      } else {
        load(p, n, y.low, north);
      }
      north_row = y.low;
    }
    if (y.high != south_row) {
      load(p, n, y.high, south);
      south_row = y.high;
    }
    if (p.mode == PasteMode::torchvision) {
      return blend_pair(north[0], y.low_weight, south[0], y.high_weight);
    }
    return blend_four(Blend::west_first, y, x.low_weight, x.high_weight, north[0], north[1],
                      south[0], south[1]);
  }

 private:
  __device__ void load(const PasteMasksParams& p, int64_t n, int row, float* cells) const {
    const float west = cell(p, n, row, x.low), east = cell(p, n, row, x.high);
    const bool separable = p.mode == PasteMode::torchvision;
    cells[0] = separable ? blend_pair(west, x.low_weight, east, x.high_weight) : west;
    cells[1] = east;
  }

  __device__ static float cell(const PasteMasksParams& p, int64_t n, int row, int column) {
    const int size = static_cast<int>(p.masks.size[1]);
    if (row < 1 || row > size || column < 1 || column > size) return 0.0f;  // the border
    switch (p.masks.dtype) {  // the same for all threads, and rare: no reason for more kernels
      case DType::f16:
        return *p.masks.at<const half_t>(n, row - 1, column - 1);
      case DType::bf16:
        return *p.masks.at<const bfloat16_t>(n, row - 1, column - 1);
      default:
        return *p.masks.at<const float>(n, row - 1, column - 1);
    }
  }
};

__device__ Tap shuffle(const Tap& tap, int lane) {
  return {__shfl_sync(kFullMask, tap.low, lane), __shfl_sync(kFullMask, tap.high, lane),
          __shfl_sync(kFullMask, tap.low_weight, lane),
          __shfl_sync(kFullMask, tap.high_weight, lane)};
}

__device__ bool within(const PasteAxis& axis, int64_t pixel) {
  return pixel >= axis.begin && pixel < axis.end;
}

template <class Out>
__device__ void store_columns(const PasteMasksParams& p, int64_t n, int64_t y, int64_t left,
                              const Vec<Out, kColumns>& values, bool aligned) {
  const int64_t width = p.output.size[2];
  Out* to = p.output.at<Out>(n, y) + left;
  if (aligned) {
    if (left < width) values.store(to);
    return;
  }
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    if (left + i < width) to[i] = values[i];
  }
}

// A warp fills kStrip rows of 32 * kColumns columns. `aligned`: rows allow stores of kColumns.
template <class Out, class Convert>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    paste_kernel(PasteMasksParams p, Convert convert, bool aligned) {
  const int64_t height = p.output.size[1], width = p.output.size[2];
  const int64_t strips = ceil_div<int64_t>(height, kStrip);
  const int64_t groups = ceil_div<int64_t>(width, kWarpSize * kColumns);
  const int64_t warp = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = warp / (strips * groups), top = warp / groups % strips * kStrip;
  const int64_t left = (warp % groups * kWarpSize + lane_id()) * kColumns;
  if (n >= p.output.size[0]) return;  // the whole warp
  const int64_t rows = height - top < kStrip ? height - top : kStrip;
  const PasteBox box = paste_box(p, n);
  const Out background = static_cast<Out>(convert(0.0f));
  const int64_t first = warp % groups * kWarpSize * kColumns;  // column of lane 0
  if (box.y.begin >= top + rows || box.y.end <= top || box.x.end <= first ||
      box.x.begin >= first + kWarpSize * kColumns) {  // most strips: no pixel to compute
    Vec<Out, kColumns> values;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) values[i] = background;
    for (int r = 0; r < rows; ++r) store_columns(p, n, top + r, left, values, aligned);
    return;
  }
  const Tap own_row = paste_tap(p.mode, box.y, top + lane_id());
  MaskColumn columns[kColumns];
  bool inside[kColumns];
#pragma unroll
  for (int i = 0; i < kColumns; ++i) {
    inside[i] = within(box.x, left + i);
    if (inside[i]) columns[i].start(p, box, left + i);
  }
  for (int r = 0; r < rows; ++r) {
    const Tap row = shuffle(own_row, r);
    const bool inside_row = within(box.y, top + r);
    Vec<Out, kColumns> values;
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      values[i] = inside_row && inside[i] ? static_cast<Out>(convert(columns[i].value(p, n, row)))
                                          : background;
    }
    store_columns(p, n, top + r, left, values, aligned);
  }
}

// The pixels that may differ from the one before them in column order, which for a pixel of the
// first row is the last pixel of the column before, and for the first pixel of all is 0.
struct ToggleWindow {
  int64_t top, bottom, left, right;
};

__device__ ToggleWindow toggle_window(const PasteMasksParams& p, const PasteBox& box,
                                      bool background) {
  const int64_t height = p.output.size[1], width = p.output.size[2];
  ToggleWindow window;
  window.top = background || box.y.end == height ? 0 : box.y.begin;
  window.bottom = box.y.end < height ? box.y.end + 1 : height;
  window.left = background ? 0 : box.x.begin;
  window.right = box.x.end < width ? box.x.end + 1 : width;
  return window;
}

template <class Inside>
__device__ bool pixel(const PasteMasksParams& p, int64_t n, const PasteBox& box, int64_t x,
                      int64_t y, Inside inside) {
  if (!within(box.x, x) || !within(box.y, y)) return inside(0.0f);
  MaskColumn column;
  column.start(p, box, x);
  return inside(column.value(p, n, paste_tap(p.mode, box.y, y)));
}

// Calls visit(y) for the toggles of column x in rows [top, bottom), which are the warp's; lanes
// that are not active only take part.
template <class Inside, class Visit>
__device__ void walk(const PasteMasksParams& p, int64_t n, const PasteBox& box, int64_t x,
                     int64_t top, int64_t bottom, bool active, Inside inside, Visit visit) {
  if (top >= bottom) return;  // the whole warp
  bool previous = false;
  if (active && top > 0) previous = pixel(p, n, box, x, top - 1, inside);
  if (active && top == 0 && x > 0) {
    previous = pixel(p, n, box, x - 1, p.output.size[1] - 1, inside);
  }
  const bool inside_columns = within(box.x, x);
  MaskColumn column;
  column.start(p, box, x);
  for (int64_t first = top; first < bottom; first += kWarpSize) {
    const Tap own_row = paste_tap(p.mode, box.y, first + lane_id());
    const int rows = static_cast<int>(bottom - first < kWarpSize ? bottom - first : kWarpSize);
    for (int r = 0; r < rows; ++r) {
      const Tap row = shuffle(own_row, r);
      if (!active) continue;
      const bool current = inside_columns && within(box.y, first + r)
                               ? inside(column.value(p, n, row))
                               : inside(0.0f);
      if (current != previous) visit(first + r);
      previous = current;
    }
  }
}

// A block takes 32 columns of a mask and its warps a share of the rows each. The first pass (kEmit
// false) writes the number of toggles of each column, the second the toggles.
template <bool kEmit, class Inside>
__global__ void __launch_bounds__(kThreads)
    toggles_kernel(PasteMasksTogglesParams params, Inside inside) {
  __shared__ int warp_counts[kWarps][kWarpSize];
  const PasteMasksParams& p = params.paste;
  const int64_t height = p.output.size[1], width = p.output.size[2];
  const int64_t groups = ceil_div<int64_t>(width, kWarpSize);
  const int64_t n = blockIdx.x / groups, left = blockIdx.x % groups * kWarpSize;
  const int64_t x = left + lane_id();
  const PasteBox box = paste_box(p, n);
  const ToggleWindow window = toggle_window(p, box, inside(0.0f));
  if (left >= window.right || left + kWarpSize <= window.left) return;  // the whole block
  const bool active = x >= window.left && x < window.right;
  const int64_t share = ceil_div<int64_t>(window.bottom - window.top, kWarps);
  const int64_t top = window.top + warp_id() * share;
  const int64_t bottom = top + share < window.bottom ? top + share : window.bottom;

  int count = 0;
  walk(p, n, box, x, top, bottom, active, inside, [&](int64_t) { ++count; });
  warp_counts[warp_id()][lane_id()] = count;
  __syncthreads();
  int before = 0, total = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp_id() ? warp_counts[w][lane_id()] : 0;
    total += warp_counts[w][lane_id()];
  }
  if constexpr (!kEmit) {
    if (active && warp_id() == 0) *params.counts.at<int>(n, x) = total;
  } else {
    const int64_t column = n * width + (active ? x : 0);
    int64_t next = before + (column > 0 ? *params.ends.at<int64_t>(column - 1) : 0);
    walk(p, n, box, x, top, bottom, active, inside, [&](int64_t y) {
      if (next < params.toggles.size[0]) {
        *params.toggles.at<uint32_t>(next) = static_cast<uint32_t>(x * height + y);
      }
      ++next;
    });
  }
}

template <class Out, class Convert>
void launch_paste(const PasteMasksParams& p, Convert convert, cudaStream_t stream) {
  const int64_t warps = p.output.size[0] * ceil_div<int64_t>(p.output.size[1], kStrip) *
                        ceil_div<int64_t>(p.output.size[2], kWarpSize * kColumns);
  const bool aligned = p.output.size[2] % kColumns == 0 &&
                       reinterpret_cast<uintptr_t>(p.output.data) % (kColumns * sizeof(Out)) == 0;
  launch("paste_masks", paste_kernel<Out, Convert>, make_grid(ceil_div<int64_t>(warps, kWarps)),
         kThreads, 0, stream, p, convert, aligned);
}

template <bool kEmit>
void launch_toggles(const PasteMasksTogglesParams& params, cudaStream_t stream) {
  const PasteMasksParams& p = params.paste;
  const int64_t blocks = p.output.size[0] * ceil_div<int64_t>(p.output.size[2], kWarpSize);
  with_comparison(p, [&](auto inside) {
    launch(kEmit ? "paste_masks_toggles" : "paste_masks_count",
           toggles_kernel<kEmit, decltype(inside)>, make_grid(blocks), kThreads, 0, stream, params,
           inside);
  });
}

}  // namespace

void paste_masks_cuda(const PasteMasksParams& p, cudaStream_t stream) {
  if (p.output.dtype == DType::f32) return launch_paste<float>(p, Probability{}, stream);
  with_comparison(p, [&](auto inside) { launch_paste<uint8_t>(p, inside, stream); });
}

void paste_masks_count_cuda(const PasteMasksTogglesParams& params, cudaStream_t stream) {
  launch_toggles<false>(params, stream);
}

void paste_masks_toggles_cuda(const PasteMasksTogglesParams& params, cudaStream_t stream) {
  launch_toggles<true>(params, stream);
}

}  // namespace fastseg
