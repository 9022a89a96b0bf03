// What fastseg.mask does with shapes: RLEs of Python in, RLEs out, without decoding.
#include <cmath>

#include "bindings/rles.h"
#include "rle/boundary.h"

namespace fastseg {
namespace {

// `distance` in pixels, or the dilation ratio where it is 0.
py::list boundary(const py::sequence& objects, double dilation_ratio, int64_t distance) {
  FASTSEG_CHECK(distance >= 0 && distance <= kMaxMaskArea,
                "dilation must be from 1 to 2^32 - 1 pixels, got ", distance);
  FASTSEG_CHECK(dilation_ratio >= 0 && dilation_ratio <= 1,
                "dilation_ratio must be from 0 to 1, got ", dilation_ratio);
  const std::vector<Rle> rles = read_rles(objects, true);
  BoundaryFinder finder;
  return map_rles(rles, [=](int64_t, const Rle& rle, NewMask* mask) mutable {
    const int64_t pixels =
        distance > 0 ? distance : boundary_distance(rle.height, rle.width, dilation_ratio);
    finder.find(rle.runs(), rle.height, pixels, &mask->toggles);
  });
}

}  // namespace

void bind_rle_shapes(py::module_& module) {
  module.def("rle_boundary", &boundary, py::arg("rles"), py::arg("dilation_ratio"),
             py::arg("distance"));
}

}  // namespace fastseg
