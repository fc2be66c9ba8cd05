// TEMI's objective for all heads. With the log-softmaxes log s and log t of students and teachers, for each view,
//   a_c = beta (log s_c + log t'_c) - log q_c,   r = softmax(a),   pmi = log sum_c exp a_c,
//   d pmi / d logits_k = beta (r_k - s_k) / student_temperature,
// where t' is the other view's. Two sweeps over blocks of kBlock pairs of a head. The first takes the teachers' softmax:
// its log-sum, the agreement of both views, and where they are wanted the parts of its mean and of the students'. The
// second takes the students', the loss and the gradient. Between them the agreements of all heads become the weights.
// Parts are added in the order of the blocks: bitwise the same for any number of threads.
#include <cstdint>

#include "instantiate.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"
#include "sample_blocks.h"

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kMatrices = 3;  // blocks that a thread works on

// What the pairs of a head have in common, for one cluster: sums of predictions.
struct MeanParts {
  double teachers, students[2];
};

template <typename T>
struct Distillation {
  const T *students, *teachers, *prior, *given_weights;
  T* gradient;
  int64_t heads, batch, clusters;
  double student_temperature, teacher_temperature, beta, entropy_weight;
  bool agreement;
  int64_t blocks = ceil_div(batch, kBlock), matrix = clusters * kBlock;
  bool means = !prior || entropy_weight != 0;
  Scratch<T> teacher_log_sums{heads * blocks * 2 * kBlock};  // [head, block, view, pair]
  Scratch<T> agreements{heads * blocks * kBlock};            // [head, block, pair]
  Scratch<T> weights{blocks * kBlock};
  Scratch<MeanParts> parts{means ? heads * blocks * clusters : 0};
  Scratch<T> log_prior{heads * clusters};
  Scratch<T> entropy_gradient{heads * 2 * clusters};  // [head, view, cluster]
  Scratch<double> losses{heads * blocks}, entropies{heads};

  int64_t pairs_in(int64_t block) const { return batch - block * kBlock < kBlock ? batch - block * kBlock : kBlock; }
  int64_t offset(int64_t head, int64_t view, int64_t block) const {
    return ((head * 2 + view) * batch + block * kBlock) * clusters;
  }
};

// x = (x - the largest of its sample) scale. sums = 0, but NaN where a sample has an infinity: the largest alone would
// let -infinity pass as a probability of zero.
template <typename T>
void shift(T* x, T* sums, int64_t clusters, T scale) {
  T high[kBlock], low[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) high[i] = low[i] = x[i];
  for (int64_t c = 1; c < clusters; ++c)
    for (int64_t i = 0; i < kBlock; ++i) {
      const T logit = x[c * kBlock + i];
      high[i] = logit > high[i] ? logit : high[i];
      low[i] = logit < low[i] ? logit : low[i];
    }
  for (int64_t i = 0; i < kBlock; ++i) sums[i] = low[i] - low[i];
  for (int64_t c = 0; c < clusters; ++c)
    for (int64_t i = 0; i < kBlock; ++i) x[c * kBlock + i] = (x[c * kBlock + i] - high[i]) * scale;
}

// e = exp(x), added to the sums; x <= 0, and e may be x.
template <typename T>
void exponentials(const T* x, T* e, T* sums, int64_t clusters) {
  for (int64_t c = 0; c < clusters; ++c)
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      e[c * kBlock + i] = exp_bounded(x[c * kBlock + i]);
      sums[i] += e[c * kBlock + i];
    }
}

// x, on entry the logits of a block, becomes their softmax, which is 0 past the last sample; sums, that of exponentials.
template <typename T>
void softmax(T* x, T* sums, int64_t filled, int64_t clusters, T inverse_temperature) {
  shift(x, sums, clusters, inverse_temperature);
  exponentials(x, x, sums, clusters);
  T inverse[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) inverse[i] = i < filled ? 1 / sums[i] : T(0);
  for (int64_t c = 0; c < clusters; ++c)
    for (int64_t i = 0; i < kBlock; ++i) x[c * kBlock + i] *= inverse[i];
}

// The first sweep, of one block of pairs of a head; scratch has two matrices.
template <typename T>
void agree(Distillation<T>& problem, int64_t item, T* scratch) {
  const int64_t head = item / problem.blocks, block = item % problem.blocks, clusters = problem.clusters;
  const int64_t filled = problem.pairs_in(block);
  T* views[] = {scratch, scratch + problem.matrix};
  for (int64_t view = 0; view < 2; ++view) {
    T* log_sums = &problem.teacher_log_sums[(item * 2 + view) * kBlock];
    load_block(problem.teachers + problem.offset(head, view, block), views[view], filled, clusters);
    softmax(views[view], log_sums, filled, clusters, static_cast<T>(1 / problem.teacher_temperature));
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) log_sums[i] = log_normal(log_sums[i]);
  }
  T* agreement = &problem.agreements[item * kBlock];
  for (int64_t i = 0; i < kBlock; ++i) agreement[i] = 0;
  for (int64_t c = 0; c < clusters; ++c)
    for (int64_t i = 0; i < kBlock; ++i) agreement[i] += views[0][c * kBlock + i] * views[1][c * kBlock + i];
  if (!problem.means) return;
  MeanParts* parts = &problem.parts[item * clusters];
  for (int64_t c = 0; c < clusters; ++c)
    parts[c] = {sum_block(views[0] + c * kBlock) + sum_block(views[1] + c * kBlock), {}};
  if (problem.entropy_weight == 0) return;
  T sums[kBlock];
  for (int64_t view = 0; view < 2; ++view) {
    load_block(problem.students + problem.offset(head, view, block), scratch, filled, clusters);
    softmax(scratch, sums, filled, clusters, static_cast<T>(1 / problem.student_temperature));
    for (int64_t c = 0; c < clusters; ++c) parts[c].students[view] = sum_block(scratch + c * kBlock);
  }
}

// The weights of a block of pairs, 0 past the last.
template <typename T>
void weigh(Distillation<T>& problem, int64_t block) {
  T* weights = &problem.weights[block * kBlock];
  const int64_t filled = problem.pairs_in(block);
  double sums[kBlock] = {};
  for (int64_t head = 0; problem.agreement && head < problem.heads; ++head)
    for (int64_t i = 0; i < kBlock; ++i)
      sums[i] += static_cast<double>(problem.agreements[(head * problem.blocks + block) * kBlock + i]);
  for (int64_t i = 0; i < filled; ++i)
    weights[i] = problem.agreement       ? static_cast<T>(sums[i] / static_cast<double>(problem.heads))
                 : problem.given_weights ? problem.given_weights[block * kBlock + i]
                                         : T(1);
  for (int64_t i = filled; i < kBlock; ++i) weights[i] = 0;
}

// The logarithm of a head's prior, the weighted entropy of its students' mean predictions and that one's gradient.
template <typename T>
void finish_means(Distillation<T>& problem, int64_t head) {
  const int64_t clusters = problem.clusters;
  const double smallest = static_cast<double>(smallest_normal(T())), batch = static_cast<double>(problem.batch);
  double entropy = 0;
  for (int64_t c = 0; c < clusters; ++c) {
    MeanParts sums{};
    for (int64_t block = 0; problem.means && block < problem.blocks; ++block) {
      const MeanParts& part = problem.parts[(head * problem.blocks + block) * clusters + c];
      sums.teachers += part.teachers;
      for (int64_t view = 0; view < 2; ++view) sums.students[view] += part.students[view];
    }
    const double prior =
        problem.prior ? static_cast<double>(problem.prior[head * clusters + c]) : sums.teachers / (2 * batch);
    // A negative or infinite prior makes it NaN.
    problem.log_prior[head * clusters + c] =
        static_cast<T>(__builtin_log(prior < smallest ? smallest : prior) + 0 * __builtin_sqrt(prior));
    for (int64_t view = 0; view < 2; ++view) {
      const double p = sums.students[view] / batch, log_p = __builtin_log(p < smallest ? smallest : p);
      entropy -= p * log_p / 2;
      problem.entropy_gradient[(head * 2 + view) * clusters + c] =
          static_cast<T>(problem.entropy_weight / (2 * batch * problem.student_temperature) * log_p);
    }
  }
  problem.entropies[head] = problem.entropy_weight * entropy;
}

// The second sweep, of one view of a block; returns its part of the loss. scratch has kMatrices matrices.
template <typename T>
double compare(Distillation<T>& problem, int64_t item, int64_t view, T* scratch) {
  const int64_t head = item / problem.blocks, block = item % problem.blocks, clusters = problem.clusters;
  const int64_t filled = problem.pairs_in(block);
  const T beta = static_cast<T>(problem.beta);
  const T* log_prior = &problem.log_prior[head * clusters];
  const T* weights = &problem.weights[block * kBlock];
  const T* teacher_log_sums = &problem.teacher_log_sums[(item * 2 + 1 - view) * kBlock];
  T *student = scratch, *joint = scratch + problem.matrix, *gradient = scratch + 2 * problem.matrix;
  T student_sums[kBlock], joint_sums[kBlock], high[kBlock], terms[kBlock];

  load_block(problem.students + problem.offset(head, view, block), student, filled, clusters);
  load_block(problem.teachers + problem.offset(head, 1 - view, block), joint, filled, clusters);
  shift(student, student_sums, clusters, static_cast<T>(1 / problem.student_temperature));
  shift(joint, joint_sums, clusters, static_cast<T>(1 / problem.teacher_temperature));
  for (int64_t i = 0; i < kBlock; ++i) high[i] = lowest(T());
  for (int64_t c = 0; c < clusters; ++c)
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      T& a = joint[c * kBlock + i];
      a = beta * (student[c * kBlock + i] + a) - log_prior[c];
      high[i] = a > high[i] ? a : high[i];
    }
  for (int64_t c = 0; c < clusters; ++c)
    for (int64_t i = 0; i < kBlock; ++i) joint[c * kBlock + i] -= high[i];
  exponentials(student, student, student_sums, clusters);
  exponentials(joint, joint, joint_sums, clusters);
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) {
    const T log_sums = log_normal(student_sums[i]) + teacher_log_sums[i];
    terms[i] = weights[i] * (beta * log_sums - (high[i] + log_normal(joint_sums[i])));
  }
  const double loss = sum_block(terms);
  if (!problem.gradient) return loss;

  const T scale = static_cast<T>(problem.beta / (2 * static_cast<double>(problem.batch) * problem.student_temperature));
  const T* entropy = &problem.entropy_gradient[(head * 2 + view) * clusters];
  T along[kBlock] = {}, factor[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    student_sums[i] = 1 / student_sums[i];
    joint_sums[i] = 1 / joint_sums[i];
    factor[i] = scale * weights[i] + (teacher_log_sums[i] - teacher_log_sums[i]);  // a teacher's infinity is NaN
  }
  if (problem.entropy_weight != 0)
    for (int64_t c = 0; c < clusters; ++c)
      for (int64_t i = 0; i < kBlock; ++i) along[i] += student[c * kBlock + i] * student_sums[i] * entropy[c];
  for (int64_t c = 0; c < clusters; ++c)
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t at = c * kBlock + i;
      const T s = student[at] * student_sums[i];
      gradient[at] = factor[i] * (s - joint[at] * joint_sums[i]) + s * (entropy[c] - along[i]);
    }
  store_block(gradient, problem.gradient + problem.offset(head, view, block), filled, clusters);
  return loss;
}

}  // namespace

template <typename T>
void self_distillation_loss(const T* students, const T* teachers, const T* prior, const T* weights, T* loss,
                            T* gradient, int64_t heads, int64_t batch, int64_t clusters, double student_temperature,
                            double teacher_temperature, double beta, double entropy_weight, bool agreement,
                            int threads) {
  Distillation<T> problem{students, teachers, prior, weights,  gradient, heads, batch, clusters,
                          student_temperature, teacher_temperature, beta, entropy_weight, agreement};
  const int64_t items = heads * problem.blocks, scratch_size = kMatrices * problem.matrix;
  threads = useful_threads(4 * heads * batch * clusters, threads);
  Scratch<T> scratch(threads * scratch_size);
  parallel_for(items, threads, [&](int64_t item, int worker) { agree(problem, item, &scratch[worker * scratch_size]); });
  for (int64_t block = 0; block < problem.blocks; ++block) weigh(problem, block);
  for (int64_t head = 0; head < heads; ++head) finish_means(problem, head);
  parallel_for(items, threads, [&](int64_t item, int worker) {
    T* own = &scratch[worker * scratch_size];
    problem.losses[item] = compare(problem, item, 0, own) + compare(problem, item, 1, own);
  });
  for (int64_t head = 0; head < heads; ++head) {
    double total = 0;
    for (int64_t block = 0; block < problem.blocks; ++block) total += problem.losses[head * problem.blocks + block];
    loss[head] = static_cast<T>(total / static_cast<double>(2 * batch) - problem.entropies[head]);
  }
}

IMC_INSTANTIATE(self_distillation_loss)

}  // namespace imc::IMC_ISA
