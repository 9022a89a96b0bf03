// Which labels of two maps lie on each other, and on how many pixels: what panoptic quality,
// confusion matrices and Cityscapes' instance evaluation are made of.
#pragma once

#include <vector>

#include "core/view.h"

namespace fastseg {

struct LabelPair {
  int64_t first, second;  // the labels in either map
  int64_t pixels;
};

struct LabelPairsParams {
  // [H, W, C] of one H, W. C = 1: labels of any integer type. C = 3: uint8 colours, whose labels
  // are R + 256 G + 65536 B. Labels of uint64 wrap past 2^63.
  View<3> first, second;
  std::vector<LabelPair>* pairs;  // output: each pair once, in ascending order
};

void label_pairs_cpu(const LabelPairsParams& params);

}  // namespace fastseg
