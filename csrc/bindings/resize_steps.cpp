#include "bindings/resize_steps.h"

#include <algorithm>
#include <string>

namespace fastseg {
namespace {

void check_sides(const char* name, const Sides& sides) {
  constexpr int64_t kMaxSide = 0x7fffffff;
  FASTSEG_CHECK(sides.size() == 2 && sides[0] >= 1 && sides[1] >= 1 && sides[0] <= kMaxSide &&
                    sides[1] <= kMaxSide,
                name, " must be (height, width) of at least 1 and below 2^31, got (",
                sides.empty() ? "" : std::to_string(sides[0]),
                sides.size() < 2 ? "" : ", " + std::to_string(sides[1]), ")");
}

}  // namespace

ResizeSteps read_resize_steps(const Array& masks, const Sides& size, const Sides& via,
                              const Sides& crop) {
  const View<3> view = masks.expect_dtype({DType::f32, DType::f16, DType::bf16}).view<3>();
  const Sides cells = {view.size[1], view.size[2]};
  FASTSEG_CHECK(cells[0] > 0 && cells[1] > 0, masks.name(),
                " must have rows and columns, got shape ", masks.shape());
  check_sides("masks' size", cells);
  check_sides("size", size);
  ResizeSteps steps;
  std::copy(cells.begin(), cells.end(), steps.cells);
  std::copy(size.begin(), size.end(), steps.size);
  if (via.empty() && crop.empty()) return steps;
  check_sides("via", via);
  check_sides("crop", crop);
  std::copy(via.begin(), via.end(), steps.via);
  std::copy(crop.begin(), crop.end(), steps.crop);
  FASTSEG_CHECK(crop[0] <= via[0] && crop[1] <= via[1], "crop must lie within via (", via[0], ", ",
                via[1], "), got (", crop[0], ", ", crop[1], ")");
  return steps;
}

}  // namespace fastseg
