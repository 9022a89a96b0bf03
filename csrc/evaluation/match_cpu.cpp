#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/cpu_dispatch.h"
#include "core/parallel.h"
#include "evaluation/evaluation.h"
#include "evaluation/overlaps.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kImagesPerTask = 8;

// Objects by image, then category: order[begins[i]] to order[begins[i + 1] - 1] are of image i.
struct ByImage {
  std::vector<int64_t> begins, order;
};

// `better(a, b)`: object a comes before b of the same category.
template <class Better>
ByImage by_image(const Objects& objects, int64_t num_images, Better&& better) {
  ByImage found;
  found.begins.assign(num_images + 1, 0);
  for (int64_t n = 0; n < objects.size; ++n) {
    if (objects.images[n] >= 0) ++found.begins[objects.images[n] + 1];
  }
  for (int64_t i = 0; i < num_images; ++i) found.begins[i + 1] += found.begins[i];
  found.order.resize(found.begins[num_images]);
  std::vector<int64_t> next(found.begins.begin(), found.begins.end() - 1);
  for (int64_t n = 0; n < objects.size; ++n) {
    if (objects.images[n] >= 0) found.order[next[objects.images[n]]++] = n;
  }
  parallel_for(num_images, kImagesPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::sort(found.order.begin() + found.begins[i], found.order.begin() + found.begins[i + 1],
                [&](int64_t a, int64_t b) {
                  const int64_t first = objects.categories[a], second = objects.categories[b];
                  if (first != second) return first < second;
                  if (better(a, b) != better(b, a)) return better(a, b);
                  return objects.ties[a] != objects.ties[b] ? objects.ties[a] < objects.ties[b]
                                                            : a < b;
                });
    }
  });
  return found;
}

bool outside(double area, const double* range) { return area < range[0] || area > range[1]; }

// The detections and truths of one category in one image.
struct Segment {
  const int64_t *detections, *truths;
  int64_t num_detections, num_truths;
  int64_t slot;  // of the first detection among the kept
};

struct Candidate {
  int64_t truth;
  double iou;
};

class Matcher {
 public:
  explicit Matcher(const MatchParams& params) : p_(params) {
    for (int64_t t = 0; t < p_.num_thresholds; ++t) {
      thresholds_.push_back(std::min(p_.thresholds[t], 1 - 1e-10));
      least_ = std::min(least_, thresholds_.back());
    }
    for (int64_t m = 0; m < p_.num_metrics; ++m) {
      const Metric& metric = p_.metrics[m];
      needs_masks_ |= metric.overlap != Overlap::box || metric.areas == nullptr;
    }
  }

  // False when an object is malformed, which error() then describes.
  bool run(const Segment& segment) {
    segment_ = &segment;
    if (!decode()) return false;
    mark_ignored();
    for (int64_t m = 0; m < p_.num_metrics; ++m) {
      matched_.assign(segment.num_truths * cells(), 0);
      for (int64_t d = 0; d < segment.num_detections; ++d) {
        find_candidates(p_.metrics[m].overlap, d);
        match(&p_.metrics[m], d);
      }
    }
    return true;
  }

  const ObjectError& error() const { return error_; }

 private:
  int64_t cells() const { return p_.num_ranges * p_.num_thresholds; }

  bool decode() {
    const Segment& s = *segment_;
    for (int64_t g = 0; needs_masks_ && g < s.num_truths; ++g) {
      if (!decode(p_.truths, s.truths[g], true, g, &truth_masks_)) return false;
    }
    for (int64_t d = 0; d < s.num_detections; ++d) {
      const double* const box = p_.detections.boxes + 4 * s.detections[d];
      if (!needs_masks_ && !std::isnan(box[0])) continue;
      if (!decode(p_.detections, s.detections[d], false, d, &masks_)) return false;
    }
    return !needs_masks_ || same_sizes();
  }

  bool decode(const Objects& objects, int64_t index, bool of_truth, int64_t position,
              MaskSet* masks) {
    const bool needs_boxes = segment_->num_truths > 0;
    const int64_t* const size = p_.image_sizes + 2 * objects.images[index];
    std::string text = masks->read(objects, index, size, needs_boxes, position);
    if (!text.empty()) error_ = {of_truth, index, std::move(text)};
    return error_.index < 0;
  }

  // Masks of unlike sizes cannot be compared; frames without an object have no size.
  bool same_sizes() {
    const Segment& s = *segment_;
    if (s.num_truths == 0 || s.num_detections == 0) return true;
    if (masks_.frames() != truth_masks_.frames()) {
      error_ = {false, s.detections[0],
                "has " + std::to_string(masks_.frames()) +
                    " masks, the ground truth of its image " +
                    std::to_string(truth_masks_.frames())};
      return false;
    }
    for (int64_t d = 0; d < s.num_detections; ++d) {
      for (int64_t frame = 0; frame < masks_.frames(); ++frame) {
        const DecodedMask &mask = masks_.at(d, frame), &truth = truth_masks_.at(0, frame);
        if (mask.area == 0 || truth.area == 0) continue;
        if (mask.height == truth.height && mask.width == truth.width) continue;
        error_ = {false, s.detections[d],
                  "segmentation has size [" + std::to_string(mask.height) + ", " +
                      std::to_string(mask.width) + "], the ground truth [" +
                      std::to_string(truth.height) + ", " + std::to_string(truth.width) + "]"};
        return false;
      }
    }
    return true;
  }

  void mark_ignored() {
    ignored_.resize(p_.num_ranges * segment_->num_truths);
    for (int64_t a = 0; a < p_.num_ranges; ++a) {
      for (int64_t g = 0; g < segment_->num_truths; ++g) {
        const int64_t index = segment_->truths[g];
        ignored_[a * segment_->num_truths + g] =
            p_.truths.ignores[index] || outside(p_.truths.areas[index], p_.ranges + 2 * a);
      }
    }
  }

  // The truths that detection d may match at the lowest threshold.
  void find_candidates(Overlap overlap, int64_t d) {
    candidates_.clear();
    double box[4];
    if (overlap == Overlap::box) read_box(d, box);
    for (int64_t g = 0; g < segment_->num_truths; ++g) {
      const int64_t index = segment_->truths[g];
      const bool crowd = p_.truths.crowds[index];
      double iou;
      if (overlap == Overlap::box) {
        iou = box_iou(box, p_.truths.boxes + 4 * index, crowd);
      } else {
        iou = mask_iou(&masks_, d, &truth_masks_, g, crowd, least_);
        if (overlap == Overlap::boundary && !crowd && iou >= least_) {
          iou = std::min(iou, boundary_iou(&masks_, d, &truth_masks_, g, p_.dilation_ratio));
        }
      }
      if (iou >= least_) candidates_.push_back({g, iou});
    }
  }

  // The detection's box, or the one around its mask.
  void read_box(int64_t d, double* box) {
    std::copy_n(p_.detections.boxes + 4 * segment_->detections[d], 4, box);
    if (!std::isnan(box[0])) return;
    const PixelBox found = masks_.at(d, 0).box;
    box[0] = static_cast<double>(found.x0);
    box[1] = static_cast<double>(found.y0);
    box[2] = static_cast<double>(found.x1 - found.x0);
    box[3] = static_cast<double>(found.y1 - found.y0);
  }

  void match(Metric* metric, int64_t d) {
    const int64_t index = segment_->detections[d];
    const double area = metric->areas != nullptr ? metric->areas[index] : masks_.mean_area(d);
    const bool may_miss = p_.detections.ignores[index];
    Match* row = metric->matches.data() + (segment_->slot + d) * cells();
    for (int64_t a = 0; a < p_.num_ranges; ++a, row += p_.num_thresholds) {
      const bool unmatched_ignored = may_miss || outside(area, p_.ranges + 2 * a);
      const Match unmatched = unmatched_ignored ? Match::ignored : Match::false_positive;
      std::fill_n(row, p_.num_thresholds, unmatched);
      if (candidates_.empty()) continue;
      const uint8_t* const ignored = ignored_.data() + a * segment_->num_truths;
      for (int64_t t = 0; t < p_.num_thresholds; ++t) {
        uint8_t* const taken = matched_.data() + (a * p_.num_thresholds + t) * segment_->num_truths;
        int64_t best = best_candidate(thresholds_[t], ignored, taken, false);
        const bool regular = best >= 0;
        if (!regular) best = best_candidate(thresholds_[t], ignored, taken, true);
        if (best < 0) continue;
        taken[best] = 1;
        row[t] = regular ? Match::true_positive : Match::ignored;
      }
    }
  }

  // The free truth, ignored or not, with the largest IoU, the last one of equals; -1 if none
  // reaches the threshold. Crowd regions are always free.
  int64_t best_candidate(double threshold, const uint8_t* ignored, const uint8_t* taken,
                         bool among_ignored) const {
    int64_t best = -1;
    for (const Candidate& candidate : candidates_) {
      const int64_t g = candidate.truth;
      if (candidate.iou < threshold || (ignored[g] != 0) != among_ignored) continue;
      if (taken[g] && !p_.truths.crowds[segment_->truths[g]]) continue;
      threshold = candidate.iou;
      best = g;
    }
    return best;
  }

  const MatchParams& p_;
  std::vector<double> thresholds_;
  double least_ = 1;
  bool needs_masks_ = false;
  const Segment* segment_ = nullptr;
  MaskSet masks_, truth_masks_;
  std::vector<uint8_t> ignored_;  // [ranges, truths]
  std::vector<uint8_t> matched_;  // [ranges, thresholds, truths]
  std::vector<Candidate> candidates_;
  ObjectError error_;
};

void count_positives(const MatchParams& p) {
  p.positives->assign(p.num_categories * p.num_ranges, 0);
  for (int64_t n = 0; n < p.truths.size; ++n) {
    if (p.truths.images[n] < 0 || p.truths.ignores[n]) continue;
    for (int64_t a = 0; a < p.num_ranges; ++a) {
      (*p.positives)[p.truths.categories[n] * p.num_ranges + a] +=
          !outside(p.truths.areas[n], p.ranges + 2 * a);
    }
  }
}

// Segments of all images in order, and where their kept detections go. Categories that have
// nothing to be found need no detections.
std::vector<Segment> make_segments(const MatchParams& p, const ByImage& detections,
                                   const ByImage& truths, std::vector<int64_t>* image_begins) {
  const auto has_positives = [&](int64_t category) {
    const int64_t* const positives = p.positives->data() + category * p.num_ranges;
    return std::any_of(positives, positives + p.num_ranges, [](int64_t n) { return n > 0; });
  };
  std::vector<Segment> segments;
  p.category_ends->assign(p.num_categories, 0);
  for (int64_t i = 0; i < p.num_images; ++i) {
    image_begins->push_back(segments.size());
    const int64_t* truth = truths.order.data() + truths.begins[i];
    const int64_t* const last_truth = truths.order.data() + truths.begins[i + 1];
    const int64_t* first = detections.order.data() + detections.begins[i];
    const int64_t* const last = detections.order.data() + detections.begins[i + 1];
    while (first != last) {
      const int64_t category = p.detections.categories[*first];
      Segment segment = {first, nullptr, 0, 0, 0};
      while (first != last && p.detections.categories[*first] == category) ++first;
      segment.num_detections = std::min<int64_t>(first - segment.detections, p.max_detections);
      while (truth != last_truth && p.truths.categories[*truth] < category) ++truth;
      segment.truths = truth;
      while (truth != last_truth && p.truths.categories[*truth] == category) ++truth;
      segment.num_truths = truth - segment.truths;
      if (!has_positives(category)) continue;
      segment.slot = (*p.category_ends)[category];  // within the category, for now
      (*p.category_ends)[category] += segment.num_detections;
      segments.push_back(segment);
    }
  }
  image_begins->push_back(segments.size());
  int64_t begin = 0;
  std::vector<int64_t> begins;
  for (int64_t& end : *p.category_ends) {
    begins.push_back(begin);
    begin = end += begin;
  }
  for (Segment& segment : segments) {
    segment.slot += begins[p.detections.categories[segment.detections[0]]];
  }
  return segments;
}

}  // namespace

void evaluation_match_cpu(const MatchParams& p) {
  const double* const scores = p.detections.scores;
  const ByImage detections = by_image(p.detections, p.num_images,
                                      [&](int64_t a, int64_t b) { return scores[a] > scores[b]; });
  const ByImage truths = by_image(p.truths, p.num_images, [](int64_t, int64_t) { return false; });
  count_positives(p);
  std::vector<int64_t> image_begins;
  const std::vector<Segment> segments = make_segments(p, detections, truths, &image_begins);
  const int64_t num_kept = p.num_categories == 0 ? 0 : p.category_ends->back();
  p.kept->resize(num_kept);
  p.ranks->resize(num_kept);
  for (int64_t m = 0; m < p.num_metrics; ++m) {
    p.metrics[m].matches.resize(num_kept * p.num_ranges * p.num_thresholds);
  }
  std::atomic<int64_t> first_bad = p.num_images;
  std::vector<ObjectError> errors((p.num_images + kImagesPerTask - 1) / kImagesPerTask);
  parallel_for(p.num_images, kImagesPerTask, [&](int64_t begin, int64_t end) {
    Matcher matcher(p);
    for (int64_t i = begin; i < end && i < first_bad; ++i) {
      for (int64_t s = image_begins[i]; s < image_begins[i + 1]; ++s) {
        const Segment& segment = segments[s];
        for (int64_t rank = 0; rank < segment.num_detections; ++rank) {
          (*p.kept)[segment.slot + rank] = segment.detections[rank];
          (*p.ranks)[segment.slot + rank] = rank;
        }
        if (matcher.run(segment)) continue;
        errors[i / kImagesPerTask] = matcher.error();
        for (int64_t bad = first_bad; i < bad && !first_bad.compare_exchange_weak(bad, i);) {
        }
        return;
      }
    }
  });
  if (first_bad < p.num_images) *p.error = errors[first_bad / kImagesPerTask];
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(evaluation_match_cpu, MatchParams)
