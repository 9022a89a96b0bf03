#include "bindings/array.h"
#include "paste_masks/paste_masks.h"
#include "rle/rle_math.h"

namespace fastseg {
namespace {

PasteMode mode_of(const std::string& name) {
  if (name == "torchvision") return PasteMode::torchvision;
  if (name == "detectron2") return PasteMode::detectron2;
  throw py::value_error(message("mode must be 'torchvision' or 'detectron2', got '", name, "'"));
}

// Everything but the output.
PasteMasksParams make_params(const Array& masks, const Array& boxes, const std::string& mode,
                             double threshold) {
  constexpr int64_t kMaxMaskSize = 1 << 14;  // cells of a mask with its border fit in 32 bits
  PasteMasksParams params;
  params.masks = masks.expect_dtype({DType::f32, DType::f16, DType::bf16}).view<3>();
  masks.expect_shape({-1, masks.size(2), masks.size(2)});
  FASTSEG_CHECK(masks.size(2) <= kMaxMaskSize && (masks.size(2) > 0 || masks.size(0) == 0),
                "masks must have 1 to ", kMaxMaskSize, " cells a side, got shape ", masks.shape());
  boxes.expect_shape({masks.size(0), 4}).expect_dtype({DType::f32}).expect_device(masks);
  params.boxes = boxes.view<2>();
  params.mode = mode_of(mode);
  params.threshold = static_cast<float>(threshold);
  return params;
}

void paste(const py::object& masks, const py::object& boxes, const py::object& output,
           const std::string& mode, double threshold, uintptr_t stream) {
  const Array mask_array(masks, "masks"), box_array(boxes, "boxes"), out(output, "output");
  PasteMasksParams params = make_params(mask_array, box_array, mode, threshold);
  out.expect_shape({mask_array.size(0), -1, -1})
      .expect_dtype({DType::f32, DType::u8, DType::boolean});
  params.output = out.expect_device(mask_array).view<3>();
  const View<3>& view = params.output;
  FASTSEG_CHECK(view.numel() == 0 || (view.stride[2] == 1 && view.stride[1] == view.size[2]),
                "output must be contiguous");
  launch_on(out.device(), stream, params, paste_masks_cpu, FASTSEG_CUDA(paste_masks_cuda));
}

View<3> sizes_alone(int64_t masks, int64_t height, int64_t width) {
  FASTSEG_CHECK(height >= 0 && width >= 0 && (width == 0 || height <= kMaxMaskArea / width),
                "image_size must have fewer than 2^32 pixels, got ", height, " x ", width);
  View<3> view;
  view.size[0] = masks;
  view.size[1] = height;
  view.size[2] = width;
  return view;
}

// The compressed counts of each mask.
py::list paste_rle(const py::object& masks, const py::object& boxes, int64_t height, int64_t width,
                   const std::string& mode, double threshold) {
  const Array mask_array(masks, "masks"), box_array(boxes, "boxes");
  FASTSEG_CHECK(mask_array.device() == kCpuDevice, "masks must lie on the CPU, got CUDA device ",
                mask_array.device());
  std::vector<std::string> counts(mask_array.size(0));
  PasteMasksRleParams params;
  params.paste = make_params(mask_array, box_array, mode, threshold);
  params.paste.output = sizes_alone(mask_array.size(0), height, width);
  params.counts = counts.data();
  {
    py::gil_scoped_release release;
    paste_masks_rle_cpu(params);
  }
  py::list result(counts.size());
  for (size_t n = 0; n < counts.size(); ++n) result[n] = py::bytes(counts[n]);
  return result;
}

[[noreturn]] void cuda_only(const PasteMasksTogglesParams&) {
  throw std::invalid_argument("toggles are made on CUDA alone; the CPU has paste_masks_rle");
}

// The first pass writes counts [N, W], the second toggles from their cumulative sum ends [N * W].
void paste_toggles(const py::object& masks, const py::object& boxes, const py::object& counts,
                   const py::object& ends, const py::object& toggles, int64_t height,
                   const std::string& mode, double threshold, uintptr_t stream) {
  const Array mask_array(masks, "masks"), box_array(boxes, "boxes"), count_array(counts, "counts");
  PasteMasksTogglesParams params;
  params.paste = make_params(mask_array, box_array, mode, threshold);
  count_array.expect_shape({mask_array.size(0), -1}).expect_dtype({DType::i32});
  params.counts = count_array.expect_device(mask_array).view<2>();
  params.paste.output = sizes_alone(mask_array.size(0), height, count_array.size(1));
  if (toggles.is_none()) {
    return launch_on(mask_array.device(), stream, params, cuda_only,
                     FASTSEG_CUDA(paste_masks_count_cuda));
  }
  const Array end_array(ends, "ends"), toggle_array(toggles, "toggles");
  end_array.expect_shape({params.counts.numel()}).expect_dtype({DType::i64});
  params.ends = end_array.expect_device(mask_array).view<1>();
  params.toggles = toggle_array.expect_dtype({DType::i32}).expect_device(mask_array).view<1>();
  launch_on(mask_array.device(), stream, params, cuda_only, FASTSEG_CUDA(paste_masks_toggles_cuda));
}

}  // namespace

void bind_paste_masks(py::module_& module) {
  module.def("paste_masks", &paste, py::arg("masks"), py::arg("boxes"), py::arg("output"),
             py::arg("mode"), py::arg("threshold"), py::arg("stream") = 0);
  module.def("paste_masks_rle", &paste_rle, py::arg("masks"), py::arg("boxes"), py::arg("height"),
             py::arg("width"), py::arg("mode"), py::arg("threshold"));
  module.def("paste_masks_toggles", &paste_toggles, py::arg("masks"), py::arg("boxes"),
             py::arg("counts"), py::arg("ends"), py::arg("toggles"), py::arg("height"),
             py::arg("mode"), py::arg("threshold"), py::arg("stream") = 0);
}

}  // namespace fastseg
