#include "bindings/array.h"
#include "mask_nms/mask_nms.h"

namespace fastseg {
namespace {

MaskNmsMethod method_of(const std::string& name) {
  if (name == "greedy") return MaskNmsMethod::greedy;
  if (name == "fast") return MaskNmsMethod::fast;
  if (name == "linear") return MaskNmsMethod::linear;
  if (name == "gaussian") return MaskNmsMethod::gaussian;
  throw py::value_error(
      message("method must be 'greedy', 'fast', 'linear' or 'gaussian', got '", name, "'"));
}

void nms(const py::object& intersections, const py::object& areas, const py::object& labels,
         const py::object& scores, const py::object& current, const py::object& removed,
         const py::object& kept_scores, const py::object& indices, const py::object& count,
         const std::string& method, double iou_threshold, double sigma, double min_score,
         bool skip_absent, uintptr_t stream) {
  const Array shared(intersections, "intersections"), area_array(areas, "areas");
  const Array label_array(labels, "labels"), score_array(scores, "scores");
  const Array current_array(current, "current"), removed_array(removed, "removed");
  const Array kept_array(kept_scores, "kept_scores"), index_array(indices, "indices");
  const Array count_array(count, "count");
  score_array.expect_shape({-1, -1}).expect_dtype({DType::f32, DType::f64});
  const int64_t batch = score_array.size(0), n = score_array.size(1);
  const auto expect = [&](const Array& array, std::initializer_list<int64_t> shape, DType dtype) {
    array.expect_shape(shape).expect_dtype({dtype}).expect_device(score_array);
  };
  expect(shared, {batch, n, n}, DType::i64);
  expect(area_array, {batch, n}, DType::i64);
  expect(label_array, {batch, n}, DType::i64);
  expect(current_array, {batch, n}, score_array.dtype());
  expect(removed_array, {batch, n}, DType::u8);
  expect(index_array, {batch, -1}, DType::i64);
  expect(kept_array, {batch, index_array.size(1)}, score_array.dtype());
  expect(count_array, {batch}, DType::i64);
  MaskNmsParams params;
  params.intersections = shared.view<3>();
  params.areas = area_array.view<2>();
  params.labels = label_array.view<2>();
  params.scores = score_array.view<2>();
  params.current = current_array.view<2>();
  params.removed = removed_array.view<2>();
  params.kept_scores = kept_array.view<2>();
  params.indices = index_array.view<2>();
  params.count = count_array.view<1>();
  params.method = method_of(method);
  params.iou_threshold = iou_threshold;
  params.sigma = sigma;
  params.min_score = min_score;
  params.skip_absent = skip_absent;
  launch_on(score_array.device(), stream, params, mask_nms_cpu, FASTSEG_CUDA(mask_nms_cuda));
}

}  // namespace

void bind_mask_nms(py::module_& module) {
  module.def("mask_nms", &nms, py::arg("intersections"), py::arg("areas"), py::arg("labels"),
             py::arg("scores"), py::arg("current"), py::arg("removed"), py::arg("kept_scores"),
             py::arg("indices"), py::arg("count"), py::arg("method"), py::arg("iou_threshold"),
             py::arg("sigma"), py::arg("min_score"), py::arg("skip_absent"), py::arg("stream") = 0);
}

}  // namespace fastseg
