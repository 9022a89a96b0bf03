// Union and intersection of many masks.
#include "bindings/rles.h"
#include "rle/merge.h"

namespace fastseg {
namespace {

void check_same_size(const std::vector<Rle>& rles) {
  for (size_t n = 1; n < rles.size(); ++n) {
    FASTSEG_CHECK(rles[n].height == rles[0].height && rles[n].width == rles[0].width,
                  "rles must be of one size: rles[0] has ", rles[0].size(), ", rles[", n, "] has ",
                  rles[n].size());
  }
}

// Pairs, then pairs of these: each run is read log2(N) times. Leaves the result in masks[0].
void merge_all(Merge how, int64_t area, std::vector<std::vector<uint32_t>>* masks) {
  const int64_t count = masks->size();
  for (int64_t step = 1; step < count; step *= 2) {
    int64_t runs = 1;
    for (int64_t n = 0; n < count; n += step) runs += (*masks)[n].size();
    const int64_t pairs = (count + step - 1) / (2 * step);
    parallel_for(pairs, kRunsPerTask * pairs / runs, [&](int64_t begin, int64_t end) {
      std::vector<uint32_t> merged;
      for (int64_t pair = begin; pair < end; ++pair) {
        std::vector<uint32_t>& a = (*masks)[2 * step * pair];
        std::vector<uint32_t>& b = (*masks)[2 * step * pair + step];
        merge({a.data(), static_cast<int64_t>(a.size()), area},
              {b.data(), static_cast<int64_t>(b.size()), area}, how, &merged);
        a.swap(merged);
      }
    });
  }
}

py::dict merge_rles(const py::sequence& objects, bool intersect) {
  std::vector<Rle> rles = read_rles(objects, true);
  if (rles.empty()) return make_rle(0, 0, "");
  check_same_size(rles);
  std::string counts;
  {
    py::gil_scoped_release release;
    std::vector<std::vector<uint32_t>> masks;
    masks.reserve(rles.size());
    for (Rle& rle : rles) {
      drop_empty_runs(&rle.toggles);
      masks.push_back(std::move(rle.toggles));
    }
    merge_all(intersect ? Merge::intersect : Merge::unite, rles[0].area, &masks);
    append_counts(masks[0].data(), masks[0].size(), rles[0].area, &counts);
  }
  return make_rle(rles[0].height, rles[0].width, counts);
}

}  // namespace

void bind_rle_merge(py::module_& module) {
  module.def("rle_merge", &merge_rles, py::arg("rles"), py::arg("intersect"));
}

}  // namespace fastseg
