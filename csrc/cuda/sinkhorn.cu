// Sinkhorn-Knopp: scores s [batch, prototypes] -> Q = diag(u) exp(s / epsilon) diag(v), columns scaled first.
//
// Where a block's rows fit into its shared memory, the scores are read once and the assignments written once: 4 MB
// (float32) for the two problems of IMC-SwAV, 2 * 256 * 1000, so that the floor is the launch and its iterations + 1
// synchronisations of a problem's blocks. Where they do not fit, iterations + 2 reads and one write.
//
// Rows never leave their block. One sweep per iteration: a row's sum with the current column factors, then the row's
// push into the block's column sums. These meet in the shared memory of a cluster where a problem fits into one, else in
// the workspace of a cooperative grid. The same sweep runs over two algebras: scaling factors, or logarithms where the
// exponentials of a problem could underflow. All exponentials are to base 2.

#include <cmath>

#include "device.cuh"
#include "imc/scaling_range.h"
#include "kernels.h"
#include "primitives.cuh"
#include "sinkhorn_plan.cuh"
#include "sums.cuh"

namespace imc::cuda {
namespace {

using namespace sinkhorn_plan;

constexpr float kLargestRange = 0x1p124f;  // with more, logarithms overflow: NaN

// The options, and what is beside scores and assignments.
struct Request {
  const float* marginals;  // [prototypes] that sum to 1, or null: all the same
  double* rows;            // [problems, iterations, batch] logarithms (base 2) of the factors, or null
  double* columns;         // [problems, iterations, prototypes]
  double* workspace;
  int problems, iterations;
  double scale;  // log2(e) / epsilon
};

using Range = Pack<float, 2>;  // highest and lowest score

// What one block sees.
template <typename T>
struct Block {
  const T* scores;        // [rows, prototypes]
  T* assignments;         // [rows, prototypes]
  const float* marginals;
  double* log_rows;       // [iterations, batch], from the block's first row on, or null
  double* log_columns;    // [iterations, prototypes] for one of the problem's blocks, else null
  float* tile;            // [tile_rows, prototypes]: scores, then Algebra's elements
  // Algebra's factors, which are of up to 8 bytes:
  double* partials;       // [2, blocks, prototypes], the problem's; in a cluster [2, prototypes], the block's
  double* column_sums;    // [prototypes], the problem's
  double* column_factors;  // [prototypes]
  double* row_factors;    // [tile_rows]
  int rank;               // within the problem
  int rows;
};

template <bool kCluster>
__device__ __forceinline__ void problem_sync(const Plan& plan) {
  if constexpr (kCluster) return cluster_sync();
  if (plan.blocks > 1) return grid_sync();
  __syncthreads();
}

template <typename Algebra, typename Factor = typename Algebra::Factor>
__device__ __forceinline__ Factor row_factor(const Algebra& algebra, const float* row, const Factor* column_factors,
                                             int prototypes, int lane) {
  typename Algebra::Sum sum;
  __syncwarp();
#pragma unroll 4
  for (int k = lane; k < prototypes; k += kWarp) sum.add(algebra.product(row[k], column_factors[k]));
  sum.add_across_warp();
  __syncwarp();
  return Algebra::factor(sum.total(), 1);
}

template <int kWidth, typename Algebra, typename T, typename Factor = typename Algebra::Factor>
__device__ __forceinline__ void write_row(const Algebra& algebra, const float* row, const Factor* column_factors,
                                          Factor row_factor, T* to, int prototypes, int lane) {
#pragma unroll 1
  for (int k = lane * kWidth; k < prototypes; k += kWarp * kWidth) {
    const Pack<float, kWidth> elements = load<kWidth>(row + k);
    const Pack<Factor, kWidth> factors = load<kWidth>(column_factors + k);
    Pack<T, kWidth> values;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      from_float(algebra.value(algebra.product(elements.v[i], factors.v[i]), row_factor), values.v[i]);
    }
    store(to + k, values);
  }
}

// The block's column sums of this tile, added to those of the tiles before it.
template <typename Algebra, typename Factor = typename Algebra::Factor>
__device__ __forceinline__ void push_columns(const Algebra& algebra, const float* tile, const Factor* row_factors,
                                             Factor* partial, int prototypes, int rows, bool first_tile) {
  for (int k = threadIdx.x; k < prototypes; k += kThreads) {
    typename Algebra::Sum sum;
    if (!first_tile) sum.add(partial[k]);
    const float* element = tile + k;
#pragma unroll Algebra::kUnroll
    for (int row = 0; row < rows; ++row, element += prototypes) sum.add(algebra.product(*element, row_factors[row]));
    partial[k] = sum.total();
  }
}

// Column factors from all blocks' partial columns, in an order that depends on the plan alone.
template <bool kCluster, typename Algebra, typename T, typename Factor = typename Algebra::Factor>
__device__ __forceinline__ void reduce_columns(const Algebra& algebra, const Block<T>& block, const Plan& plan,
                                               const Factor* partials, double* log_columns) {
  const int prototypes = plan.prototypes, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const float even = float(plan.batch) / float(prototypes);
  auto* column_factors = reinterpret_cast<Factor*>(block.column_factors);
  auto* column_sums = reinterpret_cast<Factor*>(block.column_sums);
  auto finish = [&](int k, Factor total) {
    const float mass = block.marginals ? float(plan.batch) * block.marginals[k] : even;
    column_factors[k] = Algebra::factor(total, mass);
    if (log_columns) log_columns[k] = algebra.column_logarithm(column_factors[k]);
  };
  problem_sync<kCluster>(plan);
  if (kCluster || plan.blocks <= kDirectBlocks) {
    for (int k = threadIdx.x; k < prototypes; k += kThreads) {
      typename Algebra::Sum sum;
#pragma unroll 2 * Algebra::kUnroll
      for (int i = 0; i < plan.blocks; ++i) {
        sum.add(kCluster ? *cluster_peer(partials + k, i) : partials[int64_t(i) * prototypes + k]);
      }
      finish(k, sum.total());
    }
  } else {
    for (int64_t k = int64_t(block.rank) * kWarps + warp; k < prototypes; k += int64_t(plan.blocks) * kWarps) {
      typename Algebra::Sum sum;
      for (int i = lane; i < plan.blocks; i += kWarp) sum.add(partials[int64_t(i) * prototypes + k]);
      sum.add_across_warp();
      if (lane == 0) column_sums[k] = sum.total();
    }
    problem_sync<kCluster>(plan);
    for (int k = threadIdx.x; k < prototypes; k += kThreads) finish(k, column_sums[k]);
  }
  __syncthreads();
}

template <int kWidth, bool kCluster, typename Algebra, typename T>
__device__ __forceinline__ void solve(const Algebra& algebra, const Block<T>& block, const Plan& plan,
                                      int iterations) {
  using Factor = typename Algebra::Factor;
  const int prototypes = plan.prototypes, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto* column_factors = reinterpret_cast<const Factor*>(block.column_factors);
  auto* row_factors = reinterpret_cast<Factor*>(block.row_factors);

  for (int sweep = 0; sweep <= iterations; ++sweep) {
    Factor* partials = reinterpret_cast<Factor*>(block.partials) +
                       (sweep & 1) * int64_t(kCluster ? 1 : plan.blocks) * prototypes;
    Factor* own_partial = partials + (kCluster ? 0 : int64_t(block.rank) * prototypes);
    if (kCluster && block.rows == 0 && sweep < iterations) {
      push_columns(algebra, block.tile, row_factors, own_partial, prototypes, 0, true);
    }
#pragma unroll 1
    for (int first = 0; first < block.rows; first += plan.tile_rows) {
      const int rows = min(plan.tile_rows, block.rows - first);
#pragma unroll 1
      for (int row = warp; row < rows; row += kWarps) {
        const int64_t offset = (first + int64_t(row)) * prototypes;
        float* elements = block.tile + int64_t(row) * prototypes;
        if (!plan.resident()) {
          read_row<kWidth, kBatch<T, kWidth>>(
              block.scores + offset, prototypes, lane, [&](int k, Pack<float, kWidth> scores) {
#pragma unroll
                for (int i = 0; i < kWidth; ++i) scores.v[i] = algebra.element(scores.v[i]);
                store(elements + k, scores);
              });
        } else if (sweep == 0) {
#pragma unroll 1
          for (int k = lane * kWidth; k < prototypes; k += kWarp * kWidth) {
            Pack<float, kWidth> scores = load<kWidth>(elements + k);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) scores.v[i] = algebra.element(scores.v[i]);
            store(elements + k, scores);
          }
        }
        const Factor factor =
            sweep == 0 ? Algebra::one() : row_factor(algebra, elements, column_factors, prototypes, lane);
        if (sweep > 0 && block.log_rows && lane == 0) {
          block.log_rows[(sweep - 1) * plan.batch + first + row] = algebra.row_logarithm(factor);
        }
        if (sweep == iterations) {
          write_row<kWidth>(algebra, elements, column_factors, factor, block.assignments + offset, prototypes, lane);
        } else if (lane == 0) {
          row_factors[row] = factor;
        }
      }
      if (sweep == iterations) continue;
      __syncthreads();
      push_columns(algebra, block.tile, row_factors, own_partial, prototypes, rows, first == 0);
      __syncthreads();
    }
    if (sweep == iterations) break;
    double* log_columns = block.log_columns ? block.log_columns + int64_t(sweep) * prototypes : nullptr;
    reduce_columns<kCluster>(algebra, block, plan, partials, log_columns);
  }
}

// Highest and lowest score of the problem. The scores stay in the tile where it holds them all.
template <int kWidth, bool kCluster, typename T>
__device__ __forceinline__ void find_range(const Block<T>& block, const Plan& plan,
                                           Range* ranges,  // [blocks], the problem's
                                           float& high, float& low) {
  IMC_SHARED(float, highs, kWarps);
  IMC_SHARED(float, lows, kWarps);
  IMC_SHARED(Range, own_range, 1);
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
    if (lane == 0) *(kCluster ? own_range : ranges + block.rank) = {high, low};
  }
  problem_sync<kCluster>(plan);
  for (int i = lane; i < plan.blocks; i += kWarp) {
    const Range range = kCluster ? *cluster_peer(own_range, i) : ranges[i];
    high = max_or_nan(high, range.v[0]);
    low = min_or_nan(low, range.v[1]);
  }
  across_warp();
}

template <typename T, int kWidth, bool kOnChip, bool kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    sinkhorn_kernel(const T* __restrict__ scores,  // [problems, batch, prototypes]
                    T* __restrict__ assignments,   // [problems, batch, prototypes]
                    Request request, Plan plan) {
  if constexpr (kCluster && !kHaveClusters) return;
  const int problem = blockIdx.x / plan.blocks;
  const int64_t problems = request.problems;
  Block<T> block;
  block.rank = blockIdx.x % plan.blocks;
  const int64_t first_row = int64_t(block.rank) * plan.rows;
  block.rows = static_cast<int>(max(int64_t(0), min(int64_t(plan.rows), plan.batch - first_row)));
  const int64_t offset = (problem * plan.batch + first_row) * plan.prototypes;
  block.scores = scores + offset;
  block.assignments = assignments + offset;
  block.marginals = request.marginals;
  const int64_t iterations_before = int64_t(problem) * request.iterations;
  block.log_rows = request.rows ? request.rows + iterations_before * plan.batch + first_row : nullptr;
  block.log_columns =
      request.columns && block.rank == 0 ? request.columns + iterations_before * plan.prototypes : nullptr;

  double* column_sums = request.workspace + problems * plan.partials();
  auto* ranges = reinterpret_cast<Range*>(column_sums + problems * plan.prototypes);
  // Aligned to 16 bytes.
  double* own = request.workspace + (problems * (plan.partials() + plan.prototypes + plan.blocks) + 1) / 2 * 2;
  if (kOnChip) own = reinterpret_cast<double*>(dynamic_shared());
  if (!kOnChip) own += blockIdx.x * plan.own();
  block.column_sums = column_sums + problem * int64_t(plan.prototypes);
  block.column_factors = own;
  block.row_factors = own + plan.prototypes;
  block.tile = reinterpret_cast<float*>(own + plan.factors());
  block.partials = kCluster ? own + plan.own() : request.workspace + problem * plan.partials();

  float high = -INFINITY, low = INFINITY;
  find_range<kWidth, kCluster>(block, plan, ranges + int64_t(problem) * plan.blocks, high, low);
  const float range = (high - low) * float(request.scale);
  const float shift = range <= kLargestRange ? 0.5f * high + 0.5f * low : NAN;
  if ((range > kScalingRange || request.rows) && range <= kLargestRange) {
    solve<kWidth, kCluster>(Logarithm(shift, request.scale), block, plan, request.iterations);
  } else {
    solve<kWidth, kCluster>(Scaling(shift, request.scale), block, plan, request.iterations);
  }
  if constexpr (kCluster) cluster_sync();  // others may still read this block's columns
}

template <typename T, int kWidth, bool kOnChip, bool kCluster>
void launch_form(const T* scores, T* assignments, const Request& request, const Plan& plan, const Place& place) {
  Shape shape{int64_t(request.problems) * plan.blocks, kThreads, plan.shared_bytes(kCluster)};
  if (plan.blocks > 1) shape.together = kCluster ? Together::clusters : Together::grid;
  shape.cluster = plan.blocks;
  launch<sinkhorn_kernel<T, kWidth, kOnChip, kCluster>>("launching sinkhorn", shape, place, scores, assignments,
                                                        request, plan);
}

template <typename T>
void launch_solver(const T* scores, T* assignments, const Request& request, int64_t batch, int64_t prototypes,
                   const DeviceLimits& limits, const Place& place) {
  constexpr int kWidth = 16 / sizeof(T);
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(scores) | reinterpret_cast<uintptr_t>(assignments);
  const bool aligned = prototypes % kWidth == 0 && addresses % 16 == 0;
  const Plan cluster = make_cluster_plan(batch, prototypes, limits);
  if (aligned && cluster.blocks > 0) {
    return launch_form<T, kWidth, true, true>(scores, assignments, request, cluster, place);
  }
  const Plan plan = make_plan(request.problems, batch, prototypes, limits);
  if (!plan.on_chip) return launch_form<T, 1, false, false>(scores, assignments, request, plan, place);
  if (!aligned) return launch_form<T, 1, true, false>(scores, assignments, request, plan, place);
  launch_form<T, kWidth, true, false>(scores, assignments, request, plan, place);
}

void check_sizes(int64_t problems, int64_t batch, int64_t prototypes) {
  constexpr int64_t kLimit = int64_t(1) << 30;
  if (problems < 1 || batch < 1 || prototypes < 1 || problems > kLimit || batch > kLimit || prototypes > kLimit) {
    throw std::invalid_argument("sinkhorn: problems, batch and prototypes must lie in 1..2^30");
  }
}

}  // namespace

int64_t sinkhorn_workspace_bytes(int64_t problems, int64_t batch, int64_t prototypes, int device) {
  check_sizes(problems, batch, prototypes);
  return make_plan(problems, batch, prototypes, device_limits(device)).workspace_bytes(problems);
}

template <typename T>
void sinkhorn(const T* scores, const float* marginals, T* assignments, double* rows, double* columns, double* workspace,
              int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int64_t iterations, int device,
              uintptr_t stream) {
  check_sizes(problems, batch, prototypes);
  if (iterations < 1 || iterations > INT32_MAX) throw std::invalid_argument("sinkhorn: iterations must be at least 1");
  const double scale = 1.4426950408889634 / epsilon;
  if (!(float(scale) > 0) || !std::isfinite(float(scale))) {
    throw std::invalid_argument("sinkhorn: epsilon must be positive, in float32 too");
  }
  const DeviceGuard guard(device);
  const DeviceLimits limits = device_limits(device);
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  if (rows) {
    // The factors, for the gradient, and then the same assignments as without it. Of a row or a column with all its mass
    // in one entry the gradient is what remains of terms that cancel: the factors must make 1 of that entry, exactly.
    launch_solver<T>(scores, assignments, {marginals, rows, columns, workspace, int(problems), int(iterations), scale},
                     batch, prototypes, limits, place);
  }
  launch_solver<T>(scores, assignments, {marginals, nullptr, nullptr, workspace, int(problems), int(iterations), scale},
                   batch, prototypes, limits, place);
}

IMC_INSTANTIATE_CUDA(sinkhorn)

}  // namespace imc::cuda
