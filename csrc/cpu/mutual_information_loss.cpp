// Mutual information over all V x V view pairs at once. With P [batch, V C] and U [batch, V K] the softmaxes of all
// views side by side, every joint distribution is a block of one product, J = P^T U / batch, and with m its sum over
// the clusters of one view (the marginal of U)
//   H(Y|U) = -sum J log(J / m),   loss = mean_ji H(Y_j|U_i) - b mean_j H(Y_j)  (+ guard).
// Backward, each through its softmax, which removes constants: dL/dP = U G^T + b log(mean P) / V batch and dL/dU = P G,
// G = -log(J / m) / V^2 batch. The logarithms of conditional probabilities also keep the sums small in float32: with
// log J in their place the gradient lost a digit.
//
// A batch spread over processes: J times batch, the sums of P and that of the guard are added up over the processes
// between the products (imc_kernels/ops/distributed/mutual_information_loss.py).
#include <cstdint>

#include "gemm.h"
#include "instantiate.h"
#include "kernels.h"

namespace imc::IMC_ISA {

namespace {

constexpr double kGuardWeight = 0.01;

template <typename T>
T safe_log(T x) {
  return log_normal(x < smallest_normal(T()) ? smallest_normal(T()) : x);
}

// Returns -sum p log p of p = scale x, with 0 log 0 = 0, and replaces x by log p.
template <typename T>
double entropy_and_log(T* x, int64_t n, T scale) {
  return sum_of<T>(n, [=](int64_t i) {
    const T p = x[i] * scale;
    x[i] = safe_log(p);
    return -p * x[i];
  });
}

// The same for -sum p log(p / m), given log m; x is replaced by log(p / m).
template <typename T>
double conditional_entropy_and_log(T* x, const T* log_m, int64_t n, T scale) {
  return sum_of<T>(n, [=](int64_t i) {
    const T p = x[i] * scale;
    x[i] = safe_log(p) - log_m[i];
    return -p * x[i];
  });
}

// gradient = softmax backward of dp at p, times scale
template <typename T>
void softmax_backward(const T* p, const T* dp, T* gradient, int64_t n, T scale) {
  const T along = static_cast<T>(dot(p, dp, n));
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) gradient[i] = p[i] * (dp[i] - along) * scale;
}

// The sizes, and the buffers that the steps hand on.
template <typename T>
struct Problem {
  int64_t views, batch, clusters, prototypes;
  int64_t whole_batch;  // of all processes
  int threads;
  T* joint;  // J [V C, V K] times whole_batch, then log(J / m)
  T* log_y;  // [V C] sums of P, then the logarithms of its means
  int64_t all_clusters = views * clusters, all_prototypes = views * prototypes;
  Scratch<T> y{batch * all_clusters};    // P [batch, V C]
  Scratch<T> u{batch * all_prototypes};  // U [batch, V K]
};

// p = softmax(scale x)
template <typename T>
void softmax(const T* x, T* p, int64_t n, T scale) {
  const T inverse = 1 / exp_row(x, p, n, scale);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) p[i] *= inverse;
}

template <typename T>
void softmaxes(Problem<T>& p, const T* logits, const T* scores, T inverse_temperature) {
  parallel_for(p.batch, useful_threads(p.batch * p.all_prototypes, p.threads), [&](int64_t sample, int) {
    for (int64_t view = 0; view < p.views; ++view) {
      const int64_t row = view * p.batch + sample;
      softmax(logits + row * p.clusters, &p.y[sample * p.all_clusters + view * p.clusters], p.clusters, T(1));
      softmax(scores + row * p.prototypes, &p.u[sample * p.all_prototypes + view * p.prototypes], p.prototypes,
              inverse_temperature);
    }
  });
}

// A block of columns of J: the product, in slices of the batch that stay in the L2 cache while they are packed.
template <typename T>
void joint_block(Problem<T>& p, int64_t first, int64_t columns, T* packed, T* tile) {
  for (int64_t sample = 0; sample < p.batch; sample += kDepth) {
    const int64_t slice = p.batch - sample < kDepth ? p.batch - sample : kDepth;
    pack_block<T>(&p.u[sample * p.all_prototypes + first], p.all_prototypes, slice, columns, packed);
    const TransposedSource<T> y{&p.y[sample * p.all_clusters], p.all_clusters};
    for (int64_t row = 0; row < p.all_clusters; row += kBlockRows)
      multiply_block(y, row, p.all_clusters - row < kBlockRows ? p.all_clusters - row : kBlockRows, packed, slice,
                     columns, slice, &p.joint[row * p.all_prototypes + first], p.all_prototypes, sample > 0, tile);
  }
}

// The sum of H(Y|U) over a block of columns of J, which is replaced by log(J / m).
template <typename T>
double conditional_entropy_block(Problem<T>& p, int64_t first, int64_t columns) {
  const T scale = T(1) / static_cast<T>(p.whole_batch);
  T log_m[kBlockPanels * kPanel<T>] = {};
  for (int64_t c = 0; c < p.clusters; ++c)
    for (int64_t k = 0; k < columns; ++k) log_m[k] += p.joint[c * p.all_prototypes + first + k];
  entropy_and_log(log_m, columns, scale);
  double sum = 0;
  for (int64_t row = 0; row < p.all_clusters; ++row)
    sum += conditional_entropy_and_log(&p.joint[row * p.all_prototypes + first], log_m, columns, scale);
  return sum;
}

// body(first column, columns, item, worker's scratch) for blocks of columns of J.
template <typename T, typename Body>
void for_joint_blocks(const Problem<T>& p, const Body& body) {
  constexpr int64_t block = kBlockPanels * kPanel<T>, scratch_size = block * kDepth + kTileSize;
  const int threads = useful_threads(p.all_clusters * p.all_prototypes * p.batch / 16, p.threads);
  Scratch<T> scratch(threads * scratch_size);
  for (int64_t i = 0; i < threads * scratch_size; ++i) scratch[i] = 0;
  parallel_for(ceil_div(p.all_prototypes, block), threads, [&](int64_t item, int worker) {
    const int64_t first = item * block, left = p.all_prototypes - first;
    body(first, left < block ? left : block, item, &scratch[worker * scratch_size]);
  });
}

enum class Joint { sums, entropies, both };

// J, the mean over the pairs of H(Y_j|U_i) from it, or one after the other while a block is in the cache.
template <typename T>
double joint_distributions(Problem<T>& p, Joint wanted) {
  constexpr int64_t block = kBlockPanels * kPanel<T>;
  const int64_t blocks = ceil_div(p.all_prototypes, block);
  Scratch<double> entropies(blocks);
  for_joint_blocks(p, [&](int64_t first, int64_t columns, int64_t item, T* scratch) {
    if (wanted != Joint::entropies) joint_block(p, first, columns, scratch, scratch + block * kDepth);
    entropies[item] = wanted == Joint::sums ? 0 : conditional_entropy_block(p, first, columns);
  });
  double total = 0;
  for (int64_t item = 0; item < blocks; ++item) total += entropies[item];
  return total / static_cast<double>(p.views * p.views);
}

template <typename T>
void cluster_sums(Problem<T>& p) {
  Scratch<double> sums(p.all_clusters);
  for (int64_t c = 0; c < p.all_clusters; ++c) sums[c] = 0;
  for (int64_t sample = 0; sample < p.batch; ++sample)
    for (int64_t c = 0; c < p.all_clusters; ++c) sums[c] += p.y[sample * p.all_clusters + c];
  for (int64_t c = 0; c < p.all_clusters; ++c) p.log_y[c] = static_cast<T>(sums[c]);
}

// Mean over the views of H(Y_j), and their logarithms.
template <typename T>
double cluster_entropy(Problem<T>& p) {
  const double entropy = entropy_and_log(p.log_y, p.all_clusters, T(1) / static_cast<T>(p.whole_batch));
  return entropy / static_cast<double>(p.views);
}

// The symmetric form, J = (J_ji + J_ji^T) / 2 with the marginal m: mean over the pairs of H(J) - (1 + b) H(m). The
// joint is replaced by log J - (1 + b) / 2 (log m_c + log m_k), minus the gradient with respect to J_ji but for a
// constant.
template <typename T>
double symmetric_loss(Problem<T>& p, T entropy_weight) {
  const int64_t n = p.clusters;
  const T scale = T(0.5) / static_cast<T>(p.whole_batch), weight = 1 + entropy_weight;
  Scratch<T> log_j(n * n), log_m(n);
  double total = 0;
  for (int64_t pair = 0; pair < p.views * p.views; ++pair) {
    T* joint = &p.joint[(pair / p.views * n) * p.all_prototypes + pair % p.views * n];
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t k = 0; k < n; ++k)
        log_j[c * n + k] = joint[c * p.all_prototypes + k] + joint[k * p.all_prototypes + c];
      log_m[c] = static_cast<T>(sum_of<T>(n, [&](int64_t k) { return log_j[c * n + k]; }));
    }
    total += entropy_and_log(log_j.get(), n * n, scale) - weight * entropy_and_log(log_m.get(), n, scale);
    for (int64_t c = 0; c < n; ++c)
      for (int64_t k = 0; k < n; ++k)
        joint[c * p.all_prototypes + k] = log_j[c * n + k] - T(0.5) * weight * (log_m[c] + log_m[k]);
  }
  for (int64_t c = 0; c < p.all_clusters; ++c) p.log_y[c] = 0;  // the marginals' gradient is in the joint's
  return total / static_cast<double>(p.views * p.views);
}

// The sum of the logits' excess over the limit.
template <typename T>
double excess(const T* logits, int64_t n, double limit) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double magnitude = __builtin_fabs(static_cast<double>(logits[i]));
    total += magnitude > limit ? magnitude - limit : 0;
  }
  return total;
}

template <typename T>
void logits_backward(Problem<T>& p, const T* logits, T* gradient, T entropy_weight, T limit) {
  const T views = static_cast<T>(p.views), batch = static_cast<T>(p.whole_batch);
  const T pair_weight = T(-1) / (views * views * batch), marginal_weight = entropy_weight / (views * batch);
  const T guard_weight = T(kGuardWeight) / (views * batch);
  const int64_t width = ceil_div(p.all_clusters, kPanel<T>) * kPanel<T>;  // whole panels: no edge in the product
  Scratch<T> packed(packed_size<T>(p.all_prototypes, p.all_clusters)), dy(p.batch * width);
  pack_columns<T>(p.joint, nullptr, p.all_prototypes, p.all_clusters, packed.get(), p.threads);
  gemm(RowSource<T>{p.u.get(), p.all_prototypes, nullptr}, packed.get(), dy.get(), p.batch, width,
       p.all_prototypes, p.threads);
  for (int64_t sample = 0; sample < p.batch; ++sample)
    for (int64_t view = 0; view < p.views; ++view) {
      T* d = &dy[sample * width + view * p.clusters];
      for (int64_t c = 0; c < p.clusters; ++c)
        d[c] = d[c] * pair_weight + p.log_y[view * p.clusters + c] * marginal_weight;
      const int64_t row = (view * p.batch + sample) * p.clusters;
      softmax_backward(&p.y[sample * p.all_clusters + view * p.clusters], d, gradient + row, p.clusters, T(1));
      for (int64_t c = 0; c < p.clusters; ++c) {
        const T logit = logits[row + c];
        gradient[row + c] += logit > limit ? guard_weight : logit < -limit ? -guard_weight : T(0);
      }
    }
}

template <typename T>
void scores_backward(Problem<T>& p, T* gradient, T inverse_temperature) {
  const T views = static_cast<T>(p.views), batch = static_cast<T>(p.whole_batch);
  const T scale = -inverse_temperature / (views * views * batch);
  Scratch<T> packed(packed_size<T>(p.all_clusters, p.all_prototypes)), du(p.batch * p.all_prototypes);
  pack_rows<T>(p.joint, nullptr, p.all_clusters, p.all_prototypes, packed.get(), p.threads);
  gemm(RowSource<T>{p.y.get(), p.all_clusters, nullptr}, packed.get(), du.get(), p.batch, p.all_prototypes,
       p.all_clusters, p.threads);
  parallel_for(p.batch, useful_threads(p.batch * p.all_prototypes, p.threads), [&](int64_t sample, int) {
    for (int64_t view = 0; view < p.views; ++view) {
      const int64_t first = sample * p.all_prototypes + view * p.prototypes;
      softmax_backward(&p.u[first], &du[first], gradient + (view * p.batch + sample) * p.prototypes, p.prototypes,
                       scale);
    }
  });
}

// Everything after the sums.
template <typename T>
double finish(Problem<T>& p, const T* logits, T* logits_gradient, T* scores_gradient, double conditional,
              double temperature, double entropy_weight, double logit_limit, bool symmetric, double excess) {
  const T weight = static_cast<T>(entropy_weight);
  double loss = kGuardWeight * excess / static_cast<double>(p.views * p.whole_batch);
  loss += symmetric ? symmetric_loss(p, weight) : conditional - entropy_weight * cluster_entropy(p);
  if (logits_gradient) logits_backward(p, logits, logits_gradient, weight, static_cast<T>(logit_limit));
  if (scores_gradient) scores_backward(p, scores_gradient, static_cast<T>(1 / temperature));
  return loss;
}

}  // namespace

template <typename T>
void mutual_information_loss(const T* logits, const T* scores, T* loss, T* logits_gradient, T* scores_gradient,
                             int64_t views, int64_t batch, int64_t clusters, int64_t prototypes, double temperature,
                             double entropy_weight, double logit_limit, bool symmetric, int threads) {
  Scratch<T> joint(views * clusters * views * prototypes), log_y(views * clusters);
  Problem<T> p{views, batch, clusters, prototypes, batch, threads, joint.get(), log_y.get()};
  softmaxes(p, logits, scores, static_cast<T>(1 / temperature));
  const double conditional = joint_distributions(p, symmetric ? Joint::sums : Joint::both);
  cluster_sums(p);
  *loss = static_cast<T>(finish(p, logits, logits_gradient, scores_gradient, conditional, temperature, entropy_weight,
                                logit_limit, symmetric, excess(logits, views * batch * clusters, logit_limit)));
}

template <typename T>
void mutual_information_loss_sums(const T* logits, const T* scores, T* sums, int64_t views, int64_t batch,
                                  int64_t clusters, int64_t prototypes, double temperature, double logit_limit,
                                  int threads) {
  const int64_t joint_size = views * clusters * views * prototypes;
  T* log_y = sums + joint_size;
  Problem<T> p{views, batch, clusters, prototypes, batch, threads, sums, log_y};
  softmaxes(p, logits, scores, static_cast<T>(1 / temperature));
  joint_distributions(p, Joint::sums);
  cluster_sums(p);
  log_y[views * clusters] = static_cast<T>(excess(logits, views * batch * clusters, logit_limit));
  log_y[views * clusters + 1] = static_cast<T>(batch);
}

template <typename T>
void mutual_information_loss_finish(const T* logits, const T* scores, T* sums, T* loss, T* logits_gradient,
                                    T* scores_gradient, int64_t views, int64_t batch, int64_t clusters,
                                    int64_t prototypes, double temperature, double entropy_weight, double logit_limit,
                                    bool symmetric, int threads) {
  T* log_y = sums + views * clusters * views * prototypes;
  const int64_t whole_batch = static_cast<int64_t>(log_y[views * clusters + 1]);
  Problem<T> p{views, batch, clusters, prototypes, whole_batch, threads, sums, log_y};
  if (logits_gradient || scores_gradient) softmaxes(p, logits, scores, static_cast<T>(1 / temperature));
  const double conditional = symmetric ? 0 : joint_distributions(p, Joint::entropies);
  *loss = static_cast<T>(finish(p, logits, logits_gradient, scores_gradient, conditional, temperature, entropy_weight,
                                logit_limit, symmetric, static_cast<double>(log_y[views * clusters])));
}

IMC_INSTANTIATE(mutual_information_loss)
IMC_INSTANTIATE(mutual_information_loss_sums)
IMC_INSTANTIATE(mutual_information_loss_finish)

}  // namespace imc::IMC_ISA
