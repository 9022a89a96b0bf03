#include <array>

#include "bindings/array.h"
#include "deform_conv/deform_conv.h"

namespace fastseg {
namespace {

using Pair = std::array<int64_t, 2>;  // along y, along x

void set_pair(int64_t* target, const Pair& pair, const char* name, int64_t least) {
  FASTSEG_CHECK(pair[0] >= least && pair[1] >= least, name, " must be at least ", least, ", got (",
                pair[0], ", ", pair[1], ")");
  std::copy(pair.begin(), pair.end(), target);
}

using Geometry = std::array<Pair, 4>;  // kernel, stride, padding, dilation

// Where samples are read.
DeformConvParams sampling_params(const Array& input, const Array& offset, const py::object& mask,
                                 const Geometry& geometry, int64_t offset_groups) {
  DeformConvParams p;
  set_pair(p.kernel, geometry[0], "kernel", 1);
  set_pair(p.stride, geometry[1], "stride", 1);
  set_pair(p.padding, geometry[2], "padding", 0);
  set_pair(p.dilation, geometry[3], "dilation", 1);
  const int64_t taps = p.kernel[0] * p.kernel[1];
  const DType accumulate = input.dtype() == DType::f64 ? DType::f64 : DType::f32;
  p.input = input.view<4>();
  const int64_t batch = p.input.size[0], channels = p.input.size[1];
  FASTSEG_CHECK(channels == 1 || p.input.stride[1] == 1, "input must be channels-last");
  FASTSEG_CHECK(offset_groups > 0 && channels % offset_groups == 0,
                "offset_groups must divide the ", channels, " channels of input, got ",
                offset_groups);
  p.offset_groups = offset_groups;
  offset.expect_shape({batch, 2 * offset_groups * taps, -1, -1}).expect_dtype({accumulate});
  p.offset = offset.expect_device(input).view<4>();
  if (!mask.is_none()) {
    const Array array(mask, "mask");
    array.expect_shape({batch, offset_groups * taps, p.offset.size[2], p.offset.size[3]});
    p.mask = array.expect_dtype({accumulate}).expect_device(input).view<4>();
  }
  return p;
}

// A tile of columns, for both directions.
DeformConvParams make_params(const Array& input, const Array& offset, const py::object& mask,
                             const Array& columns, const Geometry& geometry, int64_t offset_groups,
                             int64_t first) {
  DeformConvParams p = sampling_params(input, offset, mask, geometry, offset_groups);
  const int64_t taps = p.kernel[0] * p.kernel[1];
  const int64_t channels = p.input.size[1];
  p.columns = columns.expect_device(input).view<3>();
  p.groups = p.columns.size[0];
  FASTSEG_CHECK(p.groups > 0 && channels % p.groups == 0, "columns must have groups that divide ",
                channels, " channels, got shape ", columns.shape());
  columns.expect_shape({-1, -1, taps * channels / p.groups});
  FASTSEG_CHECK(p.columns.stride[2] == 1 && p.columns.stride[1] == p.columns.size[2],
                "columns must be dense");
  const int64_t pixels = p.input.size[0] * p.offset.size[2] * p.offset.size[3];
  FASTSEG_CHECK(first >= 0 && first + p.columns.size[1] <= pixels, "pixels ", first, " to ",
                first + p.columns.size[1], " exceed the ", pixels, " of the output");
  p.first = first;
  return p;
}

void sample(const py::object& input, const py::object& offset, const py::object& mask,
            const py::object& columns, const Geometry& geometry, int64_t offset_groups,
            int64_t first, uintptr_t stream) {
  const Array input_array(input, "input"), offset_array(offset, "offset");
  const Array column_array(columns, "columns");
  const DeformConvParams params =
      make_params(input_array, offset_array, mask, column_array, geometry, offset_groups, first);
  launch_on(input_array.device(), stream, params, deform_conv_sample_cpu,
            FASTSEG_CUDA(deform_conv_sample_cuda));
}

// Checks the gradients that are to be written, and puts them in `p`.
void set_gradients(DeformConvParams& p, const Array& input, const py::object& grad_input,
                   const py::object& grad_offset, const py::object& grad_mask,
                   const py::object& units) {
  const DType accumulate = p.offset.dtype;
  const Array grad_array(grad_input, "grad_input"), grad_offset_array(grad_offset, "grad_offset");
  grad_array.expect_shape({p.input.size[0], p.input.size[1], p.input.size[2], p.input.size[3]});
  p.grad_input = grad_array.expect_device(input).view<4>();
  FASTSEG_CHECK(p.input.size[1] == 1 || p.grad_input.stride[1] == 1,
                "grad_input must be channels-last");
  grad_offset_array.expect_shape(
      {p.offset.size[0], p.offset.size[1], p.offset.size[2], p.offset.size[3]});
  p.grad_offset = grad_offset_array.expect_dtype({accumulate}).expect_device(input).view<4>();
  FASTSEG_CHECK((p.mask.data == nullptr) == grad_mask.is_none(),
                "grad_mask must be given with mask alone");
  if (!grad_mask.is_none()) {
    const Array array(grad_mask, "grad_mask");
    array.expect_shape({p.mask.size[0], p.mask.size[1], p.mask.size[2], p.mask.size[3]});
    p.grad_mask = array.expect_dtype({accumulate}).expect_device(input).view<4>();
  }
  if (units.is_none()) {
    grad_array.expect_dtype({accumulate});
  } else {
    const Array array(units, "units");
    array.expect_shape({1}).expect_dtype({accumulate}).expect_device(input);
    grad_array.expect_dtype({DType::i64});
    p.units = array.view<1>().data;
  }
}

void backward(const py::object& input, const py::object& offset, const py::object& mask,
              const py::object& columns, const Geometry& geometry, int64_t offset_groups,
              int64_t first, const py::object& grad_input, const py::object& grad_offset,
              const py::object& grad_mask, const py::object& units, uintptr_t stream) {
  const Array input_array(input, "input"), offset_array(offset, "offset");
  const Array column_array(columns, "columns");
  DeformConvParams p =
      make_params(input_array, offset_array, mask, column_array, geometry, offset_groups, first);
  set_gradients(p, input_array, grad_input, grad_offset, grad_mask, units);
  launch_on(input_array.device(), stream, p, deform_conv_backward_cpu,
            FASTSEG_CUDA(deform_conv_backward_cuda));
}

void groups(const py::object& left, const py::object& right, const py::object& sums, bool add) {
  const Array left_array(left, "left"), right_array(right, "right"), sums_array(sums, "sums");
  DeformConvGroupsParams p;
  p.sums = sums_array.expect_dtype({DType::f32, DType::f64}).view<3>();
  p.left = left_array.expect_dtype({p.sums.dtype}).expect_device(sums_array).view<3>();
  left_array.expect_shape({p.sums.size[0], -1, p.sums.size[2]});
  right_array.expect_shape({p.left.size[1], p.sums.size[1], p.sums.size[2]});
  p.right = right_array.expect_dtype({p.sums.dtype}).expect_device(sums_array).view<3>();
  FASTSEG_CHECK(sums_array.device() == kCpuDevice, "sums must be on the CPU");
  for (const View<3>& view : {p.left, p.right, p.sums}) {
    FASTSEG_CHECK(view.stride[2] == 1 || view.size[2] == 1, "groups must lie side by side");
  }
  p.add = add;
  const py::gil_scoped_release release;
  deform_conv_groups_cpu(p);
}

template <int N>
bool is_dense(const View<N>& view) {
  int64_t stride = 1;
  for (int d = N - 1; d >= 0; --d) {
    if (view.size[d] != 1 && view.stride[d] != stride) return false;
    stride *= view.size[d];
  }
  return true;
}

template <class Params>
void fused_on_cpu(const Params&) {
  throw py::value_error("input must be on CUDA; the CPU multiplies tiles of columns");
}

void product(const py::object& input, const py::object& offset, const py::object& mask,
             const py::object& weights, const py::object& bias, const py::object& output,
             const Geometry& geometry, int64_t offset_groups, bool exact, uintptr_t stream) {
  const Array input_array(input, "input"), offset_array(offset, "offset");
  const Array weight_array(weights, "weights"), output_array(output, "output");
  DeformConvProductParams q;
  q.sampling = sampling_params(input_array, offset_array, mask, geometry, offset_groups);
  const DeformConvParams& p = q.sampling;
  const DType dtype = input_array.dtype();
  weight_array.expect_shape({-1, p.kernel[0] * p.kernel[1] * p.input.size[1]});
  q.weights = weight_array.expect_dtype({dtype}).expect_device(input_array).view<2>();
  FASTSEG_CHECK(is_dense(q.weights), "weights must be dense");
  output_array.expect_shape(
      {p.input.size[0], q.weights.size[0], p.offset.size[2], p.offset.size[3]});
  q.output = output_array.expect_dtype({dtype}).expect_device(input_array).view<4>();
  if (!bias.is_none()) {
    const Array array(bias, "bias");
    array.expect_shape({q.weights.size[0]}).expect_dtype({dtype}).expect_device(input_array);
    q.bias = array.view<1>();
  }
  q.exact = exact;
  launch_on(input_array.device(), stream, q, fused_on_cpu<DeformConvProductParams>,
            FASTSEG_CUDA(deform_conv_product_cuda));
}

void gradients(const py::object& input, const py::object& offset, const py::object& mask,
               const py::object& weights, const py::object& grad_output, const Geometry& geometry,
               int64_t offset_groups, bool exact, const py::object& grad_input,
               const py::object& grad_offset, const py::object& grad_mask, const py::object& units,
               const py::object& partials, uintptr_t stream) {
  const Array input_array(input, "input"), offset_array(offset, "offset");
  const Array weight_array(weights, "weights"), grad_array(grad_output, "grad_output");
  const Array partial_array(partials, "partials");
  DeformConvGradientParams q;
  q.sampling = sampling_params(input_array, offset_array, mask, geometry, offset_groups);
  DeformConvParams& p = q.sampling;
  set_gradients(p, input_array, grad_input, grad_offset, grad_mask, units);
  const DType dtype = input_array.dtype();
  const int64_t columns = p.kernel[0] * p.kernel[1] * p.input.size[1];
  weight_array.expect_shape({columns, -1}).expect_dtype({dtype}).expect_device(input_array);
  q.weights = weight_array.view<2>();
  const int64_t pixels = p.input.size[0] * p.offset.size[2] * p.offset.size[3];
  grad_array.expect_shape({pixels, q.weights.size[1]}).expect_dtype({dtype});
  q.grad_output = grad_array.expect_device(input_array).view<2>();
  partial_array.expect_shape({-1, q.weights.size[1], columns}).expect_dtype({DType::f32});
  q.partials = partial_array.expect_device(input_array).view<3>();
  FASTSEG_CHECK(is_dense(q.weights), "weights must be dense");
  FASTSEG_CHECK(is_dense(q.grad_output), "grad_output must be dense");
  FASTSEG_CHECK(is_dense(q.partials) && q.partials.size[0] > 0,
                "partials must be dense and of at least 1 share, got shape ",
                partial_array.shape());
  q.exact = exact;
  launch_on(input_array.device(), stream, q, fused_on_cpu<DeformConvGradientParams>,
            FASTSEG_CUDA(deform_conv_gradients_cuda));
}

}  // namespace

void bind_deform_conv(py::module_& module) {
  module.def("deform_conv_sample", &sample, py::arg("input"), py::arg("offset"), py::arg("mask"),
             py::arg("columns"), py::arg("geometry"), py::arg("offset_groups"), py::arg("first"),
             py::arg("stream") = 0);
  module.def("deform_conv_backward", &backward, py::arg("input"), py::arg("offset"),
             py::arg("mask"), py::arg("columns"), py::arg("geometry"), py::arg("offset_groups"),
             py::arg("first"), py::arg("grad_input"), py::arg("grad_offset"), py::arg("grad_mask"),
             py::arg("units"), py::arg("stream") = 0);
  module.def("deform_conv_groups", &groups, py::arg("left"), py::arg("right"), py::arg("sums"),
             py::arg("add"));
  module.def("deform_conv_product", &product, py::arg("input"), py::arg("offset"), py::arg("mask"),
             py::arg("weights"), py::arg("bias"), py::arg("output"), py::arg("geometry"),
             py::arg("offset_groups"), py::arg("exact"), py::arg("stream") = 0);
  module.def("deform_conv_gradients", &gradients, py::arg("input"), py::arg("offset"),
             py::arg("mask"), py::arg("weights"), py::arg("grad_output"), py::arg("geometry"),
             py::arg("offset_groups"), py::arg("exact"), py::arg("grad_input"),
             py::arg("grad_offset"), py::arg("grad_mask"), py::arg("units"), py::arg("partials"),
             py::arg("stream") = 0);
}

}  // namespace fastseg
