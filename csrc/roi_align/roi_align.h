// RoIAlign over one or several pyramid levels (He et al., Mask R-CNN, 2017, Sec. 3).
//
// Validity, clamping and bilinear weights of a sample factor into rows and columns, so a RoI's
// result is A F B^T / count: A holds the weights of rows per output row, B those of columns per
// output column. Both kernels below build A and B once per RoI and share them among channels.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

constexpr int kMaxLevels = 8;

// How a box is given its level; the formulas are in roi_align_math.h.
enum class LevelRule { torchvision, detectron2, mmdet };

// The same struct serves both directions: forward reads features and writes output, backward
// reads output (its gradient) and writes every element of features (their gradients).
struct RoIAlignParams {
  View<4> features[kMaxLevels];           // [B, C, H_l, W_l], any strides, finest level first
  double spatial_scale[kMaxLevels] = {};  // feature pixels per image pixel
  int num_levels = 1;
  View<2> boxes;   // [K, 5]: image index, x1, y1, x2, y2 in image pixels; float32 or float64
  View<4> output;  // [K, C, PH, PW], any strides
  int sampling_ratio = -1;  // samples per bin side; <= 0: ceil(bin side)
  bool aligned = false;     // true: pixel centres at half integers
  LevelRule level_rule = LevelRule::torchvision;
  double canonical_scale = 224;  // side of a box that goes to canonical_level
  int canonical_level = 4;
  int first_level = 2;  // -log2(spatial_scale[0])
};

// A box whose image index is outside the batch raises on the CPU and pools to NaN on CUDA (where
// an error would cost a synchronisation). A box with a NaN or infinite coordinate pools to 0.
void roi_align_forward_cpu(const RoIAlignParams& params);
void roi_align_forward_cuda(const RoIAlignParams& params, cudaStream_t stream);

// Deterministic: each gradient element has one owner, which adds the RoIs in their order.
// features are of accumulation type (float32, or float64).
void roi_align_backward_cpu(const RoIAlignParams& params);
void roi_align_backward_cuda(const RoIAlignParams& params, cudaStream_t stream);

}  // namespace fastseg
