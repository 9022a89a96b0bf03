// IoU of all pairs of masks or of boxes, as pycocotools' `iou`.
#include <pybind11/numpy.h>

#include <cmath>

#include "bindings/rles.h"
#include "mask_iou/mask_iou.h"

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

// One side of the matrix.
struct Side {
  std::vector<Runs> runs;
  std::vector<PixelBox> boxes;
  std::vector<int64_t> areas;

  explicit Side(const std::vector<Rle>& rles)
      : runs(rles.size()), boxes(rles.size()), areas(rles.size()) {
    parallel_for(rles.size(), rles_per_task(rles), [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        runs[n] = rles[n].runs();
        boxes[n] = box_of(runs[n], rles[n].height);
        areas[n] = area_of(runs[n]);
      }
    });
  }
};

// -1 for masks of unlike sizes whose boxes overlap. A crowd counts as no larger than what it shares
// with the detection.
double iou_of(const Rle& detection, const Rle& object, bool boxes_overlap, int64_t common,
              int64_t detection_area, int64_t object_area, bool crowd) {
  const bool same_size = detection.height == object.height && detection.width == object.width;
  if (!same_size) return boxes_overlap ? -1 : 0;
  if (common == 0) return 0;
  return static_cast<double>(common) /
         static_cast<double>(crowd ? detection_area : detection_area + object_area - common);
}

Matrix mask_iou(const py::sequence& detections, const py::sequence& objects,
                const py::object& crowd) {
  const bool symmetric = detections.is(objects);
  const std::vector<Rle> rles = read_rles(detections, false, "dt");
  const std::vector<Rle> object_rles =
      symmetric ? std::vector<Rle>() : read_rles(objects, false, "gt");
  const std::vector<Rle>& others = symmetric ? rles : object_rles;
  const int64_t m = rles.size(), n = others.size();
  const std::vector<uint8_t> is_crowd = read_crowd(crowd, n);
  Matrix ious({m, n});
  double* const out = ious.mutable_data();
  py::gil_scoped_release release;
  const Side rows(rles), columns(others);
  std::vector<int64_t> common(m * n);  // a row for each object, as Fortran order has it
  RunIntersectionsParams params;
  params.runs_a = columns.runs.data();
  params.boxes_a = columns.boxes.data();
  params.num_a = n;
  params.runs_b = rows.runs.data();
  params.boxes_b = rows.boxes.data();
  params.num_b = m;
  params.intersections = common.data();
  params.symmetric = symmetric;
  run_intersections_cpu(params);
  for (int64_t g = 0; g < n; ++g) {
    for (int64_t d = 0; d < m; ++d) {
      out[g * m + d] = iou_of(rles[d], others[g], overlap(rows.boxes[d], columns.boxes[g]),
                              common[g * m + d], rows.areas[d], columns.areas[g], is_crowd[g]);
    }
  }
  return ious;
}

// Boxes (left, top, width, height), each number in its own array.
struct Boxes {
  std::vector<double> x0, y0, x1, y1, area;

  explicit Boxes(const Array& array) {
    array.expect_dtype({DType::f64}).expect_shape({-1, 4});
    const View<2> view = array.view<2>();
    for (int64_t n = 0; n < view.size[0]; ++n) {
      const double left = *view.at<double>(n, 0), top = *view.at<double>(n, 1);
      const double width = *view.at<double>(n, 2), height = *view.at<double>(n, 3);
      x0.push_back(left);
      y0.push_back(top);
      x1.push_back(width + left);
      y1.push_back(height + top);
      area.push_back(width * height);
    }
  }
  int64_t size() const { return area.size(); }
};

// As fmin and fmax, but no calls: a NaN gives way to the other.
inline double lesser(double a, double b) { return b != b ? a : a < b ? a : b; }
inline double greater(double a, double b) { return b != b ? a : a > b ? a : b; }

// Column g of the matrix. No branch, so that the compiler takes several detections at a time.
void box_column(const Boxes& dt, const Boxes& gt, int64_t g, bool crowd, double* __restrict out) {
  const double x0 = gt.x0[g], y0 = gt.y0[g], x1 = gt.x1[g], y1 = gt.y1[g];
  const double area = gt.area[g];
  for (int64_t d = 0; d < dt.size(); ++d) {
    const double width = lesser(dt.x1[d], x1) - greater(dt.x0[d], x0);
    const double height = lesser(dt.y1[d], y1) - greater(dt.y0[d], y0);
    const double common = width * height;
    const double whole = crowd ? dt.area[d] : dt.area[d] + area - common;
    const double iou = common / whole;
    out[d] = width <= 0 ? 0 : height <= 0 ? 0 : iou;
  }
}

Matrix box_iou(const py::object& detections, const py::object& objects, const py::object& crowd) {
  const Boxes dt(Array(detections, "dt")), gt(Array(objects, "gt"));
  const std::vector<uint8_t> is_crowd = read_crowd(crowd, gt.size());
  const int64_t m = dt.size();
  Matrix ious({m, gt.size()});
  double* const out = ious.mutable_data();
  py::gil_scoped_release release;
  parallel_for(gt.size(), kRunsPerTask / std::max<int64_t>(m, 1), [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) box_column(dt, gt, g, is_crowd[g], out + g * m);
  });
  return ious;
}

}  // namespace

void bind_rle_iou(py::module_& module) {
  module.def("rle_iou", &mask_iou, py::arg("dt"), py::arg("gt"), py::arg("pyiscrowd"));
  module.def("rle_box_iou", &box_iou, py::arg("dt"), py::arg("gt"), py::arg("pyiscrowd"));
}

}  // namespace fastseg
