#include "bindings/resize_steps.h"
#include "semantic_map/semantic_map.h"

namespace fastseg {
namespace {

template <int N>
void check_contiguous(const Array& array) {
  const View<N> view = array.view<N>();
  int64_t expected = 1;
  for (int d = N - 1; d >= 0; --d) {
    FASTSEG_CHECK(view.numel() == 0 || view.size[d] == 1 || view.stride[d] == expected,
                  array.name(), " must be contiguous");
    expected *= view.size[d];
  }
}

// Rows from `first_row` on of masks resized to `size`; `output` [Q, rows, columns].
void mask_probabilities(const py::object& mask_logits, const py::object& output, int64_t first_row,
                        const Sides& size, const Sides& via, const Sides& crop, uintptr_t stream) {
  const Array masks(mask_logits, "mask_logits"), out(output, "output");
  MaskProbabilitiesParams params;
  params.steps = read_resize_steps(masks, size, via, crop);
  params.masks = masks.view<3>();
  params.first_row = first_row;
  out.expect_dtype({DType::f32}).expect_device(masks).expect_shape({masks.size(0), -1, -1});
  check_contiguous<3>(out);
  params.output = out.view<3>();
  FASTSEG_CHECK(first_row >= 0 && first_row + out.size(1) <= size[0] && out.size(2) <= size[1],
                "output must lie within the size, got shape ", out.shape(), " from row ",
                first_row);
  launch_on(masks.device(), stream, params, mask_probabilities_cpu,
            FASTSEG_CUDA(mask_probabilities_cuda));
}

// The first row and the number of all rows, of `scores` and of `labels`.
void resized_argmax(const py::object& scores, const py::object& labels,
                    std::pair<int64_t, int64_t> score_rows, std::pair<int64_t, int64_t> rows,
                    uintptr_t stream) {
  const Array score_array(scores, "scores"), label_array(labels, "labels");
  score_array.expect_dtype({DType::f32}).expect_shape({-1, -1, -1});
  label_array.expect_dtype({DType::i32}).expect_device(score_array).expect_shape({-1, -1});
  check_contiguous<3>(score_array);
  check_contiguous<2>(label_array);
  const ResizedArgmaxParams params = {score_array.view<3>(), score_rows.first,
                                      score_rows.second,     rows.first,
                                      rows.second,           label_array.view<2>()};
  FASTSEG_CHECK(params.scores.numel() > 0 && score_rows.first >= 0 &&
                    score_rows.first + params.scores.size[1] <= score_rows.second &&
                    rows.first >= 0 && rows.first + params.labels.size[0] <= rows.second,
                "scores and labels must lie within their rows, got shapes ", score_array.shape(),
                " and ", label_array.shape());
  launch_on(score_array.device(), stream, params, resized_argmax_cpu,
            FASTSEG_CUDA(resized_argmax_cuda));
}

}  // namespace

void bind_semantic_map(py::module_& module) {
  module.def("mask_probabilities", &mask_probabilities, py::arg("mask_logits"), py::arg("output"),
             py::arg("first_row"), py::arg("size"), py::arg("via"), py::arg("crop"),
             py::arg("stream") = 0);
  module.def("resized_argmax", &resized_argmax, py::arg("scores"), py::arg("labels"),
             py::arg("score_rows"), py::arg("rows"), py::arg("stream") = 0);
}

}  // namespace fastseg
