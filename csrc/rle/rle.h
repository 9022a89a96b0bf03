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

}  // namespace fastseg
