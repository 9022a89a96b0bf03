// COCO RLEs as Python holds them, dicts {"size": [height, width], "counts": bytes | str | list},
// to and from toggles (rle/rle_math.h).
#pragma once

#include <string>
#include <vector>

#include "bindings/array.h"
#include "rle/runs.h"

namespace fastseg {

constexpr int64_t kRunsPerTask = 1 << 14;  // some 50 us of strings: less is not worth a thread

bool fits_rle(int64_t height, int64_t width);
// height * width; ValueError when that is 2^32 or more.
uint32_t checked_area(int64_t height, int64_t width);

// An RLE read from Python: where its string lies, then its toggles.
struct Rle {
  int64_t height, width;
  uint32_t area;               // height * width
  const char* text = nullptr;  // null: counts were a list, toggles are set
  int64_t text_size = 0;
  std::vector<uint32_t> toggles;
  int64_t total = 0;  // sum of the counts
  std::string error;
  py::object counts;  // keeps the string alive while other Python threads run

  std::string size() const { return message("[", height, ", ", width, "]"); }
  Runs runs() const { return {toggles.data(), static_cast<int64_t>(toggles.size()), total}; }
};

// Reads RLEs of any sizes, strings in parallel. ValueError or TypeError, with `name` and the index,
// for what is malformed or longer than the mask; `complete`: also for counts that stop before the
// end of the mask.
std::vector<Rle> read_rles(const py::sequence& objects, bool complete, const char* name = "rles");

py::dict make_rle(int64_t height, int64_t width, const std::string& counts);
py::list make_rles(int64_t height, int64_t width, const std::vector<std::string>& counts);

}  // namespace fastseg
