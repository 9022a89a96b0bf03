#include <pybind11/numpy.h>

#include "bindings/array.h"
#include "bindings/rles.h"
#include "core/parallel.h"
#include "rle/rle.h"
#include "rle/rle_math.h"

namespace fastseg {
namespace {

// [N, H, W] -> list of N RLEs; [H, W] -> one.
py::object encode(const py::object& masks) {
  const Array array(masks, "masks");
  if (is_floating(array.dtype())) {
    throw py::type_error(message("masks must be boolean or integer, got ", name_of(array.dtype()),
                                 "; threshold first, such as masks > 0.5"));
  }
  FASTSEG_CHECK(array.ndim() == 2 || array.ndim() == 3,
                "masks must have shape [N, H, W] or [H, W], got ", array.shape());
  FASTSEG_CHECK(array.device() == kCpuDevice, "masks must lie on the CPU, got CUDA device ",
                array.device());
  RleEncodeParams params;
  View<3>& view = params.masks;
  if (array.ndim() == 3) {
    view = array.view<3>();
  } else {
    const View<2> one = array.view<2>();
    view.data = one.data;
    view.dtype = one.dtype;
    view.size[0] = 1;
    for (int d = 0; d < 2; ++d) {
      view.size[d + 1] = one.size[d];
      view.stride[d + 1] = one.stride[d];
    }
  }
  checked_area(view.size[1], view.size[2]);
  std::vector<std::string> counts(view.size[0]);
  params.counts = counts.data();
  {
    py::gil_scoped_release release;
    rle_encode_cpu(params);
  }
  if (array.ndim() == 2) return make_rle(view.size[1], view.size[2], counts[0]);
  return make_rles(view.size[1], view.size[2], counts);
}

// Words [N, H, ceil(W / 64)] int64 of masks of this width, rows following each other.
View<3> row_words(const Array& words, int64_t width) {
  words.expect_dtype({DType::i64});
  const View<3> view = words.view<3>();
  FASTSEG_CHECK(view.size[2] == (width + 63) / 64, "words must have ", (width + 63) / 64,
                " a row for width ", width, ", got shape ", words.shape());
  FASTSEG_CHECK(view.numel() == 0 || (view.stride[2] == 1 && view.stride[1] == view.size[2] &&
                                      view.stride[0] == view.size[1] * view.size[2]),
                "words must be contiguous");
  checked_area(view.size[1], width);
  return view;
}

py::list encode_words(const py::object& words, int64_t width) {
  const Array array(words, "words");
  FASTSEG_CHECK(array.device() == kCpuDevice, "words must lie on the CPU, got CUDA device ",
                array.device());
  RleEncodeWordsParams params;
  params.words = row_words(array, width);
  params.width = width;
  std::vector<std::string> counts(params.words.size[0]);
  params.counts = counts.data();
  {
    py::gil_scoped_release release;
    rle_encode_words_cpu(params);
  }
  return make_rles(params.words.size[1], width, counts);
}

[[noreturn, maybe_unused]] void cuda_only(const char* op) {
  throw std::invalid_argument(message(op, " runs on CUDA alone"));
}
[[maybe_unused]] void rle_bits_cpu(const RleBitsParams&) { cuda_only("rle_bits"); }
[[maybe_unused]] void rle_transpose_cpu(const RleTransposeParams&) { cuda_only("rle_transpose"); }
[[maybe_unused]] void rle_toggles_cpu(const RleTogglesParams&) { cuda_only("rle_toggles"); }
[[maybe_unused]] void rle_strings_cpu(const RleStringsParams&) { cuda_only("rle_strings"); }

void bits(const py::object& masks, const py::object& words, uintptr_t stream) {
  const Array mask_array(masks, "masks"), word_array(words, "words");
  RleBitsParams params;
  params.masks = mask_array.view<3>();
  const int64_t* size = params.masks.size;
  checked_area(size[1], size[2]);
  word_array.expect_dtype({DType::i32}).expect_device(mask_array);
  word_array.expect_shape({size[0], (size[1] + 31) / 32, size[2]});
  params.words = word_array.view<3>();
  launch_on(mask_array.device(), stream, params, rle_bits_cpu, FASTSEG_CUDA(rle_bits_cuda));
}

void transpose(const py::object& row_words_of, const py::object& words, uintptr_t stream) {
  const Array row_array(row_words_of, "row_words"), word_array(words, "words");
  RleTransposeParams params;
  params.words = word_array.expect_dtype({DType::i32}).expect_device(row_array).view<3>();
  params.row_words = row_words(row_array, params.words.size[2]);
  word_array.expect_shape({row_array.size(0), (row_array.size(1) + 31) / 32, -1});
  launch_on(word_array.device(), stream, params, rle_transpose_cpu,
            FASTSEG_CUDA(rle_transpose_cuda));
}

// The first pass writes counts [N, W], the second toggles from their cumulative sum ends [N * W].
void toggles(const py::object& words, int64_t height, const py::object& counts,
             const py::object& ends, const py::object& toggles, uintptr_t stream) {
  const Array word_array(words, "words"), count_array(counts, "counts");
  RleTogglesParams params;
  params.words = word_array.expect_dtype({DType::i32}).view<3>();
  params.height = height;
  const int64_t num_masks = params.words.size[0], width = params.words.size[2];
  FASTSEG_CHECK(height > 0 && params.words.size[1] == (height + 31) / 32,
                "words must have a word for each 32 of ", height, " rows, got shape ",
                word_array.shape());
  count_array.expect_dtype({DType::i32}).expect_device(word_array).expect_shape({num_masks, width});
  params.counts = count_array.view<2>();
  if (toggles.is_none()) {
    return launch_on(word_array.device(), stream, params, rle_toggles_cpu,
                     FASTSEG_CUDA(rle_count_cuda));
  }
  const Array end_array(ends, "ends"), toggle_array(toggles, "toggles");
  end_array.expect_dtype({DType::i64}).expect_device(word_array).expect_shape({num_masks * width});
  params.ends = end_array.view<1>();
  params.toggles = toggle_array.expect_dtype({DType::i32}).expect_device(word_array).view<1>();
  launch_on(word_array.device(), stream, params, rle_toggles_cpu, FASTSEG_CUDA(rle_toggles_cuda));
}

// The first pass (`write` false) measures blocks of runs, the second writes strings from the
// cumulative sum of their bytes.
void strings(const py::object& toggles, const py::object& ends, int64_t height, int64_t width,
             const py::object& block_bytes, const py::object& text, const py::object& text_ends,
             bool write, uintptr_t stream) {
  const Array toggle_array(toggles, "toggles"), end_array(ends, "ends");
  const Array block_array(block_bytes, "block_bytes"), text_array(text, "text");
  const Array text_end_array(text_ends, "text_ends");
  RleStringsParams params;
  params.area = checked_area(height, width);
  params.toggles = toggle_array.expect_dtype({DType::i32}).view<1>();
  params.text_ends = text_end_array.expect_dtype({DType::i64}).view<1>();
  const int64_t num_masks = params.text_ends.size[0] - 1;
  FASTSEG_CHECK(params.area > 0 && num_masks > 0, "masks must have pixels, got ", num_masks,
                " of height ", height, " and width ", width);
  params.ends = end_array.expect_dtype({DType::i64}).expect_shape({num_masks * width}).view<1>();
  params.block_bytes = block_array.expect_dtype({DType::i64}).view<1>();
  block_array.expect_shape(
      {(params.toggles.size[0] + num_masks + kRleBlockRuns - 1) / kRleBlockRuns});
  params.text = text_array.expect_dtype({DType::u8}).view<1>();
  FASTSEG_CHECK(params.text.stride[0] == 1 || params.text.size[0] <= 1, "text must be contiguous");
  for (const Array* array : {&end_array, &block_array, &text_array, &text_end_array}) {
    array->expect_device(toggle_array);
  }
  launch_on(toggle_array.device(), stream, params, rle_strings_cpu,
            write ? FASTSEG_CUDA(rle_strings_cuda) : FASTSEG_CUDA(rle_measure_cuda));
}

// RLEs of one size -> (height, width, toggles [T] uint32, offsets [N + 1] int64).
py::tuple parse(const py::sequence& objects) {
  const std::vector<Rle> rles = read_rles(objects, true);
  py::array_t<int64_t> offsets(rles.size() + 1);
  int64_t* const offset = offsets.mutable_data();
  offset[0] = 0;
  for (size_t n = 0; n < rles.size(); ++n) {
    FASTSEG_CHECK(rles[n].height == rles[0].height && rles[n].width == rles[0].width,
                  "rles must be of one size: rles[0] has ", rles[0].size(), ", rles[", n, "] has ",
                  rles[n].size());
    offset[n + 1] = offset[n] + static_cast<int64_t>(rles[n].toggles.size());
  }
  py::array_t<uint32_t> toggles(offset[rles.size()]);
  for (size_t n = 0; n < rles.size(); ++n) {
    std::copy(rles[n].toggles.begin(), rles[n].toggles.end(), toggles.mutable_data() + offset[n]);
  }
  return py::make_tuple(rles.empty() ? 0 : rles[0].height, rles.empty() ? 0 : rles[0].width,
                        toggles, offsets);
}

void fill(const py::object& toggles, const py::object& offsets, const py::object& masks,
          uintptr_t stream) {
  const Array toggle_array(toggles, "toggles"), offset_array(offsets, "offsets");
  const Array mask_array(masks, "masks");
  RleFillParams params;
  params.masks = mask_array.expect_dtype({DType::u8, DType::boolean}).view<3>();
  params.toggles = toggle_array.expect_dtype({DType::u32, DType::i32}).view<1>();
  params.offsets = offset_array.expect_dtype({DType::i64}).view<1>();
  toggle_array.expect_device(mask_array);
  offset_array.expect_device(mask_array).expect_shape({params.masks.size[0] + 1});
  FASTSEG_CHECK(
      params.masks.numel() == 0 || params.masks.stride[1] == 1 || params.masks.stride[2] == 1,
      "masks must have contiguous rows or columns");
  launch_on(mask_array.device(), stream, params, rle_fill_cpu, FASTSEG_CUDA(rle_fill_cuda));
}

// Pixels inside. pycocotools' type, so 32 bits: an RLE of fewer than 2^32 pixels fits.
py::array_t<uint32_t> area(const py::sequence& objects) {
  const std::vector<Rle> rles = read_rles(objects, false);
  py::array_t<uint32_t> areas(rles.size());
  for (size_t n = 0; n < rles.size(); ++n) {
    areas.mutable_data()[n] = static_cast<uint32_t>(area_of(rles[n].runs()));
  }
  return areas;
}

// Boxes (x, y, width, height) of whole pixels; zeros for an empty mask.
py::array_t<double> to_bbox(const py::sequence& objects) {
  const std::vector<Rle> rles = read_rles(objects, false);
  py::array_t<double> boxes({static_cast<py::ssize_t>(rles.size()), py::ssize_t{4}});
  for (size_t n = 0; n < rles.size(); ++n) {
    const PixelBox found = box_of(rles[n].runs(), rles[n].height);
    double* box = boxes.mutable_data(n, 0);
    box[0] = static_cast<double>(found.x0);
    box[1] = static_cast<double>(found.y0);
    box[2] = static_cast<double>(found.x1 - found.x0);
    box[3] = static_cast<double>(found.y1 - found.y0);
  }
  return boxes;
}

}  // namespace

void bind_rle(py::module_& module) {
  module.def("rle_encode", &encode, py::arg("masks"));
  module.def("rle_encode_words", &encode_words, py::arg("words"), py::arg("width"));
  module.def("rle_transpose", &transpose, py::arg("row_words"), py::arg("words"),
             py::arg("stream") = 0);
  module.def("rle_bits", &bits, py::arg("masks"), py::arg("words"), py::arg("stream") = 0);
  module.def("rle_toggles", &toggles, py::arg("words"), py::arg("height"), py::arg("counts"),
             py::arg("ends"), py::arg("toggles"), py::arg("stream") = 0);
  module.def("rle_strings", &strings, py::arg("toggles"), py::arg("ends"), py::arg("height"),
             py::arg("width"), py::arg("block_bytes"), py::arg("text"), py::arg("text_ends"),
             py::arg("write"), py::arg("stream") = 0);
  module.attr("RLE_BLOCK_RUNS") = kRleBlockRuns;
  module.def("rle_parse", &parse, py::arg("rles"));
  module.def("rle_fill", &fill, py::arg("toggles"), py::arg("offsets"), py::arg("masks"),
             py::arg("stream") = 0);
  module.def("rle_area", &area, py::arg("rles"));
  module.def("rle_to_bbox", &to_bbox, py::arg("rles"));
}

}  // namespace fastseg
