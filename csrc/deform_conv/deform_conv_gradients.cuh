// Deformable convolution's gradients on CUDA without columns in memory.
//
// Two kernels. In the first a block owns 128 output pixels and one tap: it multiplies the output's
// gradient with the tap's weights, and its threads use the columns' gradients where the product
// leaves them, in registers. In the second a block owns a tile of the weights' gradient and a share
// of the pixels, whose columns it samples again.
#pragma once

#include "core/atomic_sums.cuh"
#include "deform_conv/deform_conv_tiles.cuh"

namespace fastseg {
namespace {

// Adds to the gradients of kVec channels of a cell, in whatever order the warps come.
struct AddFloats {
  template <class Acc, int kVec>
  __device__ void operator()(const DeformConvParams& p, int64_t cell,
                             const Acc (&values)[kVec]) const {
    atomic_add(p.grad_input.as<Acc>() + cell, values);
  }
};

// Where values are not finite, so is the unit's bound, or the offset's gradient.
struct AddFixedPoint {
  template <class Acc, int kVec>
  __device__ void operator()(const DeformConvParams& p, int64_t cell,
                             const Acc (&values)[kVec]) const {
    const double units = static_cast<double>(*static_cast<const Acc*>(p.units));
    atomic_add_fixed_point(p.grad_input.as<int64_t>() + cell, values, units);
  }
};

// ---- Input, offset and mask --------------------------------------------------------------------

constexpr int kGradPixels = 128, kGradChannels = 128;  // warps: 2 along pixels, 4 along channels
constexpr int kGradWarpPixels = 64, kGradWarpChannels = 32;
constexpr int kLaneChannels = 4;  // consecutive ones that a lane owns

// Row of the right tile where a channel lies. A lane's sums are of two columns each in two tiles of
// 8; in this order they are of consecutive channels.
struct RowOfChannel {
  __device__ int operator()(int channel) const {
    return channel / 16 * 16 + channel / 2 % 2 * 8 + channel % 16 / 4 * 2 + channel % 2;
  }
};

// Where the block's tap reads for one of its pixels.
struct Place {
  int64_t cell, grad_cell;  // north-west cell in input and grad_input
  float weight[4];
  unsigned inside;  // bit k: cell k is inside the map
};

__device__ Place place_of(const DeformConvParams& p, int offset_group, int tap, OutputPixel pixel) {
  const Sample<float> sample = read_sample<float>(p, offset_group, tap, pixel);
  const float mask = read_mask<float>(p, offset_group, tap, pixel);
  Place place;
  place.cell = pixel.image * p.input.stride[0] + sample.cell(0, p.input);
  place.grad_cell = pixel.image * p.grad_input.stride[0] + sample.cell(0, p.grad_input);
  place.inside = sample.cells_inside(p.input);
#pragma unroll
  for (int k = 0; k < 4; ++k) place.weight[k] = sample.weight(k) * mask;
  return place;
}

// Lane 4 * g + t gets the sum of values[t] over the lanes of g.
__device__ float sum_of_four_lanes(const float (&values)[4]) {
  const bool upper = lane_id() & 2, odd = lane_id() & 1;
  float pair[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float given = __shfl_xor_sync(kFullMask, upper ? values[i] : values[i + 2], 2);
    pair[i] = (upper ? values[i + 2] : values[i]) + given;
  }
  const float given = __shfl_xor_sync(kFullMask, odd ? pair[0] : pair[1], 1);
  return (odd ? pair[1] : pair[0]) + given;
}

template <class T, bool kExact, class Add>
struct ColumnGradients {
  static constexpr int kRows = kGradWarpPixels / 16, kColumns = kGradWarpChannels / 8;
  using Product = WarpProduct<T, kRows, kColumns, kExact, Unrounded::both>;
  static constexpr size_t kShared =
      2 * (kGradPixels + kGradChannels) * sizeof(T) * kRow<T> + kGradPixels * sizeof(Place);

  const DeformConvGradientParams& q;
  const Add& add;
  int64_t first;  // pixel of the batch
  int offset_group, tap;
  T *left, *right;               // [2][kGradPixels][kRow], [2][kGradChannels][kRow]
  Place* places;                 // [kGradPixels]
  float totals[2 * kRows] = {};  // lane 4 * g + t: of pixels 8 * i + g and cell t

  __device__ ColumnGradients(const DeformConvGradientParams& params, const Add& adder)
      : q(params), add(adder) {
    const int taps = static_cast<int>(q.sampling.kernel[0] * q.sampling.kernel[1]);
    const int samples = taps * static_cast<int>(q.sampling.offset_groups);
    const int sample = static_cast<int>(blockIdx.x % samples);
    first = static_cast<int64_t>(blockIdx.x / samples) * kGradPixels;
    offset_group = sample / taps;
    tap = sample % taps;
    left = dynamic_shared<T>();
    right = left + 2 * kGradPixels * kRow<T>;
    places = reinterpret_cast<Place*>(right + 2 * kGradChannels * kRow<T>);
  }

  __device__ bool exists(int row) const { return first + row < q.grad_output.size[0]; }

  __device__ void run() {
    const int channels = static_cast<int>(q.sampling.input.size[1] / q.sampling.offset_groups);
    if (thread_rank() < kGradPixels) {
      Place place{};
      if (exists(thread_rank())) {
        const OutputPixel pixel = output_pixel(q.sampling, first + thread_rank());
        place = place_of(q.sampling, offset_group, tap, pixel);
      }
      places[thread_rank()] = place;
    }
    const int warp_channel = warp_id() / 2 * kGradWarpChannels;
    for (int c = 0; c < channels; c += kGradChannels) {
      Product product;
      multiply(product, c, channels);
      if (c + warp_channel < channels) use(product, offset_group * channels + c + warp_channel);
    }
    write_sums();
  }

  // The gradients of the columns of the offset group's channels from c on.
  __device__ void multiply(Product& product, int c, int channels) const {
    const int outputs = static_cast<int>(q.grad_output.size[1]);
    const int64_t weights =
        tap * q.sampling.input.size[1] + static_cast<int64_t>(offset_group) * channels + c;
    const T *grads = q.grad_output.as<const T>(), *kernels = q.weights.as<const T>();
    const auto start = [&](int step) {
      const int d = step * kStep<T>, buffer = step % 2;
      start_copies<T, kGradPixels, kStep<T>>(left + buffer * kGradPixels * kRow<T>, kRow<T>,
                                             grads + first * outputs + d, outputs,
                                             q.grad_output.size[0] - first, outputs - d);
      start_copies<T, kGradChannels, kStep<T>>(right + buffer * kGradChannels * kRow<T>, kRow<T>,
                                               kernels + weights * outputs + d, outputs,
                                               channels - c, outputs - d, RowOfChannel());
    };
    const int warp_pixel = warp_id() % 2 * kGradWarpPixels;
    const int warp_channel = warp_id() / 2 * kGradWarpChannels;
    pipeline(
        ceil_div(outputs, kStep<T>), start, [](int) { wait_for_copies(); },
        [&](int step) {
          if (c + warp_channel >= channels) return;
          product.add(left + (step % 2 * kGradPixels + warp_pixel) * kRow<T>,
                      right + (step % 2 * kGradChannels + warp_channel) * kRow<T>);
        });
  }

  // Adds what the gradients of the warp's columns, from `channel` of input on, give: to grad_input,
  // and to the sums of gradients times cells.
  __device__ void use(const Product& product, int channel) {
    using Words = Vec<uint32_t, kLaneChannels * sizeof(T) / sizeof(uint32_t)>;
    const DeformConvParams& p = q.sampling;
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i) {
      const Place& place = places[warp_id() % 2 * kGradWarpPixels + 8 * i + g];
      const unsigned inside = place.inside;
      const T* cell = p.input.as<const T>() + place.cell + channel + kLaneChannels * t;
      const int64_t grad_cell = place.grad_cell + channel + kLaneChannels * t;
      Words cells[4][kColumns / 2];  // all on their way before the first is waited for
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const T* source = cell + k / 2 * p.input.stride[2] + k % 2 * p.input.stride[3];
#pragma unroll
        for (int j = 0; j < kColumns / 2; ++j) {
          cells[k][j] = Words{};
          if (inside >> k & 1) {
            cells[k][j] = Words::load(reinterpret_cast<const uint32_t*>(source + 16 * j));
          }
        }
      }
      float sums[4] = {};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (!(inside >> k & 1)) continue;
        const int64_t grads =
            grad_cell + k / 2 * p.grad_input.stride[2] + k % 2 * p.grad_input.stride[3];
        const float weight = place.weight[k];
#pragma unroll
        for (int j = 0; j < kColumns; j += 2) {
          const auto value = bit_cast<Vec<T, kLaneChannels>>(cells[k][j / 2]);
          float parts[kLaneChannels];
#pragma unroll
          for (int e = 0; e < kLaneChannels; ++e) {
            const float grad = product.at(i, j + e / 2, e % 2);
            sums[k] = multiply_add(grad, static_cast<float>(value[e]), sums[k]);
            parts[e] = weight * grad;
          }
          add(p, grads + 8 * j, parts);
        }
      }
      totals[i] += sum_of_four_lanes(sums);
    }
  }

  // Writes the gradients of the tap's offsets and masks: sums of the warps in their order.
  __device__ void write_sums() {
    constexpr int kWarpColumns = kGradChannels / kGradWarpChannels;
    float* parts = reinterpret_cast<float*>(left);  // [kWarpColumns][kGradPixels][4]
    const int row = warp_id() % 2 * kGradWarpPixels + lane_id() / 4;
    float* own = parts + (warp_id() / 2 * kGradPixels + row) * 4 + lane_id() % 4;
#pragma unroll
    for (int i = 0; i < 2 * kRows; ++i) own[8 * i * 4] = totals[i];
    __syncthreads();
    if (thread_rank() >= kGradPixels || !exists(thread_rank())) return;
    float sums[4] = {};
#pragma unroll
    for (int part = 0; part < kWarpColumns; ++part) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sums[k] += parts[(part * kGradPixels + thread_rank()) * 4 + k];
    }
    const OutputPixel pixel = output_pixel(q.sampling, first + thread_rank());
    const Sample<float> sample = read_sample<float>(q.sampling, offset_group, tap, pixel);
    const float mask = read_mask<float>(q.sampling, offset_group, tap, pixel);
    write_position_grad(q.sampling, offset_group, tap, pixel, position_grad(sample, mask, sums));
  }
};

template <class T, bool kExact, class Add>
__global__ void __launch_bounds__(kThreads, 2)
    column_gradients_kernel(const __grid_constant__ DeformConvGradientParams q, Add add) {
  if constexpr (kExact || kHasMultiplyTiles<T>) ColumnGradients<T, kExact, Add>(q, add).run();
}

// ---- Weights -----------------------------------------------------------------------------------

constexpr int kWeightColumns = 128;
constexpr int kRightRow = kWeightColumns + kColumnPad;

// kTileOutputs: outputs times kWeightColumns columns are a block's.
template <class T, int kTileOutputs, bool kExact>
struct WeightGradients {
  static constexpr int kPixels = kStep<T>;  // of a step
  static constexpr int kLeftRow = kTileOutputs + kColumnPad;
  static constexpr size_t kShared = 2 * kPixels * (kLeftRow + kRightRow) * sizeof(T);
  static constexpr int kWarpOutputs = 64;
  static constexpr int kWarpColumns = kWeightColumns * kTileOutputs / kWarpOutputs / kWarps;
  using Product = WarpProduct<T, kWarpOutputs / 16, kWarpColumns / 8, kExact, Unrounded::left>;
  static constexpr int kThreadColumns = 2 * kVector<T>;  // that a thread makes of a pixel
  static_assert(kPixels * kWeightColumns == kThreads * kThreadColumns, "threads make a step");

  const DeformConvGradientParams& q;
  int begin, end;  // the block's pixels of the batch
  int first_output, first_column;
  int row, column;  // of the tile of columns, the thread's
  int offset_group, tap, channel;
  bool exists;  // the column
  // The thread's pixel of the next step, where there is one.
  bool reads = false;
  OutputPixel pixel;
  Offset<float> offset;
  float mask;
  ColumnMaker<T, kExact> maker;
  T* left;   // [2][kPixels][kLeftRow], gradients of the output
  T* right;  // [2][kPixels][kRightRow], columns

  __device__ explicit WeightGradients(const DeformConvGradientParams& params) : q(params) {
    const DeformConvParams& p = q.sampling;
    const int pixels = static_cast<int>(q.grad_output.size[0]);
    const int steps = ceil_div(pixels, kPixels);
    const int share = ceil_div(steps, static_cast<int>(q.partials.size[0])) * kPixels;
    begin = min(static_cast<int>(blockIdx.z) * share, pixels);
    end = min(begin + share, pixels);
    first_column = blockIdx.x * kWeightColumns;
    first_output = blockIdx.y * kTileOutputs;
    row = thread_rank() * kThreadColumns / kWeightColumns;
    column = thread_rank() * kThreadColumns % kWeightColumns;
    const int channels = static_cast<int>(p.input.size[1]);
    tap = (first_column + column) / channels;
    channel = (first_column + column) % channels;
    offset_group = channel / (channels / static_cast<int>(p.offset_groups));
    exists = first_column + column < q.weights.size[0];
    left = dynamic_shared<T>();
    right = left + 2 * kPixels * kLeftRow;
  }

  // Goes to the thread's pixel of a step.
  __device__ void read(int step) {
    const int index = begin + step * kPixels + row;
    reads = exists && index < end;
    if (!reads) return;
    const int width = static_cast<int>(q.sampling.offset.size[3]);
    const int pixels = width * static_cast<int>(q.sampling.offset.size[2]);
    const int rest = index % pixels;
    pixel = {index / pixels, rest / width, rest % width};
    offset = read_offset<float>(q.sampling, offset_group, tap, pixel);
    mask = read_mask<float>(q.sampling, offset_group, tap, pixel);
  }

  __device__ void start(int step) {
    if (reads) {
      maker.image = q.sampling.input.at<const T>(pixel.image, channel);
      maker.move(q.sampling, moved_sample(q.sampling, tap, pixel, offset), mask);
    } else {
      maker.leave();
    }
    maker.load(q.sampling, 0);
    read(step + 1);
    const int outputs = static_cast<int>(q.grad_output.size[1]);
    const T* grads = q.grad_output.as<const T>();
    const int first = begin + step * kPixels;
    start_copies<T, kPixels, kTileOutputs>(
        left + step % 2 * kPixels * kLeftRow, kLeftRow,
        grads + static_cast<int64_t>(first) * outputs + first_output, outputs, end - first,
        outputs - first_output);
  }

  __device__ void finish(int step) {
    maker.store(right + (step % 2 * kPixels + row) * kRightRow + column);
    wait_for_copies();
  }

  __device__ void run() {
    Product product;
    const int warp_output = warp_id() % (kTileOutputs / kWarpOutputs) * kWarpOutputs;
    const int warp_column = warp_id() / (kTileOutputs / kWarpOutputs) * kWarpColumns;
    read(0);
    pipeline(
        ceil_div(end - begin, kPixels), [&](int step) { start(step); },
        [&](int step) { finish(step); },
        [&](int step) {
          product.add_transposed(left + step % 2 * kPixels * kLeftRow + warp_output, kLeftRow,
                                 right + step % 2 * kPixels * kRightRow + warp_column, kRightRow);
        });
    store(product, first_output + warp_output, first_column + warp_column);
  }

  __device__ void store(const Product& product, int output, int column) const {
    const int outputs = static_cast<int>(q.partials.size[1]);
    const int columns = static_cast<int>(q.partials.size[2]);
#pragma unroll
    for (int i = 0; i < kWarpOutputs / 8; ++i) {
      const int d = output + 8 * i + lane_id() / 4;
      if (d >= outputs) continue;
      float* target = q.partials.at<float>(blockIdx.z, d);
#pragma unroll
      for (int j = 0; j < kWarpColumns / 8; ++j) {
        const int c = column + 8 * j + lane_id() % 4 * 2;
        if (c < columns) Vec<float, 2>{product.at(i, j, 0), product.at(i, j, 1)}.store(target + c);
      }
    }
  }
};

template <class T, int kTileOutputs, bool kExact>
__global__ void __launch_bounds__(kThreads, 1)
    weight_gradients_kernel(const __grid_constant__ DeformConvGradientParams q) {
  if constexpr (kExact || kHasMultiplyTiles<T>) WeightGradients<T, kTileOutputs, kExact>(q).run();
}

// ---- Launch ------------------------------------------------------------------------------------

template <class T, bool kExact, class Add>
void launch_column_gradients(const DeformConvGradientParams& q, cudaStream_t stream) {
  const DeformConvParams& p = q.sampling;
  const int64_t tiles = ceil_div<int64_t>(q.grad_output.size[0], kGradPixels);
  launch("deform_conv_column_gradients", column_gradients_kernel<T, kExact, Add>,
         make_grid(tiles * p.offset_groups * p.kernel[0] * p.kernel[1]), dim3(kThreads),
         ColumnGradients<T, kExact, Add>::kShared, stream, q, Add());
}

template <class T, int kTileOutputs, bool kExact>
void launch_weight_gradients(const DeformConvGradientParams& q, cudaStream_t stream) {
  launch("deform_conv_weight_gradients", weight_gradients_kernel<T, kTileOutputs, kExact>,
         make_grid(ceil_div<int64_t>(q.partials.size[2], kWeightColumns),
                   ceil_div<int64_t>(q.partials.size[1], kTileOutputs), q.partials.size[0]),
         dim3(kThreads), WeightGradients<T, kTileOutputs, kExact>::kShared, stream, q);
}

template <class T, bool kExact>
void launch_gradients(const DeformConvGradientParams& q, cudaStream_t stream) {
  if (q.sampling.units == nullptr) {
    launch_column_gradients<T, kExact, AddFloats>(q, stream);
  } else {
    launch_column_gradients<T, kExact, AddFixedPoint>(q, stream);
  }
  if (q.partials.size[1] <= 128) return launch_weight_gradients<T, 128, kExact>(q, stream);
  launch_weight_gradients<T, 256, kExact>(q, stream);
}

}  // namespace
}  // namespace fastseg
