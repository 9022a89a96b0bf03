// Where a sample lies in its level: the arithmetic that CPU and CUDA share.
#pragma once

#include "core/zero_padding.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace fastseg {

// The sample at (x, y), in units of the map's sides, of a level whose first cell is row `start` of
// value; cells are rows.
template <class Acc>
FASTSEG_HD Sample<Acc> locate(Acc x, Acc y, int width, int height, int start) {
  return locate(x, y, width, height, start, width, 1);
}

}  // namespace fastseg
