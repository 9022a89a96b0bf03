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

[[noreturn, maybe_unused]] void cuda_only(const char* op) {
  throw std::invalid_argument(message(op, " runs on CUDA alone"));
}
[[maybe_unused]] void rle_mark_cpu(const RleMarkParams&) { cuda_only("rle_mark"); }
[[maybe_unused]] void rle_emit_cpu(const RleEmitParams&) { cuda_only("rle_emit"); }

void mark(const py::object& masks, const py::object& words, const py::object& counts,
          uintptr_t stream) {
  const Array mask_array(masks, "masks"), word_array(words, "words"), count_array(counts, "counts");
  RleMarkParams params;
  params.masks = mask_array.view<3>();
  const int64_t* size = params.masks.size;
  checked_area(size[1], size[2]);
  word_array.expect_dtype({DType::i32}).expect_device(mask_array);
  word_array.expect_shape({size[0], (size[1] + 31) / 32, size[2]});
  count_array.expect_dtype({DType::i32}).expect_device(mask_array);
  count_array.expect_shape({size[0], size[2]});
  params.words = word_array.view<3>();
  params.counts = count_array.view<2>();
  launch_on(mask_array.device(), stream, params, rle_mark_cpu, FASTSEG_CUDA(rle_mark_cuda));
}

void emit(const py::object& words, const py::object& ends, const py::object& toggles,
          int64_t height, uintptr_t stream) {
  const Array word_array(words, "words"), end_array(ends, "ends"), toggle_array(toggles, "toggles");
  RleEmitParams params;
  params.words = word_array.expect_dtype({DType::i32}).view<3>();
  end_array.expect_dtype({DType::i64}).expect_device(word_array);
  end_array.expect_shape({params.words.size[0] * params.words.size[2]});
  params.ends = end_array.view<1>();
  params.toggles = toggle_array.expect_dtype({DType::i32}).expect_device(word_array).view<1>();
  params.height = height;
  launch_on(word_array.device(), stream, params, rle_emit_cpu, FASTSEG_CUDA(rle_emit_cuda));
}

// What a kernel that wrote toggles itself has left to do: toggles [T] uint32 or int32 (the same
// bits), mask n's end at ends[n].
py::list encode_toggles(const py::object& toggles, const py::object& ends, int64_t height,
                        int64_t width) {
  const Array toggle_array(toggles, "toggles"), end_array(ends, "ends");
  toggle_array.expect_dtype({DType::u32, DType::i32}).expect_device(end_array);
  end_array.expect_dtype({DType::i64});
  const View<1> positions = toggle_array.view<1>(), end_view = end_array.view<1>();
  const uint32_t area = checked_area(height, width);
  int64_t begin = 0;
  for (int64_t n = 0; n < end_view.size[0]; ++n) {
    const int64_t end = *end_view.at<int64_t>(n);
    FASTSEG_CHECK(begin <= end && end <= positions.size[0], "ends[", n, "] must be in [", begin,
                  ", ", positions.size[0], "], got ", end);
    begin = end;
  }
  FASTSEG_CHECK(positions.size[0] == 0 || positions.stride[0] == 1, "toggles must be contiguous");
  std::vector<std::string> counts(end_view.size[0]);
  {
    py::gil_scoped_release release;
    const int64_t grain = kRunsPerTask * end_view.size[0] / std::max<int64_t>(begin, 1);
    parallel_for(end_view.size[0], grain, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) {
        const int64_t start = n == 0 ? 0 : *end_view.at<int64_t>(n - 1);
        append_counts(positions.as<uint32_t>() + start, *end_view.at<int64_t>(n) - start, area,
                      &counts[n]);
      }
    });
  }
  return make_rles(height, width, counts);
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
  module.def("rle_encode_toggles", &encode_toggles, py::arg("toggles"), py::arg("ends"),
             py::arg("height"), py::arg("width"));
  module.def("rle_mark", &mark, py::arg("masks"), py::arg("words"), py::arg("counts"),
             py::arg("stream") = 0);
  module.def("rle_emit", &emit, py::arg("words"), py::arg("ends"), py::arg("toggles"),
             py::arg("height"), py::arg("stream") = 0);
  module.def("rle_parse", &parse, py::arg("rles"));
  module.def("rle_fill", &fill, py::arg("toggles"), py::arg("offsets"), py::arg("masks"),
             py::arg("stream") = 0);
  module.def("rle_area", &area, py::arg("rles"));
  module.def("rle_to_bbox", &to_bbox, py::arg("rles"));
}

}  // namespace fastseg
