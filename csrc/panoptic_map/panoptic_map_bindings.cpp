#include "bindings/resize_steps.h"
#include "panoptic_map/panoptic_map.h"

namespace fastseg {
namespace {

// The size is that of `winners` [H, W]. `areas` [3, Q] are zeros.
void panoptic_map(const py::object& mask_logits, const py::object& scores,
                  const py::object& winners, const py::object& areas, const Sides& via,
                  const Sides& crop, bool inside_only, uintptr_t stream) {
  const Array masks(mask_logits, "mask_logits"), score_array(scores, "scores");
  const Array winner_array(winners, "winners"), area_array(areas, "areas");
  PanopticMapParams params;
  winner_array.expect_dtype({DType::i32}).expect_device(masks);
  params.winners = winner_array.view<2>();
  params.steps =
      read_resize_steps(masks, {params.winners.size[0], params.winners.size[1]}, via, crop);
  params.masks = masks.view<3>();
  params.inside_only = inside_only;
  FASTSEG_CHECK(masks.size(0) < 0x7fffffff, "mask_logits must be fewer than 2^31 masks, got ",
                masks.size(0));
  score_array.expect_dtype({DType::f32}).expect_device(masks).expect_shape({masks.size(0)});
  params.scores = score_array.view<1>();
  area_array.expect_dtype({DType::i64}).expect_device(masks).expect_shape({3, masks.size(0)});
  params.areas = area_array.view<2>();
  FASTSEG_CHECK(params.winners.stride[1] == 1 && params.winners.stride[0] == winner_array.size(1),
                "winners must be contiguous");
  FASTSEG_CHECK(masks.size(0) == 0 ||
                    (params.areas.stride[1] == 1 && params.areas.stride[0] == masks.size(0)),
                "areas must be contiguous");
  launch_on(masks.device(), stream, params, panoptic_map_cpu, FASTSEG_CUDA(panoptic_map_cuda));
}

}  // namespace

void bind_panoptic_map(py::module_& module) {
  module.def("panoptic_map", &panoptic_map, py::arg("mask_logits"), py::arg("scores"),
             py::arg("winners"), py::arg("areas"), py::arg("via"), py::arg("crop"),
             py::arg("inside_only"), py::arg("stream") = 0);
}

}  // namespace fastseg
