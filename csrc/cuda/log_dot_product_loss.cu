// The contrastive loss of CRLC in time linear in the batch: with the critic log(q_i . q_j) the sum over all other rows
// is one product with their sum. Over the N rows of both views of a head, with S_i the sum of all rows but i,
//   d_i = q_i . S_i,   r_i = q_i . q_pair(i),   loss = mean_i [log d_i - log r_i],
//   dL/dq_i = (S_i / d_i + sum_{j != i} q_j / d_j - 2 q_pair(i) / r_i) / N.
// One launch: a block per head where its rows fit into shared memory, else a cooperative grid whose blocks meet twice,
// for S and for the sum of q / d. The predictions stay where they are in between; both views of a sample share a block.

#include <cfloat>
#include <cmath>

#include "device.cuh"
#include "kernels.h"
#include "primitives.cuh"

namespace imc::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr float kGuardWeight = 0.01f;

// The largest of some numbers >= 0, and the sum of the others. A sum without one of its terms x is (peak - x) + rest,
// with no cancellation: a row alone in its cluster keeps every digit of what the other rows have there.
struct PeakAndRest {
  float peak = 0, rest = 0;

  __device__ void add(const PeakAndRest& other) {
    const bool higher = other.peak > peak;
    rest += other.rest + (higher ? peak : other.peak);
    peak = higher ? other.peak : peak;
  }
  __device__ void add(float x) { add(PeakAndRest{x, 0}); }
  __device__ void add_across_warp() {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      add({__shfl_xor_sync(kAllLanes, peak, offset), __shfl_xor_sync(kAllLanes, rest, offset)});
    }
  }
};

// What the rows of a block, or of a head, have in common, for one cluster.
struct ClusterSums {
  PeakAndRest q, q_over_d;
  float mean[2];  // per view: the sum of the unsmoothed predictions; of a head at last the entropy term's gradient
};

struct Options {
  float keep, uniform;  // q = keep p + uniform
  float entropy_weight, limit;
  bool guarded;
};

struct Plan {
  int64_t batch;
  int clusters, stride;  // stride: of a row in memory, odd, so that the rows of a warp lie in different banks
  int samples;           // per block; the last block may have fewer
  int blocks;            // per head
  bool on_chip;          // a block's own memory is shared memory, else in the workspace

  // A block's own memory, in floats: predictions [2, samples, stride], weights [3, samples], sums [clusters].
  __host__ __device__ int64_t own() const {
    return int64_t(samples) * (2 * stride + 3) + int64_t(clusters) * (sizeof(ClusterSums) / 4);
  }
  // The workspace: the blocks' sums [heads, blocks, clusters], their losses [heads, blocks], and off chip their own.
  __host__ __device__ int64_t parts(int64_t heads) const {
    return heads * blocks * int64_t(clusters) * int64_t(sizeof(ClusterSums) / 4);
  }
  int64_t workspace_bytes(int64_t heads) const {
    return 4 * (parts(heads) + heads * blocks * (1 + (on_chip ? 0 : own())));
  }
};

Plan make_plan(int64_t heads, int64_t batch, int64_t clusters, const DeviceLimits& device) {
  Plan plan{batch, static_cast<int>(clusters), static_cast<int>(clusters | 1), static_cast<int>(batch), 1, true};
  const int64_t floats = largest_shared(device) / 4;
  if (batch <= INT32_MAX && plan.own() <= floats) return plan;
  const int64_t most = std::max<int64_t>(1, device.multiprocessors / heads);
  const int64_t samples = ceil_divide(batch, std::min(most, ceil_divide(batch, kWarp)));
  plan.samples = static_cast<int>(samples);
  plan.blocks = static_cast<int>(ceil_divide(batch, samples));
  plan.on_chip = plan.own() <= floats;
  return plan;
}

// What one block sees. A row is a sample of a view: view * samples + sample.
struct Block {
  const Plan& plan;
  const Options& options;
  int samples, rank;
  float *p, *weights;  // weights: 1 / N d of each row, then 2 / N r of each sample
  ClusterSums *sums, *own_part, *parts;  // the head's, as this block knows them; this block's; the blocks' of the head

  __device__ int rows() const { return 2 * samples; }
  __device__ float* row(int row) const { return p + int64_t(row) * plan.stride; }
  __device__ int pair(int row) const { return row < samples ? row + samples : row - samples; }
  __device__ float smooth(float p) const { return fmaf(options.keep, p, options.uniform); }  // bitwise the same always
  __device__ float inverse_rows() const { return 0.5f / float(plan.batch); }

  __device__ void sync() const {
    if (plan.blocks > 1) return grid_sync();
    __syncthreads();
  }
};

__device__ __forceinline__ float inverse_or_zero(float x, float numerator) { return x < FLT_MIN ? 0 : numerator / x; }

// Softmax of each row, a thread each. Returns the guard's penalty of this thread's rows.
__device__ __forceinline__ float predict(const Block& block) {
  const int clusters = block.plan.clusters;
  float excess = 0;
  for (int row = threadIdx.x; row < block.rows(); row += kThreads) {
    float* p = block.row(row);
    float high = -INFINITY, low = INFINITY;
    for (int c = 0; c < clusters; ++c) {
      high = max_or_nan(high, p[c]);
      low = min_or_nan(low, p[c]);
      if (block.options.guarded) {
        const float beyond = fmaxf(fabsf(p[c]) - block.options.limit, 0.f);
        excess += beyond * beyond / 2;
      }
    }
    float sum = low - low;  // an infinity makes a row NaN, not one with an excluded entry
    for (int c = 0; c < clusters; ++c) sum += p[c] = expf(p[c] - high);
    for (int c = 0; c < clusters; ++c) p[c] /= sum;
  }
  return kGuardWeight * excess;
}

// Over this block's rows, a warp for each cluster.
__device__ __forceinline__ void add_predictions(const Block& block) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int c = warp; c < block.plan.clusters; c += kWarps) {
    PeakAndRest q;
    float mean[2] = {};
    for (int view = 0; view < 2; ++view) {
      for (int i = lane; i < block.samples; i += kWarp) {
        const float p = block.row(view * block.samples + i)[c];
        q.add(block.smooth(p));
        mean[view] += p;
      }
      mean[view] = warp_reduce(mean[view], [](float a, float b) { return a + b; });
    }
    q.add_across_warp();
    if (lane == 0) {
      block.own_part[c].q = q;
      for (int view = 0; view < 2; ++view) block.own_part[c].mean[view] = mean[view];
    }
  }
}

__device__ __forceinline__ void add_over_d(const Block& block) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int c = warp; c < block.plan.clusters; c += kWarps) {
    PeakAndRest over;
    for (int i = lane; i < block.rows(); i += kWarp) over.add(block.smooth(block.row(i)[c]) * block.weights[i]);
    over.add_across_warp();
    if (lane == 0) block.own_part[c].q_over_d = over;
  }
}

// The head's sums of predictions from all blocks'. Returns this thread's share of the entropy of the mean predictions.
__device__ __forceinline__ float gather_predictions(const Block& block) {
  const float batch = float(block.plan.batch);
  float entropy = 0;
  for (int c = threadIdx.x; c < block.plan.clusters; c += kThreads) {
    PeakAndRest q;
    float mean[2] = {};
    for (int i = 0; i < block.plan.blocks; ++i) {
      const ClusterSums& part = block.parts[int64_t(i) * block.plan.clusters + c];
      q.add(part.q);
      for (int view = 0; view < 2; ++view) mean[view] += part.mean[view];
    }
    block.sums[c].q = q;
    for (int view = 0; view < 2; ++view) {
      const float p = mean[view] / batch, log_p = safe_log(p);
      entropy -= p * log_p / 2;
      block.sums[c].mean[view] = block.options.entropy_weight * block.inverse_rows() * log_p;
    }
  }
  return entropy;
}

__device__ __forceinline__ void gather_over_d(const Block& block) {
  for (int c = threadIdx.x; c < block.plan.clusters; c += kThreads) {
    PeakAndRest over;
    for (int i = 0; i < block.plan.blocks; ++i) {
      over.add(block.parts[int64_t(i) * block.plan.clusters + c].q_over_d);
    }
    block.sums[c].q_over_d = over;
  }
}

// d, r and their weights, a thread for each sample. Returns this thread's share of the loss, times N.
__device__ __forceinline__ float compare(const Block& block) {
  float total = 0;
  for (int i = threadIdx.x; i < block.samples; i += kThreads) {
    const float *first = block.row(i), *second = block.row(block.pair(i));
    float d[2] = {}, r = 0;
    for (int c = 0; c < block.plan.clusters; ++c) {
      const PeakAndRest& all = block.sums[c].q;
      const float x = block.smooth(first[c]), y = block.smooth(second[c]);
      d[0] += x * ((all.peak - x) + all.rest);
      d[1] += y * ((all.peak - y) + all.rest);
      r += x * y;
    }
    const float log_r = safe_log(r);
    total += (safe_log(d[0]) - log_r) + (safe_log(d[1]) - log_r);
    // A logarithm taken of the smallest normal number has no gradient.
    block.weights[i] = inverse_or_zero(d[0], block.inverse_rows());
    block.weights[block.pair(i)] = inverse_or_zero(d[1], block.inverse_rows());
    block.weights[block.rows() + i] = inverse_or_zero(r, 2 * block.inverse_rows());
  }
  return total;
}

// The gradient, a thread for each row.
template <typename T, typename G>
__device__ __forceinline__ void differentiate(const Block& block, const T* __restrict__ logits,
                                              G* __restrict__ gradient) {  // [2, batch, clusters], from the first sample
  const int clusters = block.plan.clusters;
  for (int row = threadIdx.x; row < block.rows(); row += kThreads) {
    const int view = row >= block.samples, sample = view ? row - block.samples : row;
    const float *p = block.row(row), *other = block.row(block.pair(row));
    const float w = block.weights[row], wr = block.weights[block.rows() + sample];
    const int64_t offset = (view * block.plan.batch + sample) * clusters;
    auto dp = [&](int c) {
      const ClusterSums& sums = block.sums[c];
      const float q = block.smooth(p[c]), over = q * w;
      // Compared, not only subtracted: fused into the difference, the product would not cancel against its own peak.
      const float others = (over < sums.q_over_d.peak ? sums.q_over_d.peak - over : 0.f) + sums.q_over_d.rest;
      const float contrast = ((sums.q.peak - q) + sums.q.rest) * w + others - block.smooth(other[c]) * wr;
      return block.options.keep * contrast + sums.mean[view];
    };
    float along = 0;
    for (int c = 0; c < clusters; ++c) along += p[c] * dp(c);
    for (int c = 0; c < clusters; ++c) {
      float value = p[c] * (dp(c) - along);
      if (block.options.guarded) {
        const float x = to_float(logits[offset + c]), limit = block.options.limit;
        value += kGuardWeight * block.inverse_rows() * (x > limit ? x - limit : x < -limit ? x + limit : 0.f);
      }
      from_float(value, gradient[offset + c]);
    }
  }
}

template <typename T, typename G, bool kOnChip>
__global__ void __launch_bounds__(kThreads, 1)
    log_dot_product_kernel(const T* __restrict__ logits,  // [heads, 2, batch, clusters]
                           float* __restrict__ loss,      // [heads]
                           G* __restrict__ gradient,      // [heads, 2, batch, clusters] or null
                           float* workspace, int heads, Plan plan, Options options) {
  const int head = blockIdx.x / plan.blocks, clusters = plan.clusters;
  const int rank = blockIdx.x % plan.blocks;
  const int64_t first = int64_t(rank) * plan.samples;
  const int samples = static_cast<int>(min(int64_t(plan.samples), plan.batch - first));
  float* losses = workspace + plan.parts(heads);
  float* own = kOnChip ? dynamic_shared() : losses + int64_t(heads) * plan.blocks + blockIdx.x * plan.own();
  auto* parts = reinterpret_cast<ClusterSums*>(workspace) + int64_t(head) * plan.blocks * clusters;
  float* weights = own + int64_t(plan.samples) * 2 * plan.stride;
  auto* sums = reinterpret_cast<ClusterSums*>(weights + int64_t(plan.samples) * 3);
  const Block block{plan, options, samples, rank, own, weights, sums, parts + int64_t(rank) * clusters, parts};
  losses += int64_t(head) * plan.blocks;

  const int64_t offset = (int64_t(head) * 2 * plan.batch + first) * clusters;
  for (int view = 0; view < 2; ++view) {
    const T* from = logits + offset + view * plan.batch * clusters;
    for (int64_t i = threadIdx.x; i < int64_t(samples) * clusters; i += kThreads) {
      block.row(view * samples + static_cast<int>(i / clusters))[i % clusters] = to_float(from[i]);
    }
  }
  __syncthreads();
  float total = predict(block);
  __syncthreads();
  add_predictions(block);
  block.sync();
  const float entropy = gather_predictions(block);
  __syncthreads();
  total = (total + compare(block)) * block.inverse_rows();
  if (rank == 0) total -= options.entropy_weight * entropy;
  total = block_sum<kWarps>(total);
  if (threadIdx.x == 0) losses[rank] = total;
  if (gradient) add_over_d(block);
  block.sync();
  if (rank == 0 && threadIdx.x == 0) {
    total = 0;
    for (int i = 0; i < plan.blocks; ++i) total += losses[i];
    loss[head] = total;
  }
  if (!gradient) return;
  gather_over_d(block);
  __syncthreads();
  differentiate(block, logits + offset, gradient + offset);
}

}  // namespace

int64_t log_dot_product_loss_workspace_bytes(int64_t heads, int64_t batch, int64_t clusters, int device) {
  return make_plan(heads, batch, clusters, device_limits(device)).workspace_bytes(heads);
}

template <typename T>
void log_dot_product_loss(const T* logits, float* loss, GradientOf<T>* gradient, float* workspace, int64_t heads,
                          int64_t batch, int64_t clusters, double smoothing, double entropy_weight, double logit_limit,
                          int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Plan plan = make_plan(heads, batch, clusters, device_limits(device));
  const Options options{float(1 - smoothing), float(smoothing / double(clusters)), float(entropy_weight),
                        float(logit_limit), std::isfinite(logit_limit)};
  Shape shape{heads * plan.blocks, kThreads, plan.on_chip ? 4 * plan.own() : 0};
  if (plan.blocks > 1) shape.together = Together::grid;
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  const auto run = [&](auto on_chip) {
    launch<log_dot_product_kernel<T, GradientOf<T>, decltype(on_chip)::value>>(
        "launching log_dot_product_loss", shape, place, logits, loss, gradient, workspace, int(heads), plan, options);
  };
  plan.on_chip ? run(std::true_type()) : run(std::false_type());
}

IMC_INSTANTIATE_CUDA(log_dot_product_loss)

}  // namespace imc::cuda
