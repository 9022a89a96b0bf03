// Pasting of MxM mask probabilities into the image at their boxes (He et al., Mask R-CNN, 2017,
// Sec. 3.1, inference), with the exact arithmetic of torchvision or of detectron2.
//
// Both resample bilinearly and differ in where: torchvision pads the mask by one cell of zeros,
// grows the box alike, truncates it to whole pixels and stretches the mask over these; detectron2
// samples the mask at the pixel centres within the float box. paste_masks_math.h has the formulas.
#pragma once

#include <string>

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

enum class PasteMode { torchvision, detectron2 };

struct PasteMasksParams {
  View<3> masks;   // [N, M, M] float32, float16 or bfloat16, any strides
  View<2> boxes;   // [N, 4] float32: x1, y1, x2, y2 in pixels, any strides
  View<3> output;  // [N, H, W] float32 (probabilities) or one byte (0 or 1), contiguous
  PasteMode mode = PasteMode::torchvision;
  float threshold = 0.5f;  // torchvision: pixels > threshold are set; detectron2: >= threshold
};

// A pixel that no mask reaches has probability 0. A box with a NaN or infinite coordinate (for
// detectron2 also one without width or height) reaches no pixel.
void paste_masks_cpu(const PasteMasksParams& params);
void paste_masks_cuda(const PasteMasksParams& params, cudaStream_t stream);

// The same boolean masks as COCO's compressed run lengths; output gives their size alone and has
// no data. H * W < 2^32.
struct PasteMasksRleParams {
  PasteMasksParams paste;
  std::string* counts;  // [N], written
};

void paste_masks_rle_cpu(const PasteMasksRleParams& params);

// On CUDA: count, a cumulative sum of the counts, then the toggles (rle/rle_math.h), from which
// rle_strings_cuda() makes the strings.
struct PasteMasksTogglesParams {
  PasteMasksParams paste;
  View<2> counts;   // [N, W] int32, zeros on entry: the toggles of each column are written
  View<1> ends;     // [N * W] int64: cumulative sum of the counts
  View<1> toggles;  // [capacity] int32 (the bits of a uint32), written as far as they fit
};

void paste_masks_count_cuda(const PasteMasksTogglesParams& params, cudaStream_t stream);
void paste_masks_toggles_cuda(const PasteMasksTogglesParams& params, cudaStream_t stream);

}  // namespace fastseg
