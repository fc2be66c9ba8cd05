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

#include "instantiate.h"
#include "kernels.h"
#include "mutual_information_products.h"

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

// gradient = softmax backward of dp at p, times scale. The mean of dp under p is taken twice, the second time of what the
// first leaves: where p is 1 in one entry, the gradient there is what remains of dp less its mean, below the last digit
// of both, and p sums to 1 but for rounding.
template <typename T>
void softmax_backward(const T* p, const T* dp, T* gradient, int64_t n, T scale) {
  const T along = static_cast<T>(dot(p, dp, n));
  const T rest = static_cast<T>(sum_of<T>(n, [=](int64_t i) { return p[i] * (dp[i] - along); }));
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) gradient[i] = p[i] * ((dp[i] - along) - rest) * scale;
}

template <typename S, typename T = Number<S>>
void softmaxes(Problem<T>& p, const S* logits, const S* scores, T inverse_temperature) {
  const int threads = useful_threads(p.batch * p.all_prototypes, p.threads);
  Scratch<T> exponentials(threads * p.prototypes);
  const int64_t filled = p.all_prototypes % kWide;
  parallel_for(p.rows, threads, [&](int64_t sample, int worker) {
    T* last = &p.u[((p.prototype_panels - 1) * p.rows + sample) * kWide];
    for (int64_t k = filled; filled && k < kWide; ++k) last[k] = 0;
    if (sample >= p.batch) {
      for (int64_t panel = 0; panel < p.prototype_panels; ++panel)
        for (int64_t k = 0; k < kWide; ++k) p.u[(panel * p.rows + sample) * kWide + k] = 0;
      return;
    }
    T* e = &exponentials[worker * p.prototypes];
    for (int64_t view = 0; view < p.views; ++view) {
      const int64_t row = view * p.batch + sample;
      const T* x = numbers_of(scores + row * p.prototypes, e, p.prototypes);
      const T inverse = 1 / exp_row(x, e, p.prototypes, inverse_temperature);
      const int64_t next = view + 1 < p.views ? row + p.batch : sample + 1 < p.batch ? sample + 1 : row;
      p.for_pieces(sample, view, [&](int64_t k, T* out, int64_t n) {
        prefetch(scores + next * p.prototypes + k, n);
#pragma omp simd
        for (int64_t i = 0; i < n; ++i) out[i] = e[k + i] * inverse;
      });
      T* y = &p.y[sample * p.all_clusters + view * p.clusters];
      const T factor = 1 / exp_row(numbers_of(logits + row * p.clusters, y, p.clusters), y, p.clusters, T(1));
      for (int64_t c = 0; c < p.clusters; ++c) y[c] *= factor;
    }
  });
  pack_clusters(p);
}

// The sum of H(Y|U) over the first `count` columns of a panel of J, which are replaced by log(J / m).
template <typename T>
double conditional_entropy_panel(Problem<T>& p, int64_t first, int64_t count) {
  const T scale = T(1) / static_cast<T>(p.whole_batch);
  T log_m[kWide];
  for (int64_t k = 0; k < count; ++k) {
    T m = 0;
    for (int64_t c = 0; c < p.clusters; ++c) m += p.joint_at(c, first + k);
    log_m[k] = safe_log(m * scale);
  }
  double total = 0;
  for (int64_t panel = 0; panel < p.cluster_panels; ++panel) {
    T sums[kPanel<T>] = {};
    for (int64_t k = 0; k < count; ++k) {
      T* row = &p.joint[(panel * p.columns + first + k) * kPanel<T>];
#pragma omp simd
      for (int64_t c = 0; c < kPanel<T>; ++c) {
        const T joint = row[c] * scale;
        row[c] = safe_log(joint) - log_m[k];
        sums[c] -= joint * row[c];
      }
    }
    for (int64_t c = 0; c < kPanel<T>; ++c) total += sums[c];
  }
  return total;
}

// body(first column, columns, panel) for the panels of columns of J.
template <typename T, typename Body>
void for_panels(const Problem<T>& p, const Body& body) {
  const int threads = useful_threads(p.all_clusters * p.all_prototypes * p.batch / 16, p.threads);
  parallel_for(p.prototype_panels, threads, [&](int64_t panel, int) {
    const int64_t first = panel * kWide, left = p.all_prototypes - first;
    body(first, left < kWide ? left : kWide, panel);
  });
}

// The mean over the pairs of H(Y_j|U_i), or 0 and J as it is where that is not wanted; prepare(first column, columns,
// panel) leaves a panel of J.
template <typename T, typename Prepare>
double conditional_entropy(Problem<T>& p, bool wanted, const Prepare& prepare) {
  Scratch<double> entropies(p.prototype_panels);
  for_panels(p, [&](int64_t first, int64_t count, int64_t panel) {
    prepare(first, count, panel);
    entropies[panel] = wanted ? conditional_entropy_panel(p, first, count) : 0;
  });
  double total = 0;
  for (int64_t panel = 0; panel < p.prototype_panels; ++panel) total += entropies[panel];
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
  const double entropy = entropy_and_log(p.log_y.get(), p.all_clusters, T(1) / static_cast<T>(p.whole_batch));
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
    const int64_t row = pair / p.views * n, column = pair % p.views * n;
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t k = 0; k < n; ++k)
        log_j[c * n + k] = p.joint_at(row + c, column + k) + p.joint_at(row + k, column + c);
      log_m[c] = static_cast<T>(sum_of<T>(n, [&](int64_t k) { return log_j[c * n + k]; }));
    }
    total += entropy_and_log(log_j.get(), n * n, scale) - weight * entropy_and_log(log_m.get(), n, scale);
    for (int64_t c = 0; c < n; ++c)
      for (int64_t k = 0; k < n; ++k)
        p.joint_at(row + c, column + k) = log_j[c * n + k] - T(0.5) * weight * (log_m[c] + log_m[k]);
  }
  for (int64_t c = 0; c < p.all_clusters; ++c) p.log_y[c] = 0;  // the marginals' gradient is in the joint's
  return total / static_cast<double>(p.views * p.views);
}

// The sum of the logits' excess over the limit.
template <typename S>
double excess(const S* logits, int64_t n, double limit) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double magnitude = __builtin_fabs(static_cast<double>(number(logits[i])));
    total += magnitude > limit ? magnitude - limit : 0;
  }
  return total;
}

// The gradient of one sample's logits, d the product U G^T of its rows but for the factor -1 / V^2 batch.
template <typename S, typename T = Number<S>>
void sample_backward(Problem<T>& p, const S* logits, T* d, Gradient<S>* gradient, int64_t sample, T entropy_weight, T limit) {
  const T views = static_cast<T>(p.views), batch = static_cast<T>(p.whole_batch);
  const T pair_weight = T(-1) / (views * views * batch), marginal_weight = entropy_weight / (views * batch);
  const T guard_weight = T(kGuardWeight) / (views * batch);
  for (int64_t c = 0; c < p.all_clusters; ++c) d[c] = d[c] * pair_weight + p.log_y[c] * marginal_weight;
  for (int64_t view = 0; view < p.views; ++view) {
    const int64_t row = (view * p.batch + sample) * p.clusters, first = view * p.clusters;
    T* out = numbers_for(gradient + row, d + first);
    softmax_backward(&p.y[sample * p.all_clusters + first], d + first, out, p.clusters, T(1));
    for (int64_t c = 0; c < p.clusters; ++c) {
      const T logit = number(logits[row + c]);
      out[c] += logit > limit ? guard_weight : logit < -limit ? -guard_weight : T(0);
    }
    finish_row(out, gradient + row, p.clusters);
  }
}

template <typename S, typename T = Number<S>>
void logits_backward(Problem<T>& p, const S* logits, Gradient<S>* gradient, T entropy_weight, T limit) {
  const int64_t width = p.cluster_panels * kPanel<T>, tiles = p.rows / kTileRows;
  const int threads = useful_threads(p.rows * width * p.all_prototypes / 16, p.threads);
  const int64_t blocks = threads * ceil_div(p.rows, threads * kBlockRows);  // evenly over the threads
  const int64_t height = ceil_div(tiles, blocks) * kTileRows;
  LogitsProduct<T> product(p);
  Scratch<T> dy(p.rows * width);
  parallel_for(ceil_div(p.rows, height), threads, [&](int64_t block, int) {
    const int64_t begin = block * height, end = begin + height < p.rows ? begin + height : p.rows;
    product.multiply(begin, end, dy.get());
    for (int64_t sample = begin; sample < end && sample < p.batch; ++sample)
      sample_backward<S>(p, logits, &dy[sample * width], gradient, sample, entropy_weight, limit);
  });
}

template <typename Out, typename T>
void scores_backward(Problem<T>& p, Out* gradient, T inverse_temperature) {
  const T views = static_cast<T>(p.views), batch = static_cast<T>(p.whole_batch);
  const T scale = -inverse_temperature / (views * views * batch);
  Scratch<T> packed(packed_size<T>(p.all_clusters, p.all_prototypes)), du(p.batch * p.all_prototypes);
  pack_joint(p, packed.get());
  gemm(RowSource<T>{p.y.get(), p.all_clusters, nullptr}, packed.get(), du.get(), p.batch, p.all_prototypes,
       p.all_clusters, p.threads);
  const int threads = useful_threads(p.batch * p.all_prototypes, p.threads);
  Scratch<T> rows(threads * p.prototypes);
  parallel_for(p.batch, threads, [&](int64_t sample, int worker) {
    T* u = &rows[worker * p.prototypes];
    for (int64_t view = 0; view < p.views; ++view) {
      p.for_pieces(sample, view, [&](int64_t k, const T* piece, int64_t n) {
        for (int64_t i = 0; i < n; ++i) u[k + i] = piece[i];
      });
      T* d = &du[sample * p.all_prototypes + view * p.prototypes];
      Out* result = gradient + (view * p.batch + sample) * p.prototypes;
      T* out = numbers_for(result, d);
      softmax_backward(u, d, out, p.prototypes, scale);
      finish_row(out, result, p.prototypes);
    }
  });
}

// Everything after the sums.
template <typename S, typename T = Number<S>>
double finish(Problem<T>& p, const S* logits, Gradient<S>* logits_gradient, Gradient<S>* scores_gradient,
              double conditional, double temperature, double entropy_weight, double logit_limit, bool symmetric,
              double excess) {
  const T weight = static_cast<T>(entropy_weight);
  double loss = kGuardWeight * excess / static_cast<double>(p.views * p.whole_batch);
  loss += symmetric ? symmetric_loss(p, weight) : conditional - entropy_weight * cluster_entropy(p);
  if (logits_gradient) logits_backward<S>(p, logits, logits_gradient, weight, static_cast<T>(logit_limit));
  if (scores_gradient) scores_backward(p, scores_gradient, static_cast<T>(1 / temperature));
  return loss;
}

}  // namespace

template <typename S>
void mutual_information_loss(const S* logits, const S* scores, Number<S>* loss, Gradient<S>* logits_gradient,
                             Gradient<S>* scores_gradient, int64_t views, int64_t batch, int64_t clusters,
                             int64_t prototypes, double temperature, double entropy_weight, double logit_limit,
                             bool symmetric, int threads) {
  using T = Number<S>;
  Problem<T> p{views, batch, clusters, prototypes, batch, threads};
  softmaxes(p, logits, scores, static_cast<T>(1 / temperature));
  const double conditional =
      conditional_entropy(p, !symmetric, [&](int64_t, int64_t, int64_t panel) { joint_panel(p, panel); });
  cluster_sums(p);
  *loss = static_cast<T>(finish<S>(p, logits, logits_gradient, scores_gradient, conditional, temperature, entropy_weight,
                                logit_limit, symmetric, excess(logits, views * batch * clusters, logit_limit)));
}

// The sums of a process: J^T [V K, V C] and the sums of P, both times its batch, the guard's and the batch.
template <typename S>
void mutual_information_loss_sums(const S* logits, const S* scores, Number<S>* sums, int64_t views, int64_t batch,
                                  int64_t clusters, int64_t prototypes, double temperature, double logit_limit,
                                  int threads) {
  using T = Number<S>;
  Problem<T> p{views, batch, clusters, prototypes, batch, threads};
  softmaxes(p, logits, scores, static_cast<T>(1 / temperature));
  for_panels(p, [&](int64_t first, int64_t count, int64_t panel) {
    joint_panel(p, panel);
    for (int64_t k = first; k < first + count; ++k)
      for (int64_t c = 0; c < p.all_clusters; ++c) sums[k * p.all_clusters + c] = p.joint_at(c, k);
  });
  cluster_sums(p);
  T* rest = sums + p.all_clusters * p.all_prototypes;
  for (int64_t c = 0; c < p.all_clusters; ++c) rest[c] = p.log_y[c];
  rest[p.all_clusters] = static_cast<T>(excess(logits, views * batch * clusters, logit_limit));
  rest[p.all_clusters + 1] = static_cast<T>(batch);
}

template <typename S>
void mutual_information_loss_finish(const S* logits, const S* scores, Number<S>* sums, Number<S>* loss,
                                    Gradient<S>* logits_gradient, Gradient<S>* scores_gradient, int64_t views,
                                    int64_t batch, int64_t clusters, int64_t prototypes, double temperature,
                                    double entropy_weight, double logit_limit, bool symmetric, int threads) {
  using T = Number<S>;
  const T* rest = sums + views * clusters * views * prototypes;
  const int64_t whole_batch = static_cast<int64_t>(rest[views * clusters + 1]);
  Problem<T> p{views, batch, clusters, prototypes, whole_batch, threads};
  if (logits_gradient || scores_gradient) softmaxes(p, logits, scores, static_cast<T>(1 / temperature));
  const double conditional = conditional_entropy(p, !symmetric, [&](int64_t first, int64_t, int64_t) {
    for (int64_t k = first; k < first + kWide; ++k)
      for (int64_t c = 0; c < p.cluster_panels * kPanel<T>; ++c)
        p.joint_at(c, k) = k < p.all_prototypes && c < p.all_clusters ? sums[k * p.all_clusters + c] : T(0);
  });
  for (int64_t c = 0; c < p.all_clusters; ++c) p.log_y[c] = rest[c];
  *loss = static_cast<T>(finish<S>(p, logits, logits_gradient, scores_gradient, conditional, temperature, entropy_weight,
                                logit_limit, symmetric, static_cast<double>(rest[p.all_clusters])));
}

IMC_INSTANTIATE(mutual_information_loss)
IMC_INSTANTIATE_HALF(mutual_information_loss)
IMC_INSTANTIATE(mutual_information_loss_sums)
IMC_INSTANTIATE(mutual_information_loss_finish)

}  // namespace imc::IMC_ISA
