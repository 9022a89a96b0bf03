// What intersections of masks have in common on all devices: boxes, and the quotient.
#pragma once

#include "mask_iou/mask_iou.h"

namespace fastseg {

// Of two boxes: columns [x0, x1), rows [y0, y1); may be empty or negative.
struct Overlap {
  int64_t x0, y0, x1, y1;

  FASTSEG_HD Overlap(const int64_t* a, const int64_t* b)
      : x0(a[0] < b[0] ? b[0] : a[0]),
        y0(a[1] < b[1] ? b[1] : a[1]),
        x1(a[2] < b[2] ? a[2] : b[2]),
        y1(a[3] < b[3] ? a[3] : b[3]) {}

  FASTSEG_HD bool empty() const { return x0 >= x1 || y0 >= y1; }
};

// The IoU of masks with these areas; for a crowd b, or in mode iof, the share of a that lies in b.
// Below 2^53 pixels this is the quotient of exact numbers, rounded once.
FASTSEG_HD double iou_of(int64_t intersection, int64_t area_a, int64_t area_b, bool share_of_a) {
  if (intersection == 0) return 0.0;
  const int64_t whole = share_of_a ? area_a : area_a + area_b - intersection;
  return static_cast<double>(intersection) / static_cast<double>(whole);
}

FASTSEG_HD double iou_at(const MaskIouParams& p, int64_t a, int64_t b) {
  const bool crowd = p.iscrowd.data != nullptr && *p.iscrowd.at<const uint8_t>(b) != 0;
  return iou_of(*p.intersections.at<const int64_t>(a, b), *p.areas_a.at<const int64_t>(a),
                *p.areas_b.at<const int64_t>(b), crowd || p.mode == MaskIouMode::iof);
}

}  // namespace fastseg
