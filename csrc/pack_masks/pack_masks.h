// Masks at one bit a pixel, with the area and the bounding box of each, in one pass over them.
//
// A row of W pixels is ceil(W / 64) words: bit b of word i is column 64 * i + b, bits past the
// width are 0. So a mask of 800 x 1333 takes 134 KB, rows can be intersected word by word, and
// rle/transitions.h encodes them.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

constexpr int64_t kWordPixels = 64;
constexpr int64_t kMaxSide = 0x7fffffff;

struct PackMasksParams {
  View<3> masks;     // [N, H, W] boolean, integer or floating, any strides
  double threshold;  // of floating masks: inside = value > threshold, rounded to the masks' type
  View<3> words;     // [N, H, ceil(W / 64)] int64, contiguous, written
  View<1> areas;     // [N] int64, contiguous, written: pixels inside
  View<2> boxes;     // [N, 4] int64, contiguous, written: x0, y0, x1, y1 with the ends exclusive;
                     // zeros for an empty mask
};

void pack_masks_cpu(const PackMasksParams& params);
void pack_masks_cuda(const PackMasksParams& params, cudaStream_t stream);

// Run lengths to bits, without pixels in between.
struct PackRunsParams {
  View<1> toggles;  // as RleFillParams: uint32, all masks' toggles
  View<1> offsets;  // as RleFillParams: [N + 1] int64
  View<3> words;    // words, areas and boxes as PackMasksParams
  View<1> areas;
  View<2> boxes;
  int64_t width;
};

void pack_runs_cpu(const PackRunsParams& params);

// The areas and boxes of words that another kernel wrote.
struct MeasureWordsParams {
  View<3> words;  // words, areas and boxes as PackMasksParams
  View<1> areas;
  View<2> boxes;
  int64_t width;
};

void measure_words_cpu(const MeasureWordsParams& params);
void measure_words_cuda(const MeasureWordsParams& params, cudaStream_t stream);

struct UnpackMasksParams {
  View<3> words;  // as PackMasksParams
  View<3> masks;  // [N, H, W] uint8 or bool, contiguous, written: 0 and 1
};

void unpack_masks_cpu(const UnpackMasksParams& params);
void unpack_masks_cuda(const UnpackMasksParams& params, cudaStream_t stream);

}  // namespace fastseg
