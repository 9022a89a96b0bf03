#include "bindings/array.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace fastseg {
namespace {

// The levels of `value` as Python names them: `shapes` and `starts` are None or int64 arrays; where
// they are None, the lists hold 2 L and L numbers.
struct Levels {
  py::object shapes, starts;
  std::vector<int64_t> shape_list, start_list;
};

int64_t integer_at(const Array& array, int64_t row, int64_t column) {
  return array.ndim() == 2 ? *array.view<2>().at<int64_t>(row, column)
                           : *array.view<1>().at<int64_t>(row);
}

void check_levels(const LevelTable& table, int64_t count, int64_t rows) {
  for (int64_t l = 0; l < count; ++l) {
    const int64_t height = table.height[l], width = table.width[l], start = table.start[l];
    FASTSEG_CHECK(height >= 0 && width >= 0 && start >= 0, "spatial_shapes[", l, "] = (", height,
                  ", ", width, ") and level_start_index[", l, "] = ", start,
                  " must not be negative");
    FASTSEG_CHECK(start <= rows && (width == 0 || height <= (rows - start) / width), "value has ",
                  rows, " rows, too few for spatial_shapes[", l, "] = (", height, ", ", width,
                  ") from row ", start, " on");
  }
}

LevelTable read_levels(const Levels& levels, int64_t count, const Array& value) {
  FASTSEG_CHECK(count >= 1 && count <= kMaxAttentionLevels, "there must be 1 to ",
                kMaxAttentionLevels, " levels, got ", count);
  LevelTable table;
  if (!levels.shapes.is_none()) {
    const Array shapes(levels.shapes, "spatial_shapes");
    shapes.expect_dtype({DType::i64}).expect_shape({count, 2}).expect_device(value);
    if (shapes.device() != kCpuDevice) table.shapes = shapes.view<2>();
    for (int64_t l = 0; l < count && shapes.device() == kCpuDevice; ++l) {
      table.height[l] = integer_at(shapes, l, 0);
      table.width[l] = integer_at(shapes, l, 1);
    }
  } else {
    FASTSEG_CHECK(static_cast<int64_t>(levels.shape_list.size()) == 2 * count,
                  "spatial_shapes must have one entry per level (", count, "), got ",
                  levels.shape_list.size() / 2);
    for (int64_t l = 0; l < count; ++l) {
      table.height[l] = levels.shape_list[2 * l];
      table.width[l] = levels.shape_list[2 * l + 1];
    }
  }
  if (!levels.starts.is_none()) {
    const Array starts(levels.starts, "level_start_index");
    starts.expect_dtype({DType::i64}).expect_shape({count}).expect_device(value);
    if (starts.device() != kCpuDevice) table.starts = starts.view<1>();
    for (int64_t l = 0; l < count && starts.device() == kCpuDevice; ++l) {
      table.start[l] = integer_at(starts, l, 0);
    }
  } else {
    FASTSEG_CHECK(static_cast<int64_t>(levels.start_list.size()) == count,
                  "level_start_index must have one entry per level (", count, "), got ",
                  levels.start_list.size());
    for (int64_t l = 0; l < count; ++l) table.start[l] = levels.start_list[l];
  }
  // Into a GPU's memory only the kernel can look; starts that lie there are 0 in the table.
  if (table.shapes.data == nullptr) check_levels(table, count, value.size(1));
  return table;
}

MsDeformAttnParams make_params(const Array& value, const Levels& levels,
                               const py::object& references, const Array& locations,
                               const Array& weights, const Array& output) {
  const DType accumulate = value.dtype() == DType::f64 ? DType::f64 : DType::f32;
  MsDeformAttnParams params;
  params.value = value.view<4>();
  FASTSEG_CHECK(value.size(1) <= INT32_MAX, "value must have fewer than 2^31 rows, got ",
                value.size(1));
  locations.expect_dtype({accumulate}).expect_device(value);
  locations.expect_shape({value.size(0), -1, value.size(2), -1, -1, 2});
  params.locations = locations.view<6>();
  const int64_t* size = params.locations.size;
  weights.expect_dtype({accumulate}).expect_device(value);
  weights.expect_shape({size[0], size[1], size[2], size[3], size[4]});
  params.weights = weights.view<5>();
  output.expect_dtype({value.dtype()}).expect_device(value);
  output.expect_shape({size[0], size[1], size[2], value.size(3)});
  params.output = output.view<4>();
  if (!references.is_none()) {
    const Array points(references, "reference_points");
    points.expect_dtype({accumulate}).expect_device(value);
    params.references = points.expect_shape({size[0], size[1], size[3], -1}).view<4>();
    const int64_t numbers = points.size(3);
    FASTSEG_CHECK(numbers == 2 || numbers == 4,
                  "reference_points must have 2 or 4 numbers per point, got ", numbers);
  }
  params.levels = read_levels(levels, size[3], value);
  return params;
}

// The names that the tensors have where the caller gives reference points, and else.
const char* name_of_locations(const py::object& references) {
  return references.is_none() ? "sampling_locations" : "sampling_offsets";
}
const char* name_of_weights(const py::object& references) {
  return references.is_none() ? "attention_weights" : "attention_logits";
}

void forward(const py::object& value, const py::object& shapes, const py::object& starts,
             const std::vector<int64_t>& shape_list, const std::vector<int64_t>& start_list,
             const py::object& references, const py::object& locations, const py::object& weights,
             const py::object& output, uintptr_t stream) {
  const Array value_array(value, "value"), output_array(output, "output");
  const Array location_array(locations, name_of_locations(references));
  const Array weight_array(weights, name_of_weights(references));
  const MsDeformAttnParams params =
      make_params(value_array, {shapes, starts, shape_list, start_list}, references, location_array,
                  weight_array, output_array);
  launch_on(value_array.device(), stream, params, ms_deform_attn_forward_cpu,
            FASTSEG_CUDA(ms_deform_attn_forward_cuda));
}

void backward(const py::object& grad_output, const py::object& value, const py::object& shapes,
              const py::object& starts, const std::vector<int64_t>& shape_list,
              const std::vector<int64_t>& start_list, const py::object& references,
              const py::object& locations, const py::object& weights, const py::object& grad_value,
              const py::object& grad_references, const py::object& grad_locations,
              const py::object& grad_weights, const py::object& units, uintptr_t stream) {
  const Array value_array(value, "value"), grad(grad_output, "grad_output");
  const Array location_array(locations, name_of_locations(references));
  const Array weight_array(weights, name_of_weights(references));
  MsDeformAttnBackwardParams params;
  params.forward = make_params(value_array, {shapes, starts, shape_list, start_list}, references,
                               location_array, weight_array, grad);
  const DType accumulate = weight_array.dtype();
  const int64_t* size = params.forward.locations.size;
  const Array value_grad(grad_value, "grad_value"), location_grad(grad_locations, "grad_locations");
  const Array weight_grad(grad_weights, "grad_weights");
  value_grad.expect_dtype({units.is_none() ? accumulate : DType::i64}).expect_device(value_array);
  value_grad.expect_shape({size[0], value_array.size(1), size[2], value_array.size(3)});
  location_grad.expect_dtype({accumulate}).expect_device(value_array);
  location_grad.expect_shape({size[0], size[1], size[2], size[3], size[4], 2});
  weight_grad.expect_dtype({accumulate}).expect_device(value_array);
  weight_grad.expect_shape({size[0], size[1], size[2], size[3], size[4]});
  params.grad_value = value_grad.view<4>();
  params.grad_locations = location_grad.view<6>();
  params.grad_weights = weight_grad.view<5>();
  if (!grad_references.is_none()) {
    const Array reference_grad(grad_references, "grad_references");
    reference_grad.expect_dtype({accumulate}).expect_device(value_array);
    reference_grad.expect_shape(
        {size[0], size[1], size[2], size[3], params.forward.references.size[3]});
    params.grad_references = reference_grad.view<5>();
  }
  if (!units.is_none()) {
    const Array unit_array(units, "units");
    unit_array.expect_dtype({DType::f64}).expect_device(value_array).expect_shape({1});
    params.units = unit_array.view<1>();
  }
  launch_on(value_array.device(), stream, params, ms_deform_attn_backward_cpu,
            FASTSEG_CUDA(ms_deform_attn_backward_cuda));
}

}  // namespace

void bind_ms_deform_attn(py::module_& module) {
  module.def("ms_deform_attn_forward", &forward, py::arg("value"), py::arg("shapes"),
             py::arg("starts"), py::arg("shape_list"), py::arg("start_list"),
             py::arg("reference_points"), py::arg("locations"), py::arg("weights"),
             py::arg("output"), py::arg("stream") = 0);
  module.def("ms_deform_attn_backward", &backward, py::arg("grad_output"), py::arg("value"),
             py::arg("shapes"), py::arg("starts"), py::arg("shape_list"), py::arg("start_list"),
             py::arg("reference_points"), py::arg("locations"), py::arg("weights"),
             py::arg("grad_value"), py::arg("grad_references"), py::arg("grad_locations"),
             py::arg("grad_weights"), py::arg("units"), py::arg("stream") = 0);
}

}  // namespace fastseg
