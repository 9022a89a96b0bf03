// Multi-scale deformable attention on CUDA. A group of lanes (a power of two, at most a warp)
// serves one query and head. Its lanes locate one point each, as many at once as there are lanes,
// and leave in shared memory which cells those read with which weights. Then the group visits these
// points one by one, and each lane reads vectors of 16 bytes of its own channels.
#include "core/atomic_sums.cuh"
#include "core/cuda.cuh"
#include "core/dispatch.h"
#include "ms_deform_attn/ms_deform_attn_math.h"

namespace fastseg {
namespace {

constexpr int kThreads = 256;
constexpr int kPatchWidth = 8;  // queries

template <class T>
constexpr int kVectorOf = 16 / static_cast<int>(sizeof(T));

struct alignas(16) Level {
  int width, height, start;
  bool fits;  // within the rows of value
};

__device__ Level read_level(const MsDeformAttnParams& p, int l) {
  const bool shapes = p.levels.shapes.data != nullptr, starts = p.levels.starts.data != nullptr;
  const int64_t height = shapes ? *p.levels.shapes.at<const int64_t>(l, 0) : p.levels.height[l];
  const int64_t width = shapes ? *p.levels.shapes.at<const int64_t>(l, 1) : p.levels.width[l];
  const int64_t start = starts ? *p.levels.starts.at<const int64_t>(l) : p.levels.start[l];
  const int64_t rows = p.value.size[1];
  const bool fits = height >= 0 && width >= 0 && start >= 0 && start <= rows &&
                    (width == 0 || height <= (rows - start) / width);
  return {static_cast<int>(width), static_cast<int>(height), static_cast<int>(start), fits};
}

// All threads of the block must call this.
__device__ void read_levels(const MsDeformAttnParams& p, Level* levels) {
  const int l = static_cast<int>(threadIdx.x);
  if (l < p.locations.size[3]) levels[l] = read_level(p, l);
  __syncthreads();
}

// How queries and heads are dealt to blocks: a block takes one head of consecutive queries or,
// where the queries are the cells of the levels, of a patch of cells. Their samples overlap, and
// one head of them fits the first cache: the second one alone could not feed the arithmetic.
struct Tiles {
  int lanes;           // per query and head
  uint32_t row_bytes;  // from a row of value to the next
  int64_t count;       // tiles of an image
  bool patches;
};

struct PatchSize {
  int width, height;
};

FASTSEG_HD PatchSize patch_size(int lanes) {
  const int queries = kThreads / lanes;  // 8 or more
  return {kPatchWidth, queries / kPatchWidth};
}

FASTSEG_HD int64_t patches_of(int64_t width, int64_t height, PatchSize patch) {
  return ceil_div<int64_t>(width, patch.width) * ceil_div<int64_t>(height, patch.height);
}

// The query and head of a group of lanes, and the lane's place in it.
struct Place {
  int64_t b, q, m;
  int lane;
  bool exists;  // else the group runs along with query 0 and writes nothing
};

__device__ Place find_place(const MsDeformAttnParams& p, const Tiles& tiles, const Level* levels) {
  const int64_t heads = p.output.size[2], block = blockIdx.x;
  const int group = static_cast<int>(threadIdx.x) / tiles.lanes;
  Place place = {block / heads / tiles.count, 0, block % heads,
                 static_cast<int>(threadIdx.x) % tiles.lanes, false};
  int64_t tile = block / heads % tiles.count, first = 0;
  if (!tiles.patches) {
    const int64_t q = tile * (kThreads / tiles.lanes) + group;
    place.exists = q < p.output.size[1];
    place.q = place.exists ? q : 0;
    return place;
  }
  const PatchSize patch = patch_size(tiles.lanes);
  int l = 0;
  for (int64_t count; tile >= (count = patches_of(levels[l].width, levels[l].height, patch)); ++l) {
    tile -= count;
    first += int64_t(levels[l].width) * levels[l].height;
  }
  const int64_t across = ceil_div<int64_t>(levels[l].width, patch.width);
  const int64_t x = tile % across * patch.width + group % patch.width;
  const int64_t y = tile / across * patch.height + group / patch.width;
  place.exists = x < levels[l].width && y < levels[l].height;
  place.q = place.exists ? first + y * levels[l].width + x : 0;
  return place;
}

template <class T, class Op>
__device__ T group_reduce(T value, int lanes, Op op) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value = op(value, __shfl_xor_sync(kFullMask, value, distance));
  }
  return value;
}

// A sample as the lane that located it knows it. In a level that does not fit it is NaN.
template <class Acc>
struct Located {
  Sample<Acc> sample;
  Acc weight;
};

// The same as the group's other lanes need it.
template <class Acc>
struct alignas(16) Taps {
  Acc weight[4];
  int cell[4];
};

// The block's, in shared memory. A warp reads one of each of its groups at once; as groups are
// powers of two, those would all lie in the same banks, but for the pad.
template <class Acc>
struct BlockTaps {
  static constexpr int kPad = 16;
  alignas(16) char bytes[kThreads * (sizeof(Taps<Acc>) + kPad)];

  // Those of the thread's group, by lane.
  __device__ Taps<Acc>* own_group(int lanes) {
    const int group = static_cast<int>(threadIdx.x) / lanes;
    const int group_bytes = lanes * static_cast<int>(sizeof(Taps<Acc>)) + kPad;
    return reinterpret_cast<Taps<Acc>*>(bytes + group * group_bytes);
  }
};

// The points of one query and head, all levels'.
template <class Acc>
class Points {
 public:
  // All lanes of the warp must call this.
  __device__ Points(const MsDeformAttnParams& p, const Place& place, const Level* levels, int lanes)
      : p_(p),
        place_(place),
        levels_(levels),
        locations_(p.locations.at<const Acc>(place.b, place.q, place.m)),
        weights_(p.weights.at<const Acc>(place.b, place.q, place.m)) {
    if (p.references.data == nullptr) return;
    largest_ = -INFINITY;
    for (int k = place.lane; k < count(); k += lanes) largest_ = Max()(given_weight(k), largest_);
    largest_ = group_reduce(largest_, lanes, Max());
    Acc sum = 0;
    for (int k = place.lane; k < count(); k += lanes) sum += exp(given_weight(k) - largest_);
    share_ = Acc(1) / group_reduce(sum, lanes, Sum());
  }

  __device__ int count() const {
    return static_cast<int>(p_.locations.size[3] * p_.locations.size[4]);
  }

  __device__ Acc weight(int k) const {
    const Acc weight = given_weight(k);
    return p_.references.data == nullptr ? weight : exp(weight - largest_) * share_;
  }

  __device__ Located<Acc> locate(int k) const {
    const int l = level_of(k), point = k - l * static_cast<int>(p_.locations.size[4]);
    const Level level = levels_[l];
    const Acc* at = locations_ + l * p_.locations.stride[3] + point * p_.locations.stride[4];
    const Frame<Acc> frame = frame_of<Acc>(p_, place_.b, place_.q, l, level.width, level.height);
    const Acc x = at[0] * frame.scale_x + frame.origin_x;
    const Acc y = at[p_.locations.stride[5]] * frame.scale_y + frame.origin_y;
    if (!level.fits) return {{{-1, -1, -1, -1}, Acc(NAN), Acc(NAN)}, Acc(NAN)};
    return {fastseg::locate(x, y, level.width, level.height, level.start), weight(k)};
  }

  // Locates the lane's own of the points from `first` on and shows all of them to the group.
  __device__ Located<Acc> locate_together(int first, Taps<Acc>* own) const {
    const int k = first + place_.lane;
    Located<Acc> located = {};
    if (k < count()) located = locate(k);
    Taps<Acc> taps;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      taps.weight[corner] =
          located.weight * corner_weight(located.sample.x, located.sample.y, corner);
      taps.cell[corner] = located.sample.cell[corner];
    }
    __syncwarp();  // nobody reads the last points any more
    *own = taps;
    __syncwarp();
    return located;
  }

 private:
  __device__ int level_of(int k) const {
    return static_cast<int>(static_cast<unsigned>(k) / static_cast<unsigned>(p_.weights.size[4]));
  }
  __device__ Acc given_weight(int k) const {
    const int l = level_of(k), point = k - l * static_cast<int>(p_.weights.size[4]);
    return weights_[l * p_.weights.stride[3] + point * p_.weights.stride[4]];
  }

  const MsDeformAttnParams& p_;
  const Place& place_;
  const Level* levels_;
  const Acc *locations_, *weights_;
  Acc largest_ = 0, share_ = 0;  // of the softmax
};

// What lies `bytes` behind `from`; zeros where nothing is read, so that loads need no branches.
template <class T, int kVector>
__device__ Vec<T, kVector> load_or_zero(const T* from, uint64_t bytes, bool reads) {
  // As words where there are some: zeros of 16 bits would be packed one by one.
  using Word = std::conditional_t<sizeof(T) * kVector == 16, uint32_t, T>;
  using Words = Vec<Word, static_cast<int>(sizeof(T) * kVector / sizeof(Word))>;
  Words words = {};
  if (reads) {
    const char* address = reinterpret_cast<const char*>(from) + bytes;
    words = Words::load(reinterpret_cast<const Word*>(address));
  }
  return bit_cast<Vec<T, kVector>>(words);
}

// The four cells of a sample, for channels from `value` on.
template <class T, int kVector>
struct Cells {
  Vec<T, kVector> cell[4];

  template <class Acc>
  __device__ Cells(const T* value, uint32_t row_bytes, const Taps<Acc>& at, bool reads) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      // The product of unsigned numbers is one instruction.
      const uint64_t bytes = uint64_t(static_cast<uint32_t>(at.cell[corner])) * row_bytes;
      cell[corner] = load_or_zero<T, kVector>(value, bytes, reads && at.cell[corner] >= 0);
    }
  }
};

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads, 3)
    forward_kernel(const __grid_constant__ MsDeformAttnParams p, const Tiles tiles) {
  using Acc = accumulate_t<T>;
  __shared__ Level levels[kMaxAttentionLevels];
  __shared__ BlockTaps<Acc> taps;
  read_levels(p, levels);
  const Place place = find_place(p, tiles, levels);
  const Points<Acc> points(p, place, levels, tiles.lanes);
  Taps<Acc>* const group = taps.own_group(tiles.lanes);
  const int64_t channels = p.value.size[3];
  for (int64_t c0 = 0; c0 < channels; c0 += tiles.lanes * kVector) {
    const int64_t c = c0 + place.lane * kVector;
    const bool owns = c < channels;
    const T* value = p.value.at<const T>(place.b, 0, place.m, c);
    Acc sum[kVector] = {};
    for (int first = 0; first < points.count(); first += tiles.lanes) {
      points.locate_together(first, group + place.lane);
      const int count = min(tiles.lanes, points.count() - first);
      for (int k = 0; k < count; ++k) {
        const Taps<Acc> at = group[k];
        const Cells<T, kVector> cells(value, tiles.row_bytes, at, owns);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
#pragma unroll
          for (int i = 0; i < kVector; ++i) {
            sum[i] =
                multiply_add(at.weight[corner], static_cast<Acc>(cells.cell[corner][i]), sum[i]);
          }
        }
      }
    }
    if (!owns || !place.exists) continue;
    Vec<T, kVector> result;
#pragma unroll
    for (int i = 0; i < kVector; ++i) result[i] = static_cast<T>(sum[i]);
    result.store(p.output.at<T>(place.b, place.q, place.m, c));
  }
}

// The gradients of point k's position, in cells, and weight; those of earlier channels are there.
template <class Acc>
__device__ void write_point_grad(const MsDeformAttnBackwardParams& p, const Place& place, int k,
                                 const Located<Acc>& point, const Acc (&dot)[4], bool adds) {
  const Sample<Acc>& sample = point.sample;
  const bool near = (sample.cell[0] & sample.cell[1] & sample.cell[2] & sample.cell[3]) >= 0;
  const PointGrad<Acc> grad = point_grad(dot, sample.x, sample.y, point.weight, near);
  Acc* position = p.grad_locations.at<Acc>(place.b, place.q, place.m) + 2 * k;
  Acc* weight = p.grad_weights.at<Acc>(place.b, place.q, place.m) + k;
  position[0] = adds ? position[0] + grad.x : grad.x;
  position[1] = adds ? position[1] + grad.y : grad.y;
  *weight = adds ? *weight + grad.weight : grad.weight;
}

// From the gradients of positions and weights, which the group has written, to those of what the
// caller gave. All lanes of the warp must call this.
template <class Acc>
__device__ void finish(const MsDeformAttnBackwardParams& params, const Place& place,
                       const Points<Acc>& points, const Level* levels, int lanes) {
  const MsDeformAttnParams& p = params.forward;
  __syncwarp();
  for (int l = place.lane; place.exists && l < p.locations.size[3]; l += lanes) {
    const int width = levels[l].width, height = levels[l].height;
    if (params.grad_references.data != nullptr) {
      write_reference_grad<Acc>(params, place.b, place.q, place.m, l, width, height);
    }
    scale_position_grads<Acc>(params, place.b, place.q, place.m, l, width, height);
  }
  if (p.references.data == nullptr) return;
  Acc* grad = params.grad_weights.at<Acc>(place.b, place.q, place.m);
  Acc mean = 0;
  for (int k = place.lane; place.exists && k < points.count(); k += lanes) {
    mean += points.weight(k) * grad[k];
  }
  mean = group_reduce(mean, lanes, Sum());
  for (int k = place.lane; place.exists && k < points.count(); k += lanes) {
    grad[k] = points.weight(k) * (grad[k] - mean);
  }
}

template <class T, int kVector, bool kFixedPoint>
__global__ void __launch_bounds__(kThreads, 3)
    backward_kernel(const __grid_constant__ MsDeformAttnBackwardParams params, const Tiles tiles) {
  using Acc = accumulate_t<T>;
  using GradSum = std::conditional_t<kFixedPoint, int64_t, Acc>;
  __shared__ Level levels[kMaxAttentionLevels];
  __shared__ BlockTaps<Acc> taps;
  const MsDeformAttnParams& p = params.forward;
  read_levels(p, levels);
  const Place place = find_place(p, tiles, levels);
  const Points<Acc> points(p, place, levels, tiles.lanes);
  Taps<Acc>* const group = taps.own_group(tiles.lanes);
  const uint32_t row_sums = static_cast<uint32_t>(params.grad_value.stride[1]);
  const double units = kFixedPoint ? *params.units.as<const double>() : 0;
  const int64_t channels = p.value.size[3];
  for (int64_t c0 = 0; c0 < channels; c0 += tiles.lanes * kVector) {
    const int64_t c = c0 + place.lane * kVector;
    const bool owns = place.exists && c < channels;
    GradSum* sums = params.grad_value.at<GradSum>(place.b, 0, place.m, c);
    const T* value = p.value.at<const T>(place.b, 0, place.m, c);
    const T* from = p.output.at<const T>(place.b, place.q, place.m, c);
    const auto grads = load_or_zero<T, kVector>(from, 0, owns);
    for (int first = 0; first < points.count(); first += tiles.lanes) {
      const Located<Acc> own = points.locate_together(first, group + place.lane);
      Acc own_dot[4] = {};  // grad_output * cell
      const int count = min(tiles.lanes, points.count() - first);
      for (int k = 0; k < count; ++k) {
        const Taps<Acc> at = group[k];
        const Cells<T, kVector> cells(value, tiles.row_bytes, at, owns);
        Acc dot[4] = {};
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          Acc terms[kVector];
#pragma unroll
          for (int i = 0; i < kVector; ++i) {
            const Acc grad = static_cast<Acc>(grads[i]);
            dot[corner] = multiply_add(grad, static_cast<Acc>(cells.cell[corner][i]), dot[corner]);
            terms[i] = at.weight[corner] * grad;
          }
          if (!owns || at.cell[corner] < 0) continue;
          GradSum* to = sums + uint64_t(static_cast<uint32_t>(at.cell[corner])) * row_sums;
          if constexpr (kFixedPoint) {
            atomic_add_fixed_point(to, terms, units);
          } else {
            atomic_add(to, terms);
          }
        }
        for (int distance = tiles.lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
          for (Acc& sum : dot) sum += __shfl_xor_sync(kFullMask, sum, distance);
        }
#pragma unroll
        for (int corner = 0; corner < 4; ++corner) {
          if (place.lane == k) own_dot[corner] = dot[corner];
        }
      }
      const int k = first + place.lane;
      if (!place.exists || k >= points.count()) continue;
      write_point_grad(params, place, k, own, own_dot, c0 > 0);
    }
  }
  finish(params, place, points, levels, tiles.lanes);
}

// Whether all vectors of kVectorOf<T> channels are aligned.
template <class T>
bool has_vectors(const View<4>& view) {
  constexpr int n = kVectorOf<T>;
  return view.stride[3] == 1 && view.size[3] % n == 0 && view.stride[0] % n == 0 &&
         view.stride[1] % n == 0 && view.stride[2] % n == 0 &&
         reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
}

// f(tiles, grid) for groups of lanes that cover the channels in vectors of this many.
template <class F>
void with_tiles(const MsDeformAttnParams& p, int vector, F f) {
  const int64_t row_bytes = p.value.stride[1] * bytes_of(p.value.dtype);
  FASTSEG_CHECK(row_bytes >= 0 && row_bytes <= UINT32_MAX,
                "value must have rows 0 to 2^32 bytes apart on CUDA, got ", row_bytes);
  Tiles tiles = {1, static_cast<uint32_t>(row_bytes), 0, false};
  while (tiles.lanes < kWarpSize && tiles.lanes * vector < p.value.size[3]) tiles.lanes *= 2;
  const bool known = p.levels.shapes.data == nullptr;
  int64_t cells = 0, patches = 0;
  for (int64_t l = 0; known && l < p.locations.size[3]; ++l) {
    cells += p.levels.width[l] * p.levels.height[l];
    patches += patches_of(p.levels.width[l], p.levels.height[l], patch_size(tiles.lanes));
  }
  tiles.patches = known && cells == p.output.size[1];
  tiles.count =
      tiles.patches ? patches : ceil_div<int64_t>(p.output.size[1], kThreads / tiles.lanes);
  f(tiles, make_grid(p.output.size[0] * p.output.size[2] * tiles.count));
}

}  // namespace

void ms_deform_attn_forward_cuda(const MsDeformAttnParams& p, cudaStream_t stream) {
  dispatch_floating(p.value.dtype, "value", [&](auto zero) {
    using T = decltype(zero);
    const bool vectors = has_vectors<T>(p.value) && has_vectors<T>(p.output);
    with_tiles(p, vectors ? kVectorOf<T> : 1, [&](const Tiles& tiles, dim3 grid) {
      const auto kernel = vectors ? forward_kernel<T, kVectorOf<T>> : forward_kernel<T, 1>;
      launch("ms_deform_attn_forward", kernel, grid, kThreads, 0, stream, p, tiles);
    });
  });
}

void ms_deform_attn_backward_cuda(const MsDeformAttnBackwardParams& params, cudaStream_t stream) {
  const MsDeformAttnParams& p = params.forward;
  dispatch_floating(p.value.dtype, "value", [&](auto zero) {
    using T = decltype(zero);
    constexpr int n = kVectorOf<T>;
    const bool vectors = has_vectors<T>(p.value) && has_vectors<T>(p.output);
    with_tiles(p, vectors ? n : 1, [&](const Tiles& tiles, dim3 grid) {
      const auto kernel = vectors ? backward_kernel<T, n, false> : backward_kernel<T, 1, false>;
      const auto fixed = vectors ? backward_kernel<T, n, true> : backward_kernel<T, 1, true>;
      launch("ms_deform_attn_backward", params.units.data == nullptr ? kernel : fixed, grid,
             kThreads, 0, stream, params, tiles);
    });
  });
}

}  // namespace fastseg
