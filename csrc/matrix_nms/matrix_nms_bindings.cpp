#include "bindings/array.h"
#include "matrix_nms/matrix_nms.h"

namespace fastseg {
namespace {

DecayKernel decay_kernel_of(const std::string& name) {
  if (name == "gaussian") return DecayKernel::gaussian;
  if (name == "linear") return DecayKernel::linear;
  throw py::value_error(message("kernel must be 'gaussian' or 'linear', got '", name, "'"));
}

// [B, N] of some types, beside `scores`.
View<2> per_mask(const Array& array, const Array& scores, std::initializer_list<DType> dtypes) {
  array.expect_shape({scores.size(0), scores.size(1)});
  return array.expect_dtype(dtypes).expect_device(scores).view<2>();
}

View<2> view_scores(const Array& scores) {
  return scores.expect_shape({-1, -1}).expect_dtype({DType::f32, DType::f64}).view<2>();
}

void decay(const py::object& intersections, const py::object& areas, const py::object& labels,
           const py::object& scores, const py::object& divisors, const py::object& decayed,
           const std::string& kernel, double sigma, uintptr_t stream) {
  const Array shared(intersections, "intersections"), area_array(areas, "areas");
  const Array label_array(labels, "labels"), score_array(scores, "scores");
  const Array divisor_array(divisors, "divisors"), decayed_array(decayed, "decayed");
  MatrixNmsParams params;
  params.scores = view_scores(score_array);
  const int64_t batch = score_array.size(0), n = score_array.size(1);
  params.intersections = shared.expect_shape({batch, n, n})
                             .expect_dtype({DType::i64})
                             .expect_device(score_array)
                             .view<3>();
  params.areas = per_mask(area_array, score_array, {DType::i64, DType::f32});
  params.labels = per_mask(label_array, score_array, {DType::i64});
  params.divisors = per_mask(divisor_array, score_array, {DType::f32});
  params.decayed = per_mask(decayed_array, score_array, {score_array.dtype()});
  params.kernel = decay_kernel_of(kernel);
  params.sigma = static_cast<float>(sigma);
  launch_on(score_array.device(), stream, params, matrix_nms_cpu, FASTSEG_CUDA(matrix_nms_cuda));
}

void select(const py::object& scores, const py::object& decayed, const py::object& labels,
            const py::object& kept_scores, const py::object& kept_labels, const py::object& indices,
            const py::object& count, double threshold, bool skip_absent, uintptr_t stream) {
  const Array score_array(scores, "scores"), decayed_array(decayed, "decayed");
  const Array label_array(labels, "labels"), index_array(indices, "indices");
  const Array kept_score_array(kept_scores, "kept_scores");
  const Array kept_label_array(kept_labels, "kept_labels"), count_array(count, "count");
  MatrixNmsSelectParams params;
  params.scores = view_scores(score_array);
  params.decayed = per_mask(decayed_array, score_array, {score_array.dtype()});
  params.labels = per_mask(label_array, score_array, {DType::i64});
  index_array.expect_shape({score_array.size(0), -1}).expect_device(score_array);
  params.indices = index_array.expect_dtype({DType::i64}).view<2>();
  params.kept_scores = per_mask(kept_score_array, index_array, {score_array.dtype()});
  params.kept_labels = per_mask(kept_label_array, index_array, {DType::i64});
  count_array.expect_shape({score_array.size(0)}).expect_device(score_array);
  params.count = count_array.expect_dtype({DType::i64}).view<1>();
  params.threshold = threshold;
  params.skip_absent = skip_absent;
  launch_on(score_array.device(), stream, params, matrix_nms_select_cpu,
            FASTSEG_CUDA(matrix_nms_select_cuda));
}

}  // namespace

void bind_matrix_nms(py::module_& module) {
  module.def("matrix_nms", &decay, py::arg("intersections"), py::arg("areas"), py::arg("labels"),
             py::arg("scores"), py::arg("divisors"), py::arg("decayed"), py::arg("kernel"),
             py::arg("sigma"), py::arg("stream") = 0);
  module.def("matrix_nms_select", &select, py::arg("scores"), py::arg("decayed"), py::arg("labels"),
             py::arg("kept_scores"), py::arg("kept_labels"), py::arg("indices"), py::arg("count"),
             py::arg("threshold"), py::arg("skip_absent"), py::arg("stream") = 0);
}

}  // namespace fastseg
