// Masked attention on the CPU, one tile of 64 keys after the other: the keys of one word of the
// mask. Of each tile only the queries with a bit in that word are computed, four at a time, keys in
// the vector lanes. Softmax runs along (Milakov and Gimelshein, 2018): the sum and the output so
// far are scaled down when a greater score comes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/exp2.h"
#include "core/parallel.h"
#include "masked_attention/masked_attention_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int kTile = kWordKeys;
constexpr int kGroup = 4;             // queries that share what is loaded of a tile
constexpr int kTaskQueries = 64;      // forward: transposing a tile is worth it for so many
constexpr int64_t kSplitKeys = 4096;  // backward: of a task
// Registers of keys that a group works on: 4 * 4 sums fit 32 registers, 4 * 2 fit 16.
constexpr int kVectors = kLaneBytes == 64 ? 4 : 2;

template <class Acc>
using Rows = std::vector<Acc>;  // [rows][width], each row padded with zeros to whole registers

template <class Acc>
int64_t padded(int64_t width) {
  return (width + kLanes<Acc> - 1) / kLanes<Acc> * kLanes<Acc>;
}

// Rows [first, first + count) of one head, times `factor`.
template <class T, class Acc>
void load_rows(const View<4>& from, int64_t b, int64_t m, int64_t first, int64_t count, Acc factor,
               Acc* rows) {
  const int64_t width = from.size[3], step = from.stride[3], row_size = padded<Acc>(width);
  for (int64_t i = 0; i < count; ++i) {
    const T* source = from.at<const T>(b, m, first + i);
    Acc* row = rows + i * row_size;
    int64_t c = 0;
    if (step == 1) {
      for (; c + kLanes<Acc> <= width; c += kLanes<Acc>) {
        store_lanes<Acc, Acc>(row + c, load_lanes<Acc>(source + c) * factor);
      }
    }
    for (; c < width; ++c) row[c] = static_cast<Acc>(source[c * step]) * factor;
  }
}

template <class T, class Acc>
void store_row(const Acc* row, Acc factor, const View<4>& to, int64_t b, int64_t m, int64_t i) {
  T* target = to.at<T>(b, m, i);
  for (int64_t c = 0; c < to.size[3]; ++c) {
    target[c * to.stride[3]] = static_cast<T>(row[c] * factor);
  }
}

// [rows][columns] to [columns][rows], both multiples of kLanes.
template <class Acc>
void transpose_tile(const Acc* from, int64_t rows, int64_t columns, Acc* to) {
  constexpr int n = kLanes<Acc>;
  for (int64_t r = 0; r < rows; r += n) {
    for (int64_t c = 0; c < columns; c += n) {
      Lanes<Acc> square[n];
      for (int i = 0; i < n; ++i) square[i] = load_lanes<Acc>(from + (r + i) * columns + c);
      transpose<Acc>(square);
      for (int i = 0; i < n; ++i) store_lanes<Acc, Acc>(to + (c + i) * rows + r, square[i]);
    }
  }
}

// A tile of keys or values: as rows, and transposed so that keys lie in the lanes.
template <class Acc>
struct Tile {
  Rows<Acc> rows, columns;  // [kTile][width], [width][kTile]

  explicit Tile(int64_t width) : rows(kTile * width), columns(kTile * width) {}

  template <class T>
  void load(const View<4>& from, int64_t b, int64_t m, int64_t first) {
    const int64_t count = std::min<int64_t>(kTile, from.size[2] - first);
    load_rows<T, Acc>(from, b, m, first, count, Acc(1), rows.data());
    std::fill(rows.begin() + count * padded<Acc>(from.size[3]), rows.end(), Acc(0));
  }

  void transpose_rows() {
    transpose_tile<Acc>(rows.data(), kTile, static_cast<int64_t>(rows.size()) / kTile,
                        columns.data());
  }
};

// products[i][key] = rows[i] * column `key` of the tile, for kRows rows.
template <int kRows, class Acc>
void multiply(const Acc* const* rows, const Acc* columns, int64_t width, Acc* products) {
  constexpr int n = kLanes<Acc>;
  for (int key = 0; key < kTile; key += kVectors * n) {
    Lanes<Acc> sums[kRows][kVectors] = {};
    for (int64_t c = 0; c < width; ++c) {
      for (int v = 0; v < kVectors; ++v) {
        const Lanes<Acc> column = load_lanes<Acc>(columns + c * kTile + key + v * n);
        for (int i = 0; i < kRows; ++i) sums[i][v] = multiply_add(rows[i][c], column, sums[i][v]);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        store_lanes<Acc, Acc>(products + i * kTile + key + v * n, sums[i][v]);
      }
    }
  }
}

// sums[i][channel] += the tile's rows, weighted; channels [c, c + kCount * kLanes).
template <int kRows, int kCount, class Acc>
void add_channels(const Acc* weights, const Acc* tile, int64_t width, int64_t c, Acc* const* sums) {
  constexpr int n = kLanes<Acc>;
  Lanes<Acc> totals[kRows][kCount];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kCount; ++v) totals[i][v] = load_lanes<Acc>(sums[i] + c + v * n);
  }
  for (int key = 0; key < kTile; ++key) {
    for (int v = 0; v < kCount; ++v) {
      const Lanes<Acc> row = load_lanes<Acc>(tile + key * width + c + v * n);
      for (int i = 0; i < kRows; ++i) {
        totals[i][v] = multiply_add(weights[i * kTile + key], row, totals[i][v]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kCount; ++v) store_lanes<Acc, Acc>(sums[i] + c + v * n, totals[i][v]);
  }
}

template <int kRows, class Acc>
void add_rows(const Acc* weights, const Acc* tile, int64_t width, Acc* const* sums) {
  int64_t c = 0;
  for (; c + 2 * kLanes<Acc> <= width; c += 2 * kLanes<Acc>) {
    add_channels<kRows, 2>(weights, tile, width, c, sums);
  }
  if (c < width) add_channels<kRows, 1>(weights, tile, width, c, sums);
}

// columns[channel][key] += sum over i of rows[i][channel] * weights[i][key].
template <int kRows, class Acc>
void add_products(const Acc* const* rows, const Acc* weights, int64_t width, Acc* columns) {
  constexpr int n = kLanes<Acc>;
  for (int key = 0; key < kTile; key += kVectors * n) {
    Lanes<Acc> weight[kRows][kVectors];
    for (int i = 0; i < kRows; ++i) {
      for (int v = 0; v < kVectors; ++v) {
        weight[i][v] = load_lanes<Acc>(weights + i * kTile + key + v * n);
      }
    }
    for (int64_t c = 0; c < width; ++c) {
      Acc* column = columns + c * kTile + key;
      for (int v = 0; v < kVectors; ++v) {
        Lanes<Acc> sum = load_lanes<Acc>(column + v * n);
        for (int i = 0; i < kRows; ++i) sum = multiply_add(rows[i][c], weight[i][v], sum);
        store_lanes<Acc, Acc>(column + v * n, sum);
      }
    }
  }
}

// `lanes` where the lowest kLanes bits are set, `other` elsewhere.
template <class Acc>
Lanes<Acc> select(uint64_t bits, Lanes<Acc> lanes, Acc other) {
  IntegerLanes<Acc> own_bit;
  for (int i = 0; i < kLanes<Acc>; ++i) own_bit[i] = 1 << i;
  const IntegerLanes<Acc> low = IntegerLanes<Acc>{} + static_cast<int>(bits & 0xffff);
  return (low & own_bit) != 0 ? lanes : other + Lanes<Acc>{};
}

// A query's softmax so far. Scores are in units of log(2).
template <class Acc>
struct Softmax {
  Acc max = -std::numeric_limits<Acc>::infinity();
  Acc sum = 0;

  // Turns the scores of a tile into weights, and scales the output so far to match them.
  void weigh(uint64_t word, Acc* scores, int64_t width, Acc* output) {
    constexpr int n = kLanes<Acc>;
    constexpr Acc kNone = -std::numeric_limits<Acc>::infinity();
    Lanes<Acc> greatest = kNone + Lanes<Acc>{};
    for (int key = 0; key < kTile; key += n) {
      const Lanes<Acc> score = select<Acc>(word >> key, load_lanes<Acc>(scores + key), kNone);
      greatest = score > greatest ? score : greatest;
      store_lanes<Acc, Acc>(scores + key, score);
    }
    Acc top = kNone;
    for (int i = 0; i < n; ++i) top = std::max(top, greatest[i]);
    if (top > max) {
      const Acc shrink = std::exp2(max - top);
      max = top;
      sum *= shrink;
      for (int64_t c = 0; c < width; c += n) {
        store_lanes<Acc, Acc>(output + c, load_lanes<Acc>(output + c) * shrink);
      }
    }
    const Acc base = max == kNone ? Acc(0) : max;  // all scores so far are -inf: weights of 0
    Lanes<Acc> total = {};
    for (int key = 0; key < kTile; key += n) {
      const Lanes<Acc> weight = exp2_lanes(load_lanes<Acc>(scores + key) - base);
      total += weight;
      store_lanes<Acc, Acc>(scores + key, weight);
    }
    sum += sum_lanes<Acc>(total);
  }
};

// Queries [first, first + count) of a batch entry, and which of them attend something in a tile.
class Attending {
 public:
  Attending(const MaskedAttentionParams& p, int64_t b, int64_t first, int64_t count)
      : p_(p), b_(b), first_(first), open_(count, p.words.data == nullptr) {
    const int64_t words = words_of(p.key.size[2]);
    for (int64_t i = 0; i < count && p.words.data != nullptr; ++i) {
      uint64_t any = 0;
      for (int64_t w = 0; w < words && any == 0; ++w) any = read_word(p, b, first + i, w);
      open_[i] = any == 0;
    }
  }

  // Calls group(queries, words, count) for groups of kGroup queries and then for single ones;
  // queries are counted from `first`.
  template <class Group>
  void each_group(int64_t tile, Group&& group) {
    int64_t found[kGroup];
    uint64_t words[kGroup];
    int count = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(open_.size()); ++i) {
      words[count] =
          open_[i] ? existing_keys(p_.key.size[2], tile) : read_word(p_, b_, first_ + i, tile);
      if (words[count] == 0) continue;
      found[count++] = i;
      if (count < kGroup) continue;
      group(found, words, std::integral_constant<int, kGroup>());
      count = 0;
    }
    for (int i = 0; i < count; ++i) group(found + i, words + i, std::integral_constant<int, 1>());
  }

 private:
  const MaskedAttentionParams& p_;
  int64_t b_, first_;
  std::vector<char> open_;  // rows without bits, which attend everything
};

// What a task of the forward pass does: queries [first, first + count) of one head.
template <class T, class Acc>
void attend(const MaskedAttentionParams& p, int64_t b, int64_t m, int64_t first, int64_t count) {
  const int64_t width = padded<Acc>(p.query.size[3]), keys = p.key.size[2];
  Rows<Acc> queries(count * width), output(count * width);
  std::vector<Softmax<Acc>> softmax(count);
  load_rows<T, Acc>(p.query, b, m, first, count, static_cast<Acc>(p.scale * kLog2E),
                    queries.data());
  Attending attending(p, b, first, count);
  Tile<Acc> key(width), value(width);
  alignas(64) Acc weights[kGroup * kTile];
  for (int64_t tile = 0; tile < words_of(keys); ++tile) {
    bool loaded = false;
    attending.each_group(tile, [&](const int64_t* own, const uint64_t* words, auto rows) {
      constexpr int kRows = decltype(rows)::value;
      if (!loaded) {
        key.template load<T>(p.key, b, m, tile * kTile);
        key.transpose_rows();
        value.template load<T>(p.value, b, m, tile * kTile);
        loaded = true;
      }
      const Acc* query[kRows];
      Acc* sums[kRows];
      for (int i = 0; i < kRows; ++i) {
        query[i] = queries.data() + own[i] * width;
        sums[i] = output.data() + own[i] * width;
      }
      multiply<kRows>(query, key.columns.data(), p.query.size[3], weights);
      for (int i = 0; i < kRows; ++i) {
        softmax[own[i]].weigh(words[i], weights + i * kTile, width, sums[i]);
      }
      add_rows<kRows>(weights, value.rows.data(), width, sums);
    });
  }
  for (int64_t i = 0; i < count; ++i) {
    const Acc factor = keys == 0 ? Acc(0) : Acc(1) / softmax[i].sum;
    store_row<T, Acc>(output.data() + i * width, factor, p.output, b, m, first + i);
    *p.log_sums.template at<Acc>(b, m, first + i) = softmax[i].max + std::log2(softmax[i].sum);
  }
}

template <class T>
void forward(const MaskedAttentionParams& p) {
  using Acc = accumulate_t<T>;
  const int64_t heads = p.query.size[1], queries = p.query.size[2];
  const int64_t blocks = (queries + kTaskQueries - 1) / kTaskQueries;
  parallel_for(p.query.size[0] * heads * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / blocks, block = task % blocks;
      const int64_t first = block * queries / blocks, last = (block + 1) * queries / blocks;
      attend<T, Acc>(p, head / heads, head % heads, first, last - first);
    }
  });
}

// A task of the backward pass: all queries of one head, and its tiles [begin, end) of keys.
template <class T, class Acc>
class Backward {
 public:
  Backward(const MaskedAttentionBackwardParams& p, int64_t b, int64_t m)
      : p_(p),
        b_(b),
        m_(m),
        width_(padded<Acc>(p.forward.query.size[3])),
        count_(p.forward.query.size[2]),
        queries_(count_ * width_),
        grads_(count_ * width_),
        products_(count_),
        attending_(p.forward, b, 0, count_),
        key_(width_),
        value_(width_),
        grad_key_(kTile * width_),
        grad_value_(kTile * width_) {
    const MaskedAttentionParams& f = p.forward;
    load_rows<T, Acc>(f.query, b, m, 0, count_, static_cast<Acc>(f.scale * kLog2E),
                      queries_.data());
    load_rows<T, Acc>(p.grad_output, b, m, 0, count_, Acc(1), grads_.data());
    Rows<Acc> output(width_);
    for (int64_t i = 0; i < count_; ++i) {
      load_rows<T, Acc>(f.output, b, m, i, 1, Acc(1), output.data());
      for (int64_t c = 0; c < width_; ++c) products_[i] += output[c] * grads_[i * width_ + c];
    }
  }

  // Adds to the gradients of the queries, [Q][width], in units of 1 / scale.
  void run(int64_t begin, int64_t end, Acc* grad_query) {
    const MaskedAttentionParams& f = p_.forward;
    for (int64_t tile = begin; tile < end; ++tile) {
      key_.template load<T>(f.key, b_, m_, tile * kTile);
      key_.transpose_rows();
      value_.template load<T>(f.value, b_, m_, tile * kTile);
      value_.transpose_rows();
      std::fill(grad_key_.begin(), grad_key_.end(), Acc(0));
      std::fill(grad_value_.begin(), grad_value_.end(), Acc(0));
      attending_.each_group(tile, [&](const int64_t* own, const uint64_t* words, auto rows) {
        add_group<decltype(rows)::value>(own, words, grad_query);
      });
      // Queries were in units of scale / log(2).
      store(grad_key_, static_cast<Acc>(kLogE2), p_.grad_key, tile);
      store(grad_value_, Acc(1), p_.grad_value, tile);
    }
  }

 private:
  template <int kRows>
  void add_group(const int64_t* own, const uint64_t* words, Acc* grad_query) {
    constexpr int n = kLanes<Acc>;
    const int64_t channels = p_.forward.query.size[3];
    alignas(64) Acc weights[kRows * kTile], slopes[kRows * kTile];
    const Acc *query[kRows], *grad[kRows];
    Acc* sums[kRows];
    for (int i = 0; i < kRows; ++i) {
      query[i] = queries_.data() + own[i] * width_;
      grad[i] = grads_.data() + own[i] * width_;
      sums[i] = grad_query + own[i] * width_;
    }
    multiply<kRows>(query, key_.columns.data(), channels, weights);
    multiply<kRows>(grad, value_.columns.data(), channels, slopes);
    for (int i = 0; i < kRows; ++i) {
      const Acc log_sum = *p_.forward.log_sums.template at<const Acc>(b_, m_, own[i]);
      const Acc product = products_[own[i]];
      for (int key = 0; key < kTile; key += n) {
        Acc* weight = weights + i * kTile + key;
        Acc* slope = slopes + i * kTile + key;
        const Lanes<Acc> all = exp2_lanes(load_lanes<Acc>(weight) - log_sum);
        const Lanes<Acc> attended = select<Acc>(words[i] >> key, all, Acc(0));
        store_lanes<Acc, Acc>(weight, attended);
        store_lanes<Acc, Acc>(slope, attended * (load_lanes<Acc>(slope) - product));
      }
    }
    add_rows<kRows>(slopes, key_.rows.data(), width_, sums);
    add_products<kRows>(query, slopes, channels, grad_key_.data());
    add_products<kRows>(grad, weights, channels, grad_value_.data());
  }

  void store(const Rows<Acc>& columns, Acc factor, const View<4>& to, int64_t tile) {
    transpose_tile<Acc>(columns.data(), width_, kTile, key_.rows.data());
    const int64_t first = tile * kTile, count = std::min<int64_t>(kTile, to.size[2] - first);
    for (int64_t i = 0; i < count; ++i) {
      store_row<T, Acc>(key_.rows.data() + i * width_, factor, to, b_, m_, first + i);
    }
  }

  const MaskedAttentionBackwardParams& p_;
  int64_t b_, m_, width_, count_;
  Rows<Acc> queries_, grads_;
  std::vector<Acc> products_;  // of each query's output and its gradient
  Attending attending_;
  Tile<Acc> key_, value_;
  Rows<Acc> grad_key_, grad_value_;  // transposed: [width][kTile]
};

template <class T>
void backward(const MaskedAttentionBackwardParams& p) {
  using Acc = accumulate_t<T>;
  const View<4>& query = p.forward.query;
  const int64_t heads = query.size[1], rows = query.size[2], width = padded<Acc>(query.size[3]);
  const int64_t tiles = words_of(p.forward.key.size[2]), split_tiles = kSplitKeys / kTile;
  const int64_t splits = std::max<int64_t>((tiles + split_tiles - 1) / split_tiles, 1);
  const int64_t batch_heads = query.size[0] * heads;
  std::vector<Acc> parts(batch_heads * splits * rows * width);  // [B * M, splits, Q, width]
  parallel_for(batch_heads * splits, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t head = task / splits, first = task % splits * split_tiles;
      Backward<T, Acc> backward(p, head / heads, head % heads);
      backward.run(first, std::min(first + split_tiles, tiles), parts.data() + task * rows * width);
    }
  });
  parallel_for(batch_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      Acc* sums = parts.data() + head * splits * rows * width;
      for (int64_t i = rows * width; i < splits * rows * width; ++i) {
        sums[i % (rows * width)] += sums[i];
      }
      for (int64_t q = 0; q < rows; ++q) {
        store_row<T, Acc>(sums + q * width, static_cast<Acc>(p.forward.scale), p.grad_query,
                          head / heads, head % heads, q);
      }
    }
  });
}

}  // namespace

void masked_attention_cpu(const MaskedAttentionParams& params) {
  dispatch_floating(params.query.dtype, "query",
                    [&](auto zero) { forward<decltype(zero)>(params); });
}

void masked_attention_backward_cpu(const MaskedAttentionBackwardParams& params) {
  dispatch_floating(params.forward.query.dtype, "query",
                    [&](auto zero) { backward<decltype(zero)>(params); });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(masked_attention_cpu, MaskedAttentionParams)
FASTSEG_CPU_LAUNCHER(masked_attention_backward_cpu, MaskedAttentionBackwardParams)
