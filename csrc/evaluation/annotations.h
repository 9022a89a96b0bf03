// COCO's annotations and results as columns, which is what they are evaluated from.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "rle/rle_math.h"

namespace fastseg {

// One entry of a file. Numbers that it lacks are NaN.
struct Annotation {
  int64_t id = 0, image = 0, category = 0;
  double score = NAN, area = NAN;
  double box[4] = {NAN, NAN, NAN, NAN};  // x, y, width, height
  bool crowd = false, ignore = false;
};

// Of a video's object: pixels a frame, over the frames that have any.
class MeanArea {
 public:
  void add(double area) {
    if (area == 0) return;
    sum_ += area;
    ++frames_;
  }
  double value() const { return frames_ == 0 ? 0 : sum_ / frames_; }

 private:
  double sum_ = 0;
  int frames_ = 0;
};

template <class T>
void append_all(const std::vector<T>& from, std::vector<T>* to, T shift = 0) {
  for (const T value : from) to->push_back(static_cast<T>(value + shift));
}

// Masks in one pool. Mask m is a compressed string, texts [text_ends[m - 1], text_ends[m]), or
// where this is empty a union of polygons, [polygon_ends[m - 1], polygon_ends[m]), or nothing.
struct MaskPool {
  std::vector<int64_t> sizes;  // height and width of each mask; -1 for polygons
  std::string text;
  std::vector<int64_t> text_ends;
  std::vector<double> coordinates;       // x, y of all polygons' corners
  std::vector<int64_t> coordinate_ends;  // of each polygon
  std::vector<int64_t> polygon_ends;     // of each mask

  // Completes a mask whose text or polygons have been appended.
  void end_mask(int64_t height, int64_t width) {
    sizes.push_back(height);
    sizes.push_back(width);
    text_ends.push_back(static_cast<int64_t>(text.size()));
    polygon_ends.push_back(static_cast<int64_t>(coordinate_ends.size()));
  }

  void end_polygon() { coordinate_ends.push_back(static_cast<int64_t>(coordinates.size())); }

  void append(const MaskPool& other) {
    append_all(other.sizes, &sizes);
    append_all(other.text_ends, &text_ends, static_cast<int64_t>(text.size()));
    append_all(other.polygon_ends, &polygon_ends, static_cast<int64_t>(coordinate_ends.size()));
    append_all(other.coordinate_ends, &coordinate_ends, static_cast<int64_t>(coordinates.size()));
    append_all(other.coordinates, &coordinates);
    text += other.text;
  }

  int64_t size() const { return static_cast<int64_t>(text_ends.size()); }
};

// Turns run lengths that come one by one into a compressed string.
class CountWriter {
 public:
  explicit CountWriter(std::string* text) : text_(text) {}

  void add(int64_t count) {
    char run[7];
    text_->append(run, write_run(index_++ > 2 ? count - before_last_ : count, run));
    before_last_ = last_;
    last_ = count;
  }

 private:
  std::string* text_;
  int64_t index_ = 0, last_ = 0, before_last_ = 0;
};

struct Annotations {
  std::vector<int64_t> ids, images, categories;
  std::vector<double> scores, areas, boxes;
  std::vector<uint8_t> crowds, ignores;
  std::vector<int64_t> mask_ends;  // annotation n has the masks [mask_ends[n - 1], mask_ends[n]):
                                   // one or none, or one per frame of a video
  MaskPool masks;

  // Completes an annotation whose masks have been added.
  void add(const Annotation& one) {
    ids.push_back(one.id);
    images.push_back(one.image);
    categories.push_back(one.category);
    scores.push_back(one.score);
    areas.push_back(one.area);
    boxes.insert(boxes.end(), one.box, one.box + 4);
    crowds.push_back(one.crowd);
    ignores.push_back(one.ignore);
    mask_ends.push_back(masks.size());
  }

  // Adds the annotations of another one, which gives its memory back.
  void append(Annotations other) {
    append_all(other.ids, &ids);
    append_all(other.images, &images);
    append_all(other.categories, &categories);
    append_all(other.scores, &scores);
    append_all(other.areas, &areas);
    append_all(other.boxes, &boxes);
    append_all(other.crowds, &crowds);
    append_all(other.ignores, &ignores);
    append_all(other.mask_ends, &mask_ends, masks.size());
    masks.append(other.masks);
  }

  int64_t size() const { return static_cast<int64_t>(ids.size()); }
};

}  // namespace fastseg
