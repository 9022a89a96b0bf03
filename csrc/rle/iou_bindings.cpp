// IoU of all pairs of masks or of boxes, as pycocotools' `iou`.
#include <pybind11/numpy.h>

#include <cmath>

#include "bindings/rles.h"
#include "rle/iou.h"

namespace fastseg {
namespace {

using Matrix = py::array_t<double, py::array::f_style>;  // [detections, objects]

std::vector<uint8_t> read_crowd(const py::object& crowd, int64_t size) {
  const Array array(crowd, "pyiscrowd");
  array.expect_dtype({DType::boolean, DType::u8}).expect_shape({size});
  const View<1> view = array.view<1>();
  std::vector<uint8_t> flags(size);
  for (int64_t n = 0; n < size; ++n) flags[n] = *view.at<uint8_t>(n) != 0;
  return flags;
}

std::vector<Shape> shapes_of(const std::vector<Rle>& rles) {
  std::vector<Shape> shapes(rles.size());
  parallel_for(rles.size(), rles_per_task(rles), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      shapes[n] = shape_of(rles[n].runs(), rles[n].height, rles[n].width);
    }
  });
  return shapes;
}

Matrix mask_iou(const py::sequence& detections, const py::sequence& objects,
                const py::object& crowd) {
  const std::vector<Rle> rles = read_rles(detections, false, "dt");
  const std::vector<Rle> object_rles = read_rles(objects, false, "gt");
  const int64_t m = rles.size(), n = object_rles.size();
  const std::vector<uint8_t> is_crowd = read_crowd(crowd, n);
  Matrix ious({m, n});
  double* const out = ious.mutable_data();
  py::gil_scoped_release release;
  const std::vector<Shape> rows = shapes_of(rles), columns = shapes_of(object_rles);
  const int64_t columns_per_task = rles_per_task(rles) / std::max<int64_t>(m, 1);
  parallel_for(n, columns_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      for (int64_t d = 0; d < m; ++d) {
        out[g * m + d] = iou_of(rows[d], columns[g], is_crowd[g]);
      }
    }
  });
  return ious;
}

// As fmin and fmax, which are calls: a NaN gives way to the other.
double lesser(double a, double b) { return a < b || std::isnan(b) ? a : b; }
double greater(double a, double b) { return a > b || std::isnan(b) ? a : b; }

// Boxes as left, top, width, height.
double box_iou_of(const double* a, const double* b, bool crowd) {
  const double width = lesser(a[2] + a[0], b[2] + b[0]) - greater(a[0], b[0]);
  if (width <= 0) return 0;
  const double height = lesser(a[3] + a[1], b[3] + b[1]) - greater(a[1], b[1]);
  if (height <= 0) return 0;
  const double common = width * height, area = a[2] * a[3];
  return common / (crowd ? area : area + b[2] * b[3] - common);
}

Matrix box_iou(const py::object& detections, const py::object& objects, const py::object& crowd) {
  const Array rows(detections, "dt"), columns(objects, "gt");
  for (const Array* boxes : {&rows, &columns}) {
    boxes->expect_dtype({DType::f64}).expect_shape({-1, 4});
    const View<2> view = boxes->view<2>();
    FASTSEG_CHECK(view.size[0] == 0 || (view.stride[1] == 1 && view.stride[0] == 4), boxes->name(),
                  " must be contiguous");
  }
  const int64_t m = rows.size(0), n = columns.size(0);
  const std::vector<uint8_t> is_crowd = read_crowd(crowd, n);
  Matrix ious({m, n});
  double* const out = ious.mutable_data();
  const double* const row = rows.view<2>().as<double>();
  const double* const column = columns.view<2>().as<double>();
  py::gil_scoped_release release;
  parallel_for(n, kRunsPerTask / std::max<int64_t>(m, 1), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      for (int64_t d = 0; d < m; ++d) {
        out[g * m + d] = box_iou_of(row + 4 * d, column + 4 * g, is_crowd[g]);
      }
    }
  });
  return ious;
}

}  // namespace

void bind_rle_iou(py::module_& module) {
  module.def("rle_iou", &mask_iou, py::arg("dt"), py::arg("gt"), py::arg("pyiscrowd"));
  module.def("rle_box_iou", &box_iou, py::arg("dt"), py::arg("gt"), py::arg("pyiscrowd"));
}

}  // namespace fastseg
