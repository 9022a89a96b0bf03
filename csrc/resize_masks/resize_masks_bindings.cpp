#include "bindings/array.h"
#include "bindings/resize_steps.h"
#include "bindings/rles.h"
#include "resize_masks/resize_masks_math.h"

namespace fastseg {
namespace {

ResizeMasksParams make_params(const Array& masks, const Sides& size, const Sides& via,
                              const Sides& crop, double threshold) {
  return {masks.view<3>(), read_resize_steps(masks, size, via, crop),
          static_cast<float>(threshold)};
}

// The output is pixels [N, H, W], or words [N, H, ceil(W / 64)] int64 of masks of this width.
void resize(const py::object& masks, const py::object& output, int64_t width, const Sides& via,
            const Sides& crop, double threshold, uintptr_t stream) {
  const Array mask_array(masks, "masks"), out(output, "output");
  ResizeMasksToPixelsParams params;
  out.expect_dtype({DType::u8, DType::boolean, DType::i64}).expect_device(mask_array);
  params.output = out.view<3>();
  const View<3>& view = params.output;
  out.expect_shape({mask_array.size(0), -1, params.packed() ? (width + 63) / 64 : width});
  params.resize = make_params(mask_array, {view.size[1], width}, via, crop, threshold);
  FASTSEG_CHECK(view.numel() == 0 || (view.stride[2] == 1 && view.stride[1] == view.size[2] &&
                                      view.stride[0] == view.size[1] * view.size[2]),
                "output must be contiguous");
  launch_on(out.device(), stream, params, resize_masks_cpu, FASTSEG_CUDA(resize_masks_cuda));
}

py::list resize_rle(const py::object& masks, const Sides& size, const Sides& via, const Sides& crop,
                    double threshold) {
  const Array mask_array(masks, "masks");
  FASTSEG_CHECK(mask_array.device() == kCpuDevice, "masks must lie on the CPU, got CUDA device ",
                mask_array.device());
  ResizeMasksRleParams params;
  params.resize = make_params(mask_array, size, via, crop, threshold);
  checked_area(size[0], size[1]);
  std::vector<std::string> counts(mask_array.size(0));
  params.counts = counts.data();
  {
    py::gil_scoped_release release;
    resize_masks_rle_cpu(params);
  }
  return make_rles(size[0], size[1], counts);
}

[[noreturn, maybe_unused]] void cuda_only(const ResizeMasksBitsParams&) {
  throw std::invalid_argument("bits are made on CUDA alone; the CPU has resize_masks_rle");
}

void resize_bits(const py::object& masks, const py::object& words, int64_t height, const Sides& via,
                 const Sides& crop, double threshold, uintptr_t stream) {
  const Array mask_array(masks, "masks"), word_array(words, "words");
  ResizeMasksBitsParams params;
  word_array.expect_dtype({DType::i32}).expect_device(mask_array);
  word_array.expect_shape({mask_array.size(0), (height + 31) / 32, -1});
  params.words = word_array.view<3>();
  params.resize = make_params(mask_array, {height, params.words.size[2]}, via, crop, threshold);
  checked_area(height, params.words.size[2]);
  launch_on(mask_array.device(), stream, params, cuda_only, FASTSEG_CUDA(resize_masks_bits_cuda));
}

// `tallies` [N, 2] are zeros.
void mask_scores(const py::object& masks, const py::object& tallies, const Sides& size,
                 const Sides& via, const Sides& crop, double threshold, uintptr_t stream) {
  const Array mask_array(masks, "masks"), tally_array(tallies, "tallies");
  MaskScoresParams params;
  params.resize = make_params(mask_array, size, via, crop, threshold);
  tally_array.expect_dtype({DType::i64}).expect_device(mask_array);
  tally_array.expect_shape({mask_array.size(0), 2});
  params.tallies = tally_array.view<2>();
  FASTSEG_CHECK(params.tallies.stride[1] == 1, "tallies must be contiguous");
  launch_on(mask_array.device(), stream, params, mask_scores_cpu, FASTSEG_CUDA(mask_scores_cuda));
}

}  // namespace

void bind_resize_masks(py::module_& module) {
  module.def("resize_masks", &resize, py::arg("masks"), py::arg("output"), py::arg("width"),
             py::arg("via"), py::arg("crop"), py::arg("threshold"), py::arg("stream") = 0);
  module.def("resize_masks_rle", &resize_rle, py::arg("masks"), py::arg("size"), py::arg("via"),
             py::arg("crop"), py::arg("threshold"));
  module.def("resize_masks_bits", &resize_bits, py::arg("masks"), py::arg("words"),
             py::arg("height"), py::arg("via"), py::arg("crop"), py::arg("threshold"),
             py::arg("stream") = 0);
  module.def("mask_scores", &mask_scores, py::arg("masks"), py::arg("tallies"), py::arg("size"),
             py::arg("via"), py::arg("crop"), py::arg("threshold"), py::arg("stream") = 0);
  module.attr("SCORE_UNITS") = kScoreUnits;
}

}  // namespace fastseg
