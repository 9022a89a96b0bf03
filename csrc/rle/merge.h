// Union, intersection and difference of masks, on toggles.
#pragma once

#include <cstdint>
#include <vector>

#include "rle/rle_math.h"
#include "rle/runs.h"

namespace fastseg {

enum class Merge { unite, intersect, subtract };

// Replaces `toggles` with those of the merged mask. Both masks are of one size and end at its end;
// no toggles have equal neighbours.
inline void merge(const Runs& a, const Runs& b, Merge how, std::vector<uint32_t>* toggles) {
  // Bit 2 * (in b) + (in a): whether such pixels are inside.
  const unsigned table = how == Merge::unite       ? 0b1110u
                         : how == Merge::intersect ? 0b1000u
                                                   : 0b0010u;
  toggles->resize(a.size + b.size);
  uint32_t* const start = toggles->data();
  uint32_t* end = start;
  unsigned inside = 0, was = 0;  // was: of the merged mask
  // No branch on the data: which of two masks changes next is a guess half the time.
  const auto step = [&](uint32_t position, unsigned changed) {
    inside ^= changed;
    const unsigned is = table >> inside & 1;
    *end = position;
    end += is ^ was;
    was = is;
  };
  int64_t i = 0, j = 0;
  while (i < a.size && j < b.size) {
    const uint32_t next_a = a.toggles[i], next_b = b.toggles[j];
    const unsigned a_changes = next_a <= next_b, b_changes = next_b <= next_a;
    step(a_changes ? next_a : next_b, a_changes | b_changes << 1);
    i += a_changes;
    j += b_changes;
  }
  for (; i < a.size; ++i) step(a.toggles[i], 1);
  for (; j < b.size; ++j) step(b.toggles[j], 2);
  toggles->resize(end - start);
}

}  // namespace fastseg
