// One block's share of the rows of a head in log_dot_product_loss.cu (where the mathematics stands) and, for a batch that
// is spread over processes, in log_dot_product_phases.cu.
#pragma once

#include <cfloat>
#include <cmath>

#include "device.cuh"
#include "primitives.cuh"

namespace imc::cuda::log_dot {

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

  Options(int64_t clusters, double smoothing, double entropy_weight, double logit_limit)
      : keep(float(1 - smoothing)),
        uniform(float(smoothing / double(clusters))),
        entropy_weight(float(entropy_weight)),
        limit(float(logit_limit)),
        guarded(std::isfinite(logit_limit)) {}
};

struct Plan {
  int64_t batch;
  int clusters, stride;  // stride: of a row in memory, odd, so that the rows of a warp lie in different banks
  int samples, blocks;   // samples per block, of which the last blocks may have fewer or none; blocks per head
  bool on_chip;          // a block's own memory is shared memory, else in the workspace
  bool parts_on_chip;    // so is what it found of its rows, where the other blocks of its head read it

  Plan(int64_t batch, int64_t clusters, int64_t samples, int64_t blocks, bool parts_on_chip, const DeviceLimits& device)
      : batch(batch),
        clusters(static_cast<int>(clusters)),
        stride(static_cast<int>(clusters | 1)),
        samples(static_cast<int>(samples)),
        blocks(static_cast<int>(blocks)),
        on_chip(true),
        parts_on_chip(parts_on_chip) {
    on_chip = 4 * own() <= largest_shared(device);
  }

  __host__ __device__ int64_t sums() const { return int64_t(clusters) * (sizeof(ClusterSums) / 4); }  // in floats
  // A block's own memory, in floats: predictions [2, samples, stride], weights [3, samples], sums [clusters], and where
  // they are there its part of the sums [clusters] and of the loss.
  __host__ __device__ int64_t own() const {
    return samples * (int64_t(2) * stride + 3) + sums() + (parts_on_chip ? sums() + 1 : 0);
  }
  // The workspace, but for what is on chip: the blocks' parts of the sums [heads, blocks, clusters] and of the losses
  // [heads, blocks], and their own memory.
  __host__ __device__ int64_t parts(int64_t heads) const { return parts_on_chip ? 0 : heads * blocks * sums(); }
  __host__ __device__ int64_t losses(int64_t heads) const { return parts_on_chip ? 0 : heads * blocks; }
  int64_t workspace_bytes(int64_t heads) const {
    return 4 * (parts(heads) + losses(heads) + (on_chip ? 0 : heads * blocks * own()));
  }
};

// For blocks that meet in the workspace: those of all heads can be resident together.
inline Plan make_grid_plan(int64_t heads, int64_t batch, int64_t clusters, const DeviceLimits& device) {
  const int64_t most = std::max<int64_t>(1, device.multiprocessors / heads);
  const int64_t samples = ceil_divide(batch, std::min(most, ceil_divide(batch, kWarp)));
  return Plan(batch, clusters, samples, ceil_divide(batch, samples), false, device);
}

// What one block sees. A row is a sample of a view: view * samples + sample. The blocks of a head form a cluster, or
// meet in the workspace.
template <bool kCluster>
struct Block {
  const Plan& plan;
  const Options& options;
  float batch;  // samples of all processes
  int head, rank, samples;
  float *p, *weights;  // weights: 1 / N d of each row, then 2 / N r of each sample
  ClusterSums *sums, *own_part;  // the head's, as this block knows them; this block's
  float* own_loss;

  __device__ int rows() const { return 2 * samples; }
  __device__ float* row(int row) const { return p + int64_t(row) * plan.stride; }
  __device__ int pair(int row) const { return row < samples ? row + samples : row - samples; }
  __device__ float smooth(float p) const { return fmaf(options.keep, p, options.uniform); }  // bitwise the same always
  __device__ float inverse_rows() const { return 0.5f / batch; }
  // Of the head's first sample here, in logits and gradient [heads, 2, batch, clusters].
  __device__ int64_t first() const {
    return (int64_t(head) * 2 * plan.batch + int64_t(rank) * plan.samples) * plan.clusters;
  }

  // What the head's i-th block found.
  __device__ const ClusterSums* part(int i) const {
    if constexpr (kCluster) return cluster_peer(own_part, i);
    return own_part + int64_t(i - rank) * plan.clusters;
  }
  __device__ float loss(int i) const {
    if constexpr (kCluster) return *cluster_peer(own_loss, i);
    return own_loss[i - rank];
  }

  __device__ void sync() const {
    if constexpr (kCluster) return cluster_sync();
    if (plan.blocks > 1) return grid_sync();
    __syncthreads();
  }
};

template <bool kOnChip, bool kCluster>
__device__ __forceinline__ Block<kCluster> make_block(const Plan& plan, const Options& options, float batch, int heads,
                                                      float* workspace) {
  const int head = blockIdx.x / plan.blocks, rank = blockIdx.x % plan.blocks;
  const int64_t left = plan.batch - int64_t(rank) * plan.samples;
  const int samples = static_cast<int>(max(int64_t(0), min(int64_t(plan.samples), left)));
  float* losses = workspace + plan.parts(heads);
  float* own = kOnChip ? dynamic_shared() : losses + plan.losses(heads) + blockIdx.x * plan.own();
  float* weights = own + int64_t(plan.samples) * 2 * plan.stride;
  auto* sums = reinterpret_cast<ClusterSums*>(weights + int64_t(plan.samples) * 3);
  auto* own_part = reinterpret_cast<ClusterSums*>(workspace) + int64_t(blockIdx.x) * plan.clusters;
  float* own_loss = losses + blockIdx.x;
  if (kOnChip && plan.parts_on_chip) {
    own_part = sums + plan.clusters;
    own_loss = reinterpret_cast<float*>(own_part + plan.clusters);
  }
  return {plan, options, batch, head, rank, samples, own, weights, sums, own_part, own_loss};
}

template <bool kCluster, typename T>
__device__ __forceinline__ void load_rows(const Block<kCluster>& block, const T* __restrict__ logits) {
  const int clusters = block.plan.clusters, down = kThreads / clusters, along = kThreads % clusters;
  const int64_t count = int64_t(block.samples) * clusters;
  for (int view = 0; view < 2; ++view) {
    const T* from = logits + block.first() + view * block.plan.batch * clusters;
    int sample = threadIdx.x / clusters, c = threadIdx.x % clusters;  // of element i, without a division for each
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < count; i += kThreads) {
      block.row(view * block.samples + sample)[c] = to_float(from[i]);
      sample += down;
      c += along;
      if (c >= clusters) {
        ++sample;
        c -= clusters;
      }
    }
  }
}

__device__ __forceinline__ float inverse_or_zero(float x, float numerator) { return x < FLT_MIN ? 0 : numerator / x; }

// Softmax of each row, a thread each. Returns the guard's penalty of this thread's rows.
template <bool kCluster>
__device__ __forceinline__ float predict(const Block<kCluster>& block) {
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
    const float inverse = 1 / sum;
    for (int c = 0; c < clusters; ++c) p[c] *= inverse;
  }
  return kGuardWeight * excess;
}

// Over this block's rows, a warp for each cluster.
template <bool kCluster>
__device__ __forceinline__ void add_predictions(const Block<kCluster>& block) {
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

template <bool kCluster>
__device__ __forceinline__ void add_over_d(const Block<kCluster>& block) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int c = warp; c < block.plan.clusters; c += kWarps) {
    PeakAndRest over;
    for (int i = lane; i < block.rows(); i += kWarp) over.add(block.smooth(block.row(i)[c]) * block.weights[i]);
    over.add_across_warp();
    if (lane == 0) block.own_part[c].q_over_d = over;
  }
}

// The head's sums of predictions, for a cluster. Returns its share of the entropy of the mean predictions.
template <bool kCluster>
__device__ __forceinline__ float set_predictions(const Block<kCluster>& block, int c, const PeakAndRest& q,
                                                 const float (&mean)[2]) {
  float entropy = 0;
  block.sums[c].q = q;
  for (int view = 0; view < 2; ++view) {
    const float p = mean[view] / block.batch, log_p = safe_log(p);
    entropy -= p * log_p / 2;
    block.sums[c].mean[view] = block.options.entropy_weight * block.inverse_rows() * log_p;
  }
  return entropy;
}

// The head's sums of predictions from all blocks'. Returns this thread's share of the entropy of the mean predictions.
template <bool kCluster>
__device__ __forceinline__ float gather_predictions(const Block<kCluster>& block) {
  float entropy = 0;
  for (int c = threadIdx.x; c < block.plan.clusters; c += kThreads) {
    PeakAndRest q;
    float mean[2] = {};
    for (int i = 0; i < block.plan.blocks; ++i) {
      const ClusterSums& part = block.part(i)[c];
      q.add(part.q);
      for (int view = 0; view < 2; ++view) mean[view] += part.mean[view];
    }
    entropy += set_predictions(block, c, q, mean);
  }
  return entropy;
}

template <bool kCluster>
__device__ __forceinline__ void gather_over_d(const Block<kCluster>& block) {
  for (int c = threadIdx.x; c < block.plan.clusters; c += kThreads) {
    PeakAndRest over;
    for (int i = 0; i < block.plan.blocks; ++i) over.add(block.part(i)[c].q_over_d);
    block.sums[c].q_over_d = over;
  }
}

// d, r and their weights, a thread for each sample. Returns this thread's share of the loss, times N.
template <bool kCluster>
__device__ __forceinline__ float compare(const Block<kCluster>& block) {
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
template <bool kCluster, typename T, typename G>
__device__ __forceinline__ void differentiate(const Block<kCluster>& block, const T* __restrict__ logits,
                                              G* __restrict__ gradient) {
  const int clusters = block.plan.clusters;
  for (int row = threadIdx.x; row < block.rows(); row += kThreads) {
    const int view = row >= block.samples, sample = view ? row - block.samples : row;
    const float *p = block.row(row), *other = block.row(block.pair(row));
    const float w = block.weights[row], wr = block.weights[block.rows() + sample];
    const int64_t offset = block.first() + (view * block.plan.batch + sample) * clusters;
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

}  // namespace imc::cuda::log_dot
