// Packing on CUDA. Where rows are contiguous, a warp takes 32 words at a time: each load is 32
// pixels side by side and a ballot makes them half of the word that one lane keeps. For masks of a
// byte a pixel that would cost more instructions than memory has time for; there, a lane makes 16
// bits of 16 bytes, and four lanes a word. Where columns are contiguous, a lane takes a row and
// collects the 64 pixels of its word. Area and box of what a block saw
// meet in shared memory, then in global memory by integer atomics, so their order does not matter.
// The box is kept as maxima, its first sides counted from the far edge, so that zeros mean empty.
#include "core/cuda.cuh"
#include "pack_masks/pack_masks_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kGroupsPerWarp = 4;  // of 32 words
constexpr int kByteWordsPerWarp = 128;

using Word = unsigned long long;

// Where areas and boxes go, and the size of the masks.
struct Extents {
  View<1> areas;
  View<2> boxes;
  int64_t height, width;
};

FASTSEG_HD Extents extents_of(const PackMasksParams& p) {
  return {p.areas, p.boxes, p.masks.size[1], p.masks.size[2]};
}

// Of pixels that a thread saw.
struct Extent {
  Word area = 0;
  int left = 0, top = 0, right = 0, bottom = 0;  // width - x0, height - y0, x1, y1

  __device__ void add(Word word, int64_t x, int64_t y, const Extents& extents) {
    if (word == 0) return;
    const Max max;
    area += __popcll(word);
    left = max(left, int(extents.width - x) - (__ffsll(int64_t(word)) - 1));
    right = max(right, int(x) + 64 - __clzll(int64_t(word)));
    top = max(top, int(extents.height - y));
    bottom = max(bottom, int(y) + 1);
  }
};

// All threads of the block call it.
__device__ void store_extent(const Extents& p, int64_t n, const Extent& own) {
  __shared__ Word area_scratch[kWarpSize];
  __shared__ int scratch[kWarpSize];
  const Word area = block_reduce_sum(own.area, area_scratch);
  const int sides[4] = {own.left, own.top, own.right, own.bottom};
  int64_t* const box = p.boxes.at<int64_t>(n);
  for (int side = 0; side < 4; ++side) {
    const int value = block_reduce(sides[side], Max(), 0, scratch);
    if (threadIdx.x == 0 && area > 0) {
      atomicMax(reinterpret_cast<Word*>(box + side), Word(value));
    }
  }
  if (threadIdx.x == 0 && area > 0) atomicAdd(p.areas.at<Word>(n), area);
}

__global__ void __launch_bounds__(kThreads) reset_kernel(Extents p) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= p.areas.size[0]) return;
  *p.areas.at<int64_t>(n) = 0;
  for (int side = 0; side < 4; ++side) *p.boxes.at<int64_t>(n, side) = 0;
}

__global__ void __launch_bounds__(kThreads) finish_kernel(Extents p) {
  const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= p.areas.size[0] || *p.areas.at<int64_t>(n) == 0) return;
  int64_t* const box = p.boxes.at<int64_t>(n);
  box[0] = p.width - box[0];
  box[1] = p.height - box[1];
}

// A mask takes `blocks` blocks; the words of all its rows are counted through.
template <class T, class Inside>
__global__ void __launch_bounds__(kThreads)
    pack_rows_kernel(PackMasksParams p, Inside inside, int64_t blocks) {
  const int64_t n = blockIdx.x / blocks, width = p.masks.size[2], row_words = p.words.size[2];
  const int64_t num_words = p.masks.size[1] * row_words;
  const int64_t warp = blockIdx.x % blocks * kWarps + warp_id();
  Extent extent;
  for (int group = 0; group < kGroupsPerWarp; ++group) {
    const int64_t first = (warp * kGroupsPerWarp + group) * kWarpSize;
    if (first >= num_words) break;  // the whole warp
    int64_t y = first / row_words, i = first % row_words;
    Word word = 0;
    int64_t own_y = 0, own_i = 0;
#pragma unroll 4
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int64_t x = i * kWordPixels + lane_id();
      const T* pixels = p.masks.at<const T>(n, y, x);
      const bool exists = y < p.masks.size[1];
      const bool low = exists && x < width && inside(*pixels);
      const bool high =
          exists && x + kWarpSize < width && inside(pixels[kWarpSize * p.masks.stride[2]]);
      const Word both = Word(ballot(high)) << kWarpSize | ballot(low);
      if (lane_id() == lane) {
        word = both;
        own_y = y;
        own_i = i;
      }
      if (++i == row_words) {
        i = 0;
        ++y;
      }
    }
    if (first + lane_id() >= num_words) continue;
    *p.words.at<Word>(n, own_y, own_i) = word;
    extent.add(word, own_i * kWordPixels, own_y, extents_of(p));
  }
  store_extent(extents_of(p), n, extent);
}

// Bit i tells whether byte i is not 0.
__device__ unsigned nonzero_bytes(const Vec<unsigned, 4>& bytes) {
  constexpr unsigned low_seven = 0x7f7f7f7f;
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    // The high bit of each byte becomes (byte != 0); the product gathers them in the top four.
    const unsigned high = (((bytes[i] & low_seven) + low_seven) | bytes[i]) & ~low_seven;
    bits |= (high >> 7) * 0x10204080u >> 28 << 4 * i;
  }
  return bits;
}

// Rows of bytes, each anywhere in memory; reads nothing outside [begin, end).
struct ByteReader {
  const uint8_t *begin, *end;

  // Bits of the 16 bytes at `from`, which is aligned to 16.
  __device__ unsigned read(const uint8_t* from) const {
    if (from >= begin && from + 16 <= end) {
      return nonzero_bytes(Vec<unsigned, 4>::load(reinterpret_cast<const unsigned*>(from)));
    }
    unsigned bits = 0;
    for (int i = 0; i < 16; ++i) {
      if (from + i >= begin && from + i < end) bits |= unsigned(from[i] != 0) << i;
    }
    return bits;
  }
};

// As above, for masks of a byte a pixel with contiguous rows: lane l has the pixels
// 16 * (l % 4) and on of word l / 4 of the warp's eight.
__global__ void __launch_bounds__(kThreads)
    pack_bytes_kernel(PackMasksParams p, ByteReader reader, int64_t blocks) {
  const int64_t n = blockIdx.x / blocks, width = p.masks.size[2], row_words = p.words.size[2];
  const int64_t num_words = p.masks.size[1] * row_words;
  const int64_t warp = blockIdx.x % blocks * kWarps + warp_id();
  int64_t word_index = warp * kByteWordsPerWarp + lane_id() / 4;
  int64_t y = word_index / row_words, i = word_index % row_words;
  const int64_t step_y = 8 / row_words, step_i = 8 % row_words;
  Extent extent;
  for (int step = 0; step < kByteWordsPerWarp / 8; ++step) {
    const int64_t x = i * kWordPixels + lane_id() % 4 * 16;
    const bool exists = word_index < num_words && x < width;
    unsigned bits = 0, offset = 0;
    const uint8_t* from = nullptr;
    if (exists) {
      from = p.masks.at<const uint8_t>(n, y, x);
      offset = unsigned(reinterpret_cast<uintptr_t>(from) % 16);
      bits = reader.read(from - offset);
    }
    // What lies past the 16 bytes is in the next lane, unless that has another word or none.
    unsigned next = __shfl_down_sync(kFullMask, bits, 1);
    if (lane_id() % 4 == 3 || x + 16 >= width) {
      next = offset != 0 ? reader.read(from - offset + 16) : 0;
    }
    bits = (next << 16 | bits) >> offset & 0xffffu;
    if (x + 16 > width) bits &= exists ? (1u << (width - x)) - 1u : 0u;
    Word word = Word(bits) << lane_id() % 4 * 16;
    word |= __shfl_xor_sync(kFullMask, word, 1);
    word |= __shfl_xor_sync(kFullMask, word, 2);
    if (exists && lane_id() % 4 == 0) {
      *p.words.at<Word>(n, y, i) = word;
      extent.add(word, i * kWordPixels, y, extents_of(p));
    }
    word_index += 8;
    y += step_y;
    i += step_i;
    if (i >= row_words) {
      i -= row_words;
      ++y;
    }
  }
  store_extent(extents_of(p), n, extent);
}

// As above; a mask's warps are groups of 32 rows, then words of a row.
template <class T, class Inside>
__global__ void __launch_bounds__(kThreads)
    pack_columns_kernel(PackMasksParams p, Inside inside, int64_t blocks) {
  const int64_t n = blockIdx.x / blocks, height = p.masks.size[1], row_words = p.words.size[2];
  const int64_t groups = ceil_div<int64_t>(height, kWarpSize);
  const int64_t warp = blockIdx.x % blocks * kWarps + warp_id();
  const int64_t y = warp % groups * kWarpSize + lane_id(), i = warp / groups;
  Extent extent;
  if (i < row_words && y < height) {
    const int64_t x = i * kWordPixels, stride = p.masks.stride[2];
    const int64_t left = p.masks.size[2] - x;
    const int columns = left < kWordPixels ? int(left) : int(kWordPixels);
    const T* pixels = p.masks.at<const T>(n, y, x);
    Word word = 0;
#pragma unroll 16
    for (int c = 0; c < columns; ++c) word |= Word(inside(pixels[c * stride])) << c;
    *p.words.at<Word>(n, y, i) = word;
    extent.add(word, x, y, extents_of(p));
  }
  store_extent(extents_of(p), n, extent);
}

// As above; a thread takes kGroupsPerWarp words, a block's width apart.
__global__ void __launch_bounds__(kThreads)
    measure_kernel(View<3> words, Extents extents, int64_t blocks) {
  const int64_t n = blockIdx.x / blocks, row_words = words.size[2];
  const int64_t num_words = extents.height * row_words;
  const int64_t first = blockIdx.x % blocks * kGroupsPerWarp * kThreads + threadIdx.x;
  Extent extent;
#pragma unroll
  for (int group = 0; group < kGroupsPerWarp; ++group) {
    const int64_t own = first + group * kThreads;
    if (own >= num_words) break;
    extent.add(words.at<const Word>(n)[own], own % row_words * kWordPixels, own / row_words,
               extents);
  }
  store_extent(extents, n, extent);
}

// As pack_rows_kernel, backwards; one group a warp.
__global__ void __launch_bounds__(kThreads) unpack_kernel(UnpackMasksParams p) {
  const int64_t width = p.masks.size[2], row_words = p.words.size[2];
  const int64_t rows = p.masks.size[0] * p.masks.size[1];  // all are contiguous
  const int64_t first = (int64_t(blockIdx.x) * kWarps + warp_id()) * kWarpSize;
  if (first >= rows * row_words) return;  // the whole warp
  const int64_t own = first + lane_id();
  const Word word = own < rows * row_words ? p.words.as<const Word>()[own] : 0;
  int64_t row = first / row_words, i = first % row_words;
#pragma unroll 8
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const Word bits = __shfl_sync(kFullMask, word, lane);
    const int64_t x = i * kWordPixels + lane_id();
    if (row < rows) {
      uint8_t* pixels = p.masks.as<uint8_t>() + row * width + x;
      if (x < width) *pixels = uint8_t(bits >> lane_id() & 1u);
      if (x + kWarpSize < width) pixels[kWarpSize] = uint8_t(bits >> (lane_id() + kWarpSize) & 1u);
    }
    if (++i == row_words) {
      i = 0;
      ++row;
    }
  }
}

// Runs a kernel that adds to the extents.
template <class Add>
void measure(const Extents& extents, cudaStream_t stream, Add add) {
  const dim3 grid = make_grid(ceil_div<int64_t>(extents.areas.size[0], kThreads));
  launch("pack_masks_reset", reset_kernel, grid, kThreads, 0, stream, extents);
  add();
  launch("pack_masks_finish", finish_kernel, grid, kThreads, 0, stream, extents);
}

}  // namespace

void pack_masks_cuda(const PackMasksParams& params, cudaStream_t stream) {
  const View<3>& masks = params.masks;
  const int64_t num_masks = masks.size[0], height = masks.size[1];
  const int64_t num_words = height * params.words.size[2];
  measure(extents_of(params), stream, [&] {
    dispatch_inside(params, [&](auto zero, const auto& inside) {
      using T = decltype(zero);
      using Inside = std::decay_t<decltype(inside)>;
      if (masks.numel() > 0 && sizeof(T) == 1 && masks.stride[2] == 1) {
        const uint8_t* last = masks.at<uint8_t>(num_masks - 1, height - 1, masks.size[2] - 1);
        const int64_t blocks = ceil_div<int64_t>(num_words, kWarps * kByteWordsPerWarp);
        launch("pack_masks_bytes", pack_bytes_kernel, make_grid(blocks * num_masks), kThreads, 0,
               stream, params, ByteReader{masks.as<uint8_t>(), last + 1}, blocks);
      } else if (masks.stride[1] == 1 && masks.stride[2] != 1) {
        const int64_t warps = ceil_div<int64_t>(height, kWarpSize) * params.words.size[2];
        const int64_t blocks = ceil_div<int64_t>(warps, kWarps);
        launch("pack_masks_columns", pack_columns_kernel<T, Inside>, make_grid(blocks * num_masks),
               kThreads, 0, stream, params, inside, blocks);
      } else {
        const int64_t blocks = ceil_div<int64_t>(num_words, kGroupsPerWarp * kThreads);
        launch("pack_masks_rows", pack_rows_kernel<T, Inside>, make_grid(blocks * num_masks),
               kThreads, 0, stream, params, inside, blocks);
      }
    });
  });
}

void measure_words_cuda(const MeasureWordsParams& params, cudaStream_t stream) {
  const View<3>& words = params.words;
  const Extents extents = {params.areas, params.boxes, words.size[1], params.width};
  measure(extents, stream, [&] {
    const int64_t blocks =
        ceil_div<int64_t>(words.size[1] * words.size[2], kGroupsPerWarp * kThreads);
    launch("measure_words", measure_kernel, make_grid(blocks * words.size[0]), kThreads, 0, stream,
           words, extents, blocks);
  });
}

void unpack_masks_cuda(const UnpackMasksParams& params, cudaStream_t stream) {
  if (params.masks.numel() == 0) return;
  launch("unpack_masks", unpack_kernel,
         make_grid(ceil_div<int64_t>(params.words.numel(), kThreads)), kThreads, 0, stream, params);
}

}  // namespace fastseg
