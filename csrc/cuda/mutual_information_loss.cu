// Mutual information over all V x V view pairs, around the products of torch's matrix multiply. With Y [batch, V C] and
// U [batch, V K] the softmaxes of all views side by side, J = Y^T U / batch holds every joint distribution, and
//   H(Y|U) = -sum J log(J / m),  m = sum_c J,   dL/dY = U G^T + b log(mean Y) / V batch,   dL/dU = Y G,
// G = -log(J / m) / V^2 batch (docs/mathematics.md). U has one column more, of ones: the products then also sum Y over
// the batch and add the entropy's gradient. Three launches and a sum, with the products between them:
//   softmaxes -> Y, U;  batch J = Y^T U;  entropies: batch J -> -V^2 batch G, in place;  U G^T, Y G;  gradients.

#include "device.cuh"
#include "kernels.h"
#include "primitives.cuh"
#include "sum.h"

namespace imc::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kLoads = 8;  // in flight
constexpr float kGuardWeight = 0.01f;

struct Sizes {
  int views, clusters, prototypes;
  int64_t batch, width;  // width: of a row of U and of J

  __host__ __device__ int64_t rows() const { return views * batch; }
  __host__ __device__ int64_t all_clusters() const { return int64_t(views) * clusters; }
  __host__ __device__ int64_t all_prototypes() const { return int64_t(views) * prototypes; }
  __host__ __device__ int64_t row_blocks() const { return (rows() + kWarps - 1) / kWarps; }  // a warp for each row
};

Sizes make_sizes(int64_t views, int64_t batch, int64_t clusters, int64_t prototypes, int64_t width) {
  return {int(views), int(clusters), int(prototypes), batch, width};
}

// A tile of J is `groups` of threads deep: with many clusters, several share a column.
int groups_for(int clusters) { return clusters < kWarp ? 1 : kWarps; }

int64_t entropy_blocks(const Sizes& sizes) {
  return sizes.views * ceil_divide(sizes.all_prototypes() + 1, kThreads / groups_for(sizes.clusters));
}

// Where the terms of the loss lie, and the logarithms of the symmetric form's marginals [views views, clusters].
struct Workspace {
  int64_t pairs, terms;
  float *guards, *entropies, *log_marginals;

  Workspace(float* memory, const Sizes& sizes)
      : pairs(int64_t(sizes.views) * sizes.views),
        terms(std::max(entropy_blocks(sizes), pairs)),
        guards(memory),
        entropies(memory + sizes.row_blocks()),
        log_marginals(entropies + terms) {}
};

// What a warp does: a row of logits or of scores.
struct Row {
  bool of_logits, inside;
  int view;
  int64_t sample;

  // Blocks for the logits first, where `logit_blocks` are launched, then as many for the scores.
  __device__ Row(const Sizes& sizes, int64_t logit_blocks) : of_logits(blockIdx.x < logit_blocks) {
    const int64_t row = (blockIdx.x - (of_logits ? 0 : logit_blocks)) * kWarps + threadIdx.x / kWarp;
    inside = row < sizes.rows();
    view = static_cast<int>(row / sizes.batch);
    sample = row % sizes.batch;
  }
  __device__ int64_t outer(const Sizes& sizes, int length) const { return (view * sizes.batch + sample) * length; }
  __device__ int64_t inner(int64_t stride, int length) const { return sample * stride + int64_t(view) * length; }
};

template <typename T, typename Visit>
__device__ __forceinline__ void sweep(const T* __restrict__ row, int length, Visit visit) {
  read_row<1, kLoads>(row, length, threadIdx.x % kWarp, [&](int k, const Pack<float, 1>& x) { visit(k, x.v[0]); });
}

__device__ __forceinline__ float warp_sum(float x) {
  return warp_reduce(x, [](float a, float b) { return a + b; });
}

// to = softmax(scale row)
template <typename T>
__device__ __forceinline__ void softmax(const T* __restrict__ row, float* __restrict__ to, int length, float scale) {
  float high = -INFINITY, low = INFINITY, sum = 0;
  sweep(row, length, [&](int, float x) {
    high = max_or_nan(high, x);
    low = min_or_nan(low, x);
  });
  high = warp_reduce(high, max_or_nan);
  low = warp_reduce(low, min_or_nan);
  sweep(row, length, [&](int, float x) { sum += expf((x - high) * scale); });
  const float inverse = 1 / (warp_sum(sum) + (low - low));  // an infinity makes the row NaN
  sweep(row, length, [&](int k, float x) { to[k] = expf((x - high) * scale) * inverse; });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 4)
    mutual_information_softmaxes_kernel(const T* __restrict__ logits,  // [views, batch, clusters]
                                        const T* __restrict__ scores,  // [views, batch, prototypes]
                                        float* __restrict__ y,         // [batch, views clusters]
                                        float* __restrict__ u,         // [batch, width]
                                        float* __restrict__ guards,    // [row_blocks]: the logits' excess, weighted
                                        float* __restrict__ samples,   // []: out, or null
                                        Sizes sizes, float inverse_temperature, float limit, float one) {
  const Row row(sizes, sizes.row_blocks());
  if (samples && blockIdx.x == 0 && threadIdx.x == 0) *samples = float(sizes.batch);
  if (!row.of_logits) {
    if (!row.inside) return;
    float* to = u + row.inner(sizes.width, sizes.prototypes);
    softmax(scores + row.outer(sizes, sizes.prototypes), to, sizes.prototypes, inverse_temperature);
    if (row.view > 0) return;
    for (int64_t k = sizes.all_prototypes() + threadIdx.x % kWarp; k < sizes.width; k += kWarp) {
      to[k] = k == sizes.all_prototypes() ? one : 0;
    }
    return;
  }
  float excess = 0;
  if (row.inside) {
    const T* from = logits + row.outer(sizes, sizes.clusters);
    softmax(from, y + row.inner(sizes.all_clusters(), sizes.clusters), sizes.clusters, 1);
    sweep(from, sizes.clusters, [&](int, float x) { excess += fmaxf(fabsf(x) - limit, 0.f); });
    excess = warp_sum(excess);
  }
  excess = block_sum<kWarps>(threadIdx.x % kWarp == 0 ? excess : 0);
  if (threadIdx.x == 0) guards[blockIdx.x] = kGuardWeight * excess / float(sizes.rows());
}

// The batch of all processes, and what a block adds to the loss: its entropy, and the guard where that is not added up
// with the entropies.
struct WholeBatch {
  const float* guard_and_samples;  // or null: this process's batch is the whole

  __device__ float samples(const Sizes& sizes) const {
    return guard_and_samples ? guard_and_samples[1] : float(sizes.batch);
  }
  __device__ float term(const Sizes& sizes, float entropy) const {
    const float mean = entropy / (float(sizes.views) * float(sizes.views));
    return guard_and_samples && blockIdx.x == 0 ? mean + guard_and_samples[0] / guard_and_samples[1] : mean;
  }
};

// A block's share of the clusters of one view, in some columns of J. The column of ones holds the sums of Y: with the
// weight -b V its entropy takes its place beside the others.
__global__ void __launch_bounds__(kThreads, 4)
    mutual_information_entropies_kernel(float* __restrict__ joint,      // [views clusters, width], times batch
                                        float* __restrict__ entropies,  // [blocks]
                                        Sizes sizes, WholeBatch whole, int groups, float entropy_weight) {
  IMC_SHARED(float, sums, kThreads);
  const int columns = kThreads / groups, offset = threadIdx.x % columns, group = threadIdx.x / columns;
  const int view = blockIdx.x % sizes.views;
  const int64_t column = int64_t(blockIdx.x / sizes.views) * columns + offset, ones = sizes.all_prototypes();
  float* j = joint + int64_t(view) * sizes.clusters * sizes.width + column;
  const float scale = 1 / whole.samples(sizes);
  float m = 0;
  if (column < ones) {
#pragma unroll 4
    for (int c = group; c < sizes.clusters; c += groups) m += j[c * sizes.width];
  }
  sums[threadIdx.x] = m;
  __syncthreads();
  m = 0;
  for (int g = 0; g < groups; ++g) m += sums[g * columns + offset];
  const float log_m = column < ones ? safe_log(m * scale) : 0;
  const float weight = column < ones ? 1 : -entropy_weight * float(sizes.views);
  float entropy = 0;
  if (column <= ones) {
#pragma unroll 4
    for (int c = group; c < sizes.clusters; c += groups) {
      const float p = j[c * sizes.width] * scale, logarithm = weight * (safe_log(p) - log_m);
      entropy -= p * logarithm;
      j[c * sizes.width] = logarithm;
    }
  }
  entropy = block_sum<kWarps>(entropy);
  if (threadIdx.x == 0) entropies[blockIdx.x] = whole.term(sizes, entropy);
}

// The symmetric form, J = (J_ji + J_ji^T) / 2 with the marginal m: mean over the pairs of H(J) - (1 + b) H(m). A block
// for each pair.
__global__ void __launch_bounds__(kThreads, 4)
    mutual_information_symmetric_kernel(float* __restrict__ joint,          // [views clusters, width], times batch
                                        float* __restrict__ log_marginals,  // [views views, clusters]
                                        float* __restrict__ entropies,      // [views views]
                                        Sizes sizes, WholeBatch whole, float entropy_weight) {
  const int lane = threadIdx.x % kWarp, n = sizes.clusters;
  const int64_t pair = blockIdx.x;
  float* j = joint + pair / sizes.views * n * sizes.width + pair % sizes.views * n;
  float* log_m = log_marginals + pair * n;
  const float scale = 0.5f / whole.samples(sizes), weight = 1 + entropy_weight;
  const auto symmetric = [&](int c, int k) { return scale * (j[c * sizes.width + k] + j[k * sizes.width + c]); };
  float entropy = 0;
  for (int c = threadIdx.x / kWarp; c < n; c += kWarps) {
    float m = 0;
    for (int k = lane; k < n; k += kWarp) m += symmetric(c, k);
    m = warp_sum(m);
    if (lane > 0) continue;
    log_m[c] = safe_log(m);
    entropy += weight * m * log_m[c];
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < int64_t(n) * n; i += kThreads) {
    const int c = static_cast<int>(i / n), k = static_cast<int>(i % n);
    if (k < c) continue;  // one thread replaces both
    const float p = symmetric(c, k), log_p = safe_log(p);
    const float logarithm = log_p - 0.5f * weight * (log_m[c] + log_m[k]);
    entropy -= (k == c ? p : 2 * p) * log_p;
    j[c * sizes.width + k] = logarithm;
    j[k * sizes.width + c] = logarithm;
  }
  entropy = block_sum<kWarps>(entropy);
  if (threadIdx.x == 0) entropies[pair] = whole.term(sizes, entropy);
}

// write(k, scale * the softmax's gradient), from that of its values p. The mean of dp under p is taken from dp at the
// largest p: where that is 1, its gradient is what remains of dp less the mean, below the last digit of both.
template <typename Write>
__device__ __forceinline__ void softmax_backward(const float* __restrict__ p, const float* __restrict__ dp, int length,
                                                 float scale, Write write) {
  float high = 0, centre = 0, mass = 0, rest = 0;  // rest: the sum of p (dp - centre)
  sweep(p, length, [&](int k, float x) {
    const float d = dp[k];
    if (x > high) {
      rest += mass * (centre - d);
      centre = d;
      high = x;
    }
    rest += x * (d - centre);
    mass += x;
  });
  const auto larger = [](float a, float b) { return fmaxf(a, b); };
  const float peak = warp_reduce(high, larger), at_peak = warp_reduce(high == peak ? centre : -INFINITY, larger);
  const float mean = warp_sum(rest + mass * (centre - at_peak)) / warp_sum(mass);
  sweep(p, length, [&](int k, float x) { write(k, scale * x * ((dp[k] - at_peak) - mean)); });
}

template <typename T, typename G>
__global__ void __launch_bounds__(kThreads, 4)
    mutual_information_gradients_kernel(const T* __restrict__ logits,        // [views, batch, clusters]
                                        const float* __restrict__ y,         // [batch, views clusters]
                                        const float* __restrict__ u,         // [batch, width]
                                        const float* __restrict__ dy,        // as y: the products, without their scale
                                        const float* __restrict__ du,        // as u
                                        G* __restrict__ logits_gradient,     // [views, batch, clusters] or null
                                        G* __restrict__ scores_gradient,     // [views, batch, prototypes] or null
                                        Sizes sizes, WholeBatch whole, float inverse_temperature, float limit) {
  const Row row(sizes, logits_gradient ? sizes.row_blocks() : 0);
  if (!row.inside) return;
  const float guard = kGuardWeight / (float(sizes.views) * whole.samples(sizes));
  const float scale = -1 / (float(sizes.views) * float(sizes.views) * whole.samples(sizes));
  if (!row.of_logits) {
    const int64_t at = row.inner(sizes.width, sizes.prototypes);
    G* to = scores_gradient + row.outer(sizes, sizes.prototypes);
    softmax_backward(u + at, du + at, sizes.prototypes, scale * inverse_temperature,
                     [&](int k, float gradient) { from_float(gradient, to[k]); });
    return;
  }
  const int64_t at = row.inner(sizes.all_clusters(), sizes.clusters), outer = row.outer(sizes, sizes.clusters);
  softmax_backward(y + at, dy + at, sizes.clusters, scale, [&](int c, float gradient) {
    const float x = to_float(logits[outer + c]);
    from_float(gradient + (x > limit ? guard : x < -limit ? -guard : 0.f), logits_gradient[outer + c]);
  });
}

}  // namespace

int64_t mutual_information_loss_workspace_bytes(int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                                int) {
  const Sizes sizes = make_sizes(views, batch, clusters, prototypes, 0);
  const Workspace parts(nullptr, sizes);
  return 4 * (sizes.row_blocks() + parts.terms + parts.pairs * clusters);
}

template <typename T>
void mutual_information_loss_softmaxes(const T* logits, const T* scores, float* y, float* u, float* guard_and_samples,
                                       float* workspace, int64_t views, int64_t batch, int64_t clusters,
                                       int64_t prototypes, int64_t width, double temperature, double logit_limit,
                                       bool symmetric, int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  const Sizes sizes = make_sizes(views, batch, clusters, prototypes, width);
  float* guards = Workspace(workspace, sizes).guards;
  launch<mutual_information_softmaxes_kernel<T>>(
      "launching mutual_information_loss", {2 * sizes.row_blocks(), kThreads}, place, logits, scores, y, u, guards,
      guard_and_samples ? guard_and_samples + 1 : nullptr, sizes, float(1 / temperature), float(logit_limit),
      symmetric ? 0.f : 1.f);
  // The guards are means over this batch: times its size, they can be added to those of others.
  if (guard_and_samples) launch_sum(guards, sizes.row_blocks(), float(batch), guard_and_samples, place);
}

void mutual_information_loss_entropies(float* joint, const float* guard_and_samples, float* loss, float* workspace,
                                       int64_t views, int64_t batch, int64_t clusters, int64_t prototypes,
                                       int64_t width, double entropy_weight, bool symmetric, int device,
                                       uintptr_t stream) {
  const DeviceGuard guard(device);
  const Place place{device, reinterpret_cast<cudaStream_t>(stream)};
  const Sizes sizes = make_sizes(views, batch, clusters, prototypes, width);
  const Workspace parts(workspace, sizes);
  const WholeBatch whole{guard_and_samples};
  const int64_t blocks = symmetric ? parts.pairs : entropy_blocks(sizes);
  if (symmetric) {
    launch<mutual_information_symmetric_kernel>("launching mutual_information_loss", {blocks, kThreads}, place, joint,
                                                parts.log_marginals, parts.entropies, sizes, whole,
                                                float(entropy_weight));
  } else {
    launch<mutual_information_entropies_kernel>("launching mutual_information_loss", {blocks, kThreads}, place, joint,
                                                parts.entropies, sizes, whole, groups_for(sizes.clusters),
                                                float(entropy_weight));
  }
  // The entropies lie behind the guards.
  if (guard_and_samples) return launch_sum(parts.entropies, blocks, 1, loss, place);
  launch_sum(parts.guards, sizes.row_blocks() + blocks, 1, loss, place);
}

template <typename T>
void mutual_information_loss_gradients(const T* logits, const float* y, const float* u, const float* dy,
                                       const float* du, const float* guard_and_samples, GradientOf<T>* logits_gradient,
                                       GradientOf<T>* scores_gradient, int64_t views, int64_t batch, int64_t clusters,
                                       int64_t prototypes, int64_t width, double temperature, double logit_limit,
                                       int device, uintptr_t stream) {
  const DeviceGuard guard(device);
  const Sizes sizes = make_sizes(views, batch, clusters, prototypes, width);
  const int inputs = (logits_gradient ? 1 : 0) + (scores_gradient ? 1 : 0);
  launch<mutual_information_gradients_kernel<T, GradientOf<T>>>(
      "launching mutual_information_loss", {inputs * sizes.row_blocks(), kThreads},
      {device, reinterpret_cast<cudaStream_t>(stream)}, logits, y, u, dy, du, logits_gradient, scores_gradient, sizes,
      WholeBatch{guard_and_samples}, float(1 / temperature), float(logit_limit));
}

IMC_INSTANTIATE_CUDA(mutual_information_loss_softmaxes)
IMC_INSTANTIATE_CUDA(mutual_information_loss_gradients)

}  // namespace imc::cuda
