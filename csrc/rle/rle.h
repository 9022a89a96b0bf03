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

struct RleFillParams {
  View<1> toggles;  // uint32, all masks' toggles, ascending within a mask and at most H * W
  View<1> offsets;  // [N + 1] int64: mask n has toggles [offsets[n], offsets[n + 1])
  View<3> masks;    // [N, H, W] uint8 or bool, written; CPU: rows or columns contiguous
};

void rle_fill_cpu(const RleFillParams& params);
void rle_fill_cuda(const RleFillParams& params, cudaStream_t stream);

// Encoding on CUDA: mark, a cumulative sum of the counts, emit; then the toggles go to the host.
struct RleMarkParams {
  View<3> masks;   // as RleEncodeParams
  View<3> words;   // [N, ceil(H / 32), W] int32, written: bit r of word (n, c, x) tells whether
                   // pixel (x, 32 * c + r) differs from the one before it in column order
  View<2> counts;  // [N, W] int32, zeros on entry: the bits set in each column are added
};

void rle_mark_cuda(const RleMarkParams& params, cudaStream_t stream);

struct RleEmitParams {
  View<3> words;    // as RleMarkParams
  View<1> ends;     // [N * W] int64: cumulative sum of the counts
  View<1> toggles;  // [sum of the counts] int32 (the bits of a uint32), written
  int64_t height;
};

void rle_emit_cuda(const RleEmitParams& params, cudaStream_t stream);

}  // namespace fastseg
