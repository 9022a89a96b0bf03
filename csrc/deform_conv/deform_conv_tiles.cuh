// Tiles in shared memory that deformable convolution's CUDA kernels multiply: columns made as they
// are needed, rows copied from tensors, and a warp's share of the product.
#pragma once

#include "core/cuda.cuh"
#include "core/mma.cuh"
#include "deform_conv/deform_conv_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

template <class T>
constexpr int kVector = 16 / sizeof(T);
template <class T>
constexpr int kStep = 64 / sizeof(T);  // elements of a row that are multiplied at once
template <class T>
constexpr int kRow = 80 / sizeof(T);  // rows in shared memory: no two of 8 share a bank
constexpr int kColumnPad = 8;         // elements between columns in shared memory, likewise

// What a tile of type T holds of a value: floats as TF32.
template <class T>
__device__ float rounded(float value) {
  return bit_cast<float>(rounded_word<T>(bit_cast<unsigned>(value)));
}

// Makes a pixel's columns, two vectors at a time; loads are apart from arithmetic so that
// products run between the two. Columns of floats are rounded to TF32 unless products are exact.
template <class T, bool kExact>
struct ColumnMaker {
  const T* image;
  int cell;             // north-west cell, from the image's first element
  unsigned inside = 0;  // bit k: cell k is inside the map; the others count as 0
  float weight[4];
  // As they lie in memory: to take them apart into halves, the thread would wait for them.
  using Words = Vec<uint32_t, 4>;
  Words cells[4][2];

  __device__ void move(const DeformConvParams& p, const Sample<float>& sample, float mask) {
    cell = static_cast<int>(sample.cell(0, p.input));
    inside = sample.cells_inside(p.input);
#pragma unroll
    for (int k = 0; k < 4; ++k) weight[k] = sample.outside ? 0.0f : sample.weight(k) * mask;
  }

  // Makes columns of zeros.
  __device__ void leave() {
    inside = 0;
#pragma unroll
    for (float& w : weight) w = 0.0f;
  }

  __device__ void load(const DeformConvParams& p, int channel) {
    const int row = static_cast<int>(p.input.stride[2]),
              column = static_cast<int>(p.input.stride[3]);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const T* source = image + (cell + k / 2 * row + k % 2 * column + channel);
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        cells[k][v] = Words{};
        if (inside >> k & 1) {
          cells[k][v] = Words::load(reinterpret_cast<const uint32_t*>(source + kVector<T> * v));
        }
      }
    }
  }

  __device__ void store(T* row) const {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      Vec<T, kVector<T>> column, cell[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) cell[k] = bit_cast<Vec<T, kVector<T>>>(cells[k][v]);
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          sum = multiply_add(weight[k], static_cast<float>(cell[k][e]), sum);
        }
        column[e] = static_cast<T>(kExact ? sum : rounded<T>(sum));
      }
      bit_cast<Words>(column).store(reinterpret_cast<uint32_t*>(row + kVector<T> * v));
    }
  }
};

struct SameRow {
  __device__ int operator()(int row) const { return row; }
};

// Starts to copy kRows rows of kLength elements, `source_stride` apart in memory and `stride` apart
// in shared memory. Only the first `rows` rows and `length` elements exist; the rest become zeros.
// Row r goes to row place(r), which must be that of r plus or minus whole steps of kStepRows.
template <class T, int kRows, int kLength, class Place = SameRow>
__device__ void start_copies(T* target, int stride, const T* source, int64_t source_stride,
                             int64_t rows, int length, const Place& place = {}) {
  constexpr int kVectors = kLength / kVector<T>, kStepRows = kThreads / kVectors;
  static_assert(kThreads % kVectors == 0 && kRows % kStepRows == 0, "threads share whole rows");
  const int first = thread_rank() / kVectors, k = thread_rank() % kVectors * kVector<T>;
  const int count = k < length ? static_cast<int>(min(rows, int64_t{kRows})) - first : 0;
  const T* from = source + first * source_stride + k;
  T* to = target + place(first) * stride + k;
#pragma unroll
  for (int row = 0; row < kRows; row += kStepRows) {
    copy_async(to + row * stride, row < count ? from : source, row < count);
    from += kStepRows * source_stride;
  }
}

// Runs multiply(step) for all steps; tiles of the next one come in meanwhile: start(step) begins
// to load them, finish(step) waits. They must alternate between two buffers.
template <class Start, class Finish, class Multiply>
__device__ void pipeline(int steps, const Start& start, const Finish& finish,
                         const Multiply& multiply) {
  if (steps > 0) {
    start(0);
    finish(0);
  }
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) start(step + 1);
    multiply(step);
    if (step + 1 < steps) finish(step + 1);
    __syncthreads();
  }
}

// Tiles whose floats tensor cores are to round to TF32; columns are rounded as they are made.
enum class Unrounded { both, left, right };

// A warp's sums: 16 * kRows rows of a left tile times 8 * kColumns rows of a right one. Lane 4 * g
// + t holds those of rows 8 * i + g and columns 8 * j + 2 * t + e. kExact: on the cores for float32
// (T is float), and not on tensor cores as half precision or TF32.
template <class T, int kRows, int kColumns, bool kExact, Unrounded kUnrounded>
struct WarpProduct {
  float sums[kRows][kColumns][4] = {};

  __device__ float at(int i, int j, int e) const { return sums[i / 2][j][i % 2 * 2 + e]; }

  // Adds the product of tiles whose rows, of kStep elements, lie kRow apart.
  __device__ void add(const T* left, const T* right) {
    if constexpr (kExact) {
      add_exact(left, right);
    } else {
#pragma unroll
      for (int k = 0; k < kStep<T>; k += 2 * kHalfRow<T>) {
        add_tiles([&](auto& a, int i) { load_left(a, left + 16 * i * kRow<T> + k, kRow<T>); },
                  [&](auto& b, int j) { load_right(b, right + 8 * j * kRow<T> + k, kRow<T>); });
      }
    }
  }

  // The same of tiles that lie transposed: kStep rows of `left_stride` and `right_stride`.
  __device__ void add_transposed(const T* left, int left_stride, const T* right, int right_stride) {
    if constexpr (kExact) {
      add_exact_transposed(left, left_stride, right, right_stride);
    } else {
#pragma unroll
      for (int k = 0; k < kStep<T>; k += 2 * kHalfRow<T>) {
        const T *left_row = left + k * left_stride, *right_row = right + k * right_stride;
        add_tiles(
            [&](auto& a, int i) { load_left_transposed(a, left_row + 16 * i, left_stride); },
            [&](auto& b, int j) { load_right_transposed(b, right_row + 8 * j, right_stride); });
      }
    }
  }

 private:
  template <class Left, class Right>
  __device__ void add_tiles(const Left& load_left, const Right& load_right) {
    unsigned a[kRows][4];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      load_left(a[i], i);
#pragma unroll
      for (unsigned& word : a[i]) {
        if (kUnrounded != Unrounded::right) word = rounded_word<T>(word);
      }
    }
#pragma unroll
    for (int j = 0; j < kColumns; j += 2) {
      unsigned b[2][2];
      load_right(b, j);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (unsigned& word : b[half]) {
          if (kUnrounded != Unrounded::left) word = rounded_word<T>(word);
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) multiply_tiles<T>(sums[i][j + half], a[i], b[half]);
      }
    }
  }

  __device__ void add_exact(const T* left, const T* right) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll 1
    for (int k = 0; k < kStep<T>; k += 4) {
      Vec<T, 4> rows[2 * kRows];
#pragma unroll
      for (int i = 0; i < 2 * kRows; ++i) {
        rows[i] = Vec<T, 4>::load(left + (8 * i + g) * kRow<T> + k);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const auto column = Vec<T, 4>::load(right + (8 * j + 2 * t + e) * kRow<T> + k);
#pragma unroll
          for (int q = 0; q < 4; ++q) {
#pragma unroll
            for (int i = 0; i < 2 * kRows; ++i) {
              float& sum = sums[i / 2][j][i % 2 * 2 + e];
              sum = multiply_add(rows[i][q], column[q], sum);
            }
          }
        }
      }
    }
  }

  __device__ void add_exact_transposed(const T* left, int left_stride, const T* right,
                                       int right_stride) {
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll 2
    for (int k = 0; k < kStep<T>; ++k) {
      T rows[2 * kRows];
#pragma unroll
      for (int i = 0; i < 2 * kRows; ++i) rows[i] = left[k * left_stride + 8 * i + g];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const auto pair = Vec<T, 2>::load(right + k * right_stride + 8 * j + 2 * t);
#pragma unroll
        for (int i = 0; i < 2 * kRows; ++i) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& sum = sums[i / 2][j][i % 2 * 2 + e];
            sum = multiply_add(rows[i], pair[e], sum);
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace fastseg
