// Attention masks on the CPU: a query's rows are resized one after the other into a short buffer,
// and whole words of it packed as soon as they are full, since rows do not end where words do.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "attention_mask/attention_mask_math.h"
#include "core/bits.h"
#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/parallel.h"
#include "core/resized_rows.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int64_t kPixelsPerTask = 1 << 14;

// A row of logits as floats next to each other: the row itself, or a copy in `buffer`.
template <class T>
const float* read_row(const AttentionMaskParams& p, const T* logits, int64_t row, float* buffer) {
  const T* from = logits + row * p.logits.stride[2];
  const int64_t step = p.logits.stride[3];
  if (std::is_same_v<T, float> && step == 1) return reinterpret_cast<const float*>(from);
  for (int64_t x = 0; x < p.logits.size[3]; ++x) buffer[x] = static_cast<float>(from[x * step]);
  return buffer;
}

// A row of the map between two rows of logits.
void blend_rows(Blend blend, const Tap& y, const Taps& columns, const float* __restrict north,
                const float* __restrict south, float* __restrict out) {
  const int *low = columns.low.data(), *high = columns.high.data();
  const float *low_weight = columns.low_weight.data(), *high_weight = columns.high_weight.data();
  const int64_t width = static_cast<int64_t>(columns.low.size());
  if (blend == Blend::separable) {
    for (int64_t x = 0; x < width; ++x) {
      const float above = blend_pair(north[low[x]], low_weight[x], north[high[x]], high_weight[x]);
      const float below = blend_pair(south[low[x]], low_weight[x], south[high[x]], high_weight[x]);
      out[x] = blend_pair(above, y.low_weight, below, y.high_weight);
    }
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    out[x] = blend_four(blend, y, low_weight[x], high_weight[x], north[low[x]], north[high[x]],
                        south[low[x]], south[high[x]]);
  }
}

template <class T>
void pack(const AttentionMaskParams& p) {
  const int64_t queries = p.logits.size[1];
  const Taps columns(p.logits.size[3], p.width, p.width, p.width);
  const Blend blend = cpu_interpolate_blend(p.height, p.width);
  const int64_t grain = kPixelsPerTask / std::max<int64_t>(p.height * p.width, 1);
  parallel_for(p.logits.size[0] * queries, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(64 + p.width), north(p.logits.size[3]), south(p.logits.size[3]);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / queries, q = task % queries;
      const T* logits = p.logits.at<const T>(b, q);
      uint64_t* word = p.words.at<uint64_t>(b, q);
      int64_t count = 0;  // of pixels in the buffer
      for (int64_t y = 0; y < p.height; ++y) {
        float* row = buffer.data() + count;
        if (keeps_size(p)) {
          std::copy_n(read_row(p, logits, y, row), p.width, row);
        } else {
          const Tap tap = stretched_tap(y, p.height, static_cast<int>(p.logits.size[2]));
          blend_rows(blend, tap, columns, read_row(p, logits, tap.low, north.data()),
                     read_row(p, logits, tap.high, south.data()), row);
        }
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
