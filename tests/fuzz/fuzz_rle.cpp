// libFuzzer over run lengths: any string and any polygon, and every function of csrc/rle against
// the same on pixels. No part of the tests, as it needs clang:
//
//   clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
//     -ffp-contract=off -DFASTSEG_ISA=baseline -DFASTSEG_ISA_BASELINE -Icsrc \
//     tests/fuzz/fuzz_rle.cpp csrc/rle/rle_cpu.cpp csrc/core/parallel.cpp -o fuzz_rle
//   ./fuzz_rle -runs=1000000 -max_len=160
//
// What it finds becomes a case of tests/ops/test_rle.py or tests/test_mask*.py.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "rle/boundary.h"
#include "rle/contours.h"
#include "rle/merge.h"
#include "rle/polygons.h"
#include "rle/regions.h"
#include "rle/rle.h"
#include "rle/rle_math.h"
#include "rle/transforms.h"

using namespace fastseg;

#define EXPECT(condition) \
  do { \
    if (!(condition)) { \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::abort(); \
    } \
  } while (false)

namespace {

using Toggles = std::vector<uint32_t>;
using Pixels = std::vector<uint8_t>;  // column by column, 0 or 1

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool empty() const { return size_ == 0; }
  uint8_t byte() {
    if (empty()) return 0;
    --size_;
    return *data_++;
  }
  int64_t below(int64_t limit) { return byte() % limit; }
  std::string text(int64_t length) {
    std::string text;
    for (int64_t i = 0; i < length && !empty(); ++i) text += static_cast<char>(byte());
    return text;
  }
  double number() {
    double value = 0;
    const std::string bits = text(sizeof(value));
    memcpy(&value, bits.data(), bits.size());
    return value;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

struct Mask {
  int64_t height, width;
  Toggles toggles;  // equal neighbours are allowed
  Pixels pixels;

  int64_t area() const { return height * width; }
  Runs runs() const { return {toggles.data(), static_cast<int64_t>(toggles.size()), area()}; }
  bool at(int64_t y, int64_t x) const {
    return y >= 0 && y < height && x >= 0 && x < width && pixels[x * height + y] != 0;
  }
};

Pixels pixels_of(const Toggles& toggles, int64_t area) {
  Pixels pixels(area);
  bool inside = false;
  size_t next = 0;
  for (int64_t i = 0; i < area; ++i) {
    while (next < toggles.size() && toggles[next] == i) {
      inside = !inside;
      ++next;
    }
    pixels[i] = inside;
  }
  return pixels;
}

// A mask whose runs are bytes; the last one goes to the end.
Mask read_mask(Input* input, int64_t height, int64_t width) {
  Mask mask = {height, width, {}, {}};
  int64_t position = 0;
  for (int64_t runs = input->below(24); runs > 0; --runs) {
    position += input->byte() % 32;
    if (position > mask.area()) break;
    mask.toggles.push_back(static_cast<uint32_t>(position));
  }
  mask.pixels = pixels_of(mask.toggles, mask.area());
  return mask;
}

// Toggles that a kernel made: in order, and nothing but these pixels.
void expect_mask(const Toggles& toggles, int64_t height, int64_t width, const Pixels& pixels) {
  for (size_t i = 1; i < toggles.size(); ++i) EXPECT(toggles[i - 1] < toggles[i]);
  EXPECT(toggles.empty() || toggles.back() <= height * width);
  EXPECT(pixels_of(toggles, height * width) == pixels);
}

template <class F>
Pixels make_pixels(int64_t height, int64_t width, const F& inside) {
  Pixels pixels;
  for (int64_t x = 0; x < width; ++x) {
    for (int64_t y = 0; y < height; ++y) pixels.push_back(inside(y, x));
  }
  return pixels;
}

// The ends of all runs, number by number; false for a malformed string.
bool read_ends(const std::string& text, std::vector<int64_t>* ends) {
  std::vector<int64_t> counts;
  const int64_t size = text.size();
  for (int64_t at = 0; at < size;) {
    int64_t count = 0;
    if (!read_number(text.data(), size, &at, &count).empty()) return false;
    if (counts.size() > 2) count += counts[counts.size() - 2];
    counts.push_back(count);
    ends->push_back(count + (ends->empty() ? 0 : ends->back()));
    if (count < 0 || ends->back() > kMaxMaskArea) return false;
  }
  return true;
}

// A string is read as its numbers tell; what it says, it says again when it is written.
void fuzz_string(Input* input) {
  const bool any_bytes = input->below(4) == 0;
  std::string text = input->text(200);
  for (char& character : text) {
    if (!any_bytes) character = static_cast<char>(48 + (character & 63));
  }
  Toggles toggles;
  int64_t total = 0;
  std::vector<int64_t> ends;
  const bool well_formed = read_ends(text, &ends);
  EXPECT(well_formed == read_counts(text.data(), text.size(), &toggles, &total).empty());
  if (!well_formed) return;
  EXPECT(total == (ends.empty() ? 0 : ends.back()));
  if (!ends.empty()) ends.pop_back();
  EXPECT(std::vector<int64_t>(toggles.begin(), toggles.end()) == ends);
  EXPECT(total >= 0 && total <= kMaxMaskArea);
  for (size_t i = 0; i < toggles.size(); ++i) {
    EXPECT(toggles[i] <= total && (i == 0 || toggles[i - 1] <= toggles[i]));
  }
  std::string again;
  append_runs(toggles.data(), toggles.size(), static_cast<uint32_t>(total), &again);
  Toggles same;
  int64_t same_total = 0;
  EXPECT(read_counts(again.data(), again.size(), &same, &same_total).empty());
  EXPECT(same == toggles && same_total == total);
  const Runs runs = {toggles.data(), static_cast<int64_t>(toggles.size()), total};
  EXPECT(area_of(runs) >= 0 && area_of(runs) <= total);
  EXPECT(intersection_of(runs, runs) == area_of(runs));
  box_of(runs, 1 + input->byte());
}

void fuzz_codec(const Mask& mask) {
  for (const bool rows : {false, true}) {
    Pixels pixels(mask.area(), 7);
    int64_t offsets[] = {0, static_cast<int64_t>(mask.toggles.size())};
    RleFillParams fill;
    fill.toggles = {const_cast<uint32_t*>(mask.toggles.data()), {offsets[1]}, {1}, DType::u32};
    fill.offsets = {offsets, {2}, {1}, DType::i64};
    const int64_t y_stride = rows ? mask.width : 1, x_stride = rows ? 1 : mask.height;
    fill.masks = {pixels.data(), {1, mask.height, mask.width}, {0, y_stride, x_stride}, DType::u8};
    rle_fill_cpu(fill);
    for (int64_t y = 0; y < mask.height; ++y) {
      for (int64_t x = 0; x < mask.width; ++x) {
        EXPECT(pixels[y * y_stride + x * x_stride] == mask.at(y, x));
      }
    }
    std::string counts, expected;
    RleEncodeParams encode;
    encode.masks = fill.masks;
    encode.counts = &counts;
    rle_encode_cpu(encode);
    Toggles plain = mask.toggles;
    drop_empty_runs(&plain);
    append_counts(plain.data(), plain.size(), static_cast<uint32_t>(mask.area()), &expected);
    EXPECT(counts == expected);
  }
}

void fuzz_pairs(Mask a, Mask b) {
  int64_t common = 0, area = 0;
  PixelBox box = {a.width, a.height, 0, 0};
  for (int64_t i = 0; i < a.area(); ++i) {
    common += a.pixels[i] & b.pixels[i];
    area += a.pixels[i];
    if (!a.pixels[i]) continue;
    box = {std::min(box.x0, i / a.height), std::min(box.y0, i % a.height),
           std::max(box.x1, i / a.height + 1), std::max(box.y1, i % a.height + 1)};
  }
  EXPECT(area_of(a.runs()) == area);
  EXPECT(intersection_of(a.runs(), b.runs()) == common);
  drop_empty_runs(&a.toggles);
  drop_empty_runs(&b.toggles);
  const PixelBox found = box_of(a.runs(), a.height);
  if (area == 0) box = {0, 0, 0, 0};
  EXPECT(found.x0 == box.x0 && found.x1 == box.x1);
  EXPECT(found.y0 <= box.y0 && found.y1 >= box.y1);  // a run across columns has full height
  for (const Merge how : {Merge::unite, Merge::intersect, Merge::subtract}) {
    Toggles merged;
    merge(a.runs(), b.runs(), how, &merged);
    expect_mask(merged, a.height, a.width,
                make_pixels(a.height, a.width, [&](int64_t y, int64_t x) {
                  return how == Merge::unite       ? a.at(y, x) || b.at(y, x)
                         : how == Merge::intersect ? a.at(y, x) && b.at(y, x)
                                                   : a.at(y, x) && !b.at(y, x);
                }));
  }
  complement(&a.toggles);
  expect_mask(a.toggles, a.height, a.width,
              make_pixels(a.height, a.width, [&](int64_t y, int64_t x) { return !a.at(y, x); }));
}

void fuzz_transforms(const Mask& mask, Input* input) {
  Columns columns;
  columns.assign(mask.runs(), mask.height);
  Toggles toggles;
  flip_columns(columns, mask.height, mask.width, &toggles);
  const int64_t height = mask.height, width = mask.width;
  expect_mask(toggles, height, width, make_pixels(height, width, [&](int64_t y, int64_t x) {
                return mask.at(y, width - 1 - x);
              }));
  toggles.clear();
  flip_rows(columns, height, &toggles);
  expect_mask(toggles, height, width, make_pixels(height, width, [&](int64_t y, int64_t x) {
                return mask.at(height - 1 - y, x);
              }));
  const int64_t x0 = input->below(40) - 20, y0 = input->below(40) - 20;
  const int64_t new_width = input->below(40), new_height = input->below(40);
  toggles.clear();
  crop_columns(columns, {x0, y0, x0 + new_width, y0 + new_height}, &toggles);
  expect_mask(toggles, new_height, new_width,
              make_pixels(new_height, new_width,
                          [&](int64_t y, int64_t x) { return mask.at(y + y0, x + x0); }));
  toggles.clear();
  resize_columns(columns, {height, new_height}, {width, new_width}, &toggles);
  expect_mask(toggles, new_height, new_width,
              make_pixels(new_height, new_width, [&](int64_t y, int64_t x) {
                return mask.at((2 * y + 1) * height / (2 * new_height),
                               (2 * x + 1) * width / (2 * new_width));
              }));
}

void fuzz_boundary(const Mask& mask, int64_t distance) {
  Toggles toggles;
  BoundaryFinder finder;
  finder.find(mask.runs(), mask.height, distance, &toggles);
  const auto near_outside = [&](int64_t y, int64_t x) {
    for (int64_t dy = -distance; dy <= distance; ++dy) {
      for (int64_t dx = -distance; dx <= distance; ++dx) {
        if (!mask.at(y + dy, x + dx)) return true;
      }
    }
    return false;
  };
  expect_mask(toggles, mask.height, mask.width,
              make_pixels(mask.height, mask.width, [&](int64_t y, int64_t x) {
                return mask.at(y, x) && near_outside(y, x);
              }));
}

// Regions part the mask, and their contours fill them again.
void fuzz_regions(const Mask& mask) {
  std::vector<Toggles> regions[2];
  for (const bool diagonals : {false, true}) {
    RegionFinder finder;
    finder.find(mask.runs(), mask.height, diagonals);
    finder.collect(&regions[diagonals]);
    Pixels seen(mask.area());
    for (const Toggles& region : regions[diagonals]) {
      const Pixels pixels = pixels_of(region, mask.area());
      expect_mask(region, mask.height, mask.width, pixels);
      for (int64_t i = 0; i < mask.area(); ++i) {
        EXPECT(!(seen[i] && pixels[i]));
        seen[i] |= pixels[i];
      }
    }
    EXPECT(seen == mask.pixels);
  }
  EXPECT(regions[0].size() >= regions[1].size());
  ContourFinder contours;
  contours.find(mask.runs(), mask.height);
  size_t outer = 0;
  for (size_t i = 0; i < contours.rings().size(); ++i) {
    const ContourFinder::Ring& ring = contours.rings()[i];
    if (ring.outer != static_cast<int64_t>(i)) continue;
    std::vector<Corner> corners;
    contours.append_joined(ring, &corners);
    std::vector<double> xy;
    for (const Corner& corner : corners) {
      xy.push_back(static_cast<double>(corner.x));
      xy.push_back(static_cast<double>(corner.y));
    }
    PolygonFiller filler;
    Toggles filled;
    filler.fill(xy.data(), corners.size(), mask.height, mask.width, &filled);
    EXPECT(outer < regions[0].size() && filled == regions[0][outer++]);
  }
  EXPECT(outer == regions[0].size());
}

void fuzz_polygon(Input* input) {
  const int64_t height = input->below(40), width = input->below(40);
  const bool small = input->below(2) == 0;
  std::vector<double> xy;
  while (!input->empty()) {
    const double value = small ? input->byte() / 3.0 - 20 : input->number();
    if (std::abs(value) <= kMaxCoordinate) xy.push_back(value);
  }
  PolygonFiller filler;
  Toggles toggles;
  filler.fill(xy.data(), xy.size() / 2, height, width, &toggles);
  expect_mask(toggles, height, width, pixels_of(toggles, height * width));
  // Backwards it is the same.
  std::vector<double> reversed;
  for (size_t i = xy.size() / 2; i > 0; --i) {
    reversed.push_back(xy[2 * i - 2]);
    reversed.push_back(xy[2 * i - 1]);
  }
  Toggles same;
  filler.fill(reversed.data(), xy.size() / 2, height, width, &same);
  EXPECT(same == toggles);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const int64_t what = input.below(6);
  if (what == 0) {
    fuzz_string(&input);
    return 0;
  }
  if (what == 1) {
    fuzz_polygon(&input);
    return 0;
  }
  const int64_t height = input.below(20), width = input.below(20);
  const Mask mask = read_mask(&input, height, width);
  if (what == 2) {
    fuzz_codec(mask);
    fuzz_pairs(mask, read_mask(&input, height, width));
  } else if (what == 3) {
    fuzz_transforms(mask, &input);
  } else if (what == 4) {
    fuzz_boundary(mask, 1 + input.below(6));
  } else {
    fuzz_regions(mask);
  }
  return 0;
}
