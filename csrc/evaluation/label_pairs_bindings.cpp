#include <pybind11/numpy.h>

#include "bindings/array.h"
#include "evaluation/label_pairs.h"

namespace fastseg {
namespace {

// A label map [H, W] of integers or [H, W, 3] of colours as [H, W, C].
View<3> label_map(const Array& array) {
  FASTSEG_CHECK(array.device() == kCpuDevice, array.name(),
                " must lie on the CPU, got CUDA device ", array.device());
  if (array.ndim() == 3) {
    FASTSEG_CHECK(array.size(2) == 3 && array.dtype() == DType::u8, array.name(),
                  " with 3 dimensions must be [H, W, 3] uint8, got ", array.shape(), " ",
                  name_of(array.dtype()));
    return array.view<3>();
  }
  FASTSEG_CHECK(array.ndim() == 2, array.name(),
                " must have shape [H, W], or [H, W, 3] for colours, got ", array.shape());
  if (is_floating(array.dtype())) {
    throw py::type_error(message(array.name(), " must be integer, got ", name_of(array.dtype())));
  }
  const View<2> flat = array.view<2>();
  View<3> map;
  map.data = flat.data;
  map.dtype = flat.dtype;
  for (int d = 0; d < 2; ++d) {
    map.size[d] = flat.size[d];
    map.stride[d] = flat.stride[d];
  }
  map.size[2] = 1;
  map.stride[2] = 1;
  return map;
}

void check_wrapped(const Array& array, int64_t label) {
  FASTSEG_CHECK(array.dtype() != DType::u64 || label >= 0, array.name(),
                " must be below 2^63, got ", static_cast<uint64_t>(label));
}

// Two label maps -> (labels of the first, labels of the second, pixels), each [P] int64.
py::tuple label_pairs(const py::object& first, const py::object& second) {
  const Array first_array(first, "ground_truth"), second_array(second, "prediction");
  std::vector<LabelPair> pairs;
  LabelPairsParams params;
  params.first = label_map(first_array);
  params.second = label_map(second_array);
  params.pairs = &pairs;
  FASTSEG_CHECK(params.first.size[0] == params.second.size[0] &&
                    params.first.size[1] == params.second.size[1],
                "ground_truth and prediction must be of one size, got ", first_array.shape(),
                " and ", second_array.shape());
  {
    py::gil_scoped_release release;
    label_pairs_cpu(params);
  }
  const auto count = static_cast<py::ssize_t>(pairs.size());
  py::array_t<int64_t> firsts(count), seconds(count), pixels(count);
  for (py::ssize_t i = 0; i < count; ++i) {
    check_wrapped(first_array, pairs[i].first);
    check_wrapped(second_array, pairs[i].second);
    firsts.mutable_data()[i] = pairs[i].first;
    seconds.mutable_data()[i] = pairs[i].second;
    pixels.mutable_data()[i] = pairs[i].pixels;
  }
  return py::make_tuple(firsts, seconds, pixels);
}

}  // namespace

void bind_label_pairs(py::module_& module) {
  module.def("label_pairs", &label_pairs, py::arg("ground_truth"), py::arg("prediction"));
}

}  // namespace fastseg
