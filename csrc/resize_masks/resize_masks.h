// From low-resolution mask logits or probabilities to masks of the image's size: resizing (see
// core/resize_steps.h), then a threshold, without the resized values ever lying in memory.
#pragma once

#include <string>

#include "core/device.h"
#include "core/resize_steps.h"
#include "core/view.h"

namespace fastseg {

struct ResizeMasksParams {
  View<3> masks;  // [N, h, w] float32, float16 or bfloat16, any strides
  ResizeSteps steps;
  float threshold = 0.0f;  // values > threshold are inside
};

struct ResizeMasksToPixelsParams {
  ResizeMasksParams resize;
  View<3> output;  // [N, H, W] uint8 or bool, contiguous, written: 0 or 1; or
                   // [N, H, ceil(W / 64)] int64, contiguous, written: as PackMasksParams::words

  bool packed() const { return output.dtype == DType::i64; }
};

void resize_masks_cpu(const ResizeMasksToPixelsParams& params);
void resize_masks_cuda(const ResizeMasksToPixelsParams& params, cudaStream_t stream);

// As COCO's compressed run lengths; H * W < 2^32.
struct ResizeMasksRleParams {
  ResizeMasksParams resize;
  std::string* counts;  // [N], written
};

void resize_masks_rle_cpu(const ResizeMasksRleParams& params);

// On CUDA the pixels as bits, from which rle/rle.h makes run lengths.
struct ResizeMasksBitsParams {
  ResizeMasksParams resize;
  View<3> words;  // [N, ceil(H / 32), W] int32, written: as RleBitsParams
};

void resize_masks_bits_cuda(const ResizeMasksBitsParams& params, cudaStream_t stream);

// How sure the pixels inside are: the masks are logits.
struct MaskScoresParams {
  ResizeMasksParams resize;
  View<2> tallies;  // [N, 2] int64, contiguous, zeros, added to: the sum of sigmoid(logit) over the
                    // pixels inside, in units of 1 / kScoreUnits, and the number of these pixels
};

void mask_scores_cpu(const MaskScoresParams& params);
void mask_scores_cuda(const MaskScoresParams& params, cudaStream_t stream);

}  // namespace fastseg
