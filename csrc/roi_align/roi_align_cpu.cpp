// RoIAlign on the CPU. Channels-last maps are pooled with channels in the vector lanes. Other
// layouts are read with columns in the lanes: rows are summed first (A F), for as many channels as
// there are lanes; a transpose in registers then puts channels into the lanes for B. Where RoIs are
// many next to the cells, the maps are first rewritten channels-last.
#include <memory>
#include <type_traits>
#include <vector>

#include "core/check.h"
#include "core/cpu_dispatch.h"
#include "core/dispatch.h"
#include "core/huge_pages.h"
#include "core/lanes.h"
#include "core/parallel.h"
#include "roi_align/roi_align_math.h"

namespace fastseg {
namespace FASTSEG_ISA {
namespace {

constexpr int kVectors = 4;  // registers of channels summed at once: hides FMA latency
constexpr int kRoIsPerTask = 64;
constexpr int kCellsPerRoI = 256;  // pooling one RoI from planes costs as much as packing so many
constexpr int kChannelBlock = 64;  // channels per backward task; 49 cells of them stay in L1

template <class Acc>
struct Tap {
  int64_t cell;
  Acc weight;
};

// One axis of A or B: the taps of bin i are taps[offset[i]] .. taps[offset[i + 1]].
template <class Acc>
struct AxisTaps {
  std::vector<Tap<Acc>> taps;
  std::vector<int> offset;
  int64_t first = 0, last = -1;  // range of cells touched

  void build(const RoIAxis<Acc>& axis, int64_t bins) {
    taps.clear();
    offset.assign(1, 0);
    first = axis.cells;
    last = -1;
    for (int64_t bin = 0; bin < bins; ++bin) {
      for_each_tap(axis, bin, [&](int64_t cell, Acc weight) {
        taps.push_back({cell, weight});
        first = std::min(first, cell);
        last = std::max(last, cell);
      });
      offset.push_back(static_cast<int>(taps.size()));
    }
  }
};

template <class Acc>
struct RoITaps {
  RoI<Acc> roi;
  AxisTaps<Acc> y, x;
  Acc inverse_count;

  void build(const RoIAlignParams& p, int64_t k) {
    roi = read_roi<Acc>(p, k);
    const bool empty = !roi.finite || roi.y.cells == 0 || roi.x.cells == 0;
    y.build(roi.y, empty ? 0 : p.output.size[2]);
    x.build(roi.x, empty ? 0 : p.output.size[3]);
    y.offset.resize(p.output.size[2] + 1, y.offset.back());
    x.offset.resize(p.output.size[3] + 1, x.offset.back());
    inverse_count = Acc(1) / samples_per_bin(roi.y, roi.x);
  }

  // Registers that forward_planes needs for the RoI's columns, rounded up to whole blocks.
  int64_t columns() const { return std::max<int64_t>(x.last - x.first + 1, 0) + 2 * kLanes<Acc>; }
};

template <class Acc>
std::vector<RoITaps<Acc>> all_taps(const RoIAlignParams& p) {
  std::vector<RoITaps<Acc>> taps(p.boxes.size[0]);
  parallel_for(p.boxes.size[0], kRoIsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) taps[k].build(p, k);
  });
  return taps;
}

template <class Acc>
void check_images(const RoIAlignParams& p) {
  for (int64_t k = 0; k < p.boxes.size[0]; ++k) {
    const Acc image = *p.boxes.at<Acc>(k, 0);
    FASTSEG_CHECK(image >= 0 && image < static_cast<Acc>(p.features[0].size[0]), "boxes[", k,
                  "] names image ", image, " of a batch of ", p.features[0].size[0]);
  }
}

// Writes lane i of sums[cell] to channel c0 + i of output k, for the first `count` lanes.
template <class T, class Acc>
void store_output(const View<4>& output, int64_t k, int64_t c0, int count, const Lanes<Acc>* sums) {
  constexpr int n = kLanes<Acc>;
  const int64_t width = output.size[3], cells = output.size[2] * width;
  if (output.stride[1] == 1 && count == n) {
    T* out = output.template at<T>(k, c0);
    for (int64_t cell = 0; cell < cells; ++cell) {
      const int64_t offset = cell / width * output.stride[2] + cell % width * output.stride[3];
      store_lanes<T, Acc>(out + offset, sums[cell]);
    }
    return;
  }
  const bool dense = output.stride[3] == 1 && output.stride[2] == width;
  for (int64_t begin = 0; begin < cells; begin += n) {
    const int block = static_cast<int>(std::min<int64_t>(n, cells - begin));
    Lanes<Acc> square[n] = {};
    std::copy(sums + begin, sums + begin + block, square);
    transpose<Acc>(square);
    for (int i = 0; i < count; ++i) {
      T* out = output.template at<T>(k, c0 + i);
      if (dense && block == n) {
        store_lanes<T, Acc>(out + begin, square[i]);
        continue;
      }
      for (int j = 0; j < block; ++j) {
        const int64_t cell = begin + j;
        out[cell / width * output.stride[2] + cell % width * output.stride[3]] =
            static_cast<T>(square[i][j]);
      }
    }
  }
}

// Pools kVectors * kLanes channels from c0 on of one RoI from a channels-last map. `sums` has
// kVectors rows of one register per output cell.
template <class T, int kVectors, class Acc>
void forward_channels(const RoIAlignParams& p, const RoITaps<Acc>& taps, int64_t k, int64_t c0,
                      Lanes<Acc>* sums) {
  const View<4>& map = p.features[taps.roi.level];
  const int64_t height = p.output.size[2], width = p.output.size[3];
  const T* base = map.template at<const T>(taps.roi.image, c0);
  for (int64_t ph = 0; ph < height; ++ph) {
    for (int64_t pw = 0; pw < width; ++pw) {
      Lanes<Acc> sum[kVectors] = {};
      for (int i = taps.y.offset[ph]; i < taps.y.offset[ph + 1]; ++i) {
        const T* row = base + taps.y.taps[i].cell * map.stride[2];
        const Acc row_weight = taps.y.taps[i].weight * taps.inverse_count;
        for (int j = taps.x.offset[pw]; j < taps.x.offset[pw + 1]; ++j) {
          const T* cell = row + taps.x.taps[j].cell * map.stride[3];
          const Acc weight = row_weight * taps.x.taps[j].weight;
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) {
            sum[v] = multiply_add(weight, load_lanes<Acc>(cell + v * kLanes<Acc>), sum[v]);
          }
        }
      }
      for (int v = 0; v < kVectors; ++v) sums[(v * height + ph) * width + pw] = sum[v];
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    store_output<T, Acc>(p.output, k, c0 + v * kLanes<Acc>, kLanes<Acc>, sums + v * height * width);
  }
}

// Pools kLanes channels from c0 on (as many as there are) of one RoI from a map of any layout.
// `columns` has room for the RoI's columns, rounded up to whole registers.
template <class T, class Acc>
void forward_planes(const RoIAlignParams& p, const RoITaps<Acc>& taps, int64_t k, int64_t c0,
                    Lanes<Acc>* columns, Lanes<Acc>* sums) {
  constexpr int n = kLanes<Acc>;
  const View<4>& map = p.features[taps.roi.level];
  // Blocks of columns start early enough to be read whole, where the map is wide enough for one.
  const int64_t last_start = std::max<int64_t>(map.size[3] - n, 0);
  const int64_t first = std::min(taps.x.first, last_start);
  const int block = static_cast<int>(std::min<int64_t>(n, map.size[3]));
  const int count = static_cast<int>(std::min<int64_t>(n, p.output.size[1] - c0));
  for (int64_t ph = 0; ph < p.output.size[2]; ++ph) {
    for (int64_t begin = first; begin <= taps.x.last; begin += n) {
      const int64_t x = std::min(begin, last_start);
      Lanes<Acc> square[n] = {};
      for (int c = 0; c < count; ++c) {
        const T* plane = map.template at<const T>(taps.roi.image, c0 + c, 0, x);
        Lanes<Acc> sum = {};
        for (int i = taps.y.offset[ph]; i < taps.y.offset[ph + 1]; ++i) {
          const T* row = plane + taps.y.taps[i].cell * map.stride[2];
          sum =
              multiply_add(taps.y.taps[i].weight, load_lanes<Acc>(row, block, map.stride[3]), sum);
        }
        square[c] = sum;
      }
      transpose<Acc>(square);
      std::copy(square, square + n, columns + (x - first));
    }
    for (int64_t pw = 0; pw < p.output.size[3]; ++pw) {
      Lanes<Acc> sum = {};
      for (int j = taps.x.offset[pw]; j < taps.x.offset[pw + 1]; ++j) {
        const Acc weight = taps.x.taps[j].weight * taps.inverse_count;
        sum = multiply_add(weight, columns[taps.x.taps[j].cell - first], sum);
      }
      sums[ph * p.output.size[3] + pw] = sum;
    }
  }
  store_output<T, Acc>(p.output, k, c0, count, sums);
}

// Channels-last: a RoI's cells hold all channels, so a task is one RoI.
template <class T>
void forward_channels_last(const RoIAlignParams& p) {
  using Acc = accumulate_t<T>;
  constexpr int n = kLanes<Acc>;
  const int64_t channels = p.output.size[1], cells = p.output.size[2] * p.output.size[3];
  parallel_for(p.boxes.size[0], 1, [&](int64_t begin, int64_t end) {
    RoITaps<Acc> taps;
    std::vector<Lanes<Acc>> sums(cells * kVectors), columns;
    for (int64_t k = begin; k < end; ++k) {
      taps.build(p, k);
      int64_t c = 0;
      for (; c + kVectors * n <= channels; c += kVectors * n) {
        forward_channels<T, kVectors>(p, taps, k, c, sums.data());
      }
      for (; c + n <= channels; c += n) forward_channels<T, 1>(p, taps, k, c, sums.data());
      if (c == channels) continue;
      columns.resize(taps.columns());
      forward_planes<T>(p, taps, k, c, columns.data(), sums.data());
    }
  });
}

// Other layouts: tasks go through the RoIs for one group of planes after the other, so that the
// planes stay in the cache while RoIs overlap on them.
template <class T>
void forward_any_layout(const RoIAlignParams& p) {
  using Acc = accumulate_t<T>;
  constexpr int n = kLanes<Acc>;
  const std::vector<RoITaps<Acc>> taps = all_taps<Acc>(p);
  const int64_t rois = p.boxes.size[0], chunks = (rois + kRoIsPerTask - 1) / kRoIsPerTask;
  const int64_t groups = (p.output.size[1] + n - 1) / n;
  parallel_for(groups * chunks, 1, [&](int64_t begin, int64_t end) {
    std::vector<Lanes<Acc>> sums(p.output.size[2] * p.output.size[3]), columns;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % chunks * kRoIsPerTask;
      for (int64_t k = first; k < std::min(rois, first + kRoIsPerTask); ++k) {
        columns.resize(taps[k].columns());
        forward_planes<T>(p, taps[k], k, task / chunks * n, columns.data(), sums.data());
      }
    }
  });
}

// Whether the RoIs are so many that rewriting the maps channels-last costs less than it saves, and
// the maps so large that whole registers of columns and channels can be moved.
bool worth_packing(const RoIAlignParams& p, int lanes) {
  int64_t cells = 0;
  for (int level = 0; level < p.num_levels; ++level) {
    const View<4>& map = p.features[level];
    if (map.stride[3] != 1 || map.size[3] < lanes || map.size[1] < lanes) return false;
    cells += map.size[0] * map.size[2] * map.size[3];
  }
  return cells < p.boxes.size[0] * kCellsPerRoI;
}

// Rewrites all levels channels-last into `memory`; returns the parameters with those maps.
template <class Acc>
RoIAlignParams pack_channels_last(const RoIAlignParams& p, std::unique_ptr<Acc[]>* memory) {
  constexpr int n = kLanes<Acc>;
  RoIAlignParams packed = p;
  int64_t total = 0;
  for (int level = 0; level < p.num_levels; ++level) total += p.features[level].numel();
  memory->reset(new Acc[total]);
  advise_huge_pages(memory->get(), total * sizeof(Acc));
  Acc* target = memory->get();
  for (int level = 0; level < p.num_levels; ++level) {
    const View<4>& map = p.features[level];
    const int64_t channels = map.size[1], height = map.size[2], width = map.size[3];
    View<4>& out = packed.features[level];
    out.data = target;
    out.stride[0] = height * width * channels;
    out.stride[1] = 1;
    out.stride[2] = width * channels;
    out.stride[3] = channels;
    target += map.numel();
    parallel_for(map.size[0] * height, 4, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t c = 0; c < channels; c += n) {
          const int64_t c0 = std::min(c, channels - n);  // the last block overlaps the one before
          for (int64_t x = 0; x < width; x += n) {
            const int64_t x0 = std::min(x, width - n);
            const Acc* from = map.template at<const Acc>(row / height, c0, row % height, x0);
            Acc* to = out.template at<Acc>(row / height, c0, row % height, x0);
            Lanes<Acc> square[n];
            for (int i = 0; i < n; ++i) square[i] = load_lanes<Acc>(from + i * map.stride[1]);
            transpose<Acc>(square);
            for (int i = 0; i < n; ++i) store_lanes<Acc, Acc>(to + i * channels, square[i]);
          }
        }
      }
    });
  }
  return packed;
}

template <class T>
void forward(const RoIAlignParams& p) {
  using Acc = accumulate_t<T>;
  check_images<Acc>(p);
  if (p.features[0].stride[1] == 1) return forward_channels_last<T>(p);
  if constexpr (std::is_same_v<T, Acc>) {
    if (worth_packing(p, kLanes<Acc>)) {
      std::unique_ptr<Acc[]> memory;
      return forward_channels_last<T>(pack_channels_last<Acc>(p, &memory));
    }
  }
  forward_any_layout<T>(p);
}

// Adds one RoI's gradient for channels [c0, c0 + block) into a channels-last map.
template <class T, class Acc>
void backward_channels(const RoIAlignParams& p, const RoITaps<Acc>& taps, int64_t k, int64_t c0,
                       int block, Acc* grads) {
  const View<4>& map = p.features[taps.roi.level];
  const int64_t ph_count = p.output.size[2], pw_count = p.output.size[3];
  for (int c = 0; c < block; ++c) {
    const T* grad = p.output.template at<const T>(k, c0 + c);
    for (int64_t ph = 0; ph < ph_count; ++ph) {
      for (int64_t pw = 0; pw < pw_count; ++pw) {
        const T value = grad[ph * p.output.stride[2] + pw * p.output.stride[3]];
        grads[(ph * pw_count + pw) * kChannelBlock + c] =
            static_cast<Acc>(value) * taps.inverse_count;
      }
    }
  }
  Acc* base = map.template at<Acc>(taps.roi.image, c0);
  for (int64_t ph = 0; ph < ph_count; ++ph) {
    for (int i = taps.y.offset[ph]; i < taps.y.offset[ph + 1]; ++i) {
      Acc* row = base + taps.y.taps[i].cell * map.stride[2];
      for (int64_t pw = 0; pw < pw_count; ++pw) {
        const Acc* grad = grads + (ph * pw_count + pw) * kChannelBlock;
        for (int j = taps.x.offset[pw]; j < taps.x.offset[pw + 1]; ++j) {
          Acc* cell = row + taps.x.taps[j].cell * map.stride[3];
          const Acc weight = taps.y.taps[i].weight * taps.x.taps[j].weight;
          for (int c = 0; c < block; ++c) cell[c] = multiply_add(weight, grad[c], cell[c]);
        }
      }
    }
  }
}

// Adds one RoI's gradient for one channel into a map of any layout.
template <class T, class Acc>
void backward_plane(const RoIAlignParams& p, const RoITaps<Acc>& taps, int64_t k, int64_t c,
                    Acc* line) {
  const View<4>& map = p.features[taps.roi.level];
  const int64_t first = taps.x.first, width = taps.x.last - first + 1;
  Acc* plane = map.template at<Acc>(taps.roi.image, c, 0, first);
  const T* grad = p.output.template at<const T>(k, c);
  for (int64_t ph = 0; ph < p.output.size[2]; ++ph) {
    std::fill(line, line + std::max<int64_t>(width, 0), Acc(0));
    for (int64_t pw = 0; pw < p.output.size[3]; ++pw) {
      const Acc value = static_cast<Acc>(grad[ph * p.output.stride[2] + pw * p.output.stride[3]]) *
                        taps.inverse_count;
      for (int j = taps.x.offset[pw]; j < taps.x.offset[pw + 1]; ++j) {
        Acc& sum = line[taps.x.taps[j].cell - first];
        sum = multiply_add(taps.x.taps[j].weight, value, sum);
      }
    }
    for (int i = taps.y.offset[ph]; i < taps.y.offset[ph + 1]; ++i) {
      Acc* row = plane + taps.y.taps[i].cell * map.stride[2];
      const Acc weight = taps.y.taps[i].weight;
      if (map.stride[3] == 1) {
        for (int64_t x = 0; x < width; ++x) row[x] = multiply_add(weight, line[x], row[x]);
      } else {
        for (int64_t x = 0; x < width; ++x) {
          row[x * map.stride[3]] = multiply_add(weight, line[x], row[x * map.stride[3]]);
        }
      }
    }
  }
}

// Zeroes the gradient of channels [c0, c0 + block) of one image.
template <class Acc>
void clear(const View<4>& map, int64_t image, int64_t c0, int block) {
  for (int64_t y = 0; y < map.size[2]; ++y) {
    for (int64_t x = 0; x < map.size[3]; ++x) {
      Acc* cell = map.template at<Acc>(image, c0, y, x);
      for (int c = 0; c < block; ++c) cell[c * map.stride[1]] = 0;
    }
  }
}

// A task owns (level, image, channel block) and adds that level's RoIs in their order.
template <class T>
void backward(const RoIAlignParams& p) {
  using Acc = accumulate_t<T>;
  check_images<Acc>(p);
  const int64_t rois = p.boxes.size[0], channels = p.output.size[1];
  const int64_t images = p.features[0].size[0];
  const std::vector<RoITaps<Acc>> taps = all_taps<Acc>(p);
  const bool channels_last = p.features[0].stride[1] == 1;
  const int64_t block_size = channels_last ? kChannelBlock : 8;
  const int64_t blocks = (channels + block_size - 1) / block_size;
  parallel_for(p.num_levels * images * blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<Acc> grads(p.output.size[2] * p.output.size[3] * kChannelBlock), line;
    for (int64_t task = begin; task < end; ++task) {
      const int level = static_cast<int>(task / (images * blocks));
      const int64_t image = task / blocks % images, c0 = task % blocks * block_size;
      const int block = static_cast<int>(std::min(block_size, channels - c0));
      clear<Acc>(p.features[level], image, c0, block);
      for (int64_t k = 0; k < rois; ++k) {
        const RoI<Acc>& roi = taps[k].roi;
        if (roi.level != level || roi.image != image || taps[k].x.taps.empty()) continue;
        if (channels_last) {
          backward_channels<T>(p, taps[k], k, c0, block, grads.data());
          continue;
        }
        line.resize(taps[k].x.last - taps[k].x.first + 1);
        for (int c = 0; c < block; ++c) backward_plane<T>(p, taps[k], k, c0 + c, line.data());
      }
    }
  });
}

}  // namespace

void roi_align_forward_cpu(const RoIAlignParams& params) {
  const View<4>& output = params.output;
  advise_huge_pages(output.data, output.numel() * bytes_of(output.dtype));
  dispatch_floating(params.output.dtype, "features",
                    [&](auto zero) { forward<decltype(zero)>(params); });
}

void roi_align_backward_cpu(const RoIAlignParams& params) {
  for (int level = 0; level < params.num_levels; ++level) {
    const View<4>& grads = params.features[level];
    advise_huge_pages(grads.data, grads.numel() * bytes_of(grads.dtype));
  }
  dispatch_floating(params.output.dtype, "grad_output",
                    [&](auto zero) { backward<decltype(zero)>(params); });
}

}  // namespace FASTSEG_ISA
}  // namespace fastseg

FASTSEG_CPU_LAUNCHER(roi_align_forward_cpu, RoIAlignParams)
FASTSEG_CPU_LAUNCHER(roi_align_backward_cpu, RoIAlignParams)
