#include <limits>
#include <optional>

#include "bindings/array.h"
#include "nms/nms.h"

namespace fastseg {
namespace {

void nms(const py::object& boxes, const py::object& scores, const py::object& idxs,
         const py::object& indices, const py::object& count, double iou_threshold, bool skip_absent,
         uintptr_t stream) {
  const Array box_array(boxes, "boxes"), score_array(scores, "scores");
  const Array index_array(indices, "indices"), count_array(count, "count");
  box_array.expect_shape({-1, -1, 4});
  const int64_t batch = box_array.size(0), n = box_array.size(1);
  FASTSEG_CHECK(n <= std::numeric_limits<int32_t>::max(), "boxes must be fewer than 2^31, got ", n);
  score_array.expect_shape({batch, n}).expect_device(box_array);
  index_array.expect_shape({batch, -1}).expect_device(box_array).expect_dtype({DType::i64});
  count_array.expect_shape({batch}).expect_device(box_array).expect_dtype({DType::i64});

  NmsParams params;
  params.boxes = box_array.view<3>();
  params.scores = score_array.view<2>();
  params.indices = index_array.view<2>();
  params.count = count_array.view<1>();
  params.iou_threshold = iou_threshold;
  params.skip_absent = skip_absent;
  std::optional<Array> class_array;
  if (!idxs.is_none()) {
    class_array.emplace(idxs, "idxs");
    class_array->expect_shape({batch, n}).expect_device(box_array).expect_dtype({DType::i64});
    params.idxs = class_array->view<2>();
  }
  launch_on(box_array.device(), stream, params, nms_cpu, FASTSEG_CUDA(nms_cuda));
}

}  // namespace

void bind_nms(py::module_& module) {
  module.def("nms", &nms, py::arg("boxes"), py::arg("scores"), py::arg("idxs"), py::arg("indices"),
             py::arg("count"), py::arg("iou_threshold"), py::arg("skip_absent"),
             py::arg("stream") = 0);
}

}  // namespace fastseg
