// RLE on CUDA. Encoding reads the masks once and leaves 1 bit a pixel, from which the changes of
// each column are counted and then, already in order, written at offsets that a scan over the
// columns gives. Loads and stores of a warp are 32 pixels that lie side by side; with 32 of them in
// flight per thread that suffices to saturate the memory.
#include "core/cuda.cuh"
#include "core/dispatch.h"
#include "rle/rle.h"
#include "rle/rle_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kWordRows = 32;

// Rows contiguous (or no axis is): a warp takes 32 columns, each lane 32 rows of its own.
template <class T>
__global__ void __launch_bounds__(kThreads) bits_of_rows_kernel(RleBitsParams p) {
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
  *p.words.at<unsigned>(n, chunk, x) = bits;
}

// Columns contiguous: a warp takes 32 * 32 rows of one column; each load is 32 rows and a ballot
// makes them the word that one lane keeps.
template <class T>
__global__ void __launch_bounds__(kThreads) bits_of_columns_kernel(RleBitsParams p) {
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
  if (first + lane_id() < chunks) *p.words.at<unsigned>(n, first + lane_id(), x) = bits;
}

// A warp turns 32 rows of 64 columns: each lane reads one row and writes two columns.
__global__ void __launch_bounds__(kThreads) transpose_kernel(RleTransposeParams p) {
  const int64_t height = p.row_words.size[1], row_words = p.row_words.size[2];
  const int64_t width = p.words.size[2], chunks = p.words.size[1];
  const int64_t warp = int64_t(blockIdx.x) * kWarps + warp_id();
  const int64_t n = warp / (row_words * chunks), chunk = warp / row_words % chunks;
  const int64_t i = warp % row_words, y = chunk * kWordRows + lane_id();
  if (n >= p.words.size[0]) return;  // the whole warp
  using Halves = Vec<unsigned, 2>;
  Halves row = {{0u, 0u}};
  if (y < height) row = *p.row_words.at<const Halves>(n, y, i);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t x = 64 * i + kWarpSize * half + lane_id();
    const unsigned column = transpose_bits(row[half]);
    if (x < width) *p.words.at<unsigned>(n, chunk, x) = column;
  }
}

// Calls visit(chunk, changed) for the words of a column from top to bottom; `changed` has a bit for
// each pixel that differs from the one before it in column order, which is 0 before the first.
template <class Visit>
__device__ void for_changes(const RleTogglesParams& p, int64_t n, int64_t x, Visit visit) {
  const int64_t chunks = p.words.size[1];
  const int last_row = static_cast<int>((p.height - 1) % kWordRows);
  const unsigned* word = p.words.at<const unsigned>(n, 0, x);
  unsigned above = x > 0 ? word[(chunks - 1) * p.words.stride[1] - 1] >> last_row & 1u : 0u;
#pragma unroll 4
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const unsigned bits = word[chunk * p.words.stride[1]];
    unsigned changed = bits ^ (bits << 1 | above);
    above = bits >> 31;
    if (chunk == chunks - 1 && last_row < kWordRows - 1) changed &= (2u << last_row) - 1u;
    visit(chunk, changed);
  }
}

// One thread per column.
__global__ void __launch_bounds__(kThreads) count_kernel(RleTogglesParams p) {
  const int64_t width = p.words.size[2];
  const int64_t column = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t n = column / width, x = column % width;
  if (n >= p.words.size[0]) return;
  int count = 0;
  for_changes(p, n, x, [&](int64_t, unsigned changed) { count += __popc(changed); });
  *p.counts.at<int>(n, x) = count;
}

__global__ void __launch_bounds__(kThreads) toggles_kernel(RleTogglesParams p) {
  const int64_t width = p.words.size[2];
  const int64_t column = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t n = column / width, x = column % width;
  if (n >= p.words.size[0]) return;
  const int64_t end = *p.ends.at<int64_t>(column);
  int64_t next = column > 0 ? *p.ends.at<int64_t>(column - 1) : 0;
  if (next == end || end > p.toggles.size[0]) return;
  for_changes(p, n, x, [&](int64_t chunk, unsigned changed) {
    const int64_t first = x * p.height + chunk * kWordRows;
    for (; changed != 0; changed &= changed - 1u) {
      *p.toggles.at<unsigned>(next++) = static_cast<unsigned>(first + __ffs(int(changed)) - 1);
    }
  });
}

// A run among those of all masks, which follow each other; a mask has one run more than toggles.
struct MaskRun {
  int64_t mask, index;     // run `index` of this mask
  int64_t first, toggles;  // the mask's first toggle and their number
};

struct RunReader {
  const RleStringsParams& p;
  int64_t num_masks, width;

  __device__ explicit RunReader(const RleStringsParams& params)
      : p(params), num_masks(p.text_ends.size[0] - 1), width(p.ends.size[0] / num_masks) {}

  __device__ int64_t first_toggle(int64_t n) const {
    return n > 0 ? *p.ends.at<const int64_t>(n * width - 1) : 0;
  }
  __device__ int64_t num_toggles() const { return first_toggle(num_masks); }
  __device__ bool fits() const { return num_toggles() <= p.toggles.size[0]; }

  __device__ MaskRun find(int64_t run) const {
    int64_t low = 0, high = num_masks;  // mask `low` starts at or before the run, `high` after it
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (first_toggle(middle) + middle <= run ? low : high) = middle;
    }
    const int64_t first = first_toggle(low);
    return {low, run - first - low, first, first_toggle(low + 1) - first};
  }

  // Where a run ends.
  __device__ int64_t position(const MaskRun& run, int64_t index) const {
    if (index < 0) return 0;
    return index < run.toggles ? *p.toggles.at<const unsigned>(run.first + index) : p.area;
  }

  // What is written for a run: its length, from the fourth on the difference to two before.
  __device__ int64_t value(const MaskRun& run) const {
    const int64_t i = run.index;
    const int64_t length = position(run, i) - position(run, i - 1);
    return i > 2 ? length - (position(run, i - 2) - position(run, i - 3)) : length;
  }
};

// Characters that write_run() writes: groups of 5 bits that hold the value and its sign.
__device__ int run_bytes(int64_t value) {
  const unsigned long long magnitude = static_cast<unsigned long long>(value < 0 ? ~value : value);
  return (64 - __clzll(static_cast<long long>(magnitude))) / 5 + 1;
}

// A thread per run.
__global__ void __launch_bounds__(kRleBlockRuns) measure_kernel(RleStringsParams p) {
  __shared__ int scratch[kWarpSize];
  const RunReader reader(p);
  const int64_t run = int64_t(blockIdx.x) * kRleBlockRuns + threadIdx.x;
  const bool exists = reader.fits() && run < reader.num_toggles() + reader.num_masks;
  const int bytes =
      block_reduce_sum(exists ? run_bytes(reader.value(reader.find(run))) : 0, scratch);
  if (threadIdx.x == 0) *p.block_bytes.at<int64_t>(blockIdx.x) = bytes;
}

__global__ void __launch_bounds__(kRleBlockRuns) strings_kernel(RleStringsParams p) {
  __shared__ int scratch[kWarpSize];
  const RunReader reader(p);
  const int64_t run = int64_t(blockIdx.x) * kRleBlockRuns + threadIdx.x;
  if (run == 0) *p.text_ends.at<int64_t>(reader.num_masks) = reader.num_toggles();
  if (!reader.fits()) return;  // the whole block
  const bool exists = run < reader.num_toggles() + reader.num_masks;
  MaskRun found{};
  int64_t value = 0;
  if (exists) {
    found = reader.find(run);
    value = reader.value(found);
  }
  const int bytes = exists ? run_bytes(value) : 0;
  int total;
  const int64_t begin = block_exclusive_scan(bytes, scratch, &total) +
                        (blockIdx.x > 0 ? *p.block_bytes.at<int64_t>(blockIdx.x - 1) : 0);
  if (!exists || begin + bytes > p.text.size[0]) return;
  write_run(value, p.text.at<char>(begin));
  if (found.index == found.toggles) *p.text_ends.at<int64_t>(found.mask) = begin + bytes;
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

// As bits_of_rows_kernel: each thread finds its first run by bisection and walks 32 rows down.
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

void rle_bits_cuda(const RleBitsParams& params, cudaStream_t stream) {
  const View<3>& masks = params.masks;
  const int64_t num_masks = masks.size[0], width = masks.size[2], chunks = params.words.size[1];
  dispatch_width(masks.dtype, "masks", [&](auto zero) {
    using T = decltype(zero);
    if (masks.stride[1] == 1 && masks.stride[2] != 1) {
      const int64_t warps = num_masks * width * ceil_div<int64_t>(chunks, kWarpSize);
      launch("rle_bits_of_columns", bits_of_columns_kernel<T>,
             make_grid(ceil_div<int64_t>(warps, kWarps)), kThreads, 0, stream, params);
    } else {
      const int64_t warps = num_masks * chunks * ceil_div<int64_t>(width, kWarpSize);
      launch("rle_bits_of_rows", bits_of_rows_kernel<T>,
             make_grid(ceil_div<int64_t>(warps, kWarps)), kThreads, 0, stream, params);
    }
  });
}

void rle_transpose_cuda(const RleTransposeParams& params, cudaStream_t stream) {
  const int64_t warps = params.words.size[0] * params.words.size[1] * params.row_words.size[2];
  launch("rle_transpose", transpose_kernel, make_grid(ceil_div<int64_t>(warps, kWarps)), kThreads,
         0, stream, params);
}

void rle_count_cuda(const RleTogglesParams& params, cudaStream_t stream) {
  const int64_t columns = params.words.size[0] * params.words.size[2];
  launch("rle_count", count_kernel, make_grid(ceil_div<int64_t>(columns, kThreads)), kThreads, 0,
         stream, params);
}

void rle_toggles_cuda(const RleTogglesParams& params, cudaStream_t stream) {
  const int64_t columns = params.words.size[0] * params.words.size[2];
  launch("rle_toggles", toggles_kernel, make_grid(ceil_div<int64_t>(columns, kThreads)), kThreads,
         0, stream, params);
}

void rle_measure_cuda(const RleStringsParams& params, cudaStream_t stream) {
  launch("rle_measure", measure_kernel, make_grid(params.block_bytes.size[0]), kRleBlockRuns, 0,
         stream, params);
}

void rle_strings_cuda(const RleStringsParams& params, cudaStream_t stream) {
  launch("rle_strings", strings_kernel, make_grid(params.block_bytes.size[0]), kRleBlockRuns, 0,
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
