// log_dot_product_loss of a batch that is spread over processes: its blocks meet between the launches, where the processes
// exchange the sums of each head and cluster (imc_kernels/ops/distributed/log_dot_product_loss.py). Each phase reads the
// logits again and takes their softmax, the same bit by bit; the blocks' parts are added up by a small launch.

#include "kernels.h"
#include "log_dot_product.cuh"

namespace imc::cuda {
namespace {

using namespace log_dot;

constexpr int kGatherThreads = 128;

// The workspace of all phases: what the blocks found, [heads, blocks].
struct Parts {
  const ClusterSums* sums;  // [heads, blocks, clusters]
  const float* losses;      // [heads, blocks]
  int heads, blocks, clusters;

  __device__ const ClusterSums& sum(int head, int block, int c) const {
    return sums[(int64_t(head) * blocks + block) * clusters + c];
  }
};

template <bool kOnChip>
__global__ void __launch_bounds__(kThreads, 1)
    log_dot_product_sums_kernel(const float* __restrict__ logits,  // [heads, 2, batch, clusters]
                                float* workspace, int heads, Plan plan, Options options) {
  const auto block = make_block<kOnChip, false>(plan, options, float(plan.batch), heads, workspace);
  load_rows(block, logits);
  __syncthreads();
  predict(block);
  __syncthreads();
  add_predictions(block);
}

// Without whole_quotients this process's part of the losses and of the sums of q / d, given them the gradient.
template <bool kOnChip>
__global__ void __launch_bounds__(kThreads, 1)
    log_dot_product_parts_kernel(const float* __restrict__ logits,           // [heads, 2, batch, clusters]
                                 const double* __restrict__ sums,            // [heads, clusters, 4], of all processes
                                 const double* __restrict__ samples,         // [], of all processes
                                 const double* __restrict__ whole_quotients,  // [heads, clusters, 2] or null
                                 float* __restrict__ gradient,               // [heads, 2, batch, clusters] or null
                                 float* workspace, int heads, Plan plan, Options options) {
  const auto block = make_block<kOnChip, false>(plan, options, float(*samples), heads, workspace);
  load_rows(block, logits);
  __syncthreads();
  float total = predict(block), entropy = 0;
  for (int c = threadIdx.x; c < plan.clusters; c += kThreads) {
    const int64_t at = int64_t(block.head) * plan.clusters + c;
    const double* sum = sums + 4 * at;
    const float mean[] = {float(sum[2]), float(sum[3])};
    entropy += set_predictions(block, c, {float(sum[0]), float(sum[1])}, mean);
    if (!whole_quotients) continue;
    block.sums[c].q_over_d = {float(whole_quotients[2 * at]), float(whole_quotients[2 * at + 1])};
  }
  __syncthreads();
  total = (total + compare(block)) * block.inverse_rows();
  if (whole_quotients) {
    __syncthreads();
    return differentiate(block, logits, gradient);
  }
  // The entropy belongs to no process: each gives its samples' share of it.
  if (block.rank == 0) total -= options.entropy_weight * entropy * (float(plan.batch) / block.batch);
  total = block_sum<kWarps>(total);
  if (threadIdx.x == 0) *block.own_loss = total;
  add_over_d(block);
}

// A thread for each head and cluster.
__global__ void __launch_bounds__(kGatherThreads)
    log_dot_product_gather_kernel(Parts parts,
                                  double* __restrict__ sums,       // [heads, clusters, 4] or null
                                  double* __restrict__ losses,     // [heads], or null where there are sums
                                  double* __restrict__ quotients) {  // [heads, clusters, 2], the same
  const int64_t at = int64_t(blockIdx.x) * kGatherThreads + threadIdx.x;
  if (at >= int64_t(parts.heads) * parts.clusters) return;
  const int head = static_cast<int>(at / parts.clusters), c = static_cast<int>(at % parts.clusters);
  PeakAndRest all;
  double mean[2] = {}, loss = 0;
  for (int i = 0; i < parts.blocks; ++i) {
    const ClusterSums& part = parts.sum(head, i, c);
    all.add(sums ? part.q : part.q_over_d);
    if (sums) {
      for (int view = 0; view < 2; ++view) mean[view] += part.mean[view];
    } else {
      loss += parts.losses[int64_t(head) * parts.blocks + i];
    }
  }
  double* pair = sums ? sums + 4 * at : quotients + 2 * at;
  pair[0] = all.peak;
  pair[1] = all.rest;
  if (sums) {
    pair[2] = mean[0];
    pair[3] = mean[1];
  } else if (c == 0) {
    losses[head] = loss;
  }
}

// One phase, on a device.
struct Phase {
  Place place;
  Plan plan;
  int heads;
  float* workspace;

  template <typename Run>
  void launch_blocks(const Run& run) const {
    const Shape shape{int64_t(heads) * plan.blocks, kThreads, plan.on_chip ? 4 * plan.own() : 0};
    plan.on_chip ? run(std::true_type(), shape) : run(std::false_type(), shape);
  }

  void launch_gather(double* sums, double* losses, double* quotients) const {
    const Parts parts{reinterpret_cast<const ClusterSums*>(workspace), workspace + plan.parts(heads), heads,
                      plan.blocks, plan.clusters};
    const Shape shape{ceil_divide(int64_t(heads) * plan.clusters, kGatherThreads), kGatherThreads};
    launch<log_dot_product_gather_kernel>("launching log_dot_product_loss", shape, place, parts, sums, losses,
                                          quotients);
  }
};

Phase make_phase(int64_t heads, int64_t batch, int64_t clusters, float* workspace, int device, uintptr_t stream) {
  return {{device, reinterpret_cast<cudaStream_t>(stream)},
          make_grid_plan(heads, batch, clusters, device_limits(device)),
          static_cast<int>(heads),
          workspace};
}

}  // namespace

int64_t log_dot_product_loss_phase_workspace_bytes(int64_t heads, int64_t batch, int64_t clusters, int device) {
  return make_grid_plan(heads, batch, clusters, device_limits(device)).workspace_bytes(heads);
}

void log_dot_product_loss_sums(const float* logits, double* sums, float* workspace, int64_t heads, int64_t batch,
                               int64_t clusters, double smoothing, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Phase phase = make_phase(heads, batch, clusters, workspace, device, stream);
  const Options options(clusters, smoothing, 0, INFINITY);
  phase.launch_blocks([&](auto on_chip, const Shape& shape) {
    launch<log_dot_product_sums_kernel<decltype(on_chip)::value>>(
        "launching log_dot_product_loss_sums", shape, phase.place, logits, workspace, phase.heads, phase.plan, options);
  });
  phase.launch_gather(sums, nullptr, nullptr);
}

void log_dot_product_loss_parts(const float* logits, const double* sums, const double* samples,
                                const double* whole_quotients, double* losses, double* quotients, float* gradient,
                                float* workspace, int64_t heads, int64_t batch, int64_t clusters, double smoothing,
                                double entropy_weight, double logit_limit, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Phase phase = make_phase(heads, batch, clusters, workspace, device, stream);
  const Options options(clusters, smoothing, entropy_weight, logit_limit);
  phase.launch_blocks([&](auto on_chip, const Shape& shape) {
    launch<log_dot_product_parts_kernel<decltype(on_chip)::value>>("launching log_dot_product_loss_parts", shape,
                                                                   phase.place, logits, sums, samples, whole_quotients,
                                                                   gradient, workspace, phase.heads, phase.plan,
                                                                   options);
  });
  if (!whole_quotients) phase.launch_gather(nullptr, losses, quotients);
}

}  // namespace imc::cuda
