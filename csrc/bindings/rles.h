// COCO RLEs as Python holds them, dicts {"size": [height, width], "counts": bytes | str | list},
// to and from toggles (rle/rle_math.h).
#pragma once

#include <string>
#include <vector>

#include "bindings/array.h"
#include "core/parallel.h"
#include "rle/rle_math.h"
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

// Work on shapes takes time and memory for every column, so a string must not ask for 2^32 of them.
constexpr int64_t kMaxShapeColumns = 1 << 24;
// Complete RLEs of at most that many columns.
std::vector<Rle> read_shapes(const py::sequence& objects);

py::dict make_rle(int64_t height, int64_t width, const std::string& counts);
py::list make_rles(int64_t height, int64_t width, const std::vector<std::string>& counts);

// How many RLEs make a task of the usual size.
int64_t rles_per_task(const std::vector<Rle>& rles);

// A mask that a kernel made: its toggles become the compressed string.
struct NewMask {
  int64_t height = 0, width = 0;
  std::vector<uint32_t> toggles;
};

// One new RLE for each, in parallel: worker(n, rles[n], &mask) fills in the mask, whose toggles are
// empty and whose size is the RLE's. Each task has its own copy of the worker, for its memory.
template <class Worker>
py::list map_rles(const std::vector<Rle>& rles, const Worker& prototype) {
  std::vector<std::string> counts(rles.size());
  std::vector<std::pair<int64_t, int64_t>> sizes(rles.size());
  {
    py::gil_scoped_release release;
    parallel_for(rles.size(), rles_per_task(rles), [&](int64_t begin, int64_t end) {
      Worker worker = prototype;
      NewMask mask;
      for (int64_t n = begin; n < end; ++n) {
        mask.height = rles[n].height;
        mask.width = rles[n].width;
        mask.toggles.clear();
        worker(n, rles[n], &mask);
        sizes[n] = {mask.height, mask.width};
        append_counts(mask.toggles.data(), mask.toggles.size(),
                      static_cast<uint32_t>(mask.height * mask.width), &counts[n]);
      }
    });
  }
  py::list result(rles.size());
  for (size_t n = 0; n < rles.size(); ++n) {
    result[n] = make_rle(sizes[n].first, sizes[n].second, counts[n]);
  }
  return result;
}

}  // namespace fastseg
