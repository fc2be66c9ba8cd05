// Swapped prediction. For each sample and view: the targets of all other assignment views are summed first (the loss is
// linear in them), so that one sweep over the row gives its log-sum-exp and all its cross-entropies, and a second one,
// out of the L1 cache, the gradient. Memory: scores and assignments read once, the gradient written once.
#include <cstdint>

#include "elements.h"
#include "instantiate.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {

namespace {

// target = sum of the rows assignments[a, sample] with a != left_out; returns its mass. spare: memory for a row.
template <typename S, typename T = Number<S>>
T sum_targets(const S* assignments, T* target, T* spare, int64_t left_out, int64_t assigned, int64_t batch,
              int64_t prototypes, int64_t sample) {
  for (int64_t k = 0; k < prototypes; ++k) target[k] = 0;
  for (int64_t a = 0; a < assigned; ++a) {
    if (a == left_out) continue;
    const T* row = numbers_of(assignments + (a * batch + sample) * prototypes, spare, prototypes);
#pragma omp simd
    for (int64_t k = 0; k < prototypes; ++k) target[k] += row[k];
  }
  return static_cast<T>(sum_of<T>(prototypes, [=](int64_t k) { return target[k]; }));
}

// Rows of one sample lie megabytes apart: the next one is asked for while this one is worked on.
template <typename S>
void prefetch_row(const S* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(S))) __builtin_prefetch(x + i);
}

// One row: the sum of its cross-entropies, and its gradient where asked (weight: 1 / (pairs batch temperature)).
template <typename T>
double cross_entropy(const T* scores, const T* target, T mass, T* probabilities, bool with_gradient, int64_t n,
                     T inverse_temperature, T weight) {
  const T high = row_max(scores, n);
  const auto logit = [=](int64_t k) { return (scores[k] - high) * inverse_temperature; };
  const double sum = sum_of<T>(n, [=](int64_t k) { return probabilities[k] = exp_bounded(logit(k)); });
  const double aligned = sum_of<T>(n, [=](int64_t k) { return target[k] * logit(k); });
  if (with_gradient) {
    const T scale = weight * mass / static_cast<T>(sum);
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) probabilities[k] = probabilities[k] * scale - weight * target[k];
  }
  return static_cast<double>(mass) * log_normal(sum) - aligned;
}

}  // namespace

template <typename S>
void swapped_prediction_loss(const S* scores, const S* assignments, const Number<S>* weights, Number<S>* loss,
                             Gradient<S>* gradient, int64_t views, int64_t assigned, int64_t batch, int64_t prototypes,
                             double temperature, bool others, int threads) {
  using T = Number<S>;
  const double pairs = static_cast<double>(assigned * (others ? views - 1 : views));
  const T inverse_temperature = static_cast<T>(1 / temperature);
  const T weight = static_cast<T>(1 / (pairs * static_cast<double>(batch) * temperature));
  threads = useful_threads(views * batch * prototypes, threads);
  Scratch<double> losses(batch);
  Scratch<T> scratch(threads * 3 * prototypes);
  parallel_for(batch, threads, [&](int64_t sample, int worker) {
    T* target = &scratch[worker * 3 * prototypes];
    T *numbers = target + prototypes, *spare = numbers + prototypes;
    T mass = 0;
    double total = 0;
    for (int64_t view = 0; view < views; ++view) {
      if (view == 0 || (others && view <= assigned))  // from the first unassigned view on the target no longer changes
        mass = sum_targets(assignments, target, spare, others ? view : assigned, assigned, batch, prototypes, sample);
      const int64_t row = (view * batch + sample) * prototypes;
      const T factor = weights ? weights[view * batch + sample] : T(1);
      T* probabilities = gradient ? numbers_for(gradient + row, spare) : spare;
      const int64_t next = view + 1 < views ? row + batch * prototypes : (sample + 1) % batch * prototypes;
      prefetch_row(scores + next, prototypes);
      const double sum = cross_entropy(numbers_of(scores + row, numbers, prototypes), target, mass, probabilities,
                                       gradient != nullptr, prototypes, inverse_temperature, weight * factor);
      total += static_cast<double>(factor) * sum;
      if (gradient) finish_row(probabilities, gradient + row, prototypes);
    }
    losses[sample] = total;
  });
  double total = 0;
  for (int64_t sample = 0; sample < batch; ++sample) total += losses[sample];
  *loss = static_cast<T>(total / (pairs * static_cast<double>(batch)));
}

IMC_INSTANTIATE(swapped_prediction_loss)
IMC_INSTANTIATE_HALF(swapped_prediction_loss)

}  // namespace imc::IMC_ISA
