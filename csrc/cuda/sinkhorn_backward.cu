// The gradient of Sinkhorn-Knopp. With r the marginals, R_t = diag(u_t) E diag(v_t) (rows sum to 1) and
// P_t = diag(u_t-1) E diag(v_t / (batch r)) (columns sum to 1), the steps of the iteration backwards are
//   da_t = dS 1,  dS -= R_t da_t;    dc_t = dS^T 1,  dS -= P_t dc_t.
// R and P come from the saved logarithms: never above 1, at any range of scores. The sums are of dS as it is, rounding
// included (csrc/cpu/sinkhorn_backward.cpp has the reason).
//
// Two phases an iteration: by rows (a warp each) P_t, then by columns (a thread each) R_t-1, whose sums over the blocks'
// rows meet in the workspace. Scores and dS are read again in every phase, from L2 at the sizes of this method: the
// gradient through the iterations is not part of a training step, and keeps no memory on chip.

#include <cmath>

#include "device.cuh"
#include "kernels.h"
#include "primitives.cuh"

namespace imc::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

struct Plan {
  int64_t batch;
  int prototypes;
  int blocks;  // per problem
  int rows;    // per block; the last block may have fewer

  // The workspace: for each block log(v / (batch r)) [prototypes] in double; then in float its copy of dc [prototypes],
  // the blocks' partial columns [problems, 2, blocks, prototypes], dS [problems, batch, prototypes] and da
  // [problems, batch].
  __host__ __device__ int64_t block_columns() const { return int64_t(blocks) * prototypes; }
  int64_t workspace_bytes(int64_t problems) const {
    return problems * (8 * block_columns() + 4 * (3 * block_columns() + batch * (prototypes + int64_t(1))));
  }
};

Plan make_plan(int64_t problems, int64_t batch, int64_t prototypes, const DeviceLimits& device) {
  const int64_t most = std::max<int64_t>(1, device.multiprocessors / problems);
  const int64_t blocks = std::min(ceil_divide(batch, kWarps / 2), most);
  const int64_t rows = ceil_divide(batch, blocks);
  return {batch, static_cast<int>(prototypes), static_cast<int>(ceil_divide(batch, rows)), static_cast<int>(rows)};
}

// What one block sees.
template <typename T>
struct Block {
  const T* scores;   // [rows, prototypes]
  float* d;          // [rows, prototypes]: dS
  float* da;         // [rows]
  float* partials;   // [2, blocks, prototypes], the problem's
  float* dc;                  // [prototypes]
  double* log_p;              // [prototypes]
  const double* log_rows;     // [iterations, batch], from the block's first row on
  const double* log_columns;  // [iterations, prototypes]
  int rank, rows, prototypes;
  int64_t batch;
  double scale;

  // The exponential of a score and logarithms that cancel against it.
  __device__ float scaled(int64_t at, double logarithm) const {
    return exp2f(float(double(to_float(scores[at])) * scale + logarithm));
  }
};

// By columns: R_t da_t leaves dS, whose columns go into the block's partial sums.
template <typename T>
__device__ __forceinline__ void push(const Block<T>& block, int t, float* partial) {
  const int prototypes = block.prototypes;
  for (int k = threadIdx.x; k < prototypes; k += kThreads) {
    const double c = block.log_columns[int64_t(t) * prototypes + k];
    float sum = 0;
    int64_t at = k;
#pragma unroll 4
    for (int row = 0; row < block.rows; ++row, at += prototypes) {
      const float d = block.d[at] - block.scaled(at, block.log_rows[t * block.batch + row] + c) * block.da[row];
      block.d[at] = d;
      sum += d;
    }
    partial[k] = sum;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    sinkhorn_backward_kernel(const T* __restrict__ scores,         // [problems, batch, prototypes]
                             const float* __restrict__ marginals,  // [prototypes] or null
                             const double* __restrict__ rows,      // [problems, iterations, batch]
                             const double* __restrict__ columns,   // [problems, iterations, prototypes]
                             const T* __restrict__ grad_output,    // [problems, batch, prototypes]
                             T* __restrict__ gradient,             // [problems, batch, prototypes]
                             double* workspace, int problems, Plan plan, double scale, float inverse_epsilon,
                             int iterations) {
  const int prototypes = plan.prototypes, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int problem = blockIdx.x / plan.blocks;
  Block<T> block;
  block.rank = blockIdx.x % plan.blocks;
  const int64_t first_row = int64_t(block.rank) * plan.rows, problem_row = problem * plan.batch;
  block.rows = static_cast<int>(min(int64_t(plan.rows), plan.batch - first_row));
  block.prototypes = prototypes;
  block.batch = plan.batch;
  const int64_t offset = (problem_row + first_row) * prototypes;
  block.scores = scores + offset;
  block.scale = scale;
  block.log_rows = rows + problem_row * iterations + first_row;
  block.log_columns = columns + int64_t(problem) * iterations * prototypes;
  const int64_t columns_of_all = problems * plan.block_columns();
  auto* all_dc = reinterpret_cast<float*>(workspace + columns_of_all);
  float *all_partials = all_dc + columns_of_all, *all_d = all_partials + 2 * columns_of_all;
  block.log_p = workspace + int64_t(blockIdx.x) * prototypes;
  block.dc = all_dc + int64_t(blockIdx.x) * prototypes;
  block.partials = all_partials + problem * 2 * plan.block_columns();
  block.d = all_d + offset;
  block.da = all_d + problems * plan.batch * prototypes + problem_row + first_row;
  const float even = float(plan.batch) / float(prototypes);

  for (int row = warp; row < block.rows; row += kWarps) {
    const double a = block.log_rows[(iterations - 1) * plan.batch + row];
    float da = 0;
    for (int k = lane; k < prototypes; k += kWarp) {
      const int64_t at = int64_t(row) * prototypes + k;
      const double c = block.log_columns[(iterations - 1) * int64_t(prototypes) + k];
      const float d = block.scaled(at, a + c) * to_float(grad_output[offset + at]);
      block.d[at] = d;
      da += d;
    }
    da = warp_reduce(da, [](float x, float y) { return x + y; });
    if (lane == 0) block.da[row] = da;
  }
  __syncthreads();
  for (int t = iterations - 1; t >= 0; --t) {
    float* partials = block.partials + (t & 1) * int64_t(plan.blocks) * prototypes;
    push(block, t, partials + int64_t(block.rank) * prototypes);
    if (plan.blocks > 1) {
      grid_sync();
    } else {
      __syncthreads();
    }
    for (int k = threadIdx.x; k < prototypes; k += kThreads) {
      float sum = 0;
      for (int i = 0; i < plan.blocks; ++i) sum += partials[int64_t(i) * prototypes + k];
      block.dc[k] = sum;
      const float mass = marginals ? float(plan.batch) * marginals[k] : even;
      block.log_p[k] = block.log_columns[int64_t(t) * prototypes + k] - log2(double(mass));
    }
    __syncthreads();
    for (int row = warp; row < block.rows; row += kWarps) {
      const double a = t > 0 ? block.log_rows[(t - 1) * plan.batch + row] : 0.0;
      float da = 0;
      for (int k = lane; k < prototypes; k += kWarp) {
        const int64_t at = int64_t(row) * prototypes + k;
        const float d = block.d[at] - block.scaled(at, a + block.log_p[k]) * block.dc[k];
        if (t > 0) {
          block.d[at] = d;
        } else {
          from_float(d * inverse_epsilon, gradient[offset + at]);
        }
        da += d;
      }
      da = warp_reduce(da, [](float x, float y) { return x + y; });
      if (lane == 0) block.da[row] = da;
    }
    __syncthreads();
  }
}

}  // namespace

int64_t sinkhorn_backward_workspace_bytes(int64_t problems, int64_t batch, int64_t prototypes, int device) {
  return make_plan(problems, batch, prototypes, device_limits(device)).workspace_bytes(problems);
}

template <typename T>
void sinkhorn_backward(const T* scores, const float* marginals, const double* rows, const double* columns,
                       const T* grad_output, T* gradient, double* workspace, int64_t problems, int64_t batch,
                       int64_t prototypes, double epsilon, int64_t iterations, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Plan plan = make_plan(problems, batch, prototypes, device_limits(device));
  Shape shape{problems * plan.blocks, kThreads};
  if (plan.blocks > 1) shape.together = Together::grid;
  launch<sinkhorn_backward_kernel<T>>("launching sinkhorn_backward", shape,
                                      {device, reinterpret_cast<cudaStream_t>(stream)}, scores, marginals, rows,
                                      columns, grad_output, gradient, workspace, static_cast<int>(problems), plan,
                                      1.4426950408889634 / epsilon,
                                      static_cast<float>(1 / epsilon), static_cast<int>(iterations));
}

IMC_INSTANTIATE_CUDA(sinkhorn_backward)

}  // namespace imc::cuda
