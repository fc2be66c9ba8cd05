// Swapped prediction: a warp per row (view, sample). The targets of all other assignment views are summed as they are
// read (the loss is linear in them), so that one sweep over the row gives its log-sum-exp and all its cross-entropies,
// and another the gradient. The rows of a sample share a block, and what the sweeps read again lies in its L1 cache:
// memory sees the scores and the assignments once, and the gradient once. A second, small launch adds up the samples.

#include "device.cuh"
#include "kernels.h"
#include "primitives.cuh"
#include "sum.h"

namespace imc::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;

struct Sizes {
  int views, assigned, prototypes;
  int64_t batch;
};

// Calls visit(k, score, target) for this lane's share of a row; target is the sum over the assignment views but this.
template <typename T, typename Visit>
__device__ __forceinline__ void sweep(const T* __restrict__ scores, const T* __restrict__ assignments,
                                      const Sizes& sizes, int view, int64_t sample, int lane, Visit visit) {
  const int prototypes = sizes.prototypes;
  const T* row = scores + (view * sizes.batch + sample) * prototypes;
#pragma unroll 4
  for (int k = lane; k < prototypes; k += kWarp) {
    float target = 0;
    for (int a = 0; a < sizes.assigned; ++a) {
      if (a != view) target += to_float(assignments[(a * sizes.batch + sample) * prototypes + k]);
    }
    visit(k, to_float(row[k]), target);
  }
}

template <typename T, typename G>
__global__ void __launch_bounds__(kThreads, 4)
    swapped_prediction_kernel(const T* __restrict__ scores,       // [views, batch, prototypes]
                              const T* __restrict__ assignments,  // [assigned, batch, prototypes]
                              float* __restrict__ losses,         // [batch]
                              G* __restrict__ gradient,           // [views, batch, prototypes] or null
                              Sizes sizes, float inverse_temperature,
                              float weight) {  // of a row's gradient: 1 / (pairs batch temperature)
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t sample = blockIdx.x;
  const auto add = [](float a, float b) { return a + b; };
  float total = 0;
  for (int view = warp; view < sizes.views; view += kWarps) {
    const T* row = scores + (view * sizes.batch + sample) * sizes.prototypes;
    float high = -INFINITY, low = INFINITY;
    for (int k = lane; k < sizes.prototypes; k += kWarp) {
      high = max_or_nan(high, to_float(row[k]));
      low = min_or_nan(low, to_float(row[k]));
    }
    high = warp_reduce(high, max_or_nan);
    low = warp_reduce(low, min_or_nan);
    float sum = 0, mass = 0, aligned = 0;
    sweep(scores, assignments, sizes, view, sample, lane, [&](int, float score, float target) {
      const float logit = (score - high) * inverse_temperature;
      sum += expf(logit);
      mass += target;
      aligned += target * logit;
    });
    sum = warp_reduce(sum, add) + (low - low);  // an infinity makes the row NaN, not one with an excluded entry
    mass = warp_reduce(mass, add);
    aligned = warp_reduce(aligned, add);
    total += mass * logf(sum) - aligned;
    if (!gradient) continue;
    const float scale = weight * mass / sum;
    G* to = gradient + (view * sizes.batch + sample) * sizes.prototypes;
    sweep(scores, assignments, sizes, view, sample, lane, [&](int k, float score, float target) {
      from_float(expf((score - high) * inverse_temperature) * scale - weight * target, to[k]);
    });
  }
  total = block_sum<kWarps>(lane == 0 ? total : 0);
  if (threadIdx.x == 0) losses[sample] = total;
}

}  // namespace

int64_t swapped_prediction_loss_workspace_bytes(int64_t batch, int) { return 4 * batch; }

template <typename T>
void swapped_prediction_loss(const T* scores, const T* assignments, float* loss, GradientOf<T>* gradient,
                             float* workspace, int64_t views, int64_t assigned, int64_t batch, int64_t prototypes,
                             double temperature, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  const double rows = static_cast<double>(assigned * (views - 1)) * static_cast<double>(batch);
  const Sizes sizes{int(views), int(assigned), int(prototypes), batch};
  launch<swapped_prediction_kernel<T, GradientOf<T>>>(
      "launching swapped_prediction_loss", {batch, kThreads}, place, scores, assignments, workspace, gradient, sizes,
      static_cast<float>(1 / temperature), static_cast<float>(1 / (rows * temperature)));
  launch_sum(workspace, batch, static_cast<float>(1 / rows), loss, place);
}

IMC_INSTANTIATE_CUDA(swapped_prediction_loss)

}  // namespace imc::cuda
