// What the CUDA kernels of masked attention share: where a block's rows lie, the mask, the
// workspace, the gradient of a pair.
#pragma once

#include "core/cuda.cuh"
#include "masked_attention/masked_attention_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// One head of one batch entry.
struct Place {
  int64_t b, m, head;  // head = b * M + m

  __device__ Place(const MaskedAttentionParams& p, int64_t head)
      : b(head / p.query.size[1]), m(head % p.query.size[1]), head(head) {}

  // Of a query among those of all heads.
  __device__ int64_t row(const MaskedAttentionParams& p, int64_t q) const {
    return head * p.query.size[2] + q;
  }
};

// The workspace. First of each query [B, Q] whether it attends everything, as its mask has no bit;
// then forward [splits, B * M * Q, D + 2]: what a part of the keys gives a query, its output [D],
// max and sum of its softmax; backward [B * M * Q] the product of a query's output and its
// gradient, and [splits, B * M * Q, D] the parts of its own gradient.
template <class Acc>
struct Workspace {
  Acc *open, *products, *parts;
  int64_t rows, width;

  __device__ explicit Workspace(const MaskedAttentionParams& p)
      : open(p.workspace.template as<Acc>()),
        products(open + p.query.size[0] * p.query.size[2]),
        parts(products + p.log_sums.numel()),
        rows(p.log_sums.numel()),
        width(p.query.size[3]) {}

  __device__ Acc* output_part(int64_t split, int64_t row) const {
    return products + (split * rows + row) * (width + 2);
  }
  __device__ Acc* grad_part(int64_t split, int64_t row) const {
    return parts + (split * rows + row) * width;
  }
};

// Whether a query attends everything.
template <class Acc>
__device__ bool is_open(const MaskedAttentionParams& p, const Workspace<Acc>& workspace, int64_t b,
                        int64_t q) {
  return p.words.data == nullptr || workspace.open[b * p.query.size[2] + q] != 0;
}

// The keys of word i that a query attends.
__device__ inline uint64_t attended_keys(const MaskedAttentionParams& p, int64_t b, int64_t q,
                                         bool open, int64_t i) {
  return open ? existing_keys(p.key.size[2], i) : read_word(p, b, q, i);
}

// Scores are in units of log(2). Weights are relative to the greatest, unless all are -inf.
template <class Acc>
__device__ Acc finite_base(Acc max) {
  return max == -static_cast<Acc>(INFINITY) ? Acc(0) : max;
}

// Of a query and a key: the weight, and the gradient of their product in units of the scale.
template <class Acc>
struct Pair {
  Acc weight, slope;

  __device__ Pair(bool attended, Acc score, Acc log_sum, Acc grad, Acc product)
      : weight(attended ? fast_exp2(score - log_sum) : Acc(0)),
        slope(attended ? weight * (grad - product) : Acc(0)) {}
};

}  // namespace
}  // namespace fastseg
