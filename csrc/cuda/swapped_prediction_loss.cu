// Swapped prediction: kRowThreads threads for each row (view, sample), kHeld elements each. The targets of all other
// assignment views are summed as they are read (the loss is linear in them). A row of up to kRowThreads * kHeld columns
// is read once, in loads of four columns that are in flight together, and stays in registers with its targets until its
// gradient is written: memory sees scores, assignments and the gradient once. A longer one is taken in such chunks, twice.
// The views of a sample are neighbours, so that its assignments come from memory once and then from L2. A second, small
// launch adds up the blocks.

#include "device.cuh"
#include "kernels.h"
#include "primitives.cuh"
#include "sum.h"

namespace imc::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeld = 16;
constexpr int kNarrowRow = 64, kWideRow = kThreads;  // threads

constexpr bool is_wide(int64_t prototypes) { return prototypes > kNarrowRow * kHeld; }

struct Sizes {
  int views, assigned, prototypes;
  int64_t batch;
};

// Of all warps of a row, in each of them.
template <int kRowThreads, typename T, typename Operation>
__device__ __forceinline__ T across_warps(T x, Operation operation) {
  IMC_SHARED(T, parts, kThreads / kWarp);
  const int warp = threadIdx.x / kWarp, first = threadIdx.x / kRowThreads * (kRowThreads / kWarp);
  __syncthreads();  // the last parts may still be read
  if (threadIdx.x % kWarp == 0) parts[warp] = x;
  __syncthreads();
  x = parts[first];
#pragma unroll
  for (int i = 1; i < kRowThreads / kWarp; ++i) x = operation(x, parts[first + i]);
  return x;
}

struct RowSums {
  float low, exponentials, mass, aligned;
};

// What a thread holds of a chunk of its row. Columns beyond the row's end are left out of everything.
template <typename T, int kWidth, int kRowThreads>
struct Chunk {
  static constexpr int kPacks = kHeld / kWidth, kStep = kRowThreads * kWidth, kColumns = kRowThreads * kHeld;
  int first, end;  // this thread's first column, the row's end
  float scores[kHeld], targets[kHeld];

  __device__ __forceinline__ bool inside(int pack) const { return first + pack * kStep < end; }
  // Calls visit(score, target, whether they are of the row).
  template <typename Visit>
  __device__ __forceinline__ void for_elements(Visit visit) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i) visit(scores[i], targets[i], inside(i / kWidth));
  }

  // Beyond the row scores are -inf, targets 0. kAssigned views have targets, or as many as `sizes` says where that is 0.
  template <int kAssigned>
  __device__ __forceinline__ void read(const T* __restrict__ row, const T* __restrict__ assignments,
                                       const Sizes& sizes, int view, int64_t sample) {
    Pack<T, kWidth> raw[kPacks], of_views[kPacks][kAssigned > 0 ? kAssigned : 1];
    const auto read_targets = [&](int a, int slot) {
      const T* from = assignments + (a * sizes.batch + sample) * sizes.prototypes + first;
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        of_views[i][slot] = {};
        if (a != view && inside(i)) of_views[i][slot] = load<kWidth>(from + i * kStep);
      }
    };
    const auto add_targets = [&](int slot) {
#pragma unroll
      for (int i = 0; i < kHeld; ++i) targets[i] += to_float(of_views[i / kWidth][slot].v[i % kWidth]);
    };
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      raw[i] = {};
      if (inside(i)) raw[i] = load<kWidth>(row + first + i * kStep);
    }
#pragma unroll
    for (int a = 0; a < kAssigned; ++a) read_targets(a, a);
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      targets[i] = 0;
      scores[i] = inside(i / kWidth) ? to_float(raw[i / kWidth].v[i % kWidth]) : -INFINITY;
    }
#pragma unroll
    for (int a = 0; a < kAssigned; ++a) add_targets(a);
    if constexpr (kAssigned == 0) {
#pragma unroll 1
      for (int a = 0; a < sizes.assigned; ++a) {
        read_targets(a, 0);
        add_targets(0);
      }
    }
  }
};

template <typename T, typename G, int kWidth, int kRowThreads, int kAssigned>
__global__ void __launch_bounds__(kThreads, kWidth > 1 && kRowThreads == kNarrowRow ? 3 : 2)
    swapped_prediction_kernel(const T* __restrict__ scores,       // [views, batch, prototypes]
                              const T* __restrict__ assignments,  // [assigned, batch, prototypes]
                              float* __restrict__ losses,         // [blocks]
                              G* __restrict__ gradient,           // [views, batch, prototypes] or null
                              Sizes sizes, float inverse_temperature,
                              float weight) {  // of a row's gradient: 1 / (pairs batch temperature)
  const auto add = [](float a, float b) { return a + b; };
  const int thread = threadIdx.x % kRowThreads;
  // The row is blockIdx.x * rows + its place in the block, as sample * views + view, without a division of 64 bits.
  constexpr unsigned kRows = kThreads / kRowThreads;
  const unsigned views = sizes.views, place = blockIdx.x % views * kRows + threadIdx.x / kRowThreads;
  const int view = static_cast<int>(place % views);
  int64_t sample = int64_t(blockIdx.x / views) * kRows + place / views;
  const bool inside = sample < sizes.batch;
  if (!inside) sample = 0;
  const int64_t offset = (view * sizes.batch + sample) * sizes.prototypes;
  const float exponent = inverse_temperature * 1.44269504f;

  Chunk<T, kWidth, kRowThreads> chunk;
  float high = -INFINITY, low = INFINITY, sum = 0, mass = 0, aligned = 0;
  const int chunks = (sizes.prototypes + chunk.kColumns - 1) / chunk.kColumns;
  const auto read = [&](int number) {
    chunk.first = number * chunk.kColumns + thread * kWidth;
    chunk.end = inside ? sizes.prototypes : 0;
    chunk.template read<kAssigned>(scores + offset, assignments, sizes, view, sample);
  };
#pragma unroll 1
  for (int number = 0; number < chunks; ++number) {
    read(number);
    float chunk_high = high;
    chunk.for_elements([&](float score, float, bool inside) {
      chunk_high = max_or_nan(chunk_high, score);
      if (inside) low = min_or_nan(low, score);
    });
    chunk_high = across_warps<kRowThreads>(warp_reduce(chunk_high, max_or_nan), max_or_nan);
    if (number > 0) {  // what was summed so far is relative to the highest until here
      sum *= exp2f((high - chunk_high) * exponent);
      aligned += mass * (high - chunk_high);
    }
    high = chunk_high;
    chunk.for_elements([&](float& score, float target, bool inside) {
      const float difference = score - high;
      score = exp2_normal(difference * exponent);
      sum += score;
      mass += target;
      if (inside) aligned += target * difference;
    });
  }
  const RowSums of_warp{warp_reduce(low, min_or_nan), warp_reduce(sum, add), warp_reduce(mass, add),
                        warp_reduce(aligned, add)};
  const RowSums all = across_warps<kRowThreads>(of_warp, [](const RowSums& a, const RowSums& b) {
    return RowSums{min_or_nan(a.low, b.low), a.exponentials + b.exponentials, a.mass + b.mass, a.aligned + b.aligned};
  });
  sum = all.exponentials + (all.low - all.low);  // an infinity makes the row NaN, not one without an entry
  const float total = inside ? all.mass * logf(sum) - all.aligned * inverse_temperature : 0;
  if (gradient) {
    const float scale = weight * all.mass / sum;
#pragma unroll 1
    for (int number = 0; number < chunks; ++number) {
      if (chunks > 1) {
        read(number);
        chunk.for_elements([&](float& score, float, bool) { score = exp2_normal((score - high) * exponent); });
      }
#pragma unroll
      for (int i = 0; i < chunk.kPacks; ++i) {
        Pack<G, kWidth> values;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          from_float(chunk.scores[i * kWidth + j] * scale - weight * chunk.targets[i * kWidth + j], values.v[j]);
        }
        if (chunk.inside(i)) store(gradient + offset + chunk.first + i * chunk.kStep, values);
      }
    }
  }
  const float of_block = block_sum<kThreads / kWarp>(thread == 0 ? total : 0);
  if (threadIdx.x == 0) losses[blockIdx.x] = of_block;
}

int64_t blocks_for(int64_t views, int64_t batch, int64_t prototypes) {
  return ceil_divide(views * batch, kThreads / (is_wide(prototypes) ? kWideRow : kNarrowRow));
}

}  // namespace

int64_t swapped_prediction_loss_workspace_bytes(int64_t views, int64_t batch, int64_t prototypes, int) {
  return 4 * blocks_for(views, batch, prototypes);
}

template <typename T>
void swapped_prediction_loss(const T* scores, const T* assignments, float* loss, GradientOf<T>* gradient,
                             float* workspace, int64_t views, int64_t assigned, int64_t batch, int64_t prototypes,
                             double temperature, int device, uintptr_t stream) {
  using G = GradientOf<T>;
  const DeviceGuard guard(device);
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  const double pairs = static_cast<double>(assigned * (views - 1)) * static_cast<double>(batch);
  const Sizes sizes{int(views), int(assigned), int(prototypes), batch};
  const int64_t blocks = blocks_for(views, batch, prototypes);
  const auto run = [&](auto width, auto threads, auto unrolled) {
    launch<swapped_prediction_kernel<T, G, decltype(width)::value, decltype(threads)::value,
                                     decltype(unrolled)::value>>(
        "launching swapped_prediction_loss", {blocks, kThreads}, place, scores, assignments, workspace, gradient, sizes,
        static_cast<float>(1 / temperature), static_cast<float>(1 / (pairs * temperature)));
  };
  constexpr int kWidth = 4;  // for half precision too: sums in another order would not be those of its floats
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(scores) | reinterpret_cast<uintptr_t>(assignments) |
                              reinterpret_cast<uintptr_t>(gradient);
  const bool aligned = prototypes % kWidth == 0 && addresses % 16 == 0,
             wide = is_wide(prototypes);
  using Any = std::integral_constant<int, 0>;
  using Narrow = std::integral_constant<int, kNarrowRow>;
  using Wide = std::integral_constant<int, kWideRow>;
  using Single = std::integral_constant<int, 1>;
  const auto of_width = [&](auto width, auto unrolled) {
    wide ? run(width, Wide(), unrolled) : run(width, Narrow(), unrolled);
  };
  if (!aligned) {
    of_width(Single(), Any());
  } else if (assigned == 1) {
    of_width(std::integral_constant<int, kWidth>(), Single());
  } else if (assigned == 2) {
    of_width(std::integral_constant<int, kWidth>(), std::integral_constant<int, 2>());
  } else {
    of_width(std::integral_constant<int, kWidth>(), Any());
  }
  launch_sum(workspace, blocks, static_cast<float>(1 / pairs), loss, place);
}

IMC_INSTANTIATE_CUDA(swapped_prediction_loss)

}  // namespace imc::cuda
