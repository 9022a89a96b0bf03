// What fastseg.mask does with shapes: RLEs of Python in, RLEs out, without decoding.
#include <cmath>

#include "bindings/rles.h"
#include "rle/boundary.h"
#include "rle/merge.h"
#include "rle/regions.h"
#include "rle/transforms.h"

namespace fastseg {
namespace {

// `distance` in pixels, or the dilation ratio where it is 0.
py::list boundary(const py::sequence& objects, double dilation_ratio, int64_t distance) {
  FASTSEG_CHECK(distance >= 0 && distance <= kMaxMaskArea,
                "dilation must be from 1 to 2^32 - 1 pixels, got ", distance);
  FASTSEG_CHECK(dilation_ratio >= 0 && dilation_ratio <= 1,
                "dilation_ratio must be from 0 to 1, got ", dilation_ratio);
  const std::vector<Rle> rles = read_shapes(objects);
  BoundaryFinder finder;
  return map_rles(rles, [=](int64_t, const Rle& rle, NewMask* mask) mutable {
    const int64_t pixels =
        distance > 0 ? distance : boundary_distance(rle.height, rle.width, dilation_ratio);
    finder.find(rle.runs(), rle.height, pixels, &mask->toggles);
  });
}

py::list flip(const py::sequence& objects, bool horizontal) {
  const std::vector<Rle> rles = read_shapes(objects);
  Columns columns;
  return map_rles(rles, [=](int64_t, const Rle& rle, NewMask* mask) mutable {
    columns.assign(rle.runs(), rle.height);
    if (horizontal) {
      flip_columns(columns, rle.height, rle.width, &mask->toggles);
    } else {
      flip_rows(columns, rle.height, &mask->toggles);
    }
  });
}

// boxes [N, 4] int64: left, top, width, height.
py::list crop(const py::sequence& objects, const py::object& boxes) {
  const std::vector<Rle> rles = read_shapes(objects);
  const Array array(boxes, "boxes");
  array.expect_dtype({DType::i64}).expect_shape({static_cast<int64_t>(rles.size()), 4});
  const View<2> view = array.view<2>();
  std::vector<PixelBox> pixel_boxes(rles.size());
  for (size_t n = 0; n < rles.size(); ++n) {
    const int64_t left = *view.at<int64_t>(n, 0), top = *view.at<int64_t>(n, 1);
    const int64_t width = *view.at<int64_t>(n, 2), height = *view.at<int64_t>(n, 3);
    FASTSEG_CHECK(std::abs(left) <= kMaxMaskArea && std::abs(top) <= kMaxMaskArea, "boxes[", n,
                  "] must begin less than 2^32 pixels from 0, got left ", left, " and top ", top);
    FASTSEG_CHECK(fits_rle(height, width), "boxes[", n,
                  "] must be of fewer than 2^32 pixels, got width ", width, " and height ", height);
    pixel_boxes[n] = {left, top, left + width, top + height};
  }
  Columns columns;
  return map_rles(rles, [=, &pixel_boxes](int64_t n, const Rle& rle, NewMask* mask) mutable {
    const PixelBox& box = pixel_boxes[n];
    mask->height = box.y1 - box.y0;
    mask->width = box.x1 - box.x0;
    columns.assign(rle.runs(), rle.height);
    crop_columns(columns, box, &mask->toggles);
  });
}

py::list resize(const py::sequence& objects, int64_t height, int64_t width) {
  constexpr int64_t kMaxSide = 1 << 30;  // of Scale
  FASTSEG_CHECK(height <= kMaxSide && width <= kMaxShapeColumns && fits_rle(height, width),
                "size must be of fewer than 2^32 pixels, at most 2^30 rows and 2^24 columns, got [",
                height, ", ", width, "]");
  const std::vector<Rle> rles = read_shapes(objects);
  for (size_t n = 0; n < rles.size(); ++n) {
    FASTSEG_CHECK(rles[n].height <= kMaxSide, "rles[", n, "] must have at most 2^30 rows, got ",
                  rles[n].height);
  }
  Columns columns;
  return map_rles(rles, [=](int64_t, const Rle& rle, NewMask* mask) mutable {
    mask->height = height;
    mask->width = width;
    columns.assign(rle.runs(), rle.height);
    resize_columns(columns, {rle.height, height}, {rle.width, width}, &mask->toggles);
  });
}

py::list complement_rles(const py::sequence& objects) {
  return map_rles(read_rles(objects, true), [](int64_t, const Rle& rle, NewMask* mask) {
    mask->toggles = rle.toggles;
    drop_empty_runs(&mask->toggles);
    complement(&mask->toggles);
  });
}

py::list subtract(const py::sequence& objects, const py::sequence& others) {
  std::vector<Rle> rles = read_rles(objects, true), removed = read_rles(others, true, "others");
  FASTSEG_CHECK(rles.size() == removed.size(), "others must be as many as rles, ", rles.size(),
                ", got ", removed.size());
  for (size_t n = 0; n < rles.size(); ++n) {
    FASTSEG_CHECK(rles[n].height == removed[n].height && rles[n].width == removed[n].width,
                  "others[", n, "] must have the size of rles[", n, "], ", rles[n].size(), ", got ",
                  removed[n].size());
    drop_empty_runs(&rles[n].toggles);
    drop_empty_runs(&removed[n].toggles);
  }
  return map_rles(rles, [&](int64_t n, const Rle& rle, NewMask* mask) {
    merge(rle.runs(), removed[n].runs(), Merge::subtract, &mask->toggles);
  });
}

// A list of RLEs for each RLE.
py::list connected_components(const py::sequence& objects, bool diagonals, int64_t min_area) {
  const std::vector<Rle> rles = read_shapes(objects);
  std::vector<std::vector<std::string>> counts(rles.size());
  {
    py::gil_scoped_release release;
    parallel_for(rles.size(), rles_per_task(rles), [&](int64_t begin, int64_t end) {
      RegionFinder regions;
      std::vector<std::vector<uint32_t>> toggles;
      for (int64_t n = begin; n < end; ++n) {
        regions.find(rles[n].runs(), rles[n].height, diagonals);
        regions.collect(&toggles);
        for (int64_t region = 0; region < regions.size(); ++region) {
          if (regions.area(region) < min_area) continue;
          counts[n].emplace_back();
          append_counts(toggles[region].data(), toggles[region].size(), rles[n].area,
                        &counts[n].back());
        }
      }
    });
  }
  py::list result(rles.size());
  for (size_t n = 0; n < rles.size(); ++n) {
    result[n] = make_rles(rles[n].height, rles[n].width, counts[n]);
  }
  return result;
}

void keep_large_regions(RegionFinder* regions, const Runs& runs, int64_t height, int64_t min_area,
                        bool keep_one, std::vector<uint32_t>* toggles) {
  regions->find(runs, height, true);
  int64_t largest = 0;
  for (int64_t i = 1; i < regions->size(); ++i) {
    if (regions->area(i) > regions->area(largest)) largest = i;
  }
  regions->append_if(
      [&](int64_t i) { return regions->area(i) >= min_area || (keep_one && i == largest); },
      toggles);
}

py::list remove_small_regions(const py::sequence& objects, int64_t min_area, bool holes) {
  const std::vector<Rle> rles = read_shapes(objects);
  RegionFinder regions;
  return map_rles(rles, [=](int64_t, const Rle& rle, NewMask* mask) mutable {
    if (!holes) {
      return keep_large_regions(&regions, rle.runs(), rle.height, min_area, true, &mask->toggles);
    }
    std::vector<uint32_t> outside = rle.toggles;
    drop_empty_runs(&outside);
    complement(&outside);
    const Runs runs = {outside.data(), static_cast<int64_t>(outside.size()), rle.area};
    keep_large_regions(&regions, runs, rle.height, min_area, false, &mask->toggles);
    complement(&mask->toggles);
  });
}

}  // namespace

void bind_rle_shapes(py::module_& module) {
  module.def("rle_boundary", &boundary, py::arg("rles"), py::arg("dilation_ratio"),
             py::arg("distance"));
  module.def("rle_flip", &flip, py::arg("rles"), py::arg("horizontal"));
  module.def("rle_crop", &crop, py::arg("rles"), py::arg("boxes"));
  module.def("rle_resize", &resize, py::arg("rles"), py::arg("height"), py::arg("width"));
  module.def("rle_complement", &complement_rles, py::arg("rles"));
  module.def("rle_subtract", &subtract, py::arg("rles"), py::arg("others"));
  module.def("rle_connected_components", &connected_components, py::arg("rles"),
             py::arg("diagonals"), py::arg("min_area"));
  module.def("rle_remove_small_regions", &remove_small_regions, py::arg("rles"),
             py::arg("min_area"), py::arg("holes"));
}

}  // namespace fastseg
