// Attention masks on the CPU: a query's rows are resized one after the other into a short buffer,
// and whole words of it packed as soon as they are full, since rows do not end where words do.
#include <algorithm>
#include <vector>

#include "attention_mask/attention_mask_math.h"
#include "core/bits.h"
#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/parallel.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kPixelsPerTask = 1 << 14;

struct Columns {
  std::vector<int> low, high;
  std::vector<float> low_weight, high_weight;

  Columns(int64_t pixels, int64_t cells) {
    for (int64_t x = 0; x < pixels; ++x) {
      const Tap tap = stretched_tap(x, pixels, static_cast<int>(cells));
      low.push_back(tap.low);
      high.push_back(tap.high);
      low_weight.push_back(tap.low_weight);
      high_weight.push_back(tap.high_weight);
    }
  }
};

// One row of a query's logits at the map's size.
template <class T>
void write_row(const AttentionMaskParams& p, const Columns& columns, const T* logits, int64_t row,
               float* __restrict out) {
  const int64_t step = p.logits.stride[3];
  if (keeps_size(p)) {
    const T* from = logits + row * p.logits.stride[2];
    for (int64_t x = 0; x < p.width; ++x) out[x] = static_cast<float>(from[x * step]);
    return;
  }
  const Blend blend = cpu_interpolate_blend(p.height, p.width);
  const Tap y = stretched_tap(row, p.height, static_cast<int>(p.logits.size[2]));
  const T* north = logits + y.low * p.logits.stride[2];
  const T* south = logits + y.high * p.logits.stride[2];
  const int *low = columns.low.data(), *high = columns.high.data();
  const float *low_weight = columns.low_weight.data(), *high_weight = columns.high_weight.data();
  for (int64_t x = 0; x < p.width; ++x) {
    const int64_t west = low[x] * step, east = high[x] * step;
    const float north_west = static_cast<float>(north[west]);
    const float north_east = static_cast<float>(north[east]);
    const float south_west = static_cast<float>(south[west]);
    const float south_east = static_cast<float>(south[east]);
    if (blend == Blend::separable) {
      out[x] = blend_pair(
          blend_pair(north_west, low_weight[x], north_east, high_weight[x]), y.low_weight,
          blend_pair(south_west, low_weight[x], south_east, high_weight[x]), y.high_weight);
    } else {
      out[x] = blend_four(blend, y, low_weight[x], high_weight[x], north_west, north_east,
                          south_west, south_east);
    }
  }
}

template <class T>
void pack(const AttentionMaskParams& p) {
  const int64_t queries = p.logits.size[1];
  const Columns columns(p.width, p.logits.size[3]);
  const int64_t grain = kPixelsPerTask / std::max<int64_t>(p.height * p.width, 1);
  parallel_for(p.logits.size[0] * queries, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(64 + p.width);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / queries, q = task % queries;
      uint64_t* word = p.words.at<uint64_t>(b, q);
      int64_t count = 0;  // of pixels in the buffer
      for (int64_t y = 0; y < p.height; ++y) {
        write_row(p, columns, p.logits.at<const T>(b, q), y, buffer.data() + count);
        count += p.width;
        int64_t packed = 0;
        for (; packed + 64 <= count; packed += 64) {
          *word++ = load_bits(buffer.data() + packed, 1, 64, MayAttend());
        }
        std::copy(buffer.begin() + packed, buffer.begin() + count, buffer.begin());
        count -= packed;
      }
      if (count > 0) *word = load_bits(buffer.data(), 1, count, MayAttend());
    }
  });
}

}  // namespace

void attention_mask_cpu(const AttentionMaskParams& params) {
  dispatch_floating(params.logits.dtype, "mask_logits",
                    [&](auto zero) { pack<decltype(zero)>(params); });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(attention_mask_cpu, AttentionMaskParams)
