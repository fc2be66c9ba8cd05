// Sinkhorn-Knopp of a batch that is spread over processes: the sweeps of sinkhorn.cu and sinkhorn_backward.cu one call at
// a time, as the column sums are exchanged in between. Two launches each: by rows, a warp for each, then by columns, a
// lane for each of 32 beside each other. All is taken in logarithms, so that one form serves any range of scores; what
// the exchange costs hides the difference.

#include <cmath>

#include "device.cuh"
#include "kernels.h"
#include "primitives.cuh"
#include "sums.cuh"

namespace imc::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// The scores of all problems, and what the whole batch knows of each.
struct Problems {
  const float* scores;    // [problems, batch, prototypes]
  const float* extremes;  // [3, problems]: largest score, minus the smallest, number of samples
  int64_t problems, batch;
  int prototypes;
  double scale;  // log2(e) / epsilon

  // With an infinity among the scores, or a range beyond float's, there is no answer.
  __device__ bool answerable(int64_t problem) const {
    const float range = (extremes[problem] + extremes[problems + problem]) * float(scale);
    return range - range == 0;
  }
  __device__ double samples(int64_t problem) const { return extremes[2 * problems + problem]; }
  __device__ double log_kernel(int64_t problem, int64_t at) const {  // base 2
    return (double(scores[at]) - double(extremes[problem])) * scale;
  }
  __device__ float scaled(int64_t problem, int64_t at, double logarithm) const {
    return exp2f(float(log_kernel(problem, at) + logarithm));
  }
};

// What a warp does in a kernel by rows.
struct Row {
  bool inside;
  int64_t row, problem, first;  // first: of its elements

  __device__ explicit Row(const Problems& p) : row(int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp) {
    inside = row < p.problems * p.batch;
    problem = row / p.batch;
    first = row * p.prototypes;
  }
};

// What a thread does in a kernel by columns: every kWarps-th row of a column.
struct Column {
  bool inside;
  int64_t problem;
  int k, group;

  __device__ explicit Column(const Problems& p) : group(threadIdx.x / kWarp) {
    const int tiles = (p.prototypes + kWarp - 1) / kWarp;
    problem = blockIdx.x / tiles;
    k = static_cast<int>(blockIdx.x % tiles) * kWarp + threadIdx.x % kWarp;
    inside = k < p.prototypes;
  }
  __device__ int64_t at(const Problems& p, int64_t row) const {
    return (problem * p.batch + row) * p.prototypes + k;
  }
};

__device__ __forceinline__ float warp_sum(float x) {
  return warp_reduce(x, [](float a, float b) { return a + b; });
}

__global__ void __launch_bounds__(kThreads)
    sweep_rows_kernel(Problems p, const double* __restrict__ columns,  // [problems, prototypes]
                      float* __restrict__ assignments, double* __restrict__ rows, bool first, bool last) {
  const Row row(p);
  if (!row.inside) return;
  const int lane = threadIdx.x % kWarp;
  const bool answerable = p.answerable(row.problem);
  double total = 0;
  if (!first && answerable) {
    Logarithm::Sum sum;
    for (int k = lane; k < p.prototypes; k += kWarp) {
      sum.add(p.log_kernel(row.problem, row.first + k) + columns[row.problem * p.prototypes + k] * kLog2e);
    }
    sum.add_across_warp();
    total = sum.total();
  }
  if (lane == 0) rows[row.row] = first || !answerable ? 0 : -log(p.samples(row.problem)) - total * kLn2;
  if (!last) return;
  for (int k = lane; k < p.prototypes; k += kWarp) {
    const double logarithm = columns[row.problem * p.prototypes + k] * kLog2e - total;
    assignments[row.first + k] = answerable ? p.scaled(row.problem, row.first + k, logarithm) : NAN;
  }
}

__global__ void __launch_bounds__(kThreads)
    sweep_columns_kernel(Problems p, const double* __restrict__ rows, double* __restrict__ log_sums) {
  IMC_SHARED(double, totals, kThreads);
  const Column column(p);
  const bool counts = column.inside && p.answerable(column.problem);
  Logarithm::Sum sum;
  for (int64_t row = column.group; counts && row < p.batch; row += kWarps) {
    sum.add(p.log_kernel(column.problem, column.at(p, row)) + rows[column.problem * p.batch + row] * kLog2e);
  }
  totals[threadIdx.x] = sum.total();
  __syncthreads();
  if (column.group > 0 || !column.inside) return;
  Logarithm::Sum all;
  for (int64_t group = 0; group < kWarps && group < p.batch; ++group) all.add(totals[group * kWarp + threadIdx.x]);
  log_sums[column.problem * p.prototypes + column.k] = counts ? all.total() * kLn2 : 0;
}

// The steps of c_t and of a_t-1 but for its column sums: d from grad_output or from dc, and its sums by rows.
__global__ void __launch_bounds__(kThreads)
    backward_rows_kernel(Problems p, const float* __restrict__ marginals, const float* __restrict__ assignments,
                         const float* __restrict__ grad_output, const double* __restrict__ columns,
                         const double* __restrict__ earlier_rows, const float* __restrict__ columns_gradient,
                         float* __restrict__ gradient, float* __restrict__ da, float inverse_epsilon) {
  const Row row(p);
  if (!row.inside) return;
  const int lane = threadIdx.x % kWarp;
  const double shift = earlier_rows ? earlier_rows[row.row] : 0;
  const float factor = earlier_rows ? 1 : inverse_epsilon;
  float sum = 0;
  for (int k = lane; k < p.prototypes; k += kWarp) {
    const int64_t at = row.first + k, column = row.problem * p.prototypes + k;
    if (!columns_gradient) {
      const float d = assignments[at] * grad_output[at];
      gradient[at] = d;
      sum += d;
      continue;
    }
    const double log_share = marginals ? log(double(marginals[k])) : -log(double(p.prototypes));
    const double logarithm = (shift + columns[column] - log_share) * kLog2e;
    const float d = gradient[at] - p.scaled(row.problem, at, logarithm) * columns_gradient[column];
    gradient[at] = d * factor;
    sum += d;
  }
  sum = warp_sum(sum);
  if (lane == 0) da[row.row] = sum;
}

// R_t-1's step, and the sums of d by columns.
__global__ void __launch_bounds__(kThreads)
    backward_columns_kernel(Problems p, const double* __restrict__ rows, const double* __restrict__ columns,
                            const float* __restrict__ da, float* __restrict__ gradient, float* __restrict__ sums) {
  IMC_SHARED(float, parts, kThreads);
  const Column column(p);
  float sum = 0;
  if (column.inside) {
    const double c = columns[column.problem * p.prototypes + column.k] + log(p.samples(column.problem));
    for (int64_t row = column.group; row < p.batch; row += kWarps) {
      const int64_t at = column.at(p, row), of_row = column.problem * p.batch + row;
      const float d = gradient[at] - p.scaled(column.problem, at, (rows[of_row] + c) * kLog2e) * da[of_row];
      gradient[at] = d;
      sum += d;
    }
  }
  parts[threadIdx.x] = sum;
  __syncthreads();
  if (column.group > 0 || !column.inside) return;
  for (int group = 1; group < kWarps; ++group) sum += parts[group * kWarp + threadIdx.x];
  sums[column.problem * p.prototypes + column.k] = sum;
}

Shape by_rows(const Problems& p) { return {ceil_divide(p.problems * p.batch, kWarps), kThreads}; }
Shape by_columns(const Problems& p) { return {p.problems * ceil_divide(p.prototypes, kWarp), kThreads}; }

}  // namespace

void sinkhorn_sweep(const float* scores, const float* extremes, float* assignments, const double* columns, double* rows,
                    double* log_sums, int64_t problems, int64_t batch, int64_t prototypes, double epsilon,
                    int64_t iteration, bool last, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  const Problems p{scores, extremes, problems, batch, static_cast<int>(prototypes), kLog2e / epsilon};
  launch<sweep_rows_kernel>("launching sinkhorn_sweep", by_rows(p), place, p, columns, assignments, rows,
                            iteration == 0, last);
  if (!last) launch<sweep_columns_kernel>("launching sinkhorn_sweep", by_columns(p), place, p, rows, log_sums);
}

int64_t sinkhorn_backward_sweep_workspace_bytes(int64_t problems, int64_t batch, int) { return 4 * problems * batch; }

void sinkhorn_backward_sweep(const float* scores, const float* extremes, const float* marginals,
                             const float* assignments, const float* grad_output, const double* columns,
                             const double* earlier_rows, const double* earlier_columns, const float* columns_gradient,
                             float* gradient, float* sums, float* workspace, int64_t problems, int64_t batch,
                             int64_t prototypes, double epsilon, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  const Problems p{scores, extremes, problems, batch, static_cast<int>(prototypes), kLog2e / epsilon};
  launch<backward_rows_kernel>("launching sinkhorn_backward_sweep", by_rows(p), place, p, marginals, assignments,
                               grad_output, columns, earlier_rows, columns_gradient, gradient, workspace,
                               static_cast<float>(1 / epsilon));
  if (!earlier_rows) return;
  launch<backward_columns_kernel>("launching sinkhorn_backward_sweep", by_columns(p), place, p, earlier_rows,
                                  earlier_columns, workspace, gradient, sums);
}

}  // namespace imc::cuda
