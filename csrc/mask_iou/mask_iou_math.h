// What intersections of masks have in common on all devices: boxes, and the quotient.
#pragma once

#include "mask_iou/mask_iou.h"

namespace fastseg {

struct MaskBox {
  int x0, y0, x1, y1;
};

// The box of mask n, cut to the words that there are, whatever the caller's box says.
FASTSEG_HD MaskBox mask_box(const View<2>& boxes, int64_t n, const View<3>& words) {
  const int64_t* box = boxes.at<const int64_t>(n);
  const auto cut = [](int64_t value, int64_t end) {
    return static_cast<int>(value < 0 ? 0 : value < end ? value : end);
  };
  const int64_t width = 64 * words.size[2], height = words.size[1];
  return {cut(box[0], width), cut(box[1], height), cut(box[2], width), cut(box[3], height)};
}

// Where two boxes overlap: words [first, first + columns) of rows [top, top + rows).
struct WordRange {
  int first, columns, top, rows;

  FASTSEG_HD WordRange(const MaskBox& a, const MaskBox& b) {
    first = (a.x0 < b.x0 ? b.x0 : a.x0) / 64;
    top = a.y0 < b.y0 ? b.y0 : a.y0;
    columns = ((a.x1 < b.x1 ? a.x1 : b.x1) + 63) / 64 - first;
    rows = (a.y1 < b.y1 ? a.y1 : b.y1) - top;
  }
  FASTSEG_HD bool empty() const { return columns <= 0 || rows <= 0; }
  FASTSEG_HD int words() const { return empty() ? 0 : columns * rows; }
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
