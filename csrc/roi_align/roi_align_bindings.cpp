#include "bindings/array.h"
#include "roi_align/roi_align.h"

namespace fastseg {
namespace {

LevelRule level_rule_of(const std::string& name) {
  if (name == "torchvision") return LevelRule::torchvision;
  if (name == "detectron2") return LevelRule::detectron2;
  if (name == "mmdet") return LevelRule::mmdet;
  throw py::value_error(
      message("level_rule must be 'torchvision', 'detectron2' or 'mmdet', got '", name, "'"));
}

RoIAlignParams make_params(const std::vector<Array>& features, const Array& boxes,
                           const Array& output, const std::vector<double>& spatial_scales,
                           int sampling_ratio, bool aligned, const std::string& level_rule,
                           double canonical_scale, int canonical_level) {
  FASTSEG_CHECK(!features.empty() && features.size() <= kMaxLevels, "features must have 1 to ",
                kMaxLevels, " levels, got ", features.size());
  FASTSEG_CHECK(features.size() == spatial_scales.size(), "spatial_scales must have one entry per ",
                "level (", features.size(), "), got ", spatial_scales.size());
  const DType dtype = output.dtype();
  boxes.expect_shape({-1, 5}).expect_device(output);
  boxes.expect_dtype({dtype == DType::f64 ? DType::f64 : DType::f32});
  RoIAlignParams params;
  params.num_levels = static_cast<int>(features.size());
  for (int level = 0; level < params.num_levels; ++level) {
    features[level].expect_device(output);
    params.features[level] = features[level].view<4>();
    features[level].expect_shape({params.features[0].size[0], params.features[0].size[1], -1, -1});
    params.spatial_scale[level] = spatial_scales[level];
  }
  output.expect_shape({boxes.size(0), features[0].size(1), -1, -1});
  params.boxes = boxes.view<2>();
  params.output = output.view<4>();
  params.sampling_ratio = sampling_ratio;
  params.aligned = aligned;
  params.level_rule = level_rule_of(level_rule);
  params.canonical_scale = canonical_scale;
  params.canonical_level = canonical_level;
  params.first_level = static_cast<int>(std::lround(-std::log2(spatial_scales[0])));
  return params;
}

std::vector<Array> arrays(const py::sequence& objects, const char* name) {
  std::vector<Array> result;
  for (py::handle object : objects) result.emplace_back(object, name);
  return result;
}

void forward(const py::sequence& features, const py::object& boxes, const py::object& output,
             const std::vector<double>& spatial_scales, int sampling_ratio, bool aligned,
             const std::string& level_rule, double canonical_scale, int canonical_level,
             uintptr_t stream) {
  const std::vector<Array> maps = arrays(features, "features");
  const Array box_array(boxes, "boxes"), out(output, "output");
  for (const Array& map : maps) map.expect_dtype({out.dtype()});
  const RoIAlignParams params = make_params(maps, box_array, out, spatial_scales, sampling_ratio,
                                            aligned, level_rule, canonical_scale, canonical_level);
  launch_on(out.device(), stream, params, roi_align_forward_cpu,
            FASTSEG_CUDA(roi_align_forward_cuda));
}

void backward(const py::object& grad_output, const py::object& boxes,
              const py::sequence& grad_features, const std::vector<double>& spatial_scales,
              int sampling_ratio, bool aligned, const std::string& level_rule,
              double canonical_scale, int canonical_level, uintptr_t stream) {
  const std::vector<Array> maps = arrays(grad_features, "grad_features");
  const Array box_array(boxes, "boxes"), grad(grad_output, "grad_output");
  const DType accumulate = grad.dtype() == DType::f64 ? DType::f64 : DType::f32;
  for (const Array& map : maps) map.expect_dtype({accumulate});
  const RoIAlignParams params = make_params(maps, box_array, grad, spatial_scales, sampling_ratio,
                                            aligned, level_rule, canonical_scale, canonical_level);
  launch_on(grad.device(), stream, params, roi_align_backward_cpu,
            FASTSEG_CUDA(roi_align_backward_cuda));
}

}  // namespace

void bind_roi_align(py::module_& module) {
  module.def("roi_align_forward", &forward, py::arg("features"), py::arg("boxes"),
             py::arg("output"), py::arg("spatial_scales"), py::arg("sampling_ratio"),
             py::arg("aligned"), py::arg("level_rule"), py::arg("canonical_scale"),
             py::arg("canonical_level"), py::arg("stream") = 0);
  module.def("roi_align_backward", &backward, py::arg("grad_output"), py::arg("boxes"),
             py::arg("grad_features"), py::arg("spatial_scales"), py::arg("sampling_ratio"),
             py::arg("aligned"), py::arg("level_rule"), py::arg("canonical_scale"),
             py::arg("canonical_level"), py::arg("stream") = 0);
}

}  // namespace fastseg
