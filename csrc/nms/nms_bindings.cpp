#include <limits>
#include <optional>

#include "bindings/array.h"
#include "nms/nms.h"

namespace fastseg {
namespace {

// What the sizes of the outputs follow from; the caller adds the outputs themselves.
NmsParams make_params(const Array& boxes, const Array& scores, const std::optional<Array>& idxs) {
  boxes.expect_shape({-1, -1, 4});
  const int64_t batch = boxes.size(0), n = boxes.size(1);
  FASTSEG_CHECK(n <= std::numeric_limits<int32_t>::max(), "boxes must be fewer than 2^31, got ", n);
  scores.expect_shape({batch, n}).expect_device(boxes);
  NmsParams params;
  params.boxes = boxes.view<3>();
  params.scores = scores.view<2>();
  if (idxs) {
    idxs->expect_shape({batch, n}).expect_device(boxes).expect_dtype({DType::i64});
    params.idxs = idxs->view<2>();
  }
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
  const int64_t batch = box_array.size(0);
  index_array.expect_shape({batch, -1}).expect_device(box_array).expect_dtype({DType::i64});
  count_array.expect_shape({batch}).expect_device(box_array).expect_dtype({DType::i64});
  params.indices = index_array.view<2>();
  params.count = count_array.view<1>();
  params.iou_threshold = iou_threshold;
  params.skip_absent = skip_absent;
  const int64_t needed = workspace_size(boxes, scores, idxs, index_array.size(1));
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
