// From polygons, boxes and uncompressed RLEs of Python to RLEs, and from RLEs to polygons.
#include <pybind11/numpy.h>

#include <cmath>

#include "bindings/rles.h"
#include "rle/contours.h"
#include "rle/polygons.h"

namespace fastseg {
namespace {

// All polygons' coordinates one after the other; polygon n has [begin[n], begin[n + 1]).
struct Coordinates {
  std::vector<double> values;
  std::vector<int64_t> begin = {0};
};

bool is_array(py::handle object) { return py::isinstance<py::array>(object); }

void append_array(py::handle object, size_t index, std::vector<double>* values) {
  const auto array = py::array_t<double, py::array::c_style | py::array::forcecast>::ensure(object);
  if (!array) {
    PyErr_Clear();
    throw py::type_error(message("polygons[", index, "] must hold numbers"));
  }
  FASTSEG_CHECK(array.ndim() == 1, "polygons[", index,
                "] must be [x0, y0, x1, y1, ...] in one dimension, got ", array.ndim());
  values->insert(values->end(), array.data(), array.data() + array.size());
}

void append_sequence(py::handle object, size_t index, std::vector<double>* values) {
  const auto items = py::reinterpret_steal<py::object>(PySequence_Fast(object.ptr(), ""));
  if (!items) {
    PyErr_Clear();
    throw py::type_error(message("polygons[", index,
                                 "] must be a list of numbers [x0, y0, x1, y1, ...], got ",
                                 Py_TYPE(object.ptr())->tp_name));
  }
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(items.ptr()); ++i) {
    PyObject* const item = PySequence_Fast_GET_ITEM(items.ptr(), i);
    double value = PyLong_CheckExact(item) ? PyLong_AsDouble(item) : PyFloat_AsDouble(item);
    if (value == -1 && PyErr_Occurred()) {
      const bool too_large = PyErr_ExceptionMatches(PyExc_OverflowError);
      PyErr_Clear();
      if (!too_large) {
        throw py::type_error(message("polygons[", index, "] must hold numbers, got ",
                                     Py_TYPE(item)->tp_name, " at ", i));
      }
      value = INFINITY;
    }
    values->push_back(value);
  }
}

Coordinates read_polygons(const py::sequence& objects) {
  Coordinates polygons;
  for (py::handle object : objects) {
    const size_t index = polygons.begin.size() - 1;
    is_array(object) ? append_array(object, index, &polygons.values)
                     : append_sequence(object, index, &polygons.values);
    const int64_t begin = polygons.begin.back(), end = polygons.values.size();
    FASTSEG_CHECK((end - begin) % 2 == 0, "polygons[", index,
                  "] must have an even number of coordinates, got ", end - begin);
    for (int64_t i = begin; i < end; ++i) {
      FASTSEG_CHECK(std::abs(polygons.values[i]) <= kMaxCoordinate, "polygons[", index,
                    "] must have coordinates within 429496728 of 0, got ", polygons.values[i]);
    }
    polygons.begin.push_back(end);
  }
  return polygons;
}

std::vector<std::string> fill(const Coordinates& polygons, int64_t height, int64_t width) {
  const uint32_t area = checked_area(height, width);
  FASTSEG_CHECK(width <= kMaxShapeColumns, "masks must have at most 2^24 columns, got ", width);
  const int64_t count = static_cast<int64_t>(polygons.begin.size()) - 1;
  std::vector<std::string> counts(count);
  py::gil_scoped_release release;
  const int64_t coordinates = polygons.values.size() + 1;
  parallel_for(count, kRunsPerTask / 8 * count / coordinates, [&](int64_t begin, int64_t end) {
    PolygonFiller filler;
    std::vector<uint32_t> toggles;
    for (int64_t n = begin; n < end; ++n) {
      const int64_t first = polygons.begin[n];
      toggles.clear();
      filler.fill(polygons.values.data() + first, (polygons.begin[n + 1] - first) / 2, height,
                  width, &toggles);
      append_counts(toggles.data(), toggles.size(), area, &counts[n]);
    }
  });
  return counts;
}

py::list from_polygons(const py::sequence& objects, int64_t height, int64_t width) {
  return make_rles(height, width, fill(read_polygons(objects), height, width));
}

// boxes [N, 4] float64: left, top, width, height; filled as polygons of four corners.
py::list from_boxes(const py::object& boxes, int64_t height, int64_t width) {
  const Array array(boxes, "boxes");
  array.expect_dtype({DType::f64}).expect_shape({-1, 4});
  const View<2> view = array.view<2>();
  Coordinates corners;
  for (int64_t n = 0; n < view.size[0]; ++n) {
    const double left = *view.at<double>(n, 0), top = *view.at<double>(n, 1);
    const double right = left + *view.at<double>(n, 2), bottom = top + *view.at<double>(n, 3);
    for (double side : {left, top, right, bottom}) {
      FASTSEG_CHECK(std::abs(side) <= kMaxCoordinate, "boxes[", n,
                    "] must have its sides within 429496728 of 0, got one at ", side);
    }
    const double polygon[] = {left, top, left, bottom, right, bottom, right, top};
    corners.values.insert(corners.values.end(), polygon, polygon + 8);
    corners.begin.push_back(corners.values.size());
  }
  return make_rles(height, width, fill(corners, height, width));
}

// RLEs of any form -> compressed ones. Runs of length 0 are kept, and nothing is added where the
// counts stop early.
py::list compress(const py::sequence& objects) {
  const std::vector<Rle> rles = read_rles(objects, false);
  py::list result(rles.size());
  for (size_t n = 0; n < rles.size(); ++n) {
    const Rle& rle = rles[n];
    std::string counts;
    append_runs(rle.toggles.data(), rle.toggles.size(), static_cast<uint32_t>(rle.total), &counts);
    result[n] = make_rle(rle.height, rle.width, counts);
  }
  return result;
}

// The corners of polygons, each from begin[i] to begin[i + 1], and the polygons of one region with
// its holes, from region[i] to region[i + 1].
struct Contours {
  std::vector<Corner> corners;
  std::vector<int64_t> begin, region;
};

Contours trace(ContourFinder* finder, const Rle& rle, bool join_holes) {
  Contours found;
  finder->find(rle.runs(), rle.height);
  const std::vector<ContourFinder::Ring>& rings = finder->rings();
  std::vector<std::vector<int64_t>> holes(rings.size());
  for (size_t i = 0; i < rings.size(); ++i) {
    if (rings[i].outer != static_cast<int64_t>(i)) holes[rings[i].outer].push_back(i);
  }
  for (size_t i = 0; i < rings.size(); ++i) {
    if (rings[i].outer != static_cast<int64_t>(i)) continue;
    found.region.push_back(found.begin.size());
    found.begin.push_back(found.corners.size());
    if (join_holes) {
      finder->append_joined(rings[i], &found.corners);
      continue;
    }
    finder->append_ring(rings[i], &found.corners);
    for (int64_t hole : holes[i]) {
      found.begin.push_back(found.corners.size());
      finder->append_ring(rings[hole], &found.corners);
    }
  }
  found.region.push_back(found.begin.size());
  found.begin.push_back(found.corners.size());
  return found;
}

py::list make_polygon(const Contours& found, int64_t i) {
  py::list coordinates(2 * (found.begin[i + 1] - found.begin[i]));
  for (int64_t c = found.begin[i]; c < found.begin[i + 1]; ++c) {
    const int64_t at = 2 * (c - found.begin[i]);
    coordinates[at] = found.corners[c].x;
    coordinates[at + 1] = found.corners[c].y;
  }
  return coordinates;
}

// join_holes: a list of polygons for each RLE; else a list of lists, the outer contour and the
// holes of each region.
py::list to_polygons(const py::sequence& objects, bool join_holes) {
  const std::vector<Rle> rles = read_shapes(objects);
  std::vector<Contours> found(rles.size());
  {
    py::gil_scoped_release release;
    parallel_for(rles.size(), rles_per_task(rles), [&](int64_t begin, int64_t end) {
      ContourFinder finder;
      for (int64_t n = begin; n < end; ++n) found[n] = trace(&finder, rles[n], join_holes);
    });
  }
  py::list result(rles.size());
  for (size_t n = 0; n < rles.size(); ++n) {
    const std::vector<int64_t>& region = found[n].region;
    py::list polygons(region.size() - 1);
    for (size_t r = 0; r + 1 < region.size(); ++r) {
      if (join_holes) {
        polygons[r] = make_polygon(found[n], region[r]);
        continue;
      }
      py::list rings(region[r + 1] - region[r]);
      for (size_t i = 0; i < rings.size(); ++i) rings[i] = make_polygon(found[n], region[r] + i);
      polygons[r] = rings;
    }
    result[n] = polygons;
  }
  return result;
}

}  // namespace

void bind_rle_polygons(py::module_& module) {
  module.def("rle_from_polygons", &from_polygons, py::arg("polygons"), py::arg("height"),
             py::arg("width"));
  module.def("rle_from_boxes", &from_boxes, py::arg("boxes"), py::arg("height"), py::arg("width"));
  module.def("rle_to_polygons", &to_polygons, py::arg("rles"), py::arg("join_holes"));
  module.def("rle_compress", &compress, py::arg("rles"));
}

}  // namespace fastseg
