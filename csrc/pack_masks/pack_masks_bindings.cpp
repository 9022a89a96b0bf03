#include "bindings/array.h"
#include "pack_masks/pack_masks.h"

namespace fastseg {
namespace {

// Words of masks [count, height, width]; rows must follow each other without a gap.
View<3> word_view(const Array& words, int64_t count, int64_t height, int64_t width) {
  words.expect_dtype({DType::i64});
  words.expect_shape({count, height, (width + kWordPixels - 1) / kWordPixels});
  const View<3> view = words.view<3>();
  FASTSEG_CHECK(view.numel() == 0 || (view.stride[2] == 1 && view.stride[1] == view.size[2] &&
                                      view.stride[0] == view.size[1] * view.size[2]),
                "words must be contiguous");
  return view;
}

template <class Params>
void set_extents(const Array& areas, const Array& boxes, const Array& words, Params* params) {
  areas.expect_dtype({DType::i64}).expect_device(words).expect_shape({words.size(0)});
  boxes.expect_dtype({DType::i64}).expect_device(words).expect_shape({words.size(0), 4});
  params->areas = areas.view<1>();
  params->boxes = boxes.view<2>();
  FASTSEG_CHECK(
      words.size(0) == 0 || (params->areas.stride[0] == 1 && params->boxes.stride[0] == 4 &&
                             params->boxes.stride[1] == 1),
      "areas and boxes must be contiguous");
}

void pack(const py::object& masks, const py::object& words, const py::object& areas,
          const py::object& boxes, double threshold, uintptr_t stream) {
  const Array mask_array(masks, "masks"), word_array(words, "words");
  const Array area_array(areas, "areas"), box_array(boxes, "boxes");
  PackMasksParams params;
  params.masks = mask_array.view<3>();
  const int64_t* size = params.masks.size;
  FASTSEG_CHECK(size[1] <= kMaxSide && size[2] <= kMaxSide,
                "masks must have sides below 2^31, got ", mask_array.shape());
  params.threshold = threshold;
  params.words = word_view(word_array, size[0], size[1], size[2]);
  word_array.expect_device(mask_array);
  set_extents(area_array, box_array, word_array, &params);
  launch_on(mask_array.device(), stream, params, pack_masks_cpu, FASTSEG_CUDA(pack_masks_cuda));
}

// Toggles and offsets as rle_parse gives them; on the CPU.
void pack_runs(const py::object& toggles, const py::object& offsets, int64_t width,
               const py::object& words, const py::object& areas, const py::object& boxes) {
  const Array toggle_array(toggles, "toggles"), offset_array(offsets, "offsets");
  const Array word_array(words, "words"), area_array(areas, "areas"), box_array(boxes, "boxes");
  FASTSEG_CHECK(toggle_array.device() == kCpuDevice, "toggles must lie on the CPU");
  toggle_array.expect_dtype({DType::u32});
  offset_array.expect_dtype({DType::i64}).expect_device(toggle_array);
  word_array.expect_device(toggle_array);
  FASTSEG_CHECK(offset_array.ndim() == 1 && word_array.ndim() == 3 &&
                    offset_array.size(0) == word_array.size(0) + 1,
                "offsets must have one entry per mask and one more, got shapes ",
                offset_array.shape(), " and ", word_array.shape());
  PackRunsParams params;
  params.toggles = toggle_array.view<1>();
  params.offsets = offset_array.view<1>();
  params.width = width;
  params.words = word_view(word_array, word_array.size(0), word_array.size(1), width);
  set_extents(area_array, box_array, word_array, &params);
  py::gil_scoped_release release;
  pack_runs_cpu(params);
}

void measure(const py::object& words, int64_t width, const py::object& areas,
             const py::object& boxes, uintptr_t stream) {
  const Array word_array(words, "words"), area_array(areas, "areas"), box_array(boxes, "boxes");
  FASTSEG_CHECK(word_array.ndim() == 3, "words must have 3 dimensions, got shape ",
                word_array.shape());
  MeasureWordsParams params;
  params.words = word_view(word_array, word_array.size(0), word_array.size(1), width);
  params.width = width;
  set_extents(area_array, box_array, word_array, &params);
  launch_on(word_array.device(), stream, params, measure_words_cpu,
            FASTSEG_CUDA(measure_words_cuda));
}

void unpack(const py::object& words, const py::object& masks, uintptr_t stream) {
  const Array word_array(words, "words"), mask_array(masks, "masks");
  UnpackMasksParams params;
  params.masks = mask_array.expect_dtype({DType::u8, DType::boolean}).view<3>();
  const int64_t* size = params.masks.size;
  params.words = word_view(word_array, size[0], size[1], size[2]);
  word_array.expect_device(mask_array);
  FASTSEG_CHECK(params.masks.numel() == 0 ||
                    (params.masks.stride[2] == 1 && params.masks.stride[1] == size[2] &&
                     params.masks.stride[0] == size[1] * size[2]),
                "masks must be contiguous");
  launch_on(word_array.device(), stream, params, unpack_masks_cpu, FASTSEG_CUDA(unpack_masks_cuda));
}

}  // namespace

void bind_pack_masks(py::module_& module) {
  module.def("pack_masks", &pack, py::arg("masks"), py::arg("words"), py::arg("areas"),
             py::arg("boxes"), py::arg("threshold"), py::arg("stream") = 0);
  module.def("pack_runs", &pack_runs, py::arg("toggles"), py::arg("offsets"), py::arg("width"),
             py::arg("words"), py::arg("areas"), py::arg("boxes"));
  module.def("measure_words", &measure, py::arg("words"), py::arg("width"), py::arg("areas"),
             py::arg("boxes"), py::arg("stream") = 0);
  module.def("unpack_masks", &unpack, py::arg("words"), py::arg("masks"), py::arg("stream") = 0);
}

}  // namespace fastseg
