// Swapped prediction from embeddings and prototypes, without the scores s = <z, w> [V, B, K] that it is made of: they are
// computed strip by strip (score_strips.h), once for each iteration of Sinkhorn-Knopp, the last of which gives the loss
// as well, and once more for the gradients. The assignments are exp(s / epsilon + r_b + c_k). In a strip, whose columns are
// whole, c follows from the r of the iteration before; what a row has in the strip, with that c, goes into its
// online softmax, which at the end of the strips gives the next r:
//   c_k = log share_k - log sum_b exp(s_bk / epsilon + r_b)      r_b = -log sum_k exp(s_bk / epsilon + c_k)
// The loss is linear in the assignments, so a row's sum_k Q_k s_k, all that it takes of them, is carried along with their
// softmax. Backward, a strip becomes g = dL/ds in place; dL/dW of its prototypes is g^T Z, and g W is added to dL/dZ.
#include <cstdint>

#include "instantiate.h"
#include "kernels.h"
#include "score_strips.h"

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kColumns = 64, kRowsInSingle = 32;

// A number of twice T's digits: r and c may be of thousands, and cancel against s / epsilon.
template <typename T>
struct Split {
  T high, low;
  Split(double x) : high(static_cast<T>(x)), low(static_cast<T>(x - static_cast<double>(high))) {}
};

// s + shift - reference, to the digits of the result: with what the first sum rounds off (Knuth's TwoSum). s is read from
// memory, so that no pass takes a product into the sum and rounds otherwise than the next. An infinity gives NaN.
template <typename T>
inline T exponent(T s, T high, T low, T reference) {
  const T x = s + high, back = x - s;
  return (x - reference) + (((s - (x - back)) + (high - back)) + low);
}

// log_sums[k] = log sum_b exp(s_bk + r_b) of n <= kColumns columns of s, that is of scores / epsilon.
template <typename T>
void log_sums_of_columns(const T* s, int64_t stride, int64_t batch, const double* r, int64_t n, double* log_sums) {
  T high[kColumns];
  for (int64_t k = 0; k < n; ++k) high[k] = lowest(T());
  for (int64_t b = 0; b < batch; ++b) {
    const Split<T> shift(r[b]);
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
      const T x = s[b * stride + k] + shift.high;
      high[k] = x > high[k] ? x : high[k];
    }
  }
  double sums[kColumns] = {};
  for (int64_t first = 0; first < batch; first += kRowsInSingle) {
    const int64_t end = batch < first + kRowsInSingle ? batch : first + kRowsInSingle;
    T part[kColumns] = {};
    for (int64_t b = first; b < end; ++b) {
      const Split<T> shift(r[b]);
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) part[k] += exp_bounded(exponent(s[b * stride + k], shift.high, shift.low, high[k]));
    }
    for (int64_t k = 0; k < n; ++k) sums[k] += static_cast<double>(part[k]);
  }
  for (int64_t k = 0; k < n; ++k) log_sums[k] = static_cast<double>(high[k]) + log_normal(sums[k]);
}

// The sum of exp(x - high) over what has been seen of a row, high the largest of it.
template <typename T>
struct OnlineSoftmax {
  T high = lowest(T());
  double sum = 0;

  // Before a piece whose largest is `peak`: the factor of the sums so far, where exponents are `scale` times x.
  double raise(T peak, T scale) {
    if (!(peak > high)) return 1;
    const double factor = static_cast<double>(exp_bounded((high - peak) * scale));
    high = peak;
    sum *= factor;
    return factor;
  }
};

// The largest of a row, and the smallest, which tells of -infinity where exponentials do not.
template <typename T>
void extremes(const T* s, int64_t n, T& high, T& low) {
  T highest = s[0], lowest = highest;
#pragma omp simd reduction(max : highest) reduction(min : lowest)
  for (int64_t k = 0; k < n; ++k) {
    highest = s[k] > highest ? s[k] : highest;
    lowest = s[k] < lowest ? s[k] : lowest;
  }
  high = highest;
  low = lowest;
}

// The scalings of a strip's columns for a row of one view: c, and what T rounds off it.
template <typename T>
struct Shift {
  const T *high, *low;
};

template <typename T>
T largest(const T* s, Shift<T> c, int64_t n) {
  T high = lowest(T());
#pragma omp simd reduction(max : high)
  for (int64_t k = 0; k < n; ++k) {
    const T x = s[k] + c.high[k];
    high = x > high ? x : high;
  }
  return high;
}

// out = exp(s + c - high); returns the sum.
template <typename T>
double exponentials(const T* s, Shift<T> c, int64_t n, T high, T* out) {
  return sum_of<T>(n, [=](int64_t k) { return out[k] = exp_bounded(exponent(s[k], c.high[k], c.low[k], high)); });
}

// out = exp(scale (s - high)); returns the sum.
template <typename T>
double exponentials(const T* s, int64_t n, T scale, T high, T* out) {
  return sum_of<T>(n, [=](int64_t k) { return out[k] = exp_bounded((s[k] - high) * scale); });
}

// Sinkhorn-Knopp on the assigned views, each a problem of its own.
template <typename S>
class Assignments {
  using T = Number<S>;

 public:
  // columns: c [views, prototypes], where it is given.
  Assignments(ScoreStrips<S>& scores, const T* marginals, const T* columns, int64_t views, int64_t batch,
              int64_t prototypes, int64_t width, int threads)
      : scores_(scores), marginals_(marginals), given_(columns), views_(views), batch_(batch), prototypes_(prototypes),
        width_(width), threads_(threads), rows_(views * batch), columns_(columns ? 0 : views * prototypes),
        softmax_(views * batch), spare_(threads * width), shifts_(2 * views * width) {
    for (int64_t i = 0; i < views * batch; ++i) rows_[i] = 0;
  }

  OnlineSoftmax<T>& softmax(int64_t view, int64_t sample) { return softmax_[view * batch_ + sample]; }
  Shift<T> shift(int64_t view) { return {&shifts_[2 * view * width_], &shifts_[(2 * view + 1) * width_]}; }

  // All iterations but the last, whose last half belongs to the loss.
  void iterate(int64_t iterations) {
    for (int64_t iteration = 1; iteration < iterations && !given_; ++iteration) {
      restart();
      scores_.for_strips([&](int64_t first, int64_t count) {
        const T* s = scores_.of(first, count, views_ * batch_);
        scale_columns(s, first, count);
        add_strip(s, count);
      });
      for (int64_t i = 0; i < views_ * batch_; ++i)
        rows_[i] = -static_cast<double>(softmax_[i].high) - log_normal(softmax_[i].sum);
    }
    restart();
  }

  // From the rows' r the c of a strip, whose shifts are at hand from then on.
  void scale_columns(const T* s, int64_t first, int64_t count) {
    if (!given_) {
      const int64_t blocks = ceil_div(count, kColumns);
      parallel_for(views_ * blocks, useful_threads(views_ * batch_ * count, threads_), [&](int64_t item, int) {
        const int64_t view = item / blocks, k = item % blocks * kColumns;
        log_sums_of_columns(s + view * batch_ * count + k, count, batch_, &rows_[view * batch_],
                            count - k < kColumns ? count - k : kColumns, &columns_[view * prototypes_ + first + k]);
      });
      const double uniform = -log_normal(static_cast<double>(prototypes_));
      for (int64_t view = 0; view < views_; ++view)
        for (int64_t k = first; k < first + count; ++k) {
          double& c = columns_[view * prototypes_ + k];
          c = (marginals_ ? log_normal(static_cast<double>(marginals_[k])) : uniform) - c;
        }
    }
    take_strip(first, count);
  }

  // The shifts of a strip whose c is known.
  void take_strip(int64_t first, int64_t count) {
    for (int64_t view = 0; view < views_; ++view)
      for (int64_t k = 0; k < count; ++k) {
        const int64_t at = view * prototypes_ + first + k;
        const Split<T> c(given_ ? static_cast<double>(given_[at]) : columns_[at]);
        shifts_[2 * view * width_ + k] = c.high;
        shifts_[(2 * view + 1) * width_ + k] = c.low;
      }
  }

 private:
  void restart() {
    for (int64_t i = 0; i < views_ * batch_; ++i) softmax_[i] = OnlineSoftmax<T>();
  }
  // What the rows have in a strip goes into their softmaxes.
  void add_strip(const T* scores, int64_t count) {
    parallel_for(views_ * batch_, useful_threads(views_ * batch_ * count, threads_), [&](int64_t row, int worker) {
      const T* s = scores + row * count;
      const Shift<T> c = shift(row / batch_);
      OnlineSoftmax<T>& softmax = softmax_[row];
      softmax.raise(largest(s, c, count), T(1));
      softmax.sum += exponentials(s, c, count, softmax.high, &spare_[worker * count]);
    });
  }

  ScoreStrips<S>& scores_;
  const T *marginals_, *given_;
  int64_t views_, batch_, prototypes_, width_;
  int threads_;
  Scratch<double> rows_, columns_;
  Scratch<OnlineSoftmax<T>> softmax_;
  Scratch<T> spare_, shifts_;
};

// Which assignments a view predicts, and how a row counts.
template <typename T>
struct Pairs {
  int64_t views, assigned, batch;
  bool all;
  const T* weights;  // [views, batch] or null
  double temperature;

  bool has(int64_t a, int64_t view) const { return all || a != view; }
  int64_t of(int64_t view) const { return all || view >= assigned ? assigned : assigned - 1; }
  // Of one cross-entropy of the row in the mean.
  double weight(int64_t view, int64_t sample) const {
    const double count = static_cast<double>(assigned * (all ? views : views - 1)) * static_cast<double>(batch);
    return (weights ? static_cast<double>(weights[view * batch + sample]) : 1.0) / count;
  }
};

// The loss of a sample's rows, piece by piece.
template <typename S>
class Predictions {
  using T = Number<S>;

 public:
  Predictions(const Pairs<T>& pairs, Assignments<S>& assignments, int64_t width, int threads)
      : pairs_(pairs), assignments_(assignments), threads_(threads), softmax_(pairs.views * pairs.batch),
        along_(pairs.batch * pairs.assigned * pairs.views), spare_(threads * (pairs.assigned + 1) * width) {
    for (int64_t i = 0; i < pairs.views * pairs.batch; ++i) softmax_[i] = OnlineSoftmax<T>();
    for (int64_t i = 0; i < pairs.batch * pairs.assigned * pairs.views; ++i) along_[i] = 0;
  }

  // s [views, batch, count] and t [assigned, batch, count], the scores / epsilon of a strip, the second of the teacher. The
  // predictions are softmaxes of `scale` s.
  void add_strip(const T* s, const T* t, int64_t count, T scale) {
    for_samples(count, [&](int64_t sample, T* e) {
      for (int64_t view = 0; view < pairs_.views; ++view) {
        const T* row = s + (view * pairs_.batch + sample) * count;
        OnlineSoftmax<T>& softmax = at(view, sample);
        const T before = softmax.high;
        T high, low;
        extremes(row, count, high, low);
        softmax.raise(high, scale);
        if (before != lowest(T())) {
          const double raised = static_cast<double>((softmax.high - before) * scale);
          for (int64_t a = 0; a < pairs_.assigned; ++a)
            along(sample, a, view) -= raised * assignments_.softmax(a, sample).sum;
        }
        softmax.sum += exponentials(row, count, scale, softmax.high, e) + static_cast<double>(low - low);
      }
      for (int64_t a = 0; a < pairs_.assigned; ++a) {
        const T* row = t + (a * pairs_.batch + sample) * count;
        OnlineSoftmax<T>& softmax = assignments_.softmax(a, sample);
        const double factor = softmax.raise(largest(row, assignments_.shift(a), count), T(1));
        softmax.sum += exponentials(row, assignments_.shift(a), count, softmax.high, e);
        for (int64_t view = 0; view < pairs_.views; ++view) {
          if (!pairs_.has(a, view)) continue;
          const T* logits = s + (view * pairs_.batch + sample) * count;
          const T high = at(view, sample).high;
          const double aligned = sum_of<T>(count, [=](int64_t k) { return e[k] * ((logits[k] - high) * scale); });
          along(sample, a, view) = along(sample, a, view) * factor + aligned;
        }
      }
    });
  }

  double loss() {
    double total = 0;
    for (int64_t sample = 0; sample < pairs_.batch; ++sample)
      for (int64_t view = 0; view < pairs_.views; ++view) {
        double terms = static_cast<double>(pairs_.of(view)) * log_normal(at(view, sample).sum);
        for (int64_t a = 0; a < pairs_.assigned; ++a)
          if (pairs_.has(a, view)) terms -= along(sample, a, view) / assignments_.softmax(a, sample).sum;
        total += terms * pairs_.weight(view, sample);
      }
    return total;
  }

  // s becomes the gradient of the scores; t may lie there too.
  void differentiate(T* s, const T* t, int64_t count, T scale) {
    for_samples(count, [&](int64_t sample, T* target) {
      T* q = target + count;
      for (int64_t a = 0; a < pairs_.assigned; ++a) {
        const OnlineSoftmax<T>& softmax = assignments_.softmax(a, sample);
        const T* row = t + (a * pairs_.batch + sample) * count;
        exponentials(row, assignments_.shift(a), count, softmax.high, q + a * count);
        const T inverse = static_cast<T>(1 / softmax.sum);
        for (int64_t k = 0; k < count; ++k) q[a * count + k] *= inverse;
      }
      for (int64_t view = 0; view < pairs_.views; ++view) {
        T* row = s + (view * pairs_.batch + sample) * count;
        for (int64_t k = 0; k < count; ++k) target[k] = 0;
        for (int64_t a = 0; a < pairs_.assigned; ++a)
          if (pairs_.has(a, view))
            for (int64_t k = 0; k < count; ++k) target[k] += q[a * count + k];
        const OnlineSoftmax<T>& softmax = at(view, sample);
        const double weight = pairs_.weight(view, sample) / pairs_.temperature;
        const T of_target = static_cast<T>(weight);
        const T of_probability = static_cast<T>(weight * static_cast<double>(pairs_.of(view)) / softmax.sum);
        exponentials(row, count, scale, softmax.high, row);
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) row[k] = row[k] * of_probability - of_target * target[k];
      }
    });
  }

 private:
  // body(sample, memory for 1 + assigned rows)
  template <typename Body>
  void for_samples(int64_t columns, const Body& body) {
    const int64_t size = (pairs_.assigned + 1) * columns;
    parallel_for(pairs_.batch, useful_threads(pairs_.views * pairs_.batch * columns, threads_),
                 [&](int64_t sample, int worker) { body(sample, &spare_[worker * size]); });
  }
  OnlineSoftmax<T>& at(int64_t view, int64_t sample) { return softmax_[view * pairs_.batch + sample]; }
  double& along(int64_t sample, int64_t a, int64_t view) {
    return along_[(sample * pairs_.assigned + a) * pairs_.views + view];
  }

  Pairs<T> pairs_;
  Assignments<S>& assignments_;
  int threads_;
  Scratch<OnlineSoftmax<T>> softmax_;
  Scratch<double> along_;  // [batch, assigned, views]: sum_k of the assignments' exponentials times (logit - high)
  Scratch<T> spare_;
};

}  // namespace

template <typename S>
void linear_swapped_prediction_loss(const S* embeddings, const S* prototypes, const S* teacher_embeddings,
                                    const S* teacher_prototypes, const Number<S>* marginals, const Number<S>* columns,
                                    const Number<S>* weights, Number<S>* loss, Gradient<S>* embeddings_gradient,
                                    Gradient<S>* prototypes_gradient, int64_t views, int64_t assigned, int64_t batch,
                                    int64_t prototype_count, int64_t dim, int64_t teacher_dim, double epsilon,
                                    int64_t iterations, double temperature, bool normalize_prototypes, bool all_pairs,
                                    int threads) {
  using T = Number<S>;
  const bool apart = teacher_embeddings != nullptr;
  const int64_t n = prototype_count, rows = views * batch, assigned_rows = assigned * batch;
  const int64_t width = strip_width(rows + (apart ? assigned_rows : 0), n);
  ScoreStrips<S> scores(embeddings, prototypes, rows, n, dim, normalize_prototypes, width, 1 / epsilon, threads);
  ScoreStrips<S> of_teacher(teacher_embeddings, teacher_prototypes, apart ? assigned_rows : 0, n, teacher_dim,
                            normalize_prototypes, apart ? width : 0, 1 / epsilon, threads);
  ScoreStrips<S>& source = apart ? of_teacher : scores;
  Assignments<S> assignments(source, marginals, columns, assigned, batch, n, width, threads);
  Predictions<S> predictions({views, assigned, batch, all_pairs, weights, temperature}, assignments, width, threads);
  const T scale = static_cast<T>(epsilon / temperature);
  assignments.iterate(iterations);
  scores.for_strips([&](int64_t first, int64_t count) {
    const T *s = scores.of(first, count, rows), *t = apart ? source.of(first, count, assigned_rows) : s;
    assignments.scale_columns(t, first, count);
    predictions.add_strip(s, t, count, scale);
  });
  *loss = static_cast<T>(predictions.loss());
  if (!embeddings_gradient && !prototypes_gradient) return;

  Scratch<T> packed_rows(prototypes_gradient ? packed_size<T>(rows, dim) : 0);
  Scratch<T> packed_strip(embeddings_gradient ? packed_size<T>(width, dim) : 0);
  Scratch<T> of_strip(kIsHalf<Gradient<S>> && prototypes_gradient ? width * dim : 0);
  Scratch<T> received(kIsHalf<Gradient<S>> && embeddings_gradient ? rows * dim : 0);
  T* of_rows = numbers_for(embeddings_gradient, received.get());
  if (prototypes_gradient) pack_rows(embeddings, scores.row_scale(), rows, dim, packed_rows.get(), threads);
  scores.for_strips([&](int64_t first, int64_t count) {
    T* g = scores.of(first, count, rows);
    const S* strip = prototypes + first * dim;
    assignments.take_strip(first, count);
    predictions.differentiate(g, apart ? source.of(first, count, assigned_rows) : g, count, scale);
    if (prototypes_gradient) {
      Gradient<S>* result = prototypes_gradient + first * dim;
      T* numbers = numbers_for(result, of_strip.get());
      gemm(TransposedSource<T>{g, count}, packed_rows.get(), numbers, count, dim, rows, threads);
      if (normalize_prototypes)
        project(strip, scores.column_scale(), numbers, result, count, dim, threads);
      else
        finish_row(numbers, result, count * dim);
    }
    if (embeddings_gradient) {
      pack_rows(strip, scores.column_scale(), count, dim, packed_strip.get(), threads);
      gemm(RowSource<T>{g, count, nullptr}, packed_strip.get(), of_rows, rows, dim, count, threads, first > 0);
    }
  });
  if (embeddings_gradient) project(embeddings, scores.row_scale(), of_rows, embeddings_gradient, rows, dim, threads);
}

IMC_INSTANTIATE(linear_swapped_prediction_loss)
IMC_INSTANTIATE_HALF(linear_swapped_prediction_loss)

}  // namespace imc::IMC_ISA
