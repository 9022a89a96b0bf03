#include <pybind11/numpy.h>

#include "bindings/rles.h"
#include "mask_iou/mask_iou.h"

namespace fastseg {
namespace {

template <int N>
bool is_contiguous(const View<N>& view) {
  int64_t stride = 1;
  for (int d = N - 1; d >= 0; --d) {
    if (view.size[d] > 1 && view.stride[d] != stride) return false;
    stride *= view.size[d];
  }
  return true;
}

template <int N>
View<N> contiguous_view(const Array& array) {
  const View<N> view = array.view<N>();
  FASTSEG_CHECK(view.numel() == 0 || is_contiguous(view), array.name(), " must be contiguous");
  return view;
}

bool same_memory(const View<3>& a, const View<3>& b) {
  return a.data == b.data && a.size[0] == b.size[0];
}

void intersections(const py::object& words_a, const py::object& words_b, const py::object& boxes_a,
                   const py::object& boxes_b, const py::object& output, uintptr_t stream) {
  const Array word_array_a(words_a, "words_a"), word_array_b(words_b, "words_b");
  const Array box_array_a(boxes_a, "boxes_a"), box_array_b(boxes_b, "boxes_b");
  const Array output_array(output, "intersections");
  for (const Array* array : {&word_array_b, &box_array_a, &box_array_b, &output_array}) {
    array->expect_device(word_array_a).expect_dtype({DType::i64});
  }
  MaskIntersectionsParams params;
  params.words_a = contiguous_view<3>(word_array_a.expect_dtype({DType::i64}));
  const int64_t* size = params.words_a.size;
  FASTSEG_CHECK(size[2] <= kMaxRowWords && size[1] * size[2] <= kMaxMaskWords,
                "masks must have at most ", kMaxMaskWords, " words, and ", kMaxRowWords,
                " a row, got shape ", word_array_a.shape());
  word_array_b.expect_shape({-1, size[1], size[2]});
  params.words_b = contiguous_view<3>(word_array_b);
  box_array_a.expect_shape({size[0], 4});
  box_array_b.expect_shape({params.words_b.size[0], 4});
  params.boxes_a = contiguous_view<2>(box_array_a);
  params.boxes_b = contiguous_view<2>(box_array_b);
  output_array.expect_shape({size[0], params.words_b.size[0]});
  params.intersections = contiguous_view<2>(output_array);
  params.symmetric = same_memory(params.words_a, params.words_b);
  launch_on(word_array_a.device(), stream, params, mask_intersections_cpu,
            FASTSEG_CUDA(mask_intersections_cuda));
}

MaskIouMode mode_of(const std::string& mode) {
  if (mode == "iou") return MaskIouMode::iou;
  FASTSEG_CHECK(mode == "iof", "mode must be 'iou' or 'iof', got '", mode, "'");
  return MaskIouMode::iof;
}

void iou(const py::object& intersections, const py::object& areas_a, const py::object& areas_b,
         const py::object& iscrowd, const py::object& output, const std::string& mode,
         uintptr_t stream) {
  const Array common(intersections, "intersections"), output_array(output, "ious");
  const Array area_array_a(areas_a, "areas_a"), area_array_b(areas_b, "areas_b");
  MaskIouParams params;
  params.intersections = common.expect_dtype({DType::i64}).view<2>();
  area_array_a.expect_dtype({DType::i64}).expect_device(common).expect_shape({common.size(0)});
  area_array_b.expect_dtype({DType::i64}).expect_device(common).expect_shape({common.size(1)});
  output_array.expect_dtype({DType::f64}).expect_device(common);
  output_array.expect_shape({common.size(0), common.size(1)});
  params.areas_a = area_array_a.view<1>();
  params.areas_b = area_array_b.view<1>();
  params.ious = output_array.view<2>();
  params.mode = mode_of(mode);
  if (!iscrowd.is_none()) {
    const Array crowd(iscrowd, "iscrowd");
    crowd.expect_dtype({DType::u8, DType::boolean}).expect_device(common);
    params.iscrowd = crowd.expect_shape({common.size(1)}).view<1>();
  }
  launch_on(common.device(), stream, params, mask_iou_cpu, FASTSEG_CUDA(mask_iou_cuda));
}

// What run_intersections_cpu needs to know of a list of RLEs.
struct RunSet {
  std::vector<Rle> rles;
  std::vector<Runs> runs;
  std::vector<PixelBox> boxes;
  std::vector<int64_t> areas;

  RunSet(const py::sequence& objects, const char* name) : rles(read_rles(objects, true, name)) {
    for (const Rle& rle : rles) {
      runs.push_back(rle.runs());
      boxes.push_back(box_of(rle.runs(), rle.height));
      areas.push_back(area_of(rle.runs()));
    }
  }
};

void expect_one_size(const RunSet& a, const char* name_a, const RunSet& b, const char* name_b) {
  if (a.rles.empty()) return;
  const Rle& first = a.rles[0];
  for (size_t n = 0; n < b.rles.size(); ++n) {
    const Rle& rle = b.rles[n];
    FASTSEG_CHECK(rle.height == first.height && rle.width == first.width,
                  "masks must be of one size: ", name_a, "[0] has ", first.size(), ", ", name_b,
                  "[", n, "] has ", rle.size());
  }
}

// RLEs a against b (None: a again) -> (intersections [Na, Nb], areas_a, areas_b), all int64.
py::tuple run_intersections(const py::sequence& a, const py::object& b) {
  const RunSet set_a(a, "a");
  expect_one_size(set_a, "a", set_a, "a");
  RunIntersectionsParams params;
  params.symmetric = b.is_none();
  const RunSet set_b(params.symmetric ? py::sequence(py::list()) : py::sequence(b), "b");
  expect_one_size(set_a, "a", set_b, "b");
  expect_one_size(set_b, "b", set_b, "b");
  const RunSet& other = params.symmetric ? set_a : set_b;
  params.runs_a = set_a.runs.data();
  params.boxes_a = set_a.boxes.data();
  params.num_a = static_cast<int64_t>(set_a.runs.size());
  params.runs_b = other.runs.data();
  params.boxes_b = other.boxes.data();
  params.num_b = static_cast<int64_t>(other.runs.size());
  py::array_t<int64_t> common({params.num_a, params.num_b});
  params.intersections = common.mutable_data();
  {
    py::gil_scoped_release release;
    run_intersections_cpu(params);
  }
  return py::make_tuple(common, py::array_t<int64_t>(params.num_a, set_a.areas.data()),
                        py::array_t<int64_t>(params.num_b, other.areas.data()));
}

}  // namespace

void bind_mask_iou(py::module_& module) {
  module.def("mask_intersections", &intersections, py::arg("words_a"), py::arg("words_b"),
             py::arg("boxes_a"), py::arg("boxes_b"), py::arg("intersections"),
             py::arg("stream") = 0);
  module.def("mask_iou", &iou, py::arg("intersections"), py::arg("areas_a"), py::arg("areas_b"),
             py::arg("iscrowd"), py::arg("ious"), py::arg("mode"), py::arg("stream") = 0);
  module.def("run_intersections", &run_intersections, py::arg("a"), py::arg("b"));
}

}  // namespace fastseg
