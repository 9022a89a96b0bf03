// What CPU and CUDA share: reading the mask, units of scores.
#pragma once

#include "masked_attention/masked_attention.h"

namespace fastseg {

constexpr int kWordKeys = 64;  // keys of one word of the mask
constexpr double kLog2E = 1.4426950408889634;
constexpr double kLogE2 = 0.6931471805599453;

FASTSEG_HD int64_t words_of(int64_t keys) { return (keys + kWordKeys - 1) / kWordKeys; }

// The bits of word i that are keys.
FASTSEG_HD uint64_t existing_keys(int64_t keys, int64_t i) {
  const int64_t left = keys - i * kWordKeys;
  return left >= kWordKeys ? ~uint64_t(0) : (uint64_t(1) << left) - 1;
}

// Word i of a query's mask; bits past the last key do not count, whatever the caller left there.
FASTSEG_HD uint64_t read_word(const MaskedAttentionParams& p, int64_t b, int64_t q, int64_t i) {
  return *p.words.at<const uint64_t>(b, q, i) & existing_keys(p.key.size[2], i);
}

// CUDA: blocks own parts of the keys, so that few queries still fill a GPU, and their results are
// combined in order. How many parts depends on shapes alone.
FASTSEG_HD int64_t key_splits(int64_t batch_heads, int64_t queries, int64_t keys) {
  constexpr int64_t kBlocks = 256;        // about two for each of an H100's multiprocessors
  constexpr int64_t kBlockQueries = 128;  // of the kernel for tensor cores
  const int64_t blocks = batch_heads * ((queries + kBlockQueries - 1) / kBlockQueries);
  const int64_t wanted = blocks == 0 ? 1 : (kBlocks + blocks - 1) / blocks;
  const int64_t most = (words_of(keys) + 1) / 2;
  return wanted < most ? wanted : (most < 1 ? 1 : most);
}

// Where part `split` begins; the last ends at the last key.
FASTSEG_HD int64_t split_begin(int64_t keys, int64_t splits, int64_t split) {
  const int64_t begin = split * words_of(keys) / splits * kWordKeys;
  return begin < keys ? begin : keys;
}

// Elements of MaskedAttentionParams::workspace: what masked_attention_device.cuh lists, of a
// forward pass; backward needs no more.
FASTSEG_HD int64_t masked_attention_workspace(int64_t batch_heads, int64_t queries, int64_t keys,
                                              int64_t width) {
  return (key_splits(batch_heads, queries, keys) * (width + 2) + 1) * batch_heads * queries;
}

}  // namespace fastseg
