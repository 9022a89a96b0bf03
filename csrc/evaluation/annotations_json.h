// The entries of COCO's JSON arrays -> columns, on all threads.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/check.h"
#include "core/parallel.h"
#include "evaluation/annotations.h"
#include "evaluation/json.h"
#include "evaluation/mapped_file.h"

namespace fastseg {

constexpr int64_t kBytesPerThread = 1 << 20;  // less is not worth a thread
constexpr int64_t kBytesPerRelease = 8 << 20;

// Reads one entry after the other.
class EntryReader {
 public:
  EntryReader(JsonReader* json, bool with_masks, Annotations* found)
      : json_(*json), with_masks_(with_masks), masks_(&found->masks), found_(found) {}

  void read() {
    Annotation one;
    bool has_image = false, has_category = false, has_masks = false;
    json_.read_object([&](std::string_view key) {
      if (key == "image_id" || key == "video_id") {
        one.image = json_.read_integer();
        has_image = true;
      } else if (key == "category_id") {
        one.category = json_.read_integer();
        has_category = true;
      } else if (with_masks_ && key == "segmentation" && !has_masks) {
        has_masks = read_mask();
      } else if (with_masks_ && key == "segmentations" && !has_masks && json_.peek() == '[') {
        has_masks = true;
        json_.read_array([&] {
          if (!read_mask()) masks_->end_mask(0, 0);
        });
      } else if (!json_.read_null()) {
        read_number(key, &one);
      }
    });
    FASTSEG_CHECK(has_image && has_category, "image_id and category_id must be there");
    found_->add(one);
  }

 private:
  void read_number(std::string_view key, Annotation* one) {
    if (key == "id") {
      one->id = json_.read_integer();
    } else if (key == "score") {
      one->score = json_.read_number();
    } else if (key == "area") {
      one->area = json_.read_number();
    } else if (key == "areas" && json_.peek() == '[') {
      one->area = read_mean_area();
    } else if (key == "iscrowd") {
      one->crowd = json_.read_flag();
    } else if (key == "ignore") {
      one->ignore = json_.read_flag();
    } else if (key == "bbox") {
      read_box(one->box);
    } else {
      json_.skip_value();
    }
  }

  // Over the frames of a video in which the object is seen.
  double read_mean_area() {
    MeanArea mean;
    json_.read_array([&] {
      if (!json_.read_null()) mean.add(json_.read_number());
    });
    return mean.value();
  }

  void read_box(double* box) {
    int size = 0;
    json_.read_array([&] {
      const double side = json_.read_number();
      if (size < 4) box[size] = side;
      ++size;
    });
    FASTSEG_CHECK(size == 0 || size == 4, "bbox must have 4 numbers, got ", size);
  }

  // A mask of one image; false where it is null.
  bool read_mask() {
    if (json_.read_null()) return false;
    json_.peek() == '[' ? read_polygons() : read_rle();
    return true;
  }

  void read_polygons() {
    json_.read_array([&] {
      json_.read_array([&] { masks_->coordinates.push_back(json_.read_number()); });
      masks_->end_polygon();
    });
    masks_->end_mask(-1, -1);
  }

  void read_rle() {
    int64_t size[2] = {-1, -1};
    int num_sides = 0;
    bool has_counts = false;
    json_.read_object([&](std::string_view key) {
      if (key == "size") {
        json_.read_array([&] {
          const int64_t side = json_.read_integer();
          if (num_sides < 2) size[num_sides] = side;
          ++num_sides;
        });
      } else if (key == "counts" && !has_counts) {
        has_counts = true;
        read_counts_value();
      } else {
        json_.skip_value();
      }
    });
    FASTSEG_CHECK(num_sides == 2 && size[0] >= 0 && size[1] >= 0 && has_counts,
                  "segmentation must have counts and a size [height, width]");
    masks_->end_mask(size[0], size[1]);
  }

  void read_counts_value() {
    if (json_.peek() == '"') return json_.append_string(&masks_->text);
    CountWriter writer(&masks_->text);
    json_.read_array([&] {
      const int64_t count = json_.read_integer();
      FASTSEG_CHECK(count >= 0 && count <= kMaxMaskArea,
                    "segmentation's counts must be from 0 to 2^32 - 1, got ", count);
      writer.add(count);
    });
  }

  JsonReader& json_;
  bool with_masks_;
  MaskPool* masks_;
  Annotations* found_;
};

// The first byte from `at` on where an entry seems to begin: an object after the end of another.
// It may lie in a string or a deeper array, so what is read from there counts only if what is read
// before ends there.
inline const char* guess_entry(const char* at, const char* end) {
  const auto skip_space = [&](const char* next) {
    while (next != end && (*next == ' ' || *next == '\n' || *next == '\r' || *next == '\t')) ++next;
    return next;
  };
  for (; (at = std::find(at, end, '}')) != end; ++at) {
    const char* next = skip_space(at + 1);
    if (next == end || *next != ',') continue;
    next = skip_space(next + 1);
    if (next != end && *next == '{') return next;
  }
  return end;
}

// Reads the array [text, text + size) in parts. False when a part does not end where the next one
// begins, or is malformed.
inline bool read_in_parts(const char* text, int64_t size, bool with_masks, const MappedFile* file,
                          Annotations* found) {
  const int64_t count = std::min<int64_t>(max_threads(), size / kBytesPerThread);
  if (count < 2) return false;
  const char* const end = text + size;
  std::vector<const char*> begins = {text};
  for (int64_t part = 1; part < count; ++part) {
    begins.push_back(guess_entry(std::max(text + size / count * part, begins.back() + 1), end));
    if (begins.back() == end) return false;
  }
  std::vector<Annotations> parts(count);
  std::vector<uint8_t> succeeded(count, 0);
  parts[0].masks.text.reserve(with_masks ? size : 0);
  parallel_for(count, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const char* const stop = part + 1 < count ? begins[part + 1] : nullptr;
      if (part > 0) parts[part].masks.text.reserve(with_masks ? size / count : 0);
      try {
        JsonReader json(begins[part], end - begins[part]);
        EntryReader reader(&json, with_masks, &parts[part]);
        const char* kept_from = begins[part];
        succeeded[part] = json.read_items(part == 0, stop, [&] {
          reader.read();
          const char* const at = begins[part] + json.position();
          if (file == nullptr || at - kept_from < kBytesPerRelease) return;
          file->give_back(kept_from, at);
          kept_from = at;
        });
      } catch (const std::invalid_argument&) {
        succeeded[part] = 0;
      }
    }
  });
  if (std::count(succeeded.begin(), succeeded.end(), 0) > 0) return false;
  *found = std::move(parts[0]);
  for (int64_t part = 1; part < count; ++part) found->append(std::move(parts[part]));
  return true;
}

// Reads an array of annotations or results. `name` is what errors call it. Pages of `file`, where
// the text lies in one, are given back as they are read.
inline Annotations read_annotations(const char* text, int64_t size, const std::string& name,
                                    bool with_masks, const MappedFile* file) {
  Annotations found;
  if (read_in_parts(text, size, with_masks, file, &found)) return found;
  found = {};
  if (with_masks) found.masks.text.reserve(size);
  JsonReader json(text, size);
  EntryReader reader(&json, with_masks, &found);
  json.read_array([&] {
    try {
      reader.read();
    } catch (const std::invalid_argument& error) {
      FASTSEG_CHECK(false, name, "[", found.size(), "]: ", error.what());
    }
  });
  json.expect_end();
  return found;
}

}  // namespace fastseg
