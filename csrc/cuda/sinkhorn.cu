// Sinkhorn-Knopp: scores s [batch, prototypes] -> Q = diag(u) exp(s / epsilon) diag(v), columns scaled first.
//
// Bytes: where a block's rows fit into its shared memory, the scores are read once and the assignments written once,
// 2 * 4 * 256 * 1000 bytes (float32) = 2 MB or 0.4 us at 4.8 TB/s for one problem of IMC-SwAV: the floor is the launch
// and its iterations + 1 grid synchronisations. Where they do not fit, iterations + 2 reads and one write.
//
// Rows never leave their block. One sweep per iteration: a row's sum with the current column factors, then the row's
// push into the block's column sums; these meet in the workspace. The same sweep runs over two algebras: scaling
// factors, or logarithms where the exponentials of a problem could underflow. All exponentials are to base 2.

#include <algorithm>
#include <cmath>

#include "device.cuh"
#include "imc/element.h"
#include "primitives.cuh"
#include "sinkhorn.h"
#include "sums.cuh"

namespace imc::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr int kDirectBlocks = 32;          // up to here every block sums all partial columns itself: one sync, not two
constexpr float kScalingRange = 57.7f;     // 40 / ln 2: with more, products of exponentials and factors can underflow
constexpr float kLargestRange = 0x1p124f;  // with more, logarithms overflow: NaN

struct Plan {
  int64_t batch;
  int prototypes;
  int blocks;     // per problem
  int rows;       // per block; the last block may have fewer
  int tile_rows;  // rows held at a time; all of them where they fit
  bool on_chip;   // tiles and factors in shared memory, else in the workspace
  int64_t shared_bytes;

  __host__ __device__ bool resident() const { return rows <= tile_rows; }

  // The workspace, in floats: partial columns [problems, 2, blocks, prototypes] (two, as a fast block may write while
  // a slow one still reads), column sums [problems, prototypes], highest and lowest score [problems, blocks, 2],
  // and off chip each block's own memory.
  __host__ __device__ int64_t partial_floats() const { return int64_t(2) * blocks * prototypes; }
  __host__ __device__ int64_t own_floats() const { return (tile_rows + int64_t(1)) * prototypes + tile_rows; }
  int64_t workspace_floats(int64_t problems) const {
    return problems * (partial_floats() + prototypes + 2 * blocks + (on_chip ? 0 : blocks * own_floats()));
  }
};

Plan make_plan(int64_t problems, int64_t batch, int64_t prototypes, const DeviceLimits& device) {
  Plan plan{};
  plan.batch = batch;
  plan.prototypes = static_cast<int>(prototypes);
  int64_t blocks = ceil_divide(batch, kWarps / 2);
  if (blocks > kDirectBlocks && blocks <= 2 * kDirectBlocks) blocks = kDirectBlocks;
  blocks = std::max<int64_t>(1, std::min(blocks, device.multiprocessors / problems));
  plan.rows = static_cast<int>(ceil_divide(batch, blocks));
  plan.blocks = static_cast<int>(ceil_divide(batch, plan.rows));

  const int64_t floats = largest_shared(device) / 4;
  int64_t tile_rows = (floats - prototypes) / (prototypes + 1);
  plan.on_chip = floats >= 2 * prototypes + 1;
  if (!plan.on_chip) tile_rows = kWarps;
  // Where there are several tiles, no warp should have a row more than another.
  if (tile_rows < plan.rows && tile_rows > kWarps) tile_rows -= tile_rows % kWarps;
  plan.tile_rows = static_cast<int>(std::min<int64_t>(tile_rows, plan.rows));
  plan.shared_bytes = plan.on_chip ? 4 * plan.own_floats() : 0;
  return plan;
}

// What one block sees.
template <typename T>
struct Block {
  const T* scores;        // [rows, prototypes]
  T* assignments;         // [rows, prototypes]
  float* partials;        // [2, blocks, prototypes], the problem's
  float* column_sums;     // [prototypes], the problem's
  float* tile;            // [tile_rows, prototypes]: scores, then Algebra's elements
  float* column_factors;  // [prototypes]
  float* row_factors;     // [tile_rows]
  int rank;               // within the problem
  int rows;
};

__device__ __forceinline__ void problem_sync(const Plan& plan) {
  if (plan.blocks > 1) return grid_sync();
  __syncthreads();
}

template <typename Algebra>
__device__ __forceinline__ float row_factor(const float* row, const float* column_factors, int prototypes, int lane) {
  Algebra sum;
  __syncwarp();
#pragma unroll 4
  for (int k = lane; k < prototypes; k += kWarp) sum.add(Algebra::product(row[k], column_factors[k]));
  sum.add_across_warp();
  __syncwarp();
  return Algebra::factor(sum.total(), 1);
}

template <typename Algebra, int kWidth, typename T>
__device__ __forceinline__ void write_row(const float* row, const float* column_factors, float row_factor, T* to,
                                          int prototypes, int lane) {
#pragma unroll 1
  for (int k = lane * kWidth; k < prototypes; k += kWarp * kWidth) {
    const Pack<float, kWidth> elements = load<kWidth>(row + k), factors = load<kWidth>(column_factors + k);
    Pack<T, kWidth> values;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const float scaled = Algebra::product(elements.v[i], factors.v[i]);
      from_float(Algebra::value(Algebra::product(scaled, row_factor)), values.v[i]);
    }
    store(to + k, values);
  }
}

// The block's column sums of this tile, added to those of the tiles before it.
template <typename Algebra>
__device__ __forceinline__ void push_columns(const float* tile, const float* row_factors, float* partial,
                                             int prototypes, int rows, bool first_tile) {
  for (int k = threadIdx.x; k < prototypes; k += kThreads) {
    Algebra sum;
    if (!first_tile) sum.add(partial[k]);
    const float* element = tile + k;
#pragma unroll Algebra::kUnroll
    for (int row = 0; row < rows; ++row, element += prototypes) sum.add(Algebra::product(*element, row_factors[row]));
    partial[k] = sum.total();
  }
}

// Column factors from all blocks' partial columns, in an order that depends on the plan alone.
template <typename Algebra, typename T>
__device__ __forceinline__ void reduce_columns(const Block<T>& block, const Plan& plan, const float* partials) {
  const int prototypes = plan.prototypes, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const float mass = float(plan.batch) / float(prototypes);
  problem_sync(plan);
  if (plan.blocks <= kDirectBlocks) {
    for (int k = threadIdx.x; k < prototypes; k += kThreads) {
      Algebra sum;
#pragma unroll 2 * Algebra::kUnroll
      for (int i = 0; i < plan.blocks; ++i) sum.add(partials[int64_t(i) * prototypes + k]);
      block.column_factors[k] = Algebra::factor(sum.total(), mass);
    }
  } else {
    for (int64_t k = int64_t(block.rank) * kWarps + warp; k < prototypes; k += int64_t(plan.blocks) * kWarps) {
      Algebra sum;
      for (int i = lane; i < plan.blocks; i += kWarp) sum.add(partials[int64_t(i) * prototypes + k]);
      sum.add_across_warp();
      if (lane == 0) block.column_sums[k] = sum.total();
    }
    problem_sync(plan);
    for (int k = threadIdx.x; k < prototypes; k += kThreads) {
      block.column_factors[k] = Algebra::factor(block.column_sums[k], mass);
    }
  }
  __syncthreads();
}

template <typename Algebra, int kWidth, typename T>
__device__ __forceinline__ void solve(const Block<T>& block, const Plan& plan, float shift, float scale,
                                      int iterations) {
  const int prototypes = plan.prototypes, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  auto element = [=](float score) { return Algebra::element((score - shift) * scale); };

  for (int sweep = 0; sweep <= iterations; ++sweep) {
    float* partials = block.partials + (sweep & 1) * int64_t(plan.blocks) * prototypes;
#pragma unroll 1
    for (int first = 0; first < block.rows; first += plan.tile_rows) {
      const int rows = min(plan.tile_rows, block.rows - first);
#pragma unroll 1
      for (int row = warp; row < rows; row += kWarps) {
        const int64_t offset = (first + int64_t(row)) * prototypes;
        float* elements = block.tile + int64_t(row) * prototypes;
        if (!plan.resident()) {
          read_row<kWidth, kBatch<T, kWidth>>(block.scores + offset, prototypes, lane,
                                              [&](int k, Pack<float, kWidth> scores) {
#pragma unroll
                                                for (int i = 0; i < kWidth; ++i) scores.v[i] = element(scores.v[i]);
                                                store(elements + k, scores);
                                              });
        } else if (sweep == 0) {
#pragma unroll 1
          for (int k = lane; k < prototypes; k += kWarp) elements[k] = element(elements[k]);
        }
        const float factor =
            sweep == 0 ? Algebra::one() : row_factor<Algebra>(elements, block.column_factors, prototypes, lane);
        if (sweep == iterations) {
          write_row<Algebra, kWidth>(elements, block.column_factors, factor, block.assignments + offset, prototypes,
                                     lane);
        } else if (lane == 0) {
          block.row_factors[row] = factor;
        }
      }
      if (sweep == iterations) continue;
      __syncthreads();
      push_columns<Algebra>(block.tile, block.row_factors, partials + int64_t(block.rank) * prototypes, prototypes,
                            rows, first == 0);
      __syncthreads();
    }
    if (sweep < iterations) reduce_columns<Algebra>(block, plan, partials);
  }
}

// Highest and lowest score of the problem. The scores stay in the tile where it holds them all.
template <int kWidth, typename T>
__device__ __forceinline__ void find_range(const Block<T>& block, const Plan& plan,
                                           float* ranges,  // [blocks, 2], the problem's
                                           float& high, float& low) {
  __shared__ float highs[kWarps], lows[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  auto across_warp = [&] {
    high = warp_reduce(high, max_or_nan);
    low = warp_reduce(low, min_or_nan);
  };
#pragma unroll 1
  for (int row = warp; row < block.rows; row += kWarps) {
    const int64_t offset = int64_t(row) * plan.prototypes;
    read_row<kWidth, kBatch<T, kWidth>>(block.scores + offset, plan.prototypes, lane,
                                        [&](int k, const Pack<float, kWidth>& scores) {
#pragma unroll
                                          for (int i = 0; i < kWidth; ++i) {
                                            high = max_or_nan(high, scores.v[i]);
                                            low = min_or_nan(low, scores.v[i]);
                                          }
                                          if (plan.resident()) store(block.tile + offset + k, scores);
                                        });
  }
  across_warp();
  if (lane == 0) {
    highs[warp] = high;
    lows[warp] = low;
  }
  __syncthreads();
  if (warp == 0) {
    high = highs[lane % kWarps];
    low = lows[lane % kWarps];
    across_warp();
    if (lane == 0) store(ranges + 2 * block.rank, Pack<float, 2>{high, low});
  }
  problem_sync(plan);
  for (int i = lane; i < plan.blocks; i += kWarp) {
    const Pack<float, 2> range = load<2>(ranges + 2 * i);
    high = max_or_nan(high, range.v[0]);
    low = min_or_nan(low, range.v[1]);
  }
  across_warp();
}

template <typename T, int kWidth, bool kOnChip>
__global__ void __launch_bounds__(kThreads, 1)
    sinkhorn_kernel(const T* __restrict__ scores,    // [problems, batch, prototypes]
                    T* __restrict__ assignments,     // [problems, batch, prototypes]
                    float* workspace, int problems,  // Plan says what the workspace holds
                    Plan plan, float scale, int iterations) {
  const int problem = blockIdx.x / plan.blocks;
  Block<T> block;
  block.rank = blockIdx.x % plan.blocks;
  block.rows = static_cast<int>(min(int64_t(plan.rows), plan.batch - int64_t(block.rank) * plan.rows));
  const int64_t offset = (problem * plan.batch + int64_t(block.rank) * plan.rows) * plan.prototypes;
  block.scores = scores + offset;
  block.assignments = assignments + offset;

  float* ranges = workspace + problems * plan.partial_floats();
  float* column_sums = ranges + 2 * int64_t(problems) * plan.blocks;
  float* own = column_sums + int64_t(problems) * plan.prototypes + blockIdx.x * plan.own_floats();
  block.partials = workspace + problem * plan.partial_floats();
  block.column_sums = column_sums + int64_t(problem) * plan.prototypes;
  block.tile = kOnChip ? dynamic_shared() : own;
  block.column_factors = block.tile + int64_t(plan.tile_rows) * plan.prototypes;
  block.row_factors = block.column_factors + plan.prototypes;

  float high = -INFINITY, low = INFINITY;
  find_range<kWidth>(block, plan, ranges + 2 * int64_t(problem) * plan.blocks, high, low);
  const float range = (high - low) * scale;
  const float shift = range <= kLargestRange ? 0.5f * high + 0.5f * low : NAN;
  if (range > kScalingRange && range <= kLargestRange) {
    solve<Logarithm, kWidth>(block, plan, shift, scale, iterations);
  } else {
    solve<Scaling, kWidth>(block, plan, shift, scale, iterations);
  }
}

}  // namespace

#ifdef __CUDACC__
namespace {

struct Call {
  uintptr_t scores, assignments, workspace;
  int problems;
  float scale;
  int iterations, device;
  cudaStream_t stream;
};

template <typename T, int kWidth, bool kOnChip>
void launch(Plan plan, Call call) {
  constexpr auto kKernel = sinkhorn_kernel<T, kWidth, kOnChip>;
  prepare_kernel<kKernel>(kThreads, largest_shared(device_limits(call.device)), call.device);
  void* arguments[] = {&call.scores, &call.assignments, &call.workspace, &call.problems,
                       &plan,        &call.scale,       &call.iterations};
  const auto launcher = plan.blocks > 1 ? cudaLaunchCooperativeKernel<void> : cudaLaunchKernel<void>;
  check(launcher(reinterpret_cast<void*>(kKernel), dim3(call.problems * plan.blocks), dim3(kThreads), arguments,
                 plan.shared_bytes, call.stream),
        "launching sinkhorn");
}

template <typename T>
void launch_for(const Plan& plan, const Call& call) {
  constexpr int kWidth = 16 / sizeof(T);
  const bool aligned = plan.prototypes % kWidth == 0 && (call.scores | call.assignments) % 16 == 0;
  if (!plan.on_chip) return launch<T, 1, false>(plan, call);
  return aligned ? launch<T, kWidth, true>(plan, call) : launch<T, 1, true>(plan, call);
}

Plan checked_plan(int64_t problems, int64_t batch, int64_t prototypes, int device) {
  constexpr int64_t kLimit = int64_t(1) << 30;
  if (problems < 1 || batch < 1 || prototypes < 1 || problems > kLimit || batch > kLimit || prototypes > kLimit) {
    throw std::invalid_argument("sinkhorn: problems, batch and prototypes must lie in 1..2^30");
  }
  return make_plan(problems, batch, prototypes, device_limits(device));
}

}  // namespace

int64_t sinkhorn_workspace_bytes(int64_t problems, int64_t batch, int64_t prototypes, int device) {
  return 4 * checked_plan(problems, batch, prototypes, device).workspace_floats(problems);
}

void sinkhorn(int element, uintptr_t scores, uintptr_t assignments, uintptr_t workspace, int64_t problems,
              int64_t batch, int64_t prototypes, double epsilon, int iterations, int device, uintptr_t stream) {
  const auto launch_element = element == int(Element::float32)    ? launch_for<float>
                              : element == int(Element::bfloat16) ? launch_for<__nv_bfloat16>
                              : element == int(Element::float16)  ? launch_for<__half>
                                                                  : nullptr;
  if (!launch_element) throw std::invalid_argument("sinkhorn on CUDA takes float32, bfloat16 and float16");
  if (iterations < 1) throw std::invalid_argument("sinkhorn: iterations must be at least 1");
  const float scale = static_cast<float>(1.4426950408889634 / epsilon);
  if (!(scale > 0) || !std::isfinite(scale))
    throw std::invalid_argument("sinkhorn: epsilon must be positive, in float32 too");
  const Plan plan = checked_plan(problems, batch, prototypes, device);
  const DeviceGuard guard(device);
  launch_element(plan, {scores, assignments, workspace, static_cast<int>(problems), scale, iterations, device,
                        reinterpret_cast<cudaStream_t>(stream)});
}
#endif  // __CUDACC__

}  // namespace imc::cuda
