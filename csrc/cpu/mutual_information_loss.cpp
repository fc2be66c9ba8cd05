// Mutual information over all V x V view pairs at once. With P [batch, V C] and U [batch, V K] the softmaxes of all
// views side by side, every joint distribution is a block of one product, J = P^T U / batch, and with m its sum over the
// clusters of one view (the marginal of U)
//   H(Y|U) = -sum J log(J / m),   loss = mean_ji H(Y_j|U_i) - b mean_j H(Y_j)  (+ guard).
// Backward, each through its softmax, which removes constants: dL/dP = U G^T + b log(mean P) / V batch and dL/dU = P G,
// G = -log(J / m) / V^2 batch. The logarithms of conditional probabilities also keep the sums small in float32: with
// log J in their place the gradient lost a digit.
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
  int threads;
  int64_t all_clusters = views * clusters, all_prototypes = views * prototypes;
  Scratch<T> y{batch * all_clusters};                          // P [batch, V C]
  Scratch<T> u{packed_size<T>(batch, all_prototypes)};         // U [batch, V K], packed as the right side of P^T U
  Scratch<T> joint{all_clusters * all_prototypes};             // J [V C, V K] times batch, then log(J / m)
  Scratch<T> log_y{all_clusters};                              // log of the clusters' marginals
  T& u_at(int64_t sample, int64_t column) {
    constexpr int width = kPanel<T>;
    return u[(column / width * batch + sample) * width + column % width];
  }
};

template <typename T>
void softmaxes(Problem<T>& p, const T* logits, const T* scores, T inverse_temperature) {
  constexpr int width = kPanel<T>;
  const int threads = useful_threads(p.batch * p.all_prototypes, p.threads);
  Scratch<T> rows(threads * p.prototypes);
  const int64_t padded = ceil_div(p.all_prototypes, width) * width;
  parallel_for(p.batch, threads, [&](int64_t sample, int worker) {
    T* row = &rows[worker * p.prototypes];
    for (int64_t view = 0; view < p.views; ++view) {
      T* y = &p.y[sample * p.all_clusters + view * p.clusters];
      const T y_scale = 1 / exp_row(logits + (view * p.batch + sample) * p.clusters, y, p.clusters, T(1));
      for (int64_t c = 0; c < p.clusters; ++c) y[c] *= y_scale;
      const T* source = scores + (view * p.batch + sample) * p.prototypes;
      const T u_scale = 1 / exp_row(source, row, p.prototypes, inverse_temperature);
      for (int64_t k = 0; k < p.prototypes;) {  // one run per panel
        const int64_t column = view * p.prototypes + k;
        const int64_t room = width - column % width;
        const int64_t run = room < p.prototypes - k ? room : p.prototypes - k;
        T* out = &p.u_at(sample, column);
        for (int64_t j = 0; j < run; ++j) out[j] = row[k + j] * u_scale;
        k += run;
      }
    }
    for (int64_t column = p.all_prototypes; column < padded; ++column) p.u_at(sample, column) = 0;
  });
}

// Mean over the views of H(Y_j), and their logarithms.
template <typename T>
double cluster_entropy(Problem<T>& p) {
  Scratch<double> sums(p.all_clusters);
  for (int64_t c = 0; c < p.all_clusters; ++c) sums[c] = 0;
  for (int64_t sample = 0; sample < p.batch; ++sample)
    for (int64_t c = 0; c < p.all_clusters; ++c) sums[c] += p.y[sample * p.all_clusters + c];
  for (int64_t c = 0; c < p.all_clusters; ++c) p.log_y[c] = static_cast<T>(sums[c]);
  const double entropy = entropy_and_log(p.log_y.get(), p.all_clusters, T(1) / static_cast<T>(p.batch));
  return entropy / static_cast<double>(p.views);
}

// Mean over the pairs of H(Y_j|U_i); the joint is replaced by log(J / m).
template <typename T>
double conditional_entropy(Problem<T>& p) {
  const T scale = T(1) / static_cast<T>(p.batch);
  const int threads = useful_threads(p.all_clusters * p.all_prototypes, p.threads);
  Scratch<T> log_m(p.all_prototypes);
  for (int64_t k = 0; k < p.all_prototypes; ++k) log_m[k] = 0;
  for (int64_t c = 0; c < p.clusters; ++c)
    for (int64_t k = 0; k < p.all_prototypes; ++k) log_m[k] += p.joint[c * p.all_prototypes + k];
  entropy_and_log(log_m.get(), p.all_prototypes, scale);
  Scratch<double> entropies(p.all_clusters);
  parallel_for(p.all_clusters, threads, [&](int64_t row, int) {
    double sum = 0;
    for (int64_t view = 0; view < p.views; ++view) {
      const int64_t first = view * p.prototypes;
      sum += conditional_entropy_and_log(&p.joint[row * p.all_prototypes + first], &log_m[first], p.prototypes, scale);
    }
    entropies[row] = sum;
  });
  double total = 0;
  for (int64_t row = 0; row < p.all_clusters; ++row) total += entropies[row];
  return total / static_cast<double>(p.views * p.views);
}

// The symmetric form, J = (J_ji + J_ji^T) / 2 with the marginal m: mean over the pairs of H(J) - (1 + b) H(m). The joint is
// replaced by log J - (1 + b) / 2 (log m_c + log m_k), minus the gradient with respect to J_ji but for a constant.
template <typename T>
double symmetric_loss(Problem<T>& p, T entropy_weight) {
  const int64_t n = p.clusters;
  const T scale = T(0.5) / static_cast<T>(p.batch), weight = 1 + entropy_weight;
  Scratch<T> log_j(n * n), log_m(n);
  double total = 0;
  for (int64_t pair = 0; pair < p.views * p.views; ++pair) {
    T* joint = &p.joint[(pair / p.views * n) * p.all_prototypes + pair % p.views * n];
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t k = 0; k < n; ++k) log_j[c * n + k] = joint[c * p.all_prototypes + k] + joint[k * p.all_prototypes + c];
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

template <typename T>
double guard(const T* logits, int64_t rows, int64_t clusters, double limit) {
  double total = 0;
  for (int64_t i = 0; i < rows * clusters; ++i) {
    const double magnitude = __builtin_fabs(static_cast<double>(logits[i]));
    total += magnitude > limit ? magnitude - limit : 0;
  }
  return kGuardWeight * total / static_cast<double>(rows);
}

template <typename T>
void logits_backward(Problem<T>& p, const T* logits, T* gradient, T entropy_weight, T limit) {
  const T views = static_cast<T>(p.views), batch = static_cast<T>(p.batch);
  const T pair_weight = T(-1) / (views * views * batch), marginal_weight = entropy_weight / (views * batch);
  const T guard_weight = T(kGuardWeight) / (views * batch);
  Scratch<T> packed(packed_size<T>(p.all_prototypes, p.all_clusters)), dy(p.batch * p.all_clusters);
  pack_columns<T>(p.joint.get(), nullptr, p.all_prototypes, p.all_clusters, packed.get(), p.threads);
  gemm(PanelSource<T>{p.u.get(), p.batch}, packed.get(), dy.get(), p.batch, p.all_clusters, p.all_prototypes,
       p.threads);
  for (int64_t sample = 0; sample < p.batch; ++sample)
    for (int64_t view = 0; view < p.views; ++view) {
      T* d = &dy[sample * p.all_clusters + view * p.clusters];
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
  const T views = static_cast<T>(p.views), batch = static_cast<T>(p.batch);
  const T scale = -inverse_temperature / (views * views * batch);
  Scratch<T> packed(packed_size<T>(p.all_clusters, p.all_prototypes)), du(p.batch * p.all_prototypes);
  pack_rows<T>(p.joint.get(), nullptr, p.all_clusters, p.all_prototypes, packed.get(), p.threads);
  gemm(RowSource<T>{p.y.get(), p.all_clusters, nullptr}, packed.get(), du.get(), p.batch, p.all_prototypes,
       p.all_clusters, p.threads);
  const int threads = useful_threads(p.batch * p.all_prototypes, p.threads);
  Scratch<T> rows(threads * p.prototypes);
  parallel_for(p.batch, threads, [&](int64_t sample, int worker) {
    T* u = &rows[worker * p.prototypes];
    for (int64_t view = 0; view < p.views; ++view) {
      const int64_t first = view * p.prototypes;
      for (int64_t k = 0; k < p.prototypes; ++k) u[k] = p.u_at(sample, first + k);
      softmax_backward(u, &du[sample * p.all_prototypes + first],
                       gradient + (view * p.batch + sample) * p.prototypes, p.prototypes, scale);
    }
  });
}

}  // namespace

template <typename T>
void mutual_information_loss(const T* logits, const T* scores, T* loss, T* logits_gradient, T* scores_gradient,
                             int64_t views, int64_t batch, int64_t clusters, int64_t prototypes, double temperature,
                             double entropy_weight, double logit_limit, bool symmetric, int threads) {
  Problem<T> p{views, batch, clusters, prototypes, threads};
  const T inverse_temperature = static_cast<T>(1 / temperature), limit = static_cast<T>(logit_limit);
  softmaxes(p, logits, scores, inverse_temperature);
  gemm(TransposedSource<T>{p.y.get(), p.all_clusters}, p.u.get(), p.joint.get(), p.all_clusters, p.all_prototypes,
       batch, threads);
  const double information = symmetric ? symmetric_loss(p, static_cast<T>(entropy_weight))
                                       : conditional_entropy(p) - entropy_weight * cluster_entropy(p);
  *loss = static_cast<T>(information + guard(logits, views * batch, clusters, logit_limit));
  if (logits_gradient) logits_backward(p, logits, logits_gradient, static_cast<T>(entropy_weight), limit);
  if (scores_gradient) scores_backward(p, scores_gradient, inverse_temperature);
}

IMC_INSTANTIATE(mutual_information_loss)

}  // namespace imc::IMC_ISA
