// COCO run-length encoding of masks (pycocotools' format; rle_math.h has the definition).
//
// The CPU scans 64 pixels a step: along columns where these are contiguous, along rows with a sort
// of the changes by column elsewhere, so no layout needs a transpose. Decoding is the inverse.
#pragma once

#include <string>

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

struct RleEncodeParams {
  View<3> masks;        // [N, H, W] boolean or integer, any strides; non-zero = inside
  std::string* counts;  // [N], written: compressed counts
};

void rle_encode_cpu(const RleEncodeParams& params);

// The same from masks at one bit a pixel.
struct RleEncodeWordsParams {
  View<3> words;  // [N, H, ceil(W / 64)] int64, contiguous: as PackMasksParams::words
  int64_t width;
  std::string* counts;  // [N], written: compressed counts
};

void rle_encode_words_cpu(const RleEncodeWordsParams& params);

struct RleFillParams {
  View<1> toggles;  // uint32, all masks' toggles, ascending within a mask and at most H * W
  View<1> offsets;  // [N + 1] int64: mask n has toggles [offsets[n], offsets[n + 1])
  View<3> masks;    // [N, H, W] uint8 or bool, written; CPU: rows or columns contiguous
};

void rle_fill_cpu(const RleFillParams& params);
void rle_fill_cuda(const RleFillParams& params, cudaStream_t stream);

// Encoding on CUDA: the pixels as bits; the changes along each column counted; a cumulative sum of
// the counts; then the toggles.
struct RleBitsParams {
  View<3> masks;  // as RleEncodeParams
  View<3> words;  // [N, ceil(H / 32), W] int32, written: bit r of word (n, c, x) is pixel
                  // (x, 32 * c + r); bits past the height are 0
};

void rle_bits_cuda(const RleBitsParams& params, cudaStream_t stream);

// The same bits from masks at one bit a pixel, whose words go along rows.
struct RleTransposeParams {
  View<3> row_words;  // [N, H, ceil(W / 64)] int64, contiguous: as PackMasksParams::words
  View<3> words;      // [N, ceil(H / 32), W] int32, written: as RleBitsParams
};

void rle_transpose_cuda(const RleTransposeParams& params, cudaStream_t stream);

struct RleTogglesParams {
  View<3> words;  // as RleBitsParams
  int64_t height;
  View<2> counts;   // [N, W] int32, written: pixels of a column that differ from the one before
                    // them in column order
  View<1> ends;     // [N * W] int64: cumulative sum of the counts
  View<1> toggles;  // [capacity] int32 (the bits of a uint32), written but for columns whose
                    // toggles do not all fit
};

void rle_count_cuda(const RleTogglesParams& params, cudaStream_t stream);
void rle_toggles_cuda(const RleTogglesParams& params, cudaStream_t stream);

// From toggles to the compressed strings, on CUDA: the bytes of each block of runs measured, a
// cumulative sum of them, then the characters.
constexpr int kRleBlockRuns = 512;

struct RleStringsParams {
  View<1> toggles;      // as RleTogglesParams
  View<1> ends;         // as RleTogglesParams: of N masks, each of as many columns
  uint32_t area;        // pixels of a mask, at least 1
  View<1> block_bytes;  // [ceil((capacity + N) / kRleBlockRuns)] int64: measured, then summed
  View<1> text;         // [bytes] uint8, written: the strings, one after the other
  View<1> text_ends;    // [N + 1] int64, written: the end of each string in `text`, then the number
                        // of toggles; when that exceeds the capacity, nothing else is written
};

void rle_measure_cuda(const RleStringsParams& params, cudaStream_t stream);
void rle_strings_cuda(const RleStringsParams& params, cudaStream_t stream);

}  // namespace fastseg
