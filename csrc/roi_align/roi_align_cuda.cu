// RoIAlign on CUDA.
//
// Forward: a block pools one RoI. It builds the RoI's taps (the non-zero weights of A and B) once
// in shared memory; then threads own vectors of channels (channels-last) or output cells (any
// layout). Backward turns the scatter around: a block owns a tile of the feature map, finds the
// RoIs that reach it, in their order, and writes every gradient once: no atomics, no memset.
#include "core/cuda.cuh"
#include "core/dispatch.h"
#include "roi_align/roi_align_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kBinsPerTile = 7;        // output columns that a thread sums in registers at once
constexpr int kChannelsPerBlock = 16;  // any layout: channels that share a RoI's taps
constexpr int kTile = 16;              // backward: side of a block's tile in cells

template <class Acc>
struct Tap {
  int cell;
  Acc weight;
};

// A RoI as a block keeps it in shared memory; the tap arrays follow it there.
template <class Acc>
struct StagedRoI {
  RoI<Acc> roi;
  Acc inverse_count;
  int* offset[2];  // [bins + 1] each: rows, columns
  Tap<Acc>* taps[2];
};

// Taps of one axis at most: samples are a cell apart at most when their number is adaptive.
int64_t tap_capacity(const RoIAlignParams& p, int dim) {
  const int64_t bins = p.output.size[dim];
  if (p.sampling_ratio > 0) return 2 * bins * p.sampling_ratio;
  int64_t cells = 0;
  for (int level = 0; level < p.num_levels; ++level) {
    cells = std::max(cells, p.features[level].size[dim]);
  }
  return cells + 2 * bins;
}

template <class Acc>
size_t staged_bytes(const RoIAlignParams& p) {
  const int64_t taps = tap_capacity(p, 2) + tap_capacity(p, 3);
  const int64_t offsets = p.output.size[2] + p.output.size[3] + 2;
  return sizeof(StagedRoI<Acc>) + taps * sizeof(Tap<Acc>) + offsets * sizeof(int);
}

// Fills the block's shared memory with RoI k; all threads must call it.
template <class Acc>
__device__ const StagedRoI<Acc>& stage_roi(const RoIAlignParams& p, int64_t k, int y_capacity,
                                           int x_capacity) {
  auto* staged = dynamic_shared<StagedRoI<Acc>>();
  const int rows = static_cast<int>(p.output.size[2]);
  const int columns = static_cast<int>(p.output.size[3]);
  if (thread_rank() == 0) {
    staged->roi = read_roi<Acc>(p, k);
    staged->inverse_count = Acc(1) / samples_per_bin(staged->roi.y, staged->roi.x);
    staged->taps[0] = reinterpret_cast<Tap<Acc>*>(staged + 1);
    staged->taps[1] = staged->taps[0] + y_capacity;
    staged->offset[0] = reinterpret_cast<int*>(staged->taps[1] + x_capacity);
    staged->offset[1] = staged->offset[0] + rows + 1;
  }
  __syncthreads();
  const bool empty = !staged->roi.finite || staged->roi.y.cells == 0 || staged->roi.x.cells == 0;
  for (int bin = thread_rank(); bin < rows + columns; bin += block_size()) {
    const int axis = bin < rows ? 0 : 1;
    int count = 0;
    if (!empty) {
      for_each_tap(axis == 0 ? staged->roi.y : staged->roi.x, bin - axis * rows,
                   [&](int64_t, Acc) { ++count; });
    }
    staged->offset[axis][bin - axis * rows + 1] = count;
  }
  __syncthreads();
  if (thread_rank() < 2) {
    int* offset = staged->offset[thread_rank()];
    offset[0] = 0;
    for (int bin = 0; bin < (thread_rank() == 0 ? rows : columns); ++bin) {
      offset[bin + 1] += offset[bin];
    }
  }
  __syncthreads();
  for (int bin = thread_rank(); bin < rows + columns && !empty; bin += block_size()) {
    const int axis = bin < rows ? 0 : 1;
    Tap<Acc>* tap = staged->taps[axis] + staged->offset[axis][bin - axis * rows];
    for_each_tap(axis == 0 ? staged->roi.y : staged->roi.x, bin - axis * rows,
                 [&](int64_t cell, Acc weight) { *tap++ = {static_cast<int>(cell), weight}; });
  }
  __syncthreads();
  return *staged;
}

template <class Acc>
__device__ Acc nan_value() {
  return static_cast<Acc>(__int_as_float(0x7fc00000));
}

// Threads: x = vectors of kVec channels, y = output rows.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads)
    forward_channels_last_kernel(const __grid_constant__ RoIAlignParams p, int y_capacity,
                                 int x_capacity) {
  using Acc = accumulate_t<T>;
  const int64_t k = blockIdx.x;
  const StagedRoI<Acc>& staged = stage_roi<Acc>(p, k, y_capacity, x_capacity);
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kVec;
  if (c >= p.output.size[1]) return;
  const bool missing = staged.roi.image < 0;
  const View<4>& map = p.features[staged.roi.level];
  const T* base = missing ? nullptr : map.at<const T>(staged.roi.image, c);
  const int width = static_cast<int>(p.output.size[3]);
  for (int ph = threadIdx.y; ph < p.output.size[2]; ph += blockDim.y) {
    for (int tile = 0; tile < width; tile += kBinsPerTile) {
      Acc sum[kBinsPerTile][kVec] = {};
      const int row_begin = missing ? 0 : staged.offset[0][ph];
      const int row_end = missing ? 0 : staged.offset[0][ph + 1];
      for (int i = row_begin; i < row_end; ++i) {
        const T* row = base + staged.taps[0][i].cell * map.stride[2];
        const Acc row_weight = staged.taps[0][i].weight * staged.inverse_count;
#pragma unroll
        for (int b = 0; b < kBinsPerTile; ++b) {
          if (tile + b >= width) break;
          for (int j = staged.offset[1][tile + b]; j < staged.offset[1][tile + b + 1]; ++j) {
            const Tap<Acc> tap = staged.taps[1][j];
            const auto cell = Vec<T, kVec>::load(row + tap.cell * map.stride[3]);
#pragma unroll
            for (int e = 0; e < kVec; ++e) {
              sum[b][e] =
                  multiply_add(row_weight * tap.weight, static_cast<Acc>(cell[e]), sum[b][e]);
            }
          }
        }
      }
#pragma unroll
      for (int b = 0; b < kBinsPerTile; ++b) {
        if (tile + b >= width) break;
        T* out = p.output.at<T>(k, c, ph, tile + b);
#pragma unroll
        for (int e = 0; e < kVec; ++e) {
          out[e * p.output.stride[1]] = static_cast<T>(missing ? nan_value<Acc>() : sum[b][e]);
        }
      }
    }
  }
}

// Threads own output cells of kChannelsPerBlock channels.
template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const __grid_constant__ RoIAlignParams p, int y_capacity, int x_capacity) {
  using Acc = accumulate_t<T>;
  const int64_t k = blockIdx.x;
  const StagedRoI<Acc>& staged = stage_roi<Acc>(p, k, y_capacity, x_capacity);
  const View<4>& map = p.features[staged.roi.level];
  const int width = static_cast<int>(p.output.size[3]);
  const int cells = static_cast<int>(p.output.size[2]) * width;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kChannelsPerBlock;
  for (int item = thread_rank(); item < cells * kChannelsPerBlock; item += block_size()) {
    const int64_t c = first + item / cells;
    if (c >= p.output.size[1]) break;
    const int ph = item % cells / width, pw = item % cells % width;
    Acc sum = 0;
    if (staged.roi.image >= 0) {
      const T* plane = map.at<const T>(staged.roi.image, c);
      for (int i = staged.offset[0][ph]; i < staged.offset[0][ph + 1]; ++i) {
        const T* row = plane + staged.taps[0][i].cell * map.stride[2];
        Acc row_sum = 0;
        for (int j = staged.offset[1][pw]; j < staged.offset[1][pw + 1]; ++j) {
          const Tap<Acc> tap = staged.taps[1][j];
          row_sum =
              multiply_add(tap.weight, static_cast<Acc>(row[tap.cell * map.stride[3]]), row_sum);
        }
        sum = multiply_add(staged.taps[0][i].weight, row_sum, sum);
      }
      sum *= staged.inverse_count;
    } else {
      sum = nan_value<Acc>();
    }
    *p.output.at<T>(k, c, ph, pw) = static_cast<T>(sum);
  }
}

bool vectors_are_aligned(const View<4>& view, int vector) {
  const int64_t bytes = static_cast<int64_t>(vector) * bytes_of(view.dtype);
  return view.stride[1] == 1 && reinterpret_cast<uintptr_t>(view.data) % bytes == 0 &&
         view.stride[0] % vector == 0 && view.stride[2] % vector == 0 &&
         view.stride[3] % vector == 0 && view.size[1] % vector == 0;
}

template <class T>
void forward(const RoIAlignParams& p, cudaStream_t stream) {
  constexpr int kVec = 16 / sizeof(T);
  const int64_t rois = p.output.size[0], channels = p.output.size[1];
  const int y_capacity = static_cast<int>(tap_capacity(p, 2));
  const int x_capacity = static_cast<int>(tap_capacity(p, 3));
  const size_t shared = staged_bytes<accumulate_t<T>>(p);
  bool aligned = true;
  for (int level = 0; level < p.num_levels; ++level) {
    aligned = aligned && vectors_are_aligned(p.features[level], kVec);
  }
  if (!aligned) {
    launch("roi_align_forward", forward_kernel<T>,
           make_grid(rois, ceil_div<int64_t>(channels, kChannelsPerBlock)), dim3(kThreads), shared,
           stream, p, y_capacity, x_capacity);
    return;
  }
  int lanes = 1;  // threads along channels: a power of two, so that kThreads splits evenly
  while (lanes < kThreads / 4 && lanes * kVec < channels) lanes *= 2;
  launch("roi_align_forward_channels_last", forward_channels_last_kernel<T, kVec>,
         make_grid(rois, ceil_div<int64_t>(channels, lanes * kVec)), dim3(lanes, kThreads / lanes),
         shared, stream, p, y_capacity, x_capacity);
}

// ---- Backward ----------------------------------------------------------------------------------

// The tile that a block owns.
struct TileOrigin {
  int level;
  int64_t image, y, x;
};

__device__ TileOrigin tile_origin(const RoIAlignParams& p, int64_t tile) {
  for (int level = 0;; ++level) {
    const View<4>& map = p.features[level];
    const int64_t rows = ceil_div<int64_t>(map.size[2], kTile);
    const int64_t columns = ceil_div<int64_t>(map.size[3], kTile);
    const int64_t tiles = map.size[0] * rows * columns;
    if (tile >= tiles) {
      tile -= tiles;
      continue;
    }
    return {level, tile / (rows * columns), tile / columns % rows * kTile, tile % columns * kTile};
  }
}

// Whether samples along an axis may weigh cells [begin, begin + kTile); errs towards true.
template <class Acc>
__device__ bool may_reach(const RoIAxis<Acc>& axis, int64_t bins, int64_t begin) {
  const Acc end = axis.start + axis.bin_size * static_cast<Acc>(bins);
  const Acc low = axis.start < end ? axis.start : end;
  const Acc high = axis.start < end ? end : axis.start;
  return axis.grid > 0 && low - Acc(2) <= static_cast<Acc>(begin + kTile) &&
         high + Acc(2) >= static_cast<Acc>(begin);
}

// Weight of one cell in one bin: an element of A or B.
template <class Acc>
__device__ Acc cell_weight(const RoIAxis<Acc>& axis, int64_t bin, int64_t cell) {
  Acc sum = 0;
  for_each_tap(axis, bin, [&](int64_t tap, Acc weight) { sum += tap == cell ? weight : Acc(0); });
  return sum;
}

// Threads: x = kTile lanes of kVec channels, y = kTile rows; each sums kTile cells of its row.
template <class T, int kVec>
__global__ void __launch_bounds__(kTile* kTile)
    backward_kernel(const __grid_constant__ RoIAlignParams p) {
  using Acc = accumulate_t<T>;
  __shared__ int scan_scratch[kWarpSize];
  __shared__ int found[kTile * kTile];
  __shared__ RoI<Acc> roi;
  Acc* row_weights = dynamic_shared<Acc>();  // [PH][kTile]
  Acc* column_weights = row_weights + p.output.size[2] * kTile;
  const TileOrigin tile = tile_origin(p, blockIdx.x);
  const int rows = static_cast<int>(p.output.size[2]);
  const int columns = static_cast<int>(p.output.size[3]);
  const int64_t channels = p.output.size[1];
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * kTile + threadIdx.x) * kVec;
  Acc sum[kTile][kVec] = {};
  for (int64_t first = 0; first < p.boxes.size[0]; first += block_size()) {
    const int64_t candidate = first + thread_rank();
    bool reaches = false;
    if (candidate < p.boxes.size[0]) {
      const RoI<Acc> mine = read_roi<Acc>(p, candidate);
      reaches = mine.finite && mine.level == tile.level && mine.image == tile.image &&
                may_reach(mine.y, rows, tile.y) && may_reach(mine.x, columns, tile.x);
    }
    int total;
    const int position = block_exclusive_scan(reaches ? 1 : 0, scan_scratch, &total);
    if (reaches) found[position] = thread_rank();
    __syncthreads();
    for (int f = 0; f < total; ++f) {
      const int64_t k = first + found[f];
      if (thread_rank() == 0) roi = read_roi<Acc>(p, k);
      __syncthreads();
      for (int i = thread_rank(); i < (rows + columns) * kTile; i += block_size()) {
        const int bin = i / kTile, cell = i % kTile;
        row_weights[i] = bin < rows ? cell_weight(roi.y, bin, tile.y + cell)
                                    : cell_weight(roi.x, bin - rows, tile.x + cell);
      }
      __syncthreads();
      const Acc inverse_count = Acc(1) / samples_per_bin(roi.y, roi.x);
      for (int pw = 0; pw < columns; ++pw) {
        Acc grad[kVec] = {};
        for (int ph = 0; ph < rows; ++ph) {
          const Acc weight = row_weights[ph * kTile + threadIdx.y] * inverse_count;
          if (weight == Acc(0)) continue;
          const T* source = p.output.at<const T>(k, c, ph, pw);
#pragma unroll
          for (int e = 0; e < kVec; ++e) {
            if (c + e >= channels) break;
            grad[e] =
                multiply_add(weight, static_cast<Acc>(source[e * p.output.stride[1]]), grad[e]);
          }
        }
#pragma unroll
        for (int x = 0; x < kTile; ++x) {
          const Acc weight = column_weights[pw * kTile + x];
#pragma unroll
          for (int e = 0; e < kVec; ++e) sum[x][e] = multiply_add(weight, grad[e], sum[x][e]);
        }
      }
      __syncthreads();  // the next RoI overwrites the weights
    }
  }
  const View<4>& map = p.features[tile.level];
  const int64_t y = tile.y + threadIdx.y;
  if (y >= map.size[2]) return;
#pragma unroll
  for (int e = 0; e < kVec; ++e) {
    if (c + e >= channels) return;
#pragma unroll
    for (int x = 0; x < kTile; ++x) {
      if (tile.x + x < map.size[3]) *map.at<Acc>(tile.image, c + e, y, tile.x + x) = sum[x][e];
    }
  }
}

template <class T>
void backward(const RoIAlignParams& p, cudaStream_t stream) {
  using Acc = accumulate_t<T>;
  constexpr int kVec = 16 / sizeof(Acc);
  int64_t tiles = 0;
  for (int level = 0; level < p.num_levels; ++level) {
    const View<4>& map = p.features[level];
    tiles +=
        map.size[0] * ceil_div<int64_t>(map.size[2], kTile) * ceil_div<int64_t>(map.size[3], kTile);
  }
  const size_t shared = (p.output.size[2] + p.output.size[3]) * kTile * sizeof(Acc);
  launch("roi_align_backward", backward_kernel<T, kVec>,
         make_grid(tiles, ceil_div<int64_t>(p.output.size[1], kTile * kVec)), dim3(kTile, kTile),
         shared, stream, p);
}

}  // namespace

void roi_align_forward_cuda(const RoIAlignParams& params, cudaStream_t stream) {
  dispatch_floating(params.output.dtype, "features",
                    [&](auto zero) { forward<decltype(zero)>(params, stream); });
}

void roi_align_backward_cuda(const RoIAlignParams& params, cudaStream_t stream) {
  dispatch_floating(params.output.dtype, "grad_output",
                    [&](auto zero) { backward<decltype(zero)>(params, stream); });
}

}  // namespace fastseg
