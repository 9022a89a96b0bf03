// Bilinear samples of maps at points (Kirillov et al., PointRend, 2020), zeros around the maps.
#pragma once

#include "core/device.h"
#include "core/view.h"

namespace fastseg {

// Points are of the maps' accumulation type. A map must span fewer than 2^31 elements.
struct PointSampleParams {
  View<4> input;   // [N, C, H, W], any strides, floating point or boolean
  View<3> points;  // [N, P, 2]: x, y in units of the map's width and height
  View<3> output;  // [N, C, P] of input's type, float32 where that is boolean; written
};

void point_sample_cpu(const PointSampleParams& params);
void point_sample_cuda(const PointSampleParams& params, cudaStream_t stream);

struct PointSampleInputGradParams {
  View<3> grad_output;  // [N, C, P], any strides
  View<3> points;       // [N, P, 2]
  // [N, C, H, W] of accumulation type, contiguous, zeros on entry, written. CUDA: where its data
  // type is i64, sums are in fixed point, which do not depend on their order.
  View<4> grad_input;
  View<1> units;  // [1] f64: fixed-point units of grad_input per 1, or null data
};

// Deterministic: a task owns a map and adds the points in order.
void point_sample_input_grad_cpu(const PointSampleInputGradParams& params);
// Adds with atomics.
void point_sample_input_grad_cuda(const PointSampleInputGradParams& params, cudaStream_t stream);

struct PointSamplePointsGradParams {
  View<3> grad_output;  // [N, C, P], any strides
  View<4> input;        // [N, C, H, W], any strides
  View<3> points;       // [N, P, 2]
  View<3> grad_points;  // [N, P, 2] of accumulation type, written
};

// Channels are added in order on both devices.
void point_sample_points_grad_cpu(const PointSamplePointsGradParams& params);
void point_sample_points_grad_cuda(const PointSamplePointsGradParams& params, cudaStream_t stream);

}  // namespace fastseg
