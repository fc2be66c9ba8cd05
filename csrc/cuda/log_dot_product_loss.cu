// The contrastive loss of CRLC in time linear in the batch: with the critic log(q_i . q_j) the sum over all other rows
// is one product with their sum. Over the N rows of both views of a head, with S_i the sum of all rows but i,
//   d_i = q_i . S_i,   r_i = q_i . q_pair(i),   loss = mean_i [log d_i - log r_i],
//   dL/dq_i = (S_i / d_i + sum_{j != i} q_j / d_j - 2 q_pair(i) / r_i) / N.
// One launch: a cluster of blocks for each head where its rows fit into their shared memory, without clusters a block
// where they fit into one, else a cooperative grid. The blocks of a head meet twice, for S and for the sum of q / d: in a
// cluster in shared memory, too. The predictions stay where they are in between; both views of a sample share a block.

#include "kernels.h"
#include "log_dot_product.cuh"

namespace imc::cuda {
namespace {

using namespace log_dot;

// For each head as many blocks as the device has room for and a cluster may have, of a warp of samples at the least.
Plan make_plan(int64_t heads, int64_t batch, int64_t clusters, const DeviceLimits& device) {
  int blocks = device.clusters ? kLargestCluster : 1;
  while (blocks > 1 && (heads * blocks > device.multiprocessors || (blocks - 1) * kWarp >= batch)) blocks /= 2;
  for (; blocks <= (device.clusters ? kLargestCluster : 1); blocks *= 2) {
    const Plan plan(batch, clusters, ceil_divide(batch, blocks), blocks, true, device);
    if (plan.on_chip) return plan;
  }
  return make_grid_plan(heads, batch, clusters, device);
}

template <typename T, typename G, bool kOnChip, bool kCluster>
__global__ void __launch_bounds__(kThreads, 1)
    log_dot_product_kernel(const T* __restrict__ logits,  // [heads, 2, batch, clusters]
                           float* __restrict__ loss,      // [heads]
                           G* __restrict__ gradient,      // [heads, 2, batch, clusters] or null
                           float* workspace, int heads, Plan plan, Options options) {
  if constexpr (kCluster && !kHaveClusters) return;
  const auto block = make_block<kOnChip, kCluster>(plan, options, float(plan.batch), heads, workspace);
  load_rows(block, logits);
  __syncthreads();
  float total = predict(block);
  __syncthreads();
  add_predictions(block);
  block.sync();
  const float entropy = gather_predictions(block);
  __syncthreads();
  total = (total + compare(block)) * block.inverse_rows();
  if (block.rank == 0) total -= options.entropy_weight * entropy;
  total = block_sum<kWarps>(total);
  if (threadIdx.x == 0) *block.own_loss = total;
  if (gradient) add_over_d(block);
  block.sync();
  if (block.rank == 0 && threadIdx.x == 0) {
    total = 0;
    for (int i = 0; i < plan.blocks; ++i) total += block.loss(i);
    loss[block.head] = total;
  }
  if (gradient) {
    gather_over_d(block);
    __syncthreads();
    differentiate(block, logits, gradient);
  }
  if constexpr (kCluster) cluster_sync();  // others may still read this block's parts
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
  const Options options(clusters, smoothing, entropy_weight, logit_limit);
  const bool cluster = plan.parts_on_chip && plan.blocks > 1;
  Shape shape{heads * plan.blocks, kThreads, plan.on_chip ? 4 * plan.own() : 0};
  if (plan.blocks > 1) shape.together = cluster ? Together::clusters : Together::grid;
  shape.cluster = plan.blocks;
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  const auto run = [&](auto on_chip, auto in_clusters) {
    launch<log_dot_product_kernel<T, GradientOf<T>, decltype(on_chip)::value, decltype(in_clusters)::value>>(
        "launching log_dot_product_loss", shape, place, logits, loss, gradient, workspace, int(heads), plan, options);
  };
  if (cluster) return run(std::true_type(), std::true_type());
  plan.on_chip ? run(std::true_type(), std::false_type()) : run(std::false_type(), std::false_type());
}

IMC_INSTANTIATE_CUDA(log_dot_product_loss)

}  // namespace imc::cuda
