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

constexpr int64_t kLeastPart = 1 << 20;  // less is not worth a thread
constexpr int64_t kMostPart = 16 << 20;  // more memory is not worth what it saves
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

// Reads one part of an array's text: the entries from `begin` to `stop`, or to the array's end if
// that is null. False when it is malformed or no entry begins at `stop`.
inline bool read_part(const char* begin, const char* stop, const char* end, bool is_first,
                      bool with_masks, const MappedFile* file, Annotations* found) {
  const char* kept_from = begin;
  try {
    JsonReader json(begin, end - begin);
    EntryReader reader(&json, with_masks, found);
    return json.read_items(is_first, stop, [&] {
      reader.read();
      const char* const at = begin + json.position();
      if (file == nullptr || at - kept_from < kBytesPerRelease) return;
      file->give_back(kept_from, at);
      kept_from = at;
    });
  } catch (const std::invalid_argument&) {
    return false;
  }
}

// Reads the array [text, text + size) in parts, one per thread at a time, so that what has been
// read never lies in memory twice. False when a part could not be read.
inline bool read_in_parts(const char* text, int64_t size, bool with_masks, const MappedFile* file,
                          Annotations* found) {
  const int64_t threads = max_threads();
  if (threads == 1 || size < 2 * kLeastPart) return false;
  const int64_t part_size = std::clamp(size / threads, kLeastPart, kMostPart);
  const char* const end = text + size;
  std::vector<const char*> begins = {text};
  while (end - begins.back() > part_size + part_size / 2) {
    const char* const next = guess_entry(begins.back() + part_size, end);
    if (next == end) break;
    begins.push_back(next);
  }
  const int64_t count = static_cast<int64_t>(begins.size());
  if (with_masks) found->masks.text.reserve(size);
  for (int64_t first = 0; first < count; first += threads) {
    std::vector<Annotations> parts(std::min(threads, count - first));
    std::vector<uint8_t> succeeded(parts.size(), 0);
    parallel_for(parts.size(), 1, [&](int64_t part, int64_t last) {
      for (; part < last; ++part) {
        const int64_t n = first + part;
        const char* const stop = n + 1 < count ? begins[n + 1] : nullptr;
        if (with_masks) parts[part].masks.text.reserve((stop == nullptr ? end : stop) - begins[n]);
        succeeded[part] = read_part(begins[n], stop, end, n == 0, with_masks, file, &parts[part]);
      }
    });
    if (std::count(succeeded.begin(), succeeded.end(), 0) > 0) return false;
    for (Annotations& part : parts) found->append(std::move(part));
  }
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
