// Deformable convolution (Dai et al., 2017; with a mask Zhu et al., 2019).
//
// A convolution is a product of columns (what each tap reads at each output pixel) with the
// weights. Columns of all pixels would fill hundreds of megabytes, so the op goes through the
// pixels in tiles whose columns stay in the cache; torch multiplies them, these kernels make and
// consume them.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

// One tile: `columns.size[1]` output pixels of the batch, from pixel `first` on, image by image in
// row-major order.
// Acc is float32, or float64 when the input is.
struct DeformConvParams {
  View<4> input;    // [B, C, H, W], stride 1 along C
  View<4> offset;   // [B, offset_groups * taps * 2, OH, OW] Acc: (y, x) in input pixels per tap
  View<4> mask;     // [B, offset_groups * taps, OH, OW] Acc; data null: all ones
  View<3> columns;  // [groups, pixels, taps * C / groups], dense; Acc, on CUDA the input's type
  int64_t first = 0;
  int64_t groups = 1, offset_groups = 1;
  int64_t kernel[2] = {1, 1};  // these four along y, along x
  int64_t stride[2] = {1, 1};
  int64_t padding[2] = {0, 0};
  int64_t dilation[2] = {1, 1};

  // Backward only; Acc.
  View<4> grad_input;   // as input; its data type i64: sums in fixed point
  View<4> grad_offset;  // as offset
  View<4> grad_mask;    // as mask
  // Fixed-point units of grad_input per unit: one element on the device, Acc. Sums of integers
  // do not depend on their order, those of floats do.
  const void* units = nullptr;
};

// Writes the tile's columns: mask * bilinear sample, 0 outside the map.
void deform_conv_sample_cpu(const DeformConvParams& params);
void deform_conv_sample_cuda(const DeformConvParams& params, cudaStream_t stream);

// Reads the gradients of the tile's columns, adds what they give to grad_input, and writes the
// tile's pixels of grad_offset and grad_mask. Columns are overwritten with the samples, as
// deform_conv_sample would write them: the weights' gradient needs those next.
// The CPU's sums are in the order of the pixels; on CUDA they are in any order unless grad_input
// is of fixed point.
void deform_conv_backward_cpu(const DeformConvParams& params);
void deform_conv_backward_cuda(const DeformConvParams& params, cudaStream_t stream);

// Products of many groups of few channels, on the CPU: sums[i, j, g] = left[i, k, g] * right[k, j,
// g] summed over k, for each group g.
struct DeformConvGroupsParams {
  View<3> left, right, sums;  // f32 or all f64, stride 1 along g; [I, K, G], [K, J, G], [I, J, G]
  bool add = false;           // to what is in sums
};

void deform_conv_groups_cpu(const DeformConvGroupsParams& params);

// All output pixels at once: columns exist in shared memory alone. On tensor cores (sm_75 for f16,
// else sm_80) f32 is multiplied as TF32, unless `exact`; that needs none.
struct DeformConvProductParams {
  // Of type f32, f16 or bf16 and 1 group, an image of less than 2^31 elements, a multiple of 32
  // channels per group of offsets; no columns.
  DeformConvParams sampling;
  View<2> weights;  // [D, taps * C], dense; like the input aligned to 16 bytes
  View<1> bias;     // [D]; data null: none
  View<4> output;   // [B, D, OH, OW], any strides
  bool exact = false;
};

void deform_conv_product_cuda(const DeformConvProductParams& params, cudaStream_t stream);

// All gradients at once, likewise. Those of offsets, masks and weights are summed in a fixed order.
struct DeformConvGradientParams {
  DeformConvParams sampling;  // as above, with gradients
  View<2> weights;            // [taps * C, D], dense; aligned to 16 bytes
  View<2> grad_output;        // [B * OH * OW, D], dense; rows aligned to 16 bytes; fewer than 2^31
  View<3> partials;           // [shares, D, taps * C] f32, dense: their sum is that of the weights
  bool exact = false;
};

void deform_conv_gradients_cuda(const DeformConvGradientParams& params, cudaStream_t stream);

}  // namespace fastseg
