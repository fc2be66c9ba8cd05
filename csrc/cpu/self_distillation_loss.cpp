// TEMI's objective for all heads. With the log-softmaxes log s and log t of students and teachers, for each view,
//   a_c = beta (log s_c + log t'_c) - log q_c,   r = softmax(a),   pmi = log sum_c exp a_c,
//   d pmi / d logits_k = beta (r_k - s_k) / student_temperature,
// where t' is the other view's. Two sweeps over blocks of kBlock pairs of a head. The first takes the teachers' softmax,
// the agreement of both views, and where they are wanted the parts of its mean and of the students'. The second takes
// the students', the loss and the gradient. Between them the agreements of all heads become the weights. Parts are added
// in the order of the blocks: bitwise the same for any number of threads.
#include <cstdint>

#include "elements.h"
#include "instantiate.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"
#include "sample_blocks.h"

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kMatrices = 2;  // blocks that a thread works on

// Of a block of the teachers' rows: the largest logits, and the logarithms of the sums of exponentials below them.
template <typename T>
struct TeacherRows {
  T high[kBlock], log_sum[kBlock];
};

// What the pairs of a head have in common, for one cluster: sums of predictions.
struct MeanParts {
  double teachers, students[2];
};

template <typename S>
struct Distillation {
  using T = Number<S>;
  const S *students, *teachers;
  const T *prior, *given_weights;
  Gradient<S>* gradient;
  int64_t heads, batch, clusters;
  double student_temperature, teacher_temperature, beta, entropy_weight;
  bool agreement;
  int64_t blocks = ceil_div(batch, kBlock), matrix = clusters * kBlock;
  bool means = !prior || entropy_weight != 0;
  Scratch<TeacherRows<T>> teacher_rows{heads * blocks * 2};  // [head, block, view]
  Scratch<T> agreements{heads * blocks * kBlock};           // [head, block, pair]
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

// The largest logit of each sample, and 0, but NaN where one is infinite: the largest alone would let -infinity pass as a
// probability of zero.
template <typename T>
void largest(const T* x, T* high, T* poison, int64_t clusters) {
  T low[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) high[i] = low[i] = x[i];
  for (int64_t c = 1; c < clusters; ++c)
    for (int64_t i = 0; i < kBlock; ++i) {
      const T logit = x[c * kBlock + i];
      high[i] = logit > high[i] ? logit : high[i];
      low[i] = logit < low[i] ? logit : low[i];
    }
  for (int64_t i = 0; i < kBlock; ++i) poison[i] = low[i] - low[i];
}

// x, on entry the logits of a block, becomes exponentials of what they are below the largest, and inverse 1 / their sum,
// 0 past the last sample.
template <typename T>
void exponentials(T* x, T* high, T* sums, T* inverse, int64_t filled, int64_t clusters, T inverse_temperature) {
  largest(x, high, sums, clusters);
  for (int64_t c = 0; c < clusters; ++c)
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      x[c * kBlock + i] = exp_bounded((x[c * kBlock + i] - high[i]) * inverse_temperature);
      sums[i] += x[c * kBlock + i];
    }
  for (int64_t i = 0; i < kBlock; ++i) inverse[i] = i < filled ? 1 / sums[i] : T(0);
}

template <typename T>
double weighted_sum(const T* x, const T* weights) {
  T products[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) products[i] = x[i] * weights[i];
  return sum_block(products);
}

// The first sweep, of one block of pairs of a head; scratch has two matrices.
template <typename S, typename T = Number<S>>
void agree(Distillation<S>& problem, int64_t item, T* scratch) {
  const int64_t head = item / problem.blocks, block = item % problem.blocks, clusters = problem.clusters;
  const int64_t filled = problem.pairs_in(block);
  T* views[] = {scratch, scratch + problem.matrix};
  T inverse[2][kBlock];
  for (int64_t view = 0; view < 2; ++view) {
    TeacherRows<T>& rows = problem.teacher_rows[item * 2 + view];
    load_block(problem.teachers + problem.offset(head, view, block), views[view], filled, clusters);
    if (view == 0) prefetch_block(problem.teachers + problem.offset(head, 1, block), filled, clusters);
    exponentials(views[view], rows.high, rows.log_sum, inverse[view], filled, clusters,
                 static_cast<T>(1 / problem.teacher_temperature));
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) rows.log_sum[i] = log_normal(rows.log_sum[i]);
  }
  T* agreement = &problem.agreements[item * kBlock];
  for (int64_t i = 0; i < kBlock; ++i) agreement[i] = 0;
  for (int64_t c = 0; c < clusters; ++c)
    for (int64_t i = 0; i < kBlock; ++i) agreement[i] += views[0][c * kBlock + i] * views[1][c * kBlock + i];
  for (int64_t i = 0; i < kBlock; ++i) agreement[i] *= inverse[0][i] * inverse[1][i];
  if (!problem.means) return;
  MeanParts* parts = &problem.parts[item * clusters];
  for (int64_t c = 0; c < clusters; ++c)
    parts[c] = {weighted_sum(views[0] + c * kBlock, inverse[0]) + weighted_sum(views[1] + c * kBlock, inverse[1]), {}};
  if (problem.entropy_weight == 0) return;
  T high[kBlock], sums[kBlock];
  for (int64_t view = 0; view < 2; ++view) {
    load_block(problem.students + problem.offset(head, view, block), scratch, filled, clusters);
    exponentials(scratch, high, sums, inverse[view], filled, clusters, static_cast<T>(1 / problem.student_temperature));
    for (int64_t c = 0; c < clusters; ++c) parts[c].students[view] = weighted_sum(scratch + c * kBlock, inverse[view]);
  }
}

// The weights of a block of pairs, 0 past the last.
template <typename S>
void weigh(Distillation<S>& problem, int64_t block) {
  using T = Number<S>;
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
template <typename S>
void finish_means(Distillation<S>& problem, int64_t head) {
  using T = Number<S>;
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

// The second sweep, of one view of a block; returns its part of the loss. scratch has two matrices.
template <typename S, typename T = Number<S>>
double compare(Distillation<S>& problem, int64_t item, int64_t view, T* scratch) {
  const int64_t head = item / problem.blocks, block = item % problem.blocks, clusters = problem.clusters;
  const int64_t filled = problem.pairs_in(block);
  const T beta = static_cast<T>(problem.beta);
  const T inverse_student = static_cast<T>(1 / problem.student_temperature);
  const T inverse_teacher = static_cast<T>(1 / problem.teacher_temperature);
  const T* log_prior = &problem.log_prior[head * clusters];
  const T* weights = &problem.weights[block * kBlock];
  const TeacherRows<T>& teacher = problem.teacher_rows[item * 2 + 1 - view];
  T *student = scratch, *joint = scratch + problem.matrix;
  T high[kBlock], student_sums[kBlock], joint_high[kBlock], joint_sums[kBlock] = {}, terms[kBlock];

  load_block(problem.students + problem.offset(head, view, block), student, filled, clusters);
  load_block(problem.teachers + problem.offset(head, 1 - view, block), joint, filled, clusters);
  if (view == 0) {
    prefetch_block(problem.students + problem.offset(head, 1, block), filled, clusters);
    prefetch_block(problem.teachers + problem.offset(head, 0, block), filled, clusters);
  }
  largest(student, high, student_sums, clusters);
  for (int64_t i = 0; i < kBlock; ++i) joint_high[i] = lowest(T());
  for (int64_t c = 0; c < clusters; ++c)
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t at = c * kBlock + i;
      const T s = (student[at] - high[i]) * inverse_student, t = (joint[at] - teacher.high[i]) * inverse_teacher;
      const T a = beta * (s + t) - log_prior[c];
      student[at] = exp_bounded(s);
      student_sums[i] += student[at];
      joint[at] = a;
      joint_high[i] = a > joint_high[i] ? a : joint_high[i];
    }
  for (int64_t c = 0; c < clusters; ++c)
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      joint[c * kBlock + i] = exp_bounded(joint[c * kBlock + i] - joint_high[i]);
      joint_sums[i] += joint[c * kBlock + i];
    }
#pragma omp simd
  for (int64_t i = 0; i < kBlock; ++i) {
    const T log_sums = log_normal(student_sums[i]) + teacher.log_sum[i];
    terms[i] = weights[i] * (beta * log_sums - (joint_high[i] + log_normal(joint_sums[i])));
  }
  const double loss = sum_block(terms);
  if (!problem.gradient) return loss;

  const T scale = static_cast<T>(problem.beta / (2 * static_cast<double>(problem.batch) * problem.student_temperature));
  const T* entropy = &problem.entropy_gradient[(head * 2 + view) * clusters];
  T along[kBlock] = {}, factor[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    student_sums[i] = 1 / student_sums[i];
    factor[i] = scale * weights[i] + (teacher.log_sum[i] - teacher.log_sum[i]);  // a teacher's infinity is NaN
    joint_sums[i] = 1 / joint_sums[i];
  }
  if (problem.entropy_weight != 0)
    for (int64_t c = 0; c < clusters; ++c)
      for (int64_t i = 0; i < kBlock; ++i) along[i] += student[c * kBlock + i] * student_sums[i] * entropy[c];
  for (int64_t c = 0; c < clusters; ++c)
#pragma omp simd
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t at = c * kBlock + i;
      const T s = student[at] * student_sums[i];
      joint[at] = factor[i] * (s - joint[at] * joint_sums[i]) + s * (entropy[c] - along[i]);
    }
  store_block(joint, problem.gradient + problem.offset(head, view, block), filled, clusters);
  return loss;
}

}  // namespace

template <typename S>
void self_distillation_loss(const S* students, const S* teachers, const Number<S>* prior, const Number<S>* weights,
                            Number<S>* loss, Gradient<S>* gradient, int64_t heads, int64_t batch, int64_t clusters,
                            double student_temperature, double teacher_temperature, double beta,
                            double entropy_weight, bool agreement, int threads) {
  using T = Number<S>;
  Distillation<S> problem{students, teachers, prior, weights,  gradient, heads, batch, clusters,
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
IMC_INSTANTIATE_HALF(self_distillation_loss)

}  // namespace imc::IMC_ISA
