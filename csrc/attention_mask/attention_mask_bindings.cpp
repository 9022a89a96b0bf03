#include "attention_mask/attention_mask.h"
#include "bindings/array.h"

namespace fastseg {
namespace {

void pack(const py::object& logits, const py::object& words, int64_t height, int64_t width,
          uintptr_t stream) {
  const Array logit_array(logits, "mask_logits"), word_array(words, "words");
  AttentionMaskParams params;
  params.logits = logit_array.expect_dtype({DType::f32, DType::f16, DType::bf16}).view<4>();
  FASTSEG_CHECK(height >= 1 && width >= 1 && height <= INT32_MAX && width <= INT32_MAX,
                "size must be of 1 to 2^31 - 1, got (", height, ", ", width, ")");
  FASTSEG_CHECK(logit_array.size(2) >= 1 && logit_array.size(3) >= 1 &&
                    logit_array.size(2) <= INT32_MAX && logit_array.size(3) <= INT32_MAX,
                "mask_logits must have sides of 1 to 2^31 - 1, got shape ", logit_array.shape());
  params.height = height;
  params.width = width;
  word_array.expect_dtype({DType::i64}).expect_device(logit_array);
  word_array.expect_shape({logit_array.size(0), logit_array.size(1), (height * width + 63) / 64});
  params.words = word_array.view<3>();
  const View<3>& view = params.words;
  FASTSEG_CHECK(view.numel() == 0 || (view.stride[2] == 1 && view.stride[1] == view.size[2] &&
                                      view.stride[0] == view.size[1] * view.size[2]),
                "words must be contiguous");
  launch_on(logit_array.device(), stream, params, attention_mask_cpu,
            FASTSEG_CUDA(attention_mask_cuda));
}

}  // namespace

void bind_attention_mask(py::module_& module) {
  module.def("attention_mask", &pack, py::arg("mask_logits"), py::arg("words"), py::arg("height"),
             py::arg("width"), py::arg("stream") = 0);
}

}  // namespace fastseg
