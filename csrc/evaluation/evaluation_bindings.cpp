// Columns as NumPy arrays (fastseg/evaluation/columns.py) -> precision and recall.
#include <pybind11/numpy.h>

#include <map>
#include <memory>

#include "bindings/array.h"
#include "evaluation/evaluation.h"

namespace fastseg {
namespace {

template <class T>
using Contiguous = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Keeps the arrays of a dict alive and hands out their memory.
class Columns {
 public:
  Columns(const py::dict& columns, const char* name) : columns_(columns), name_(name) {}

  // [rows * width]; rows < 0: any number.
  template <class T>
  const T* read(const char* key, int64_t rows, int64_t width = 1) {
    FASTSEG_CHECK(columns_.contains(key), name_, " has no ", key);
    const Contiguous<T> array = Contiguous<T>::ensure(columns_[key]);
    if (!array) throw py::error_already_set();
    FASTSEG_CHECK(rows < 0 || array.size() == rows * width, name_, "'s ", key, " must have ", rows,
                  " rows of ", width, ", got ", array.size(), " numbers");
    kept_.push_back(array);
    return array.data();
  }

  int64_t size(const char* key) const { return py::len(columns_[key]); }
  const char* name() const { return name_; }

 private:
  py::dict columns_;
  const char* name_;
  std::vector<py::array> kept_;
};

// Ascending and within [0, size]: what is read by these lies inside the array.
void check_ends(const Columns& columns, const char* key, const int64_t* ends, int64_t count,
                int64_t size) {
  int64_t before = 0;
  for (int64_t n = 0; n < count; ++n) {
    FASTSEG_CHECK(before <= ends[n] && ends[n] <= size, columns.name(), "'s ", key, "[", n,
                  "] must be in [", before, ", ", size, "], got ", ends[n]);
    before = ends[n];
  }
}

void check_indices(const Columns& columns, const char* key, const int64_t* indices, int64_t count,
                   int64_t least, int64_t size) {
  for (int64_t n = 0; n < count; ++n) {
    FASTSEG_CHECK(least <= indices[n] && indices[n] < size, columns.name(), "'s ", key, "[", n,
                  "] must be in [", least, ", ", size, "), got ", indices[n]);
  }
}

Objects read_objects(Columns* columns, int64_t num_images, int64_t num_categories) {
  Objects objects;
  const int64_t n = objects.size = columns->size("images");
  objects.images = columns->read<int64_t>("images", n);
  objects.categories = columns->read<int64_t>("categories", n);
  objects.ties = columns->read<int64_t>("ties", n);
  objects.scores = columns->read<double>("scores", n);
  objects.areas = columns->read<double>("areas", n);
  objects.boxes = columns->read<double>("boxes", n, 4);
  objects.crowds = columns->read<uint8_t>("crowds", n);
  objects.ignores = columns->read<uint8_t>("ignores", n);
  objects.mask_ends = columns->read<int64_t>("mask_ends", n);
  const int64_t num_masks = columns->size("text_ends");
  MaskColumns& masks = objects.masks;
  masks.sizes = columns->read<int64_t>("sizes", num_masks, 2);
  masks.text = reinterpret_cast<const char*>(columns->read<uint8_t>("text", -1));
  masks.text_ends = columns->read<int64_t>("text_ends", num_masks);
  masks.coordinates = columns->read<double>("coordinates", -1);
  const int64_t num_polygons = columns->size("coordinate_ends");
  masks.coordinate_ends = columns->read<int64_t>("coordinate_ends", num_polygons);
  masks.polygon_ends = columns->read<int64_t>("polygon_ends", num_masks);
  check_indices(*columns, "images", objects.images, n, -1, num_images);
  check_indices(*columns, "categories", objects.categories, n, 0, num_categories);
  check_ends(*columns, "mask_ends", objects.mask_ends, n, num_masks);
  check_ends(*columns, "text_ends", masks.text_ends, num_masks, columns->size("text"));
  check_ends(*columns, "polygon_ends", masks.polygon_ends, num_masks, num_polygons);
  check_ends(*columns, "coordinate_ends", masks.coordinate_ends, num_polygons,
             columns->size("coordinates"));
  return objects;
}

Overlap overlap_of(const std::string& name) {
  static const std::map<std::string, Overlap> overlaps = {
      {"bbox", Overlap::box}, {"segm", Overlap::mask}, {"boundary", Overlap::boundary}};
  const auto found = overlaps.find(name);
  FASTSEG_CHECK(found != overlaps.end(), "metrics must be of bbox, segm and boundary, got ", name);
  return found->second;
}

// The matches of all metrics, which are made once and read at several limits of detections.
struct Matched {
  std::vector<int64_t> kept, ranks, category_ends, positives;
  std::vector<Metric> metrics;
  ObjectError error;
};

py::dict accumulate(const MatchParams& match, const Matched& matched, const Metric& metric,
                    const Contiguous<double>& recalls, const Contiguous<int64_t>& limits) {
  const py::ssize_t t = match.num_thresholds, r = recalls.size(), k = match.num_categories,
                    a = match.num_ranges, m = limits.size();
  py::array_t<double> precision({t, r, k, a, m}), scores({t, r, k, a, m}), recall({t, k, a, m});
  for (py::array_t<double>* array : {&precision, &scores, &recall}) {
    std::fill_n(array->mutable_data(), array->size(), -1.0);
  }
  AccumulateParams params;
  params.scores = match.detections.scores;
  params.kept = matched.kept.data();
  params.ranks = matched.ranks.data();
  params.category_ends = matched.category_ends.data();
  params.positives = matched.positives.data();
  params.matches = metric.matches.data();
  params.num_categories = k;
  params.num_ranges = a;
  params.num_thresholds = t;
  params.recalls = recalls.data();
  params.num_recalls = r;
  params.max_detections = limits.data();
  params.num_limits = m;
  params.precision = precision.mutable_data();
  params.scores_at = scores.mutable_data();
  params.best_recall = recall.mutable_data();
  {
    py::gil_scoped_release release;
    evaluation_accumulate_cpu(params);
  }
  py::dict found;
  found["precision"] = precision;
  found["recall"] = recall;
  found["scores"] = scores;
  return found;
}

// metrics: [(name, areas [detections] or None)]. Returns (error, results): error is None or (of the
// ground truth?, index, text); results has a dict of arrays per metric.
py::tuple evaluate(const py::dict& detections, const py::dict& truths,
                   const Contiguous<int64_t>& image_sizes, int64_t num_categories,
                   const py::list& metrics, const Contiguous<double>& thresholds,
                   const Contiguous<double>& recalls, const Contiguous<double>& ranges,
                   const Contiguous<int64_t>& limits, double dilation_ratio) {
  Columns detection_columns(detections, "detections"), truth_columns(truths, "truths");
  MatchParams params;
  params.num_images = image_sizes.size() / 2;
  params.num_categories = num_categories;
  params.detections = read_objects(&detection_columns, params.num_images, num_categories);
  params.truths = read_objects(&truth_columns, params.num_images, num_categories);
  params.image_sizes = image_sizes.data();
  params.thresholds = thresholds.data();
  params.num_thresholds = thresholds.size();
  params.ranges = ranges.data();
  params.num_ranges = ranges.size() / 2;
  FASTSEG_CHECK(limits.size() > 0, "limits must not be empty");
  params.max_detections = *std::max_element(limits.data(), limits.data() + limits.size());
  params.dilation_ratio = dilation_ratio;
  Matched matched;
  std::vector<Contiguous<double>> areas;
  for (const py::handle one : metrics) {
    const auto [name, values] = one.cast<std::pair<std::string, py::object>>();
    Metric metric = {overlap_of(name), nullptr, {}};
    if (!values.is_none()) {
      areas.push_back(Contiguous<double>(values));
      FASTSEG_CHECK(areas.back().size() == params.detections.size, "areas must have ",
                    params.detections.size, " numbers, got ", areas.back().size());
      metric.areas = areas.back().data();
    }
    matched.metrics.push_back(std::move(metric));
  }
  params.metrics = matched.metrics.data();
  params.num_metrics = static_cast<int64_t>(matched.metrics.size());
  params.kept = &matched.kept;
  params.ranks = &matched.ranks;
  params.category_ends = &matched.category_ends;
  params.positives = &matched.positives;
  params.error = &matched.error;
  {
    py::gil_scoped_release release;
    evaluation_match_cpu(params);
  }
  const ObjectError& error = matched.error;
  if (error.index >= 0) {
    return py::make_tuple(py::make_tuple(error.of_truth, error.index, error.text), py::list());
  }
  py::list results;
  for (const Metric& metric : matched.metrics) {
    results.append(accumulate(params, matched, metric, recalls, limits));
  }
  return py::make_tuple(py::none(), results);
}

}  // namespace

void bind_evaluation(py::module_& module) {
  module.def("evaluate_detections", &evaluate, py::arg("detections"), py::arg("truths"),
             py::arg("image_sizes"), py::arg("num_categories"), py::arg("metrics"),
             py::arg("thresholds"), py::arg("recalls"), py::arg("ranges"), py::arg("limits"),
             py::arg("dilation_ratio"));
}

}  // namespace fastseg
