// RLE on CUDA. Encoding reads the masks once and leaves 1 bit a pixel ("differs from the pixel
// before it in column order"), from which the toggles are then written, already in order, at
// offsets that a scan over the columns gives. Loads and stores of a warp are 32 pixels that lie
// side by side; with 32 of them in flight per thread that suffices to saturate the memory.
#include "core/cuda.cuh"
#include "core/dispatch.h"
#include "rle/rle.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kWordRows = 32;

// The pixel that precedes (x, y) in column order; 0 before the first.
template <class T>
__device__ bool previous_pixel(const View<3>& masks, int64_t n, int64_t y, int64_t x) {
  if (y > 0) return *masks.at<const T>(n, y - 1, x) != 0;
  return x > 0 && *masks.at<const T>(n, masks.size[1] - 1, x - 1) != 0;
}

// Stores the word of column x, rows from 32 * chunk on, whose pixels are `bits`.
template <class T>
__device__ void store_word(const RleMarkParams& p, int64_t n, int64_t chunk, int64_t x,
                           unsigned bits) {
  const int64_t y = chunk * kWordRows, rows = p.masks.size[1] - y;
  unsigned changed = bits ^ (bits << 1 | unsigned(previous_pixel<T>(p.masks, n, y, x)));
  if (rows < kWordRows) changed &= (1u << rows) - 1u;
  *p.words.at<unsigned>(n, chunk, x) = changed;
  if (changed != 0) atomicAdd(p.counts.at<int>(n, x), __popc(changed));
}

// Rows contiguous (or no axis is): a warp takes 32 columns, each lane 32 rows of its own.
template <class T>
__global__ void __launch_bounds__(kThreads) mark_rows_kernel(RleMarkParams p) {
  const int64_t groups = ceil_div<int64_t>(p.masks.size[2], kWarpSize);
  const int64_t chunks = p.words.size[1];
  const int64_t warp = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = warp / (groups * chunks), chunk = warp / groups % chunks;
  const int64_t x = warp % groups * kWarpSize + lane_id();
  if (n >= p.masks.size[0] || x >= p.masks.size[2]) return;
  const int64_t stride = p.masks.stride[1], rows = p.masks.size[1] - chunk * kWordRows;
  const T* pixels = p.masks.at<const T>(n, chunk * kWordRows, x);
  unsigned bits = 0;
  if (rows >= kWordRows) {
#pragma unroll
    for (int r = 0; r < kWordRows; ++r) bits |= unsigned(pixels[r * stride] != 0) << r;
  } else {
    for (int r = 0; r < rows; ++r) bits |= unsigned(pixels[r * stride] != 0) << r;
  }
  store_word<T>(p, n, chunk, x, bits);
}

// Columns contiguous: a warp takes 32 * 32 rows of one column; each load is 32 rows and a ballot
// makes them the word that one lane keeps.
template <class T>
__global__ void __launch_bounds__(kThreads) mark_columns_kernel(RleMarkParams p) {
  const int64_t width = p.masks.size[2], height = p.masks.size[1], chunks = p.words.size[1];
  const int64_t groups = ceil_div<int64_t>(chunks, kWarpSize);
  const int64_t warp = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = warp / (groups * width), x = warp / groups % width;
  const int64_t first = warp % groups * kWarpSize;  // chunk of lane 0
  if (n >= p.masks.size[0]) return;                 // the whole warp
  const T* column = p.masks.at<const T>(n, 0, x);
  unsigned bits = 0;
#pragma unroll 8
  for (int i = 0; i < kWarpSize; ++i) {
    const int64_t y = (first + i) * kWordRows + lane_id();
    const unsigned word = ballot(y < height && column[y * p.masks.stride[1]] != 0);
    if (lane_id() == i) bits = word;
  }
  if (first + lane_id() < chunks) store_word<T>(p, n, first + lane_id(), x, bits);
}

// One thread per column walks down its words.
__global__ void __launch_bounds__(kThreads) emit_kernel(RleEmitParams p) {
  const int64_t width = p.words.size[2];
  const int64_t column = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t n = column / width, x = column % width;
  if (n >= p.words.size[0]) return;
  int64_t next = column > 0 ? *p.ends.at<int64_t>(column - 1) : 0;
  if (next == *p.ends.at<int64_t>(column)) return;
  for (int64_t chunk = 0; chunk < p.words.size[1]; ++chunk) {
    const int64_t first = x * p.height + chunk * kWordRows;
    for (unsigned word = *p.words.at<unsigned>(n, chunk, x); word != 0; word &= word - 1u) {
      *p.toggles.at<unsigned>(next++) = static_cast<unsigned>(first + __ffs(int(word)) - 1);
    }
  }
}

// Index of the first toggle past `position`.
__device__ int64_t upper_bound(const unsigned* toggles, int64_t size, int64_t position) {
  int64_t begin = 0;
  while (size > 0) {
    const int64_t half = size / 2;
    if (int64_t(toggles[begin + half]) <= position) {
      begin += half + 1;
      size -= half + 1;
    } else {
      size = half;
    }
  }
  return begin;
}

// As mark_rows_kernel: each thread finds its first run by bisection and walks 32 rows down.
__global__ void __launch_bounds__(kThreads) fill_kernel(RleFillParams p) {
  const int64_t height = p.masks.size[1], width = p.masks.size[2];
  const int64_t groups = ceil_div<int64_t>(width, kWarpSize);
  const int64_t chunks = ceil_div<int64_t>(height, kWordRows);
  const int64_t warp = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = warp / (groups * chunks), y = warp / groups % chunks * kWordRows;
  const int64_t x = warp % groups * kWarpSize + lane_id();
  if (n >= p.masks.size[0] || x >= width) return;
  const int64_t begin = *p.offsets.at<int64_t>(n), size = *p.offsets.at<int64_t>(n + 1) - begin;
  const unsigned* toggles = p.toggles.as<const unsigned>() + begin;
  const int64_t first = x * height + y, rows = height - y < kWordRows ? height - y : kWordRows;
  int64_t next = upper_bound(toggles, size, first);
  uint8_t* pixels = p.masks.at<uint8_t>(n, y, x);
  for (int r = 0; r < rows; ++r) {
    while (next < size && int64_t(toggles[next]) <= first + r) ++next;
    pixels[r * p.masks.stride[1]] = static_cast<uint8_t>(next & 1);
  }
}

}  // namespace

void rle_mark_cuda(const RleMarkParams& params, cudaStream_t stream) {
  const View<3>& masks = params.masks;
  const int64_t num_masks = masks.size[0], width = masks.size[2], chunks = params.words.size[1];
  dispatch_width(masks.dtype, "masks", [&](auto zero) {
    using T = decltype(zero);
    if (masks.stride[1] == 1 && masks.stride[2] != 1) {
      const int64_t warps = num_masks * width * ceil_div<int64_t>(chunks, kWarpSize);
      launch("rle_mark_columns", mark_columns_kernel<T>,
             make_grid(ceil_div<int64_t>(warps, kWarps)), kThreads, 0, stream, params);
    } else {
      const int64_t warps = num_masks * chunks * ceil_div<int64_t>(width, kWarpSize);
      launch("rle_mark_rows", mark_rows_kernel<T>, make_grid(ceil_div<int64_t>(warps, kWarps)),
             kThreads, 0, stream, params);
    }
  });
}

void rle_emit_cuda(const RleEmitParams& params, cudaStream_t stream) {
  const int64_t columns = params.words.size[0] * params.words.size[2];
  launch("rle_emit", emit_kernel, make_grid(ceil_div<int64_t>(columns, kThreads)), kThreads, 0,
         stream, params);
}

void rle_fill_cuda(const RleFillParams& params, cudaStream_t stream) {
  const View<3>& masks = params.masks;
  const int64_t warps = masks.size[0] * ceil_div<int64_t>(masks.size[1], kWordRows) *
                        ceil_div<int64_t>(masks.size[2], kWarpSize);
  launch("rle_fill", fill_kernel, make_grid(ceil_div<int64_t>(warps, kWarps)), kThreads, 0, stream,
         params);
}

}  // namespace fastseg
