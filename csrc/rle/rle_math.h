// COCO's run-length encoding of a mask: between toggles and the compressed string.
//
// A mask [h, w] is read column by column: pixel (x, y) has position x * h + y. A toggle is a
// position where the value changes; the first pixel counts as changed when it is 1. Toggles come
// in ascending order, and two equal ones cancel (a run of length 0). h * w < 2^32, so positions
// are uint32.
//
// How a kernel that makes masks encodes them without ever holding their pixels:
//   - from rows of 64-bit words (bit = column): ColumnTransitions in rle/transitions.h sorts the
//     toggles into columns; then append_counts() here writes the string;
//   - from per-column transitions: push the toggles in column order with append_toggle(), which
//     cancels a run that goes on in the next column; then append_counts().
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/types.h"

namespace fastseg {

constexpr int64_t kMaxMaskArea = 0xffffffff;

inline void append_toggle(uint32_t position, std::vector<uint32_t>* toggles) {
  if (!toggles->empty() && toggles->back() == position) {
    toggles->pop_back();
  } else {
    toggles->push_back(position);
  }
}

// Cancels equal neighbours, which runs of length 0 leave.
inline void drop_empty_runs(std::vector<uint32_t>* toggles) {
  const auto first = std::adjacent_find(toggles->begin(), toggles->end());
  if (first == toggles->end()) return;
  const std::vector<uint32_t> rest(first, toggles->end());
  toggles->erase(first, toggles->end());
  for (uint32_t position : rest) append_toggle(position, toggles);
}

// Writes one run in COCO's variable-length code: groups of 5 bits, lowest first, sign-extended,
// bit 5 = more groups follow, each as a character from '0' on. At most 7 characters.
FASTSEG_HD char* write_run(int64_t value, char* text) {
  bool more;
  do {
    const int group = value & 31;
    value >>= 5;
    more = value != (group & 16 ? -1 : 0);
    *text++ = static_cast<char>((group | (more ? 32 : 0)) + 48);
  } while (more);
  return text;
}

// Appends runs as compressed counts: `size` that end at the toggles, and one that ends at `end`.
inline void append_runs(const uint32_t* toggles, int64_t size, uint32_t end_of_runs,
                        std::string* text) {
  constexpr int64_t kBlock = 128;  // runs between appends
  char buffer[kBlock * 7];
  // Counts of the last two runs; a run from the fourth on is stored as a difference to two before.
  int64_t before_last = 0, last = 0, previous_toggle = 0;
  for (int64_t begin = 0; begin <= size; begin += kBlock) {
    char* end = buffer;
    for (int64_t i = begin; i <= size && i < begin + kBlock; ++i) {
      const int64_t toggle = i < size ? toggles[i] : end_of_runs;
      const int64_t count = toggle - previous_toggle;
      end = write_run(i > 2 ? count - before_last : count, end);
      before_last = last;
      last = count;
      previous_toggle = toggle;
    }
    text->append(buffer, end);
  }
}

// Appends the compressed counts of a mask of `area` pixels. Toggles are ascending without equal
// neighbours; those at or past the end of the mask are ignored.
inline void append_counts(const uint32_t* toggles, int64_t size, uint32_t area, std::string* text) {
  while (size > 0 && toggles[size - 1] >= area) --size;
  append_runs(toggles, size, area, text);
}

// Reads the number at text[*at], of any length. Returns what is wrong with it, or an empty string.
inline std::string read_number(const char* text, int64_t size, int64_t* at, int64_t* value) {
  const int64_t begin = *at;
  int group, shift = 0;
  *value = 0;
  do {
    if (*at == size) return "end in the middle of a number";
    if (shift == 35) {
      return "hold a number of more than 7 characters at " + std::to_string(begin);
    }
    group = static_cast<unsigned char>(text[*at]) - 48;
    if (group < 0 || group > 63) {
      return "hold the byte " + std::to_string(group + 48) + " at " + std::to_string(*at) +
             ", outside '0' to 'o'";
    }
    *value |= int64_t(group & 31) << shift;
    shift += 5;
    ++*at;
  } while (group & 32);
  if (group & 16) *value -= int64_t(1) << shift;
  return {};
}

// Tells the first fault of a string whose numbers are well-formed.
inline std::string fault_of(const char* text, int64_t size) {
  int64_t position = 0, last = 0, before_last = 0;
  for (int64_t at = 0, i = 0; at < size; ++i) {
    const int64_t begin = at;
    int64_t value = 0;
    read_number(text, size, &at, &value);
    if (i > 2) value += before_last;
    if (value < 0) return "hold a negative run at " + std::to_string(begin);
    before_last = last;
    last = value;
    position += value;
    if (position > kMaxMaskArea) break;
  }
  return "sum to 2^32 or more";
}

// As read_number() where 8 characters are left. False: something is wrong with the number.
inline bool read_number_fast(const char* text, int64_t* at, uint64_t* value) {
  const auto group = [text](int64_t i) { return static_cast<unsigned char>(text[i]) - 48u; };
  const unsigned a = group(*at);
  // Flipping the sign bit and taking it away again extends the sign.
  if (a < 32) {
    *value = uint64_t(a ^ 16) - 16;
    *at += 1;
    return true;
  }
  const unsigned b = group(*at + 1);
  if ((a | b) > 63) return false;
  if (b < 32) {
    *value = uint64_t(((a & 31) | b << 5) ^ 512) - 512;
    *at += 2;
    return true;
  }
  uint64_t bits = (a & 31) | (b & 31) << 5;
  int shift = 10;
  unsigned next;
  do {
    next = group(*at + shift / 5);
    if (next > 63 || shift == 35) return false;
    bits |= uint64_t(next & 31) << shift;
    shift += 5;
  } while (next & 32);
  const uint64_t sign = uint64_t(1) << (shift - 1);
  *value = (bits ^ sign) - sign;
  *at += shift / 5;
  return true;
}

// Reads a compressed string into toggles, one per run but the last (`total` gets the position where
// that one ends). Returns what is wrong with the string, or an empty string.
inline std::string read_counts(const char* text, int64_t size, std::vector<uint32_t>* toggles,
                               int64_t* total) {
  toggles->resize(size);
  uint32_t* const first = toggles->data();
  uint32_t* next = first;
  // Unsigned, since what a malformed string adds up to may wrap around.
  uint64_t position = 0, last = 0, before_last = 0;  // lengths of the last two runs
  uint64_t all_bits = 0;
  const auto add = [&](uint64_t value) {
    if (next - first > 2) value += before_last;
    before_last = last;
    last = value;
    position += value;
    all_bits |= value | position;
    *next++ = static_cast<uint32_t>(position);
  };
  int64_t at = 0;
  for (uint64_t value; size - at >= 8 && read_number_fast(text, &at, &value);) add(value);
  while (at < size) {
    int64_t value;
    std::string error = read_number(text, size, &at, &value);
    if (!error.empty()) return error;
    add(static_cast<uint64_t>(value));
  }
  // A negative run or a sum of 2^32 or more would have set a high bit.
  if (all_bits > kMaxMaskArea) return fault_of(text, size);
  toggles->resize(next == first ? 0 : next - first - 1);
  *total = static_cast<int64_t>(position);
  return {};
}

}  // namespace fastseg
