// The contrastive loss of CRLC in time linear in the batch: with the critic log(q_i . q_j) the sum over all other rows
// is one product with their sum. Over the N rows of both views of a head, with S_i the sum of all rows but i,
//   d_i = q_i . S_i,   r_i = q_i . q_pair(i),   loss = mean_i [log d_i - log r_i],
//   dL/dq_i = (S_i / d_i + sum_{j != i} q_j / d_j - 2 q_pair(i) / r_i) / N.
// Three sweeps over blocks of kBlock samples: softmax and the parts of S and of the mean prediction; d, r, the loss and
// the parts of sum q / d; the gradient. A head has few clusters, so a block lies transposed, [cluster][sample], and
// vectors run over samples. Parts are added in the order of the blocks: bitwise the same for any number of threads.
// Heads pass in groups, so that only a group's predictions are kept.
//
// A batch spread over processes runs the sweeps one call at a time: between them the callers exchange the sums of each
// head and cluster (imc_kernels/ops/distributed/log_dot_product_loss.py).
#include <cstdint>

#include "elements.h"
#include "instantiate.h"
#include "kernels.h"
#include "parallel.h"
#include "peak_and_rest.h"
#include "rows.h"
#include "sample_blocks.h"

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kGroupLogits = int64_t(1) << 22;  // as many heads as fit; one at least
constexpr double kGuardWeight = 0.01;

template <typename T>
T safe_log(T x) {
  return log_normal(x < smallest_normal(T()) ? smallest_normal(T()) : x);
}

struct PerView {
  double views[2];

  void add(const PerView& other) {
    for (int64_t view = 0; view < 2; ++view) views[view] += other.views[view];
  }
};

// What a head's rows have in common, for one cluster.
template <typename T>
struct ClusterSums {
  PeakAndRest<T> q, q_over_d;
  PerView mean;  // the sum of the unsmoothed predictions, at last the gradient of the entropy term
};

template <typename S>
struct Problem {
  using T = Number<S>;
  const S* logits;
  Gradient<S>* gradient;
  int64_t heads, batch, clusters;
  double smoothing, entropy_weight, limit;
  int64_t whole_batch = batch;  // of all processes
  int64_t blocks = ceil_div(batch, kBlock), matrix = clusters * kBlock;
  T inverse_rows = T(1) / static_cast<T>(2 * whole_batch);
  Scratch<T> p{heads * blocks * 2 * matrix}, q{heads * blocks * 2 * matrix};  // [head, block, view, cluster, sample]
  Scratch<T> weights{heads * blocks * 3 * kBlock};            // 1 / N d for both views and 2 / N r of each sample
  Scratch<ClusterSums<T>> parts{heads * blocks * clusters};
  Scratch<ClusterSums<T>> sums{heads * clusters};
  Scratch<double> losses{heads * blocks};

  bool guarded() const { return limit < __builtin_inf(); }
  ClusterSums<T>& part(int64_t head, int64_t block, int64_t c) { return parts[(head * blocks + block) * clusters + c]; }
};

// One block of samples of one head.
template <typename S>
struct Block {
  using T = Number<S>;
  Problem<S>& problem;
  int64_t item, head = item / problem.blocks, first = item % problem.blocks * kBlock;
  int64_t filled = problem.batch - first < kBlock ? problem.batch - first : kBlock;

  T* p(int64_t view) const { return &problem.p[(item * 2 + view) * problem.matrix]; }
  T* q(int64_t view) const { return &problem.q[(item * 2 + view) * problem.matrix]; }
  T* weights(int64_t which) const { return &problem.weights[(item * 3 + which) * kBlock]; }
  ClusterSums<T>* parts() const { return &problem.parts[item * problem.clusters]; }
  const ClusterSums<T>* sums() const { return &problem.sums[head * problem.clusters]; }
  int64_t offset(int64_t view) const { return ((head * 2 + view) * problem.batch + first) * problem.clusters; }
};

// Sum of the squared excess of |x| over the limit, halved.
template <typename T>
double guard(const T* x, int64_t n, T limit) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    const T beyond = (x[i] < 0 ? -x[i] : x[i]) - limit;
    const double excess = static_cast<double>(beyond > 0 ? beyond : T(0));
    sum += excess * excess / 2;
  }
  return sum;
}

// p, on entry the transposed logits, becomes their softmax, and q the smoothed one. Both are 0 past the last sample.
template <typename S, typename T = Number<S>>
void softmax(const Block<S>& block, T* p, T* q) {
  const int64_t clusters = block.problem.clusters;
  const T keep = static_cast<T>(1 - block.problem.smoothing);
  const T uniform = static_cast<T>(block.problem.smoothing / static_cast<double>(clusters));
  T high[kBlock], low[kBlock], sum[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) high[i] = low[i] = p[i];
  for (int64_t c = 1; c < clusters; ++c)
    for (int64_t i = 0; i < kBlock; ++i) {
      const T x = p[c * kBlock + i];
      high[i] = x > high[i] ? x : high[i];
      low[i] = x < low[i] ? x : low[i];
    }
  for (int64_t i = 0; i < kBlock; ++i) sum[i] = low[i] - low[i];  // an infinity makes a row NaN, see exp_row
  for (int64_t c = 0; c < clusters; ++c) {
    T* e = p + c * kBlock;
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      e[i] = exp_gradual(e[i] - high[i]);  // a dot product counts down to the smallest normal number
      sum[i] += e[i];
    }
  }
  T filled[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    sum[i] = i < block.filled ? 1 / sum[i] : T(0);
    filled[i] = i < block.filled ? uniform : T(0);
  }
  for (int64_t c = 0; c < clusters; ++c) {
    T *e = p + c * kBlock, *smoothed = q + c * kBlock;
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      e[i] *= sum[i];
      smoothed[i] = keep * e[i] + filled[i];
    }
  }
}

// Softmax, and the block's parts of the sums over a head.
template <typename S>
void predict(const Block<S>& block) {
  using T = Number<S>;
  Problem<S>& problem = block.problem;
  double excess = 0;
  for (int64_t view = 0; view < 2; ++view) {
    load_block(problem.logits + block.offset(view), block.p(view), block.filled, problem.clusters);
    if (problem.guarded()) excess += guard(block.p(view), problem.matrix, static_cast<T>(problem.limit));
    softmax(block, block.p(view), block.q(view));
  }
  problem.losses[block.item] = kGuardWeight * excess;
  for (int64_t c = 0; c < problem.clusters; ++c) {
    ClusterSums<T>& part = block.parts()[c];
    part.q = peak_and_rest<kBlock>(block.q(0) + c * kBlock, block.q(1) + c * kBlock);
    for (int64_t view = 0; view < 2; ++view) part.mean.views[view] = sum_block(block.p(view) + c * kBlock);
  }
}

// d, r, the block's part of the loss and, where a gradient is wanted, of the sum of q / N d.
template <typename S>
void compare(const Block<S>& block) {
  using T = Number<S>;
  Problem<S>& problem = block.problem;
  T d[2][kBlock] = {}, r[kBlock] = {}, terms[kBlock];
  for (int64_t c = 0; c < problem.clusters; ++c) {
    const T *x = block.q(0) + c * kBlock, *y = block.q(1) + c * kBlock;
    const T peak = block.sums()[c].q.peak, rest = static_cast<T>(block.sums()[c].q.rest);
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      d[0][i] += x[i] * ((peak - x[i]) + rest);
      d[1][i] += y[i] * ((peak - y[i]) + rest);
      r[i] += x[i] * y[i];
    }
  }
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) {
    const T log_r = safe_log(r[i]);
    terms[i] = (safe_log(d[0][i]) - log_r) + (safe_log(d[1][i]) - log_r);
  }
  for (int64_t i = block.filled; i < kBlock; ++i) terms[i] = 0;
  problem.losses[block.item] += sum_block(terms);
  if (!problem.gradient) return;
  T *wx = block.weights(0), *wy = block.weights(1), *wr = block.weights(2);
  for (int64_t i = 0; i < kBlock; ++i) {  // a logarithm taken of the smallest normal number has no gradient
    wx[i] = d[0][i] < smallest_normal(T()) ? T(0) : problem.inverse_rows / d[0][i];
    wy[i] = d[1][i] < smallest_normal(T()) ? T(0) : problem.inverse_rows / d[1][i];
    wr[i] = r[i] < smallest_normal(T()) ? T(0) : 2 * problem.inverse_rows / r[i];
  }
  for (int64_t c = 0; c < problem.clusters; ++c) {
    const T *x = block.q(0) + c * kBlock, *y = block.q(1) + c * kBlock;
    T over_x[kBlock], over_y[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) {
      over_x[i] = x[i] * wx[i];
      over_y[i] = y[i] * wy[i];
    }
    block.parts()[c].q_over_d = peak_and_rest<kBlock>(over_x, over_y);
  }
}

// The gradient of the block's samples; dp is scratch of the size of one view's block, spare the same for its logits.
template <typename S, typename T = Number<S>>
void differentiate(const Block<S>& block, T* dp, T* spare) {
  const Problem<S>& problem = block.problem;
  const T keep = static_cast<T>(1 - problem.smoothing), limit = static_cast<T>(problem.limit);
  const T guard_weight = static_cast<T>(kGuardWeight) * problem.inverse_rows;
  const T* wr = block.weights(2);
  for (int64_t view = 0; view < 2; ++view) {
    const T *p = block.p(view), *q = block.q(view), *pair = block.q(1 - view), *w = block.weights(view);
    T along[kBlock] = {};
    for (int64_t c = 0; c < problem.clusters; ++c) {
      const ClusterSums<T>& sums = block.sums()[c];
      const T peak = sums.q.peak, rest = static_cast<T>(sums.q.rest);
      const T over_peak = sums.q_over_d.peak, over_rest = static_cast<T>(sums.q_over_d.rest);
      const T entropy = static_cast<T>(sums.mean.views[view]);
#pragma omp simd
      for (int64_t i = 0; i < kBlock; ++i) {
        const int64_t at = c * kBlock + i;
        const T over = q[at] * w[i];
        // Compared, not only subtracted: fused into the difference, the product would not cancel against its own peak.
        const T others = (over < over_peak ? over_peak - over : T(0)) + over_rest;
        dp[at] = keep * (((peak - q[at]) + rest) * w[i] + others - pair[at] * wr[i]) + entropy;
        along[i] += p[at] * dp[at];
      }
    }
    for (int64_t c = 0; c < problem.clusters; ++c)
#pragma omp simd
      for (int64_t i = 0; i < kBlock; ++i) dp[c * kBlock + i] = p[c * kBlock + i] * (dp[c * kBlock + i] - along[i]);
    if (problem.guarded()) {
      load_block(problem.logits + block.offset(view), spare, block.filled, problem.clusters);
#pragma omp simd
      for (int64_t i = 0; i < problem.matrix; ++i) {
        const T above = spare[i] - limit, below = spare[i] + limit;
        dp[i] += guard_weight * (above > 0 ? above : below < 0 ? below : T(0));
      }
    }
    store_block(dp, problem.gradient + block.offset(view), block.filled, problem.clusters);
  }
}

// sums[cluster] of a head += the parts of its blocks, in the member `which`.
template <typename S, typename Member>
void add_parts(Problem<S>& problem, int64_t head, Member ClusterSums<Number<S>>::*which) {
  for (int64_t c = 0; c < problem.clusters; ++c) {
    Member& sum = problem.sums[head * problem.clusters + c].*which;
    sum = problem.part(head, 0, c).*which;
    for (int64_t block = 1; block < problem.blocks; ++block) sum.add(problem.part(head, block, c).*which);
  }
}

// Returns the weighted entropy of a head's mean predictions, whose sums become its gradient.
template <typename S>
double entropy(Problem<S>& problem, int64_t head) {
  using T = Number<S>;
  const double smallest = static_cast<double>(smallest_normal(T())), batch = static_cast<double>(problem.whole_batch);
  double sum = 0;
  for (int64_t c = 0; c < problem.clusters; ++c)
    for (double& mean : problem.sums[head * problem.clusters + c].mean.views) {
      const double p = mean / batch, log_p = __builtin_log(p < smallest ? smallest : p);
      sum -= p * log_p / 2;
      mean = problem.entropy_weight / (2 * batch) * log_p;
    }
  return problem.entropy_weight * sum;
}

// The three sweeps.
template <typename S>
struct Sweeps {
  using T = Number<S>;
  Problem<S>& problem;
  int threads = 1;
  int64_t items = problem.heads * problem.blocks;

  void predict_all() const {
    parallel_for(items, threads, [&](int64_t item, int) { predict(Block<S>{problem, item}); });
    for (int64_t head = 0; head < problem.heads; ++head) {
      add_parts(problem, head, &ClusterSums<T>::q);
      add_parts(problem, head, &ClusterSums<T>::mean);
    }
  }

  void compare_all() const {
    parallel_for(items, threads, [&](int64_t item, int) { compare(Block<S>{problem, item}); });
  }

  void add_quotients() const {
    for (int64_t head = 0; head < problem.heads; ++head) add_parts(problem, head, &ClusterSums<T>::q_over_d);
  }

  void differentiate_all() const {
    Scratch<T> matrices(threads * 2 * problem.matrix);
    parallel_for(items, threads, [&](int64_t item, int worker) {
      T* dp = &matrices[worker * 2 * problem.matrix];
      differentiate(Block<S>{problem, item}, dp, dp + problem.matrix);
    });
  }

  // The sum of a head's terms and of its guard.
  double loss(int64_t head) const {
    double total = 0;
    for (int64_t block = 0; block < problem.blocks; ++block) total += problem.losses[head * problem.blocks + block];
    return total;
  }
};

// body(first head, number of heads, where the logits of the first begin) for each group.
template <typename Body>
void for_groups(int64_t heads, int64_t batch, int64_t clusters, const Body& body) {
  const int64_t head_logits = 2 * batch * clusters;
  const int64_t most = head_logits < kGroupLogits ? kGroupLogits / head_logits : 1;
  for (int64_t first = 0; first < heads; first += most)
    body(first, heads - first < most ? heads - first : most, first * head_logits);
}

}  // namespace

template <typename S>
void log_dot_product_loss(const S* logits, Number<S>* loss, Gradient<S>* gradient, int64_t heads, int64_t batch,
                          int64_t clusters, double smoothing, double entropy_weight, double logit_limit, int threads) {
  using T = Number<S>;
  for_groups(heads, batch, clusters, [&](int64_t first, int64_t count, int64_t offset) {
    Gradient<S>* out = gradient ? gradient + offset : nullptr;
    Problem<S> problem{logits + offset, out, count, batch, clusters, smoothing, entropy_weight, logit_limit};
    const Sweeps<S> sweeps{problem, useful_threads(count * 2 * batch * clusters, threads)};
    sweeps.predict_all();
    Scratch<double> entropies(count);
    for (int64_t head = 0; head < count; ++head) entropies[head] = entropy(problem, head);
    sweeps.compare_all();
    for (int64_t head = 0; head < count; ++head)
      loss[first + head] = static_cast<T>(sweeps.loss(head) / static_cast<double>(2 * batch) - entropies[head]);
    if (!gradient) return;
    sweeps.add_quotients();
    sweeps.differentiate_all();
  });
}

template <typename S>
void log_dot_product_loss_sums(const S* logits, double* sums, int64_t heads, int64_t batch, int64_t clusters,
                               double smoothing, int threads) {
  for_groups(heads, batch, clusters, [&](int64_t first, int64_t count, int64_t offset) {
    Problem<S> problem{logits + offset, nullptr, count, batch, clusters, smoothing, 0, __builtin_inf()};
    const Sweeps<S> sweeps{problem, useful_threads(count * 2 * batch * clusters, threads)};
    sweeps.predict_all();
    for (int64_t i = 0; i < count * clusters; ++i) {
      const auto& of = problem.sums[i];
      const double four[] = {static_cast<double>(of.q.peak), of.q.rest, of.mean.views[0], of.mean.views[1]};
      for (int64_t j = 0; j < 4; ++j) sums[4 * (first * clusters + i) + j] = four[j];
    }
  });
}

template <typename S>
void log_dot_product_loss_parts(const S* logits, const double* sums, const double* samples,
                                const double* whole_quotients, double* losses, double* quotients,
                                Gradient<S>* gradient, int64_t heads, int64_t batch, int64_t clusters, double smoothing,
                                double entropy_weight, double logit_limit, int threads) {
  using T = Number<S>;
  Scratch<Gradient<S>> unused(1);  // compare() forms the quotients where there is a gradient
  for_groups(heads, batch, clusters, [&](int64_t first, int64_t count, int64_t offset) {
    Gradient<S>* out = gradient ? gradient + offset : unused.get();
    Problem<S> problem{logits + offset, out, count, batch, clusters, smoothing, entropy_weight, logit_limit,
                       static_cast<int64_t>(*samples)};
    const Sweeps<S> sweeps{problem, useful_threads(count * 2 * batch * clusters, threads)};
    sweeps.predict_all();
    for (int64_t i = 0; i < count * clusters; ++i) {
      ClusterSums<T>& of = problem.sums[i];
      const double* four = sums + 4 * (first * clusters + i);
      of.q = {static_cast<T>(four[0]), four[1]};
      of.mean = {{four[2], four[3]}};
      if (!whole_quotients) continue;
      const double* two = whole_quotients + 2 * (first * clusters + i);
      of.q_over_d = {static_cast<T>(two[0]), two[1]};
    }
    Scratch<double> entropies(count);
    for (int64_t head = 0; head < count; ++head) entropies[head] = entropy(problem, head);
    sweeps.compare_all();
    if (whole_quotients) return sweeps.differentiate_all();
    sweeps.add_quotients();
    for (int64_t i = 0; i < count * clusters; ++i) {
      double* two = quotients + 2 * (first * clusters + i);
      two[0] = static_cast<double>(problem.sums[i].q_over_d.peak);
      two[1] = problem.sums[i].q_over_d.rest;
    }
    // The entropies belong to no process: each gives its samples' share of them.
    const double share = static_cast<double>(batch) / *samples;
    for (int64_t head = 0; head < count; ++head)
      losses[first + head] = sweeps.loss(head) / (2 * *samples) - share * entropies[head];
  });
}

IMC_INSTANTIATE(log_dot_product_loss)
IMC_INSTANTIATE_HALF(log_dot_product_loss)
IMC_INSTANTIATE(log_dot_product_loss_sums)
IMC_INSTANTIATE(log_dot_product_loss_parts)

}  // namespace imc::IMC_ISA
