// The masks of one image's objects, decoded, and their IoUs. For *_cpu.cpp files alone.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "core/check.h"
#include "evaluation/evaluation.h"
#include "rle/boundary.h"
#include "rle/iou.h"
#include "rle/merge.h"
#include "rle/polygons.h"
#include "rle/rle_math.h"
#include "rle/runs.h"

namespace fastseg {
namespace FASTSEG_ISA {

struct DecodedMask {
  int64_t height, width, end, area;
  PixelBox box;
  std::vector<uint32_t> toggles;
  bool has_boundary;
  int64_t boundary_area;
  std::vector<uint32_t> boundary_toggles;

  Runs runs() const { return {toggles.data(), static_cast<int64_t>(toggles.size()), end}; }
  Runs boundary_runs() const {
    return {boundary_toggles.data(), static_cast<int64_t>(boundary_toggles.size()), end};
  }
  Shape shape() const { return {height, width, runs(), box, area}; }
  Shape boundary() const { return {height, width, boundary_runs(), box, boundary_area}; }
};

// The masks of some objects, each with the same number of frames (1 for images). Keeps its memory.
class MaskSet {
 public:
  // Decodes the masks of object `index` as those of object number `position` of the set. Returns
  // what is wrong with them, or an empty string. Without a box it is for the area alone.
  std::string read(const Objects& objects, int64_t index, const int64_t* image_size, bool with_box,
                   int64_t position) {
    const int64_t begin = index == 0 ? 0 : objects.mask_ends[index - 1];
    const int64_t frames = objects.mask_ends[index] - begin;
    if (position == 0) frames_ = frames;
    if (frames != frames_) {
      return message("has ", frames, " masks, others of its image have ", frames_);
    }
    if (static_cast<int64_t>(masks_.size()) < (position + 1) * frames_) {
      masks_.resize((position + 1) * frames_);
    }
    for (int64_t frame = 0; frame < frames; ++frame) {
      const std::string error =
          decode(objects.masks, begin + frame, image_size, with_box, &at(position, frame));
      if (!error.empty()) return error;
    }
    return {};
  }

  int64_t frames() const { return frames_; }
  DecodedMask& at(int64_t position, int64_t frame) { return masks_[position * frames_ + frame]; }

  // Pixels in all frames.
  int64_t area(int64_t position) {
    int64_t area = 0;
    for (int64_t frame = 0; frame < frames_; ++frame) area += at(position, frame).area;
    return area;
  }

  // Pixels a frame, over the frames that have any.
  double mean_area(int64_t position) {
    int64_t visible = 0;
    for (int64_t frame = 0; frame < frames_; ++frame) visible += at(position, frame).area > 0;
    return visible == 0 ? 0 : static_cast<double>(area(position)) / visible;
  }

  const DecodedMask& with_boundary(int64_t position, int64_t frame, double dilation_ratio) {
    DecodedMask& mask = at(position, frame);
    if (!mask.has_boundary) {
      mask.boundary_toggles.clear();
      const int64_t distance = boundary_distance(mask.height, mask.width, dilation_ratio);
      finder_.find(mask.runs(), mask.height, distance, &mask.boundary_toggles);
      mask.boundary_area = area_of(mask.boundary_runs());
      mask.has_boundary = true;
    }
    return mask;
  }

 private:
  std::string decode(const MaskColumns& masks, int64_t m, const int64_t* image_size, bool with_box,
                     DecodedMask* mask) {
    const bool of_polygons = masks.sizes[2 * m] < 0;
    mask->has_boundary = false;
    mask->height = of_polygons ? image_size[0] : masks.sizes[2 * m];
    mask->width = of_polygons ? image_size[1] : masks.sizes[2 * m + 1];
    mask->toggles.clear();
    if (mask->height > 0 && mask->width > kMaxMaskArea / mask->height) {
      return "segmentation: masks must be of fewer than 2^32 pixels";
    }
    const std::string error = of_polygons ? fill(masks, m, mask) : read_text(masks, m, mask);
    if (!error.empty()) return "segmentation: " + error;
    mask->area = area_of(mask->runs());
    mask->box = with_box ? box_of(mask->runs(), mask->height) : PixelBox{0, 0, 0, 0};
    return {};
  }

  static std::string read_text(const MaskColumns& masks, int64_t m, DecodedMask* mask) {
    const int64_t begin = m == 0 ? 0 : masks.text_ends[m - 1], size = masks.text_ends[m] - begin;
    const int64_t area = mask->height * mask->width;
    const std::string error = read_counts(masks.text + begin, size, &mask->toggles, &mask->end);
    if (!error.empty()) return "counts " + error;
    if (mask->end <= area) return {};
    return message("counts sum to ", mask->end, ", but size [", mask->height, ", ", mask->width,
                   "] has ", area, " pixels");
  }

  // The union of the mask's polygons.
  std::string fill(const MaskColumns& masks, int64_t m, DecodedMask* mask) {
    mask->end = mask->height * mask->width;
    if (mask->end <= 0) return "polygons need the height and width of their image, which has none";
    const int64_t first = m == 0 ? 0 : masks.polygon_ends[m - 1];
    for (int64_t polygon = first; polygon < masks.polygon_ends[m]; ++polygon) {
      const int64_t begin = polygon == 0 ? 0 : masks.coordinate_ends[polygon - 1];
      const int64_t size = masks.coordinate_ends[polygon] - begin;
      const double* const corners = masks.coordinates + begin;
      const auto is_bad = [](double x) { return !(std::abs(x) <= kMaxCoordinate); };
      if (size % 2 != 0) return message("a polygon has ", size, " numbers, which is odd");
      if (std::any_of(corners, corners + size, is_bad)) {
        return "a polygon's coordinates must be within 429496728 of 0";
      }
      part_.clear();
      filler_.fill(corners, size / 2, mask->height, mask->width, &part_);
      if (polygon == first) {
        mask->toggles.swap(part_);
        continue;
      }
      const Runs part = {part_.data(), static_cast<int64_t>(part_.size()), mask->end};
      merge(mask->runs(), part, Merge::unite, &merged_);
      mask->toggles.swap(merged_);
    }
    return {};
  }

  int64_t frames_ = 1;
  std::vector<DecodedMask> masks_;
  BoundaryFinder finder_;
  PolygonFiller filler_;
  std::vector<uint32_t> part_, merged_;
};

// As pycocotools: against a crowd region the union is the detection alone.
inline double box_iou(const double* a, const double* b, bool crowd) {
  const double width = std::min(a[0] + a[2], b[0] + b[2]) - std::max(a[0], b[0]);
  const double height = std::min(a[1] + a[3], b[1] + b[3]) - std::max(a[1], b[1]);
  if (!(width > 0 && height > 0)) return 0;
  const double common = width * height, area = a[2] * a[3];
  return common / (crowd ? area : area + b[2] * b[3] - common);
}

// Whether two areas with at most `common` in common may have an IoU of `least`, with a margin for
// what rounding does to the IoU.
inline bool may_reach(int64_t common, int64_t a, int64_t b, bool crowd, double least) {
  const double smallest_union = static_cast<double>(crowd ? a : a + b - common);
  return static_cast<double>(common) >= least * (1 - 1e-9) * smallest_union;
}

inline double ratio(int64_t common, int64_t a, int64_t b, bool crowd) {
  if (common == 0) return 0;
  return static_cast<double>(common) / static_cast<double>(crowd ? a : a + b - common);
}

// IoU over all frames: the sums of intersections over the sum of unions. Pairs that cannot reach
// `least` give 0 without being looked at pixel by pixel.
inline double mask_iou(MaskSet* a, int64_t i, MaskSet* b, int64_t j, bool crowd, double least) {
  int64_t most = 0, a_area = 0, b_area = 0;
  for (int64_t frame = 0; frame < a->frames(); ++frame) {
    const DecodedMask &one = a->at(i, frame), &other = b->at(j, frame);
    a_area += one.area;
    b_area += other.area;
    const int64_t width = std::min(one.box.x1, other.box.x1) - std::max(one.box.x0, other.box.x0);
    const int64_t height = std::min(one.box.y1, other.box.y1) - std::max(one.box.y0, other.box.y0);
    if (width > 0 && height > 0) most += std::min({one.area, other.area, width * height});
  }
  if (!may_reach(most, a_area, b_area, crowd, least)) return 0;
  int64_t common = 0;
  for (int64_t frame = 0; frame < a->frames(); ++frame) {
    const DecodedMask &one = a->at(i, frame), &other = b->at(j, frame);
    if (overlap(one.box, other.box)) common += common_pixels(one.shape(), other.shape());
  }
  return ratio(common, a_area, b_area, crowd);
}

inline double boundary_iou(MaskSet* a, int64_t i, MaskSet* b, int64_t j, double dilation_ratio) {
  int64_t common = 0, a_area = 0, b_area = 0;
  for (int64_t frame = 0; frame < a->frames(); ++frame) {
    const DecodedMask& one = a->with_boundary(i, frame, dilation_ratio);
    const DecodedMask& other = b->with_boundary(j, frame, dilation_ratio);
    if (overlap(one.box, other.box)) common += common_pixels(one.boundary(), other.boundary());
    a_area += one.boundary_area;
    b_area += other.boundary_area;
  }
  return ratio(common, a_area, b_area, false);
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg
