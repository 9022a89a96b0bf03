#include <algorithm>

#include "bindings/array.h"
#include "masked_attention/masked_attention_math.h"

namespace fastseg {
namespace {

DType accumulation_of(const Array& array) {
  return array.dtype() == DType::f64 ? DType::f64 : DType::f32;
}

// What a call computes from, as Python hands it over in both directions.
struct Arguments {
  Array query, key, value;
  py::object packed_mask;
  double scale;

  Arguments(const py::object& query, const py::object& key, const py::object& value,
            const py::object& packed_mask, double scale)
      : query(query, "query"),
        key(key, "key"),
        value(value, "value"),
        packed_mask(packed_mask),
        scale(scale) {}

  View<4> like(const Array& array, const Array& other) const {
    array.expect_dtype({query.dtype()}).expect_device(query);
    array.expect_shape({other.size(0), other.size(1), other.size(2), other.size(3)});
    return array.view<4>();
  }

  MaskedAttentionParams params(const Array& output, const Array& log_sums,
                               const py::object& workspace, bool tensor_cores) const {
    MaskedAttentionParams params;
    params.query = query.view<4>();
    FASTSEG_CHECK(query.size(3) >= 1 && query.size(3) <= kMaxHeadWidth,
                  "query must have heads of 1 to ", kMaxHeadWidth, " channels, got shape ",
                  query.shape());
    key.expect_dtype({query.dtype()}).expect_device(query);
    key.expect_shape({query.size(0), query.size(1), -1, query.size(3)});
    params.key = key.view<4>();
    params.value = like(value, key);
    FASTSEG_CHECK(std::max(key.size(2), query.size(2)) <= INT32_MAX,
                  "query and key must have fewer than 2^31 rows, got ", query.size(2), " and ",
                  key.size(2));
    params.output = like(output, query);
    log_sums.expect_dtype({accumulation_of(query)}).expect_device(query);
    log_sums.expect_shape({query.size(0), query.size(1), query.size(2)});
    params.log_sums = log_sums.view<3>();
    if (!packed_mask.is_none()) {
      const Array words(packed_mask, "packed_mask");
      words.expect_dtype({DType::i64}).expect_device(query);
      words.expect_shape({query.size(0), query.size(2), words_of(key.size(2))});
      params.words = words.view<3>();
    }
    params.scale = scale;
    params.tensor_cores = tensor_cores;
    if (!workspace.is_none()) {
      const Array memory(workspace, "workspace");
      memory.expect_dtype({accumulation_of(query)}).expect_device(query);
      memory.expect_shape({masked_attention_workspace(query.size(0) * query.size(1), query.size(2),
                                                      key.size(2), query.size(3))});
      params.workspace = memory.view<1>();
    }
    return params;
  }
};

void forward(const py::object& query, const py::object& key, const py::object& value,
             const py::object& packed_mask, double scale, const py::object& output,
             const py::object& log_sums, const py::object& workspace, bool tensor_cores,
             uintptr_t stream) {
  const Arguments arguments(query, key, value, packed_mask, scale);
  const Array output_array(output, "output"), sum_array(log_sums, "log_sums");
  const MaskedAttentionParams params =
      arguments.params(output_array, sum_array, workspace, tensor_cores);
  launch_on(arguments.query.device(), stream, params, masked_attention_cpu,
            FASTSEG_CUDA(masked_attention_cuda));
}

void backward(const py::object& grad_output, const py::object& query, const py::object& key,
              const py::object& value, const py::object& packed_mask, double scale,
              const py::object& output, const py::object& log_sums, const py::object& grad_query,
              const py::object& grad_key, const py::object& grad_value, const py::object& workspace,
              bool tensor_cores, uintptr_t stream) {
  const Arguments arguments(query, key, value, packed_mask, scale);
  const Array output_array(output, "output"), sum_array(log_sums, "log_sums");
  const Array grad(grad_output, "grad_output"), query_grad(grad_query, "grad_query");
  const Array key_grad(grad_key, "grad_key"), value_grad(grad_value, "grad_value");
  MaskedAttentionBackwardParams params;
  params.forward = arguments.params(output_array, sum_array, workspace, tensor_cores);
  params.grad_output = arguments.like(grad, arguments.query);
  params.grad_query = arguments.like(query_grad, arguments.query);
  params.grad_key = arguments.like(key_grad, arguments.key);
  params.grad_value = arguments.like(value_grad, arguments.key);
  launch_on(arguments.query.device(), stream, params, masked_attention_backward_cpu,
            FASTSEG_CUDA(masked_attention_backward_cuda));
}

}  // namespace

void bind_masked_attention(py::module_& module) {
  module.def("masked_attention_workspace", &masked_attention_workspace, py::arg("batch_heads"),
             py::arg("queries"), py::arg("keys"), py::arg("width"));
  module.def("masked_attention", &forward, py::arg("query"), py::arg("key"), py::arg("value"),
             py::arg("packed_mask"), py::arg("scale"), py::arg("output"), py::arg("log_sums"),
             py::arg("workspace"), py::arg("tensor_cores"), py::arg("stream") = 0);
  module.def("masked_attention_backward", &backward, py::arg("grad_output"), py::arg("query"),
             py::arg("key"), py::arg("value"), py::arg("packed_mask"), py::arg("scale"),
             py::arg("output"), py::arg("log_sums"), py::arg("grad_query"), py::arg("grad_key"),
             py::arg("grad_value"), py::arg("workspace"), py::arg("tensor_cores"),
             py::arg("stream") = 0);
}

}  // namespace fastseg
