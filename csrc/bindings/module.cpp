// fastseg._C: the kernels as Python functions on anything that speaks DLPack. Each op registers
// itself in csrc/<op>/<op>_bindings.cpp; this file lists the ops and tells how it was built.
#include <pybind11/pybind11.h>

#include "core/cpu_dispatch.h"
#include "core/parallel.h"

namespace py = pybind11;

namespace fastseg {

void bind_annotations(py::module_& module);
void bind_attention_mask(py::module_& module);
void bind_deform_conv(py::module_& module);
void bind_evaluation(py::module_& module);
void bind_label_pairs(py::module_& module);
void bind_mask_iou(py::module_& module);
void bind_mask_nms(py::module_& module);
void bind_masked_attention(py::module_& module);
void bind_matrix_nms(py::module_& module);
void bind_ms_deform_attn(py::module_& module);
void bind_nms(py::module_& module);
void bind_pack_masks(py::module_& module);
void bind_panoptic_map(py::module_& module);
void bind_paste_masks(py::module_& module);
void bind_point_sample(py::module_& module);
void bind_resize_masks(py::module_& module);
void bind_rle(py::module_& module);
void bind_rle_iou(py::module_& module);
void bind_rle_merge(py::module_& module);
void bind_rle_polygons(py::module_& module);
void bind_rle_shapes(py::module_& module);
void bind_roi_align(py::module_& module);
void bind_semantic_map(py::module_& module);

namespace {

py::dict build_info() {
  py::dict info;
#if defined(FASTSEG_WITH_CUDA)
  info["cuda"] = true;
  info["cuda_version"] = FASTSEG_CUDA_VERSION;
  info["cuda_archs"] = FASTSEG_CUDA_ARCHS;
#else
  info["cuda"] = false;
  info["cuda_version"] = py::none();
  info["cuda_archs"] = "";
#endif
#if defined(FASTSEG_CUDA_EMULATOR)
  info["cuda_emulator"] = true;
#else
  info["cuda_emulator"] = false;
#endif
#if defined(FASTSEG_X86_VARIANTS)
  info["cpu_variants"] = "baseline;avx2;avx512";
#else
  info["cpu_variants"] = "baseline";
#endif
  info["cpu_active"] = name_of(active_cpu_variant());
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["threads"] = max_threads();
  info["compiler"] = FASTSEG_COMPILER;
  info["pybind11"] =
      PYBIND11_TOSTRING(PYBIND11_VERSION_MAJOR) "." PYBIND11_TOSTRING(PYBIND11_VERSION_MINOR);
  return info;
}

}  // namespace
}  // namespace fastseg

PYBIND11_MODULE(_C, module) {
  module.doc() = "fastseg's kernels: see fastseg.ops for the functions to call.";
  module.def("build_info", &fastseg::build_info, "How this binary was built and what it uses.");
  fastseg::bind_annotations(module);
  fastseg::bind_attention_mask(module);
  fastseg::bind_deform_conv(module);
  fastseg::bind_evaluation(module);
  fastseg::bind_label_pairs(module);
  fastseg::bind_mask_iou(module);
  fastseg::bind_mask_nms(module);
  fastseg::bind_masked_attention(module);
  fastseg::bind_matrix_nms(module);
  fastseg::bind_ms_deform_attn(module);
  fastseg::bind_nms(module);
  fastseg::bind_pack_masks(module);
  fastseg::bind_panoptic_map(module);
  fastseg::bind_paste_masks(module);
  fastseg::bind_point_sample(module);
  fastseg::bind_resize_masks(module);
  fastseg::bind_rle(module);
  fastseg::bind_rle_iou(module);
  fastseg::bind_rle_merge(module);
  fastseg::bind_rle_polygons(module);
  fastseg::bind_rle_shapes(module);
  fastseg::bind_roi_align(module);
  fastseg::bind_semantic_map(module);
}
