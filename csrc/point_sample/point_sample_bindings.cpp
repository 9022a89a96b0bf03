#include "bindings/array.h"
#include "point_sample/point_sample.h"

namespace fastseg {
namespace {

DType accumulation_of(const Array& array) {
  return array.dtype() == DType::f64 ? DType::f64 : DType::f32;
}

// The maps, whose cells kernels number with 32 bits.
View<4> read_maps(const Array& array) {
  const View<4> maps = array.view<4>();
  const int64_t height = maps.size[2], width = maps.size[3];
  FASTSEG_CHECK(height <= INT32_MAX && width <= INT32_MAX &&
                    (height - 1) * maps.stride[2] + (width - 1) * maps.stride[3] < INT32_MAX,
                array.name(), " must have maps that span fewer than 2^31 elements, got shape ",
                array.shape());
  return maps;
}

View<3> read_points(const Array& points, const Array& other) {
  points.expect_dtype({accumulation_of(other)}).expect_device(other);
  return points.expect_shape({other.size(0), -1, 2}).view<3>();
}

void forward(const py::object& input, const py::object& points, const py::object& output,
             uintptr_t stream) {
  const Array maps(input, "input"), point_array(points, "points"), result(output, "output");
  PointSampleParams params;
  params.input = read_maps(maps);
  params.points = read_points(point_array, maps);
  result.expect_dtype({maps.dtype() == DType::boolean ? DType::f32 : maps.dtype()});
  result.expect_device(maps);
  params.output = result.expect_shape({maps.size(0), maps.size(1), point_array.size(1)}).view<3>();
  launch_on(maps.device(), stream, params, point_sample_cpu, FASTSEG_CUDA(point_sample_cuda));
}

void input_grad(const py::object& grad_output, const py::object& points,
                const py::object& grad_input, const py::object& units, uintptr_t stream) {
  const Array grad(grad_output, "grad_output"), point_array(points, "points");
  const Array result(grad_input, "grad_input");
  PointSampleInputGradParams params;
  params.grad_output = grad.view<3>();
  params.points = read_points(point_array, grad);
  grad.expect_shape({-1, -1, point_array.size(1)});
  const DType sums = units.is_none() ? accumulation_of(grad) : DType::i64;
  result.expect_dtype({sums}).expect_device(grad);
  params.grad_input = read_maps(result.expect_shape({grad.size(0), grad.size(1), -1, -1}));
  if (!units.is_none()) {
    const Array unit_array(units, "units");
    unit_array.expect_dtype({DType::f64}).expect_device(grad).expect_shape({1});
    params.units = unit_array.view<1>();
  }
  launch_on(grad.device(), stream, params, point_sample_input_grad_cpu,
            FASTSEG_CUDA(point_sample_input_grad_cuda));
}

void points_grad(const py::object& grad_output, const py::object& input, const py::object& points,
                 const py::object& grad_points, uintptr_t stream) {
  const Array grad(grad_output, "grad_output"), maps(input, "input");
  const Array point_array(points, "points"), result(grad_points, "grad_points");
  PointSamplePointsGradParams params;
  params.input = read_maps(maps);
  params.points = read_points(point_array, maps);
  grad.expect_dtype({maps.dtype()}).expect_device(maps);
  params.grad_output =
      grad.expect_shape({maps.size(0), maps.size(1), point_array.size(1)}).view<3>();
  params.grad_points = read_points(result, maps);
  result.expect_shape({maps.size(0), point_array.size(1), 2});
  launch_on(maps.device(), stream, params, point_sample_points_grad_cpu,
            FASTSEG_CUDA(point_sample_points_grad_cuda));
}

}  // namespace

void bind_point_sample(py::module_& module) {
  module.def("point_sample", &forward, py::arg("input"), py::arg("points"), py::arg("output"),
             py::arg("stream") = 0);
  module.def("point_sample_input_grad", &input_grad, py::arg("grad_output"), py::arg("points"),
             py::arg("grad_input"), py::arg("units"), py::arg("stream") = 0);
  module.def("point_sample_points_grad", &points_grad, py::arg("grad_output"), py::arg("input"),
             py::arg("points"), py::arg("grad_points"), py::arg("stream") = 0);
}

}  // namespace fastseg
