// Where points lie on their levels and what their gradients are: the arithmetic that CPU and CUDA
// share.
#pragma once

#include "core/zero_padding.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace fastseg {

// From the points of a query and level, as the caller gives them, to cells of the level's map: the
// point (x, y) lies at (origin_x + x * scale_x, origin_y + y * scale_y), in cells from the centre
// of the first cell on.
template <class Acc>
struct Frame {
  Acc origin_x, origin_y, scale_x, scale_y;
};

template <class Acc>
FASTSEG_HD Frame<Acc> frame_of(const MsDeformAttnParams& p, int64_t b, int64_t q, int64_t l,
                               int width, int height) {
  const Acc w = static_cast<Acc>(width), h = static_cast<Acc>(height);
  if (p.references.data == nullptr) return {Acc(-0.5), Acc(-0.5), w, h};
  const Acc* reference = p.references.at<const Acc>(b, q, l);
  const int64_t step = p.references.stride[3];
  Frame<Acc> frame = {reference[0] * w - Acc(0.5), reference[step] * h - Acc(0.5), 1, 1};
  if (p.references.size[3] == 4) {
    const Acc unit = Acc(0.5) / static_cast<Acc>(p.locations.size[4]);
    frame.scale_x = reference[2 * step] * w * unit;
    frame.scale_y = reference[3 * step] * h * unit;
  }
  return frame;
}

// The sample at (x, y), in cells, of a level whose first cell is row `start` of value; its cells
// are rows.
template <class Acc>
FASTSEG_HD Sample<Acc> locate(Acc x, Acc y, int width, int height, int start) {
  return cells_around(position_in_cells(x, y, width, height), width, height, start, width, 1);
}

// The gradients of a point's weight and of its position in cells.
template <class Acc>
struct PointGrad {
  Acc x, y, weight;
};

// `dot`: the products of the output's gradient with the four cells; `weight`: the point's; `near`:
// whether one of the cells is in the map. Else the position has gradient 0, whatever the others
// are.
template <class Acc>
FASTSEG_HD PointGrad<Acc> point_grad(const Acc (&dot)[4], Acc x, Acc y, Acc weight, bool near) {
  const Slope<Acc> slope = slope_between(dot, x, y);
  const Acc north = dot[0] * (Acc(1) - x) + dot[1] * x;
  const Acc south = dot[2] * (Acc(1) - x) + dot[3] * x;
  return {near ? slope.x * weight : Acc(0), near ? slope.y * weight : Acc(0),
          north * (Acc(1) - y) + south * y};
}

// The share of one query, head and level in the gradient of the reference point, from the gradients
// of the points' positions in cells.
template <class Acc>
FASTSEG_HD void write_reference_grad(const MsDeformAttnBackwardParams& params, int64_t b, int64_t q,
                                     int64_t m, int64_t l, int width, int height) {
  const MsDeformAttnParams& p = params.forward;
  const Acc* point = p.locations.at<const Acc>(b, q, m, l);
  const Acc* grad = params.grad_locations.at<const Acc>(b, q, m, l);
  Acc along_x = 0, along_y = 0, times_x = 0, times_y = 0;
  for (int64_t k = 0; k < p.locations.size[4]; ++k, point += p.locations.stride[4]) {
    along_x += grad[2 * k];
    along_y += grad[2 * k + 1];
    times_x += grad[2 * k] * point[0];
    times_y += grad[2 * k + 1] * point[p.locations.stride[5]];
  }
  const Acc w = static_cast<Acc>(width), h = static_cast<Acc>(height);
  Acc* reference = params.grad_references.at<Acc>(b, q, m, l);
  reference[0] = along_x * w;
  reference[1] = along_y * h;
  if (p.references.size[3] == 4) {
    const Acc unit = Acc(0.5) / static_cast<Acc>(p.locations.size[4]);
    reference[2] = times_x * w * unit;
    reference[3] = times_y * h * unit;
  }
}

// Turns the gradients of the positions of one query, head and level, in cells, into those of the
// locations or offsets.
template <class Acc>
FASTSEG_HD void scale_position_grads(const MsDeformAttnBackwardParams& params, int64_t b, int64_t q,
                                     int64_t m, int64_t l, int width, int height) {
  const Frame<Acc> frame = frame_of<Acc>(params.forward, b, q, l, width, height);
  Acc* grad = params.grad_locations.at<Acc>(b, q, m, l);
  for (int64_t k = 0; k < params.grad_locations.size[4]; ++k) {
    grad[2 * k] *= frame.scale_x;
    grad[2 * k + 1] *= frame.scale_y;
  }
}

}  // namespace fastseg
