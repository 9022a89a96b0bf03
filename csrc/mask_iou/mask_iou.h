// Intersections and IoU of all pairs of two sets of masks, given as bits (pack_masks/pack_masks.h)
// or as runs (rle/runs.h). Counts are integers, so the IoU is that of exact numbers: pycocotools'.
#pragma once

#include "core/device.h"
#include "core/view.h"
#include "rle/runs.h"

namespace fastseg {

constexpr int64_t kMaxRowWords = 1 << 24;      // 2^30 pixels
constexpr int64_t kMaxMaskWords = 0x7fffffff;  // 2^37 pixels

struct MaskIntersectionsParams {
  View<3> words_a;  // [Na, H, ceil(W / 64)] int64, contiguous
  View<3> words_b;  // [Nb, H, ceil(W / 64)] int64, contiguous
  View<2> boxes_a;  // [Na, 4] int64, contiguous: x0, y0, x1, y1; pixels outside are not counted
  View<2> boxes_b;  // [Nb, 4] int64, contiguous
  View<2> intersections;  // [Na, Nb] int64, contiguous, written: pixels inside both
  bool symmetric;         // a and b are the same masks: half of the pairs are computed
};

void mask_intersections_cpu(const MaskIntersectionsParams& params);
void mask_intersections_cuda(const MaskIntersectionsParams& params, cudaStream_t stream);

struct RunIntersectionsParams {
  const Runs* runs_a;       // [num_a]
  const PixelBox* boxes_a;  // [num_a], box_of() each
  int64_t num_a;
  const Runs* runs_b;
  const PixelBox* boxes_b;
  int64_t num_b;
  int64_t* intersections;  // [num_a, num_b], written: pixels inside both, 0 where boxes are apart;
                           // of no meaning for masks of different heights
  bool symmetric;          // a and b are the same masks
};

void run_intersections_cpu(const RunIntersectionsParams& params);

enum class MaskIouMode { iou, iof };

struct MaskIouParams {
  View<2> intersections;  // [Na, Nb] int64
  View<1> areas_a;        // [Na] int64
  View<1> areas_b;        // [Nb] int64
  View<1> iscrowd;        // [Nb] uint8 or bool; no data: none is
  MaskIouMode mode;
  View<2> ious;  // [Na, Nb] float64, written
};

void mask_iou_cpu(const MaskIouParams& params);
void mask_iou_cuda(const MaskIouParams& params, cudaStream_t stream);

}  // namespace fastseg
