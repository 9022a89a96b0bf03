// Average precision as COCO defines it, and what is built like it (LVIS, boundary AP, video AP).
//
// match() goes through the images once: in each it sorts the detections of a category by score,
// finds their IoUs with the ground truth and matches them at all thresholds and in all ranges of
// area. accumulate() then makes precision and recall from the matches, category by category.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fastseg {

// Borrowed columns of annotations.h.
struct MaskColumns {
  const int64_t* sizes;  // [M, 2] height and width; -1 for polygons
  const char* text;
  const int64_t* text_ends;  // [M]
  const double* coordinates;
  const int64_t* coordinate_ends;
  const int64_t* polygon_ends;  // [M]
};

struct Objects {
  int64_t size;               // N
  const int64_t* images;      // [N] index of the image; -1 = left out
  const int64_t* categories;  // [N] index of the category
  const int64_t* ties;        // [N] what comes first of equal scores; then the index decides
  const double* scores;       // [N], of detections
  const double* areas;        // [N], of the ground truth
  const double* boxes;        // [N, 4] x, y, width, height; NaN = from the mask
  const uint8_t* crowds;      // [N], of the ground truth: a region that any detection may lie in
  const uint8_t* ignores;     // [N] a truth need not be found; a detection may go unmatched
  const int64_t* mask_ends;   // [N] masks are [mask_ends[n - 1], mask_ends[n]): one per frame
  MaskColumns masks;
};

enum class Overlap { box, mask, boundary };

enum class Match : uint8_t { false_positive, true_positive, ignored };

struct Metric {
  Overlap overlap;
  const double* areas;         // [detections] areas for the ranges; null = those of the masks
  std::vector<Match> matches;  // written: [kept detections, ranges, thresholds]
};

// What went wrong with which object.
struct ObjectError {
  bool of_truth = false;
  int64_t index = -1;
  std::string text;
};

struct MatchParams {
  Objects detections, truths;
  int64_t num_images, num_categories;
  const int64_t* image_sizes;  // [num_images, 2] height and width, for polygons
  const double* thresholds;    // [num_thresholds] of IoU
  int64_t num_thresholds;
  const double* ranges;  // [num_ranges, 2] least and largest area, both inside
  int64_t num_ranges;
  int64_t max_detections;  // best ones kept per image and category
  double dilation_ratio;   // of boundaries, as a share of the image's diagonal

  Metric* metrics;  // [num_metrics]
  int64_t num_metrics;

  // Written. The kept detections come by category, image and falling score.
  std::vector<int64_t>* kept;           // indices of detections
  std::vector<int64_t>* ranks;          // of each among those of its image and category
  std::vector<int64_t>* category_ends;  // [num_categories] in kept
  std::vector<int64_t>* positives;      // [num_categories, num_ranges] truths to be found
  ObjectError* error;                   // the first one, by image
};

void evaluation_match_cpu(const MatchParams& params);

struct AccumulateParams {
  const double* scores;  // of all detections
  const int64_t* kept;   // and so on: what match() wrote
  const int64_t* ranks;
  const int64_t* category_ends;
  const int64_t* positives;
  const Match* matches;
  int64_t num_categories, num_ranges, num_thresholds;
  const double* recalls;  // [num_recalls] ascending levels to tell precision at
  int64_t num_recalls;
  const int64_t* max_detections;  // [num_limits] each limit of detections per image
  int64_t num_limits;

  // Written where there are positives.
  double* precision;    // [num_thresholds, num_recalls, num_categories, num_ranges, num_limits]
  double* scores_at;    // the same shape: score at which that recall is reached
  double* best_recall;  // [num_thresholds, num_categories, num_ranges, num_limits]
};

void evaluation_accumulate_cpu(const AccumulateParams& params);

}  // namespace fastseg
