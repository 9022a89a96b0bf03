// The sizes of core/resize_steps.h as Python gives them.
#pragma once

#include <vector>

#include "bindings/array.h"
#include "core/resize_steps.h"

namespace fastseg {

using Sides = std::vector<int64_t>;

// Of masks [N, h, w], a floating type of at most 32 bits. `via` and `crop` are empty where there is
// one resize alone. ValueError that names what is wrong.
ResizeSteps read_resize_steps(const Array& masks, const Sides& size, const Sides& via,
                              const Sides& crop);

}  // namespace fastseg
