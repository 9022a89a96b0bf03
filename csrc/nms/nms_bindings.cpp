#include <limits>
#include <optional>

#include "bindings/array.h"
#include "nms/nms.h"

namespace fastseg {
namespace {

// A view with a batch dimension, which is 1 where the array has none.
template <int N>
View<N> batch_of(const Array& array) {
  if (array.ndim() == N) return array.view<N>();
  const View<N - 1> one = array.view<N - 1>();
  View<N> batch;
  batch.data = one.data;
  batch.dtype = one.dtype;
  batch.device = one.device;
  batch.size[0] = 1;
  for (int d = 1; d < N; ++d) {
    batch.size[d] = one.size[d - 1];
    batch.stride[d] = one.stride[d - 1];
  }
  return batch;
}

// What the sizes of the outputs follow from; the caller adds the outputs themselves.
NmsParams make_params(const Array& boxes, const Array& scores, const std::optional<Array>& idxs) {
  const bool batched = boxes.ndim() == 3;
  const auto expect_one_per_box = [&](const Array& array) {
    if (batched) array.expect_shape({boxes.size(0), boxes.size(1)});
    if (!batched) array.expect_shape({boxes.size(0)});
    array.expect_device(boxes);
  };
  NmsParams params;
  if (!batched) boxes.expect_shape({-1, 4});
  if (batched) boxes.expect_shape({-1, -1, 4});
  expect_one_per_box(scores);
  params.boxes = batch_of<3>(boxes);
  params.scores = batch_of<2>(scores);
  if (idxs) {
    expect_one_per_box(*idxs);
    idxs->expect_dtype({DType::i64});
    params.idxs = batch_of<2>(*idxs);
  }
  const int64_t n = params.boxes.size[1];
  FASTSEG_CHECK(n <= std::numeric_limits<int32_t>::max(), "boxes must be fewer than 2^31, got ", n);
  return params;
}

std::optional<Array> optional_array(const py::object& object, const char* name) {
  if (object.is_none()) return std::nullopt;
  return std::optional<Array>(std::in_place, object, name);
}

// Bytes of workspace that nms() needs where the boxes lie.
int64_t workspace_size([[maybe_unused]] const py::object& boxes,
                       [[maybe_unused]] const py::object& scores,
                       [[maybe_unused]] const py::object& idxs,
                       [[maybe_unused]] int64_t max_output) {
#if defined(FASTSEG_WITH_CUDA)
  const Array box_array(boxes, "boxes"), score_array(scores, "scores");
  const std::optional<Array> idx_array = optional_array(idxs, "idxs");
  NmsParams params = make_params(box_array, score_array, idx_array);
  params.indices.size[1] = max_output;
#if !defined(FASTSEG_CUDA_EMULATOR)
  if (box_array.device() == kCpuDevice) return 0;
#endif
  return nms_workspace_size(params);
#else
  return 0;
#endif
}

void nms(const py::object& boxes, const py::object& scores, const py::object& idxs,
         const py::object& indices, const py::object& count, const py::object& workspace,
         double iou_threshold, bool skip_absent, uintptr_t stream) {
  const Array box_array(boxes, "boxes"), score_array(scores, "scores");
  const std::optional<Array> idx_array = optional_array(idxs, "idxs");
  const Array index_array(indices, "indices"), count_array(count, "count");
  const std::optional<Array> workspace_array = optional_array(workspace, "workspace");
  NmsParams params = make_params(box_array, score_array, idx_array);
  index_array.expect_device(box_array).expect_dtype({DType::i64});
  count_array.expect_device(box_array).expect_dtype({DType::i64});
  params.indices = batch_of<2>(index_array);
  params.count = batch_of<1>(count_array);
  FASTSEG_CHECK(params.indices.size[0] == params.boxes.size[0] &&
                    params.count.size[0] == params.boxes.size[0],
                "indices and count must have one row per image (", params.boxes.size[0],
                "), got shapes ", index_array.shape(), " and ", count_array.shape());
  params.iou_threshold = iou_threshold;
  params.skip_absent = skip_absent;
  const int64_t needed = workspace_size(boxes, scores, idxs, params.indices.size[1]);
  if (workspace_array) {
    workspace_array->expect_device(box_array).expect_dtype({DType::u8});
    params.workspace = workspace_array->view<1>();
  }
  FASTSEG_CHECK(params.workspace.size[0] >= needed, "workspace must have ", needed,
                " bytes (see nms_workspace_size), got ", params.workspace.size[0]);
  launch_on(box_array.device(), stream, params, nms_cpu, FASTSEG_CUDA(nms_cuda));
}

}  // namespace

void bind_nms(py::module_& module) {
  module.def("nms_workspace_size", &workspace_size, py::arg("boxes"), py::arg("scores"),
             py::arg("idxs"), py::arg("max_output"));
  module.def("nms", &nms, py::arg("boxes"), py::arg("scores"), py::arg("idxs"), py::arg("indices"),
             py::arg("count"), py::arg("workspace"), py::arg("iou_threshold"),
             py::arg("skip_absent"), py::arg("stream") = 0);
}

}  // namespace fastseg
