// Entropic optimal transport: Sinkhorn-Knopp to any masses of rows and columns, as the logarithms a of the rows' and c of
// the columns' scalings,
//   c = log r - damping LSE_b(S + a),   a = log m - damping LSE_k(S + c),
// with damping 1 for masses that are met. Rows, columns and entries of -infinity are left out.
//
// A hundred iterations at a small epsilon need logarithms, whose exponentials cost more than all else. So an iteration
// on logarithms leaves the softmax of each row, R = exp(S + c - LSE_k(S + c)), and those after it only scale that:
// R changes by the ratio of the scalings, which settle. Where a ratio leaves exp(+-kDrift), or a column's sum is so small
// that entries below the normal numbers could be missed in it, the next iteration is on logarithms again.
#include <cstdint>

#include "instantiate.h"
#include "kernels.h"
#include "sinkhorn.h"

namespace imc::IMC_ISA {

namespace {

constexpr double kDrift = 10, kSmallestSum = 1e-18;
constexpr double kNone = -__builtin_inf();

// The logarithm of what scales sums to a mass, from theirs.
inline double scaling(double log_mass, double log_sum, double damping) {
  return log_sum == kNone ? kNone : log_mass - damping * log_sum;
}

// a before the first iteration: rows without mass are left out.
inline double start(double log_mass) { return log_mass == kNone ? kNone : 0.0; }

template <typename T>
class Transport {
 public:
  Transport(Problem<T>& p, const double* log_rows, const double* log_columns, double damping)
      : p_(p), log_rows_(log_rows), log_columns_(log_columns), damping_(damping), softmax_(p.batch * p.prototypes),
        partial_(p.chunks * p.prototypes), sums_(p.prototypes), ratios_(p.prototypes), unsafe_(p.chunks),
        log_sums_(p.prototypes), base_(p.prototypes), a_(p.batch), minus_lse_(p.batch) {
    p.whole_batch = 1;  // log_rows scales to 1
    for (int64_t row = 0; row < p.batch; ++row) a_[row] = start(log_rows[row]);
  }

  // Returns how many iterations it took; c, and what is kept of each for a gradient.
  int64_t solve(double* c, double* rows, double* columns, int64_t iterations, double tolerance) {
    const int64_t n = p_.prototypes;
    Scratch<double> next(n);
    double mass = 0;
    for (int64_t k = 0; k < n; ++k) mass += exp_bounded(log_columns_[k]);
    for (int64_t t = 0; t < iterations; ++t) {
      if (!scales_) log_column_sums(p_, a_.get(), log_sums_.get());
      for (int64_t k = 0; k < n; ++k) next[k] = scaling(log_columns_[k], log_sums_[k], damping_);
      if (t > 0 && tolerance >= 0 && moved(c, next.get()) <= tolerance * mass) return t;
      for (int64_t k = 0; k < n; ++k) c[k] = next[k];
      if (columns) copy(c, columns + t * n, n);
      if (t + 1 == iterations) break;
      if (!scales_ || !scale_rows(c)) rows_from_logarithms(c);
      if (rows) copy(a_.get(), rows + t * p_.batch, p_.batch);
    }
    return iterations;
  }

 private:
  static void copy(const double* from, double* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  }

  double moved(const double* c, const double* next) {
    double sum = 0;
    for (int64_t k = 0; k < p_.prototypes; ++k)
      if (log_sums_[k] != kNone)
        sum += __builtin_fabs(exp_bounded(c[k] + log_sums_[k]) - exp_bounded(next[k] + log_sums_[k]));
    return sum;
  }

  // a from c, and R with its column sums.
  void rows_from_logarithms(const double* c) {
    copy(c, base_.get(), p_.prototypes);
    log_rows(p_, c, softmax_.get(), minus_lse_.get());
    highest_ = kNone;
    for (int64_t row = 0; row < p_.batch; ++row) {
      a_[row] = scaling(log_rows_[row], -minus_lse_[row], damping_);
      if (a_[row] - minus_lse_[row] > highest_) highest_ = a_[row] - minus_lse_[row];
    }
    p_.for_chunks(partial_.get(), [&](int64_t first, int64_t last, T* sums) {
      for (int64_t k = 0; k < p_.prototypes; ++k) sums[k] = 0;
      for (int64_t row = first; row < last; ++row)
        if (a_[row] != kNone) add_row(row, a_[row] - minus_lse_[row] - highest_, sums);
    });
    scales_ = take_sums();
  }

  // The same from R; false where it has drifted too far.
  bool scale_rows(const double* c) {
    const int64_t n = p_.prototypes;
    for (int64_t k = 0; k < n; ++k) {
      const double drift = c[k] - base_[k];
      if (drift > kDrift || drift < -kDrift) return false;
      ratios_[k] = c[k] == kNone ? T(0) : static_cast<T>(exp_bounded(drift));
    }
    for (int64_t chunk = 0; chunk < p_.chunks; ++chunk) unsafe_[chunk] = 0;
    p_.for_chunks(partial_.get(), [&](int64_t first, int64_t last, T* sums) {
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
      for (int64_t row = first; row < last; ++row) {
        if (a_[row] == kNone) continue;
        const double log_sum = log_normal(dot(softmax_.get() + row * n, ratios_.get(), n)) - minus_lse_[row];
        a_[row] = scaling(log_rows_[row], log_sum, damping_);
        const double weight = a_[row] - minus_lse_[row] - highest_;
        if (weight > kDrift) unsafe_[first / p_.chunk_rows] = 1;
        add_row(row, weight < kDrift ? weight : kDrift, sums);
      }
    });
    scales_ = take_sums();
    for (int64_t chunk = 0; chunk < p_.chunks; ++chunk)
      if (unsafe_[chunk]) scales_ = false;
    return true;
  }

  void add_row(int64_t row, double log_weight, T* sums) {
    const T weight = static_cast<T>(exp_bounded(log_weight));
    const T* r = softmax_.get() + row * p_.prototypes;
#pragma omp simd
    for (int64_t k = 0; k < p_.prototypes; ++k) sums[k] += r[k] * weight;
  }

  // The logarithms of the column sums of u E from those of weighted rows of R; whether they can be trusted.
  bool take_sums() {
    p_.add_chunks(partial_.get(), sums_.get());
    bool trusted = true;
    for (int64_t k = 0; k < p_.prototypes; ++k) {
      if (base_[k] == kNone) {
        log_sums_[k] = kNone;
        continue;
      }
      trusted = trusted && sums_[k] >= T(kSmallestSum);
      log_sums_[k] = log_normal(static_cast<double>(sums_[k])) + highest_ - base_[k];
    }
    return trusted;
  }

  Problem<T>& p_;
  const double *log_rows_, *log_columns_;
  double damping_, highest_ = 0;  // of the logarithms of the rows' weights
  bool scales_ = false;           // whether log_sums_ are those of R
  Scratch<T> softmax_, partial_, sums_, ratios_, unsafe_;
  Scratch<double> log_sums_, base_, a_, minus_lse_;  // base_: c when R was made
};

// From the gradient of the last c. With P = exp(S + a - LSE_b(S + a)) and R of the same iteration, backwards:
//   dS -= damping P dc, da = -damping P dc;   dS -= damping R da, dc = -damping R da.
template <typename T>
class TransportBackward {
 public:
  TransportBackward(const Problem<T>& p, const double* log_rows, const double* log_columns, double damping, T* gradient)
      : p_(p), log_rows_(log_rows), log_columns_(log_columns), damping_(damping), gradient_(gradient) {}

  void run(const double* rows, const double* columns, int64_t used, const T* grad_output) {
    const int64_t n = p_.prototypes;
    Scratch<T> dc(n), partial(p_.chunks * n);
    Scratch<double> shift(n);
    for (int64_t k = 0; k < n; ++k) dc[k] = grad_output[k];
    for (int64_t i = 0; i < p_.batch * n; ++i) gradient_[i] = 0;
    for (int64_t t = used - 1; t >= 0; --t) {
      for (int64_t k = 0; k < n; ++k) shift[k] = minus_log_sum(columns[t * n + k], log_columns_[k]);
      const double* a = t > 0 ? rows + (t - 1) * p_.batch : nullptr;
      sweep(a, shift.get(), a ? columns + (t - 1) * n : nullptr, dc.get(), partial.get());
      p_.add_chunks(partial.get(), dc.get());
    }
  }

 private:
  double minus_log_sum(double scaled, double log_mass) const {
    return scaled == kNone ? kNone : (scaled - log_mass) / damping_;
  }

  // a and c of the iteration before; null: there is none.
  void sweep(const double* a, const double* shift, const double* c, const T* dc, T* partial) const {
    const int64_t n = p_.prototypes;
    const T damping = static_cast<T>(damping_);
    p_.for_chunks(partial, [&](int64_t first, int64_t last, T* sums) {
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
      for (int64_t row = first; row < last; ++row) {
        const double from = a ? a[row] : start(log_rows_[row]);
        if (from == kNone) continue;
        T* d = gradient_ + row * n;
        const T da = static_cast<T>(-sum_of<T>(n, [&](int64_t k) {
          const T x = damping * exp_bounded(static_cast<T>(p_.log_kernel(row, k) + from + shift[k])) * dc[k];
          d[k] -= x;
          return x;
        }));
        if (!a) continue;
        const double row_shift = minus_log_sum(from, log_rows_[row]);
#pragma omp simd
        for (int64_t k = 0; k < n; ++k) {
          const T x = damping * exp_bounded(static_cast<T>(p_.log_kernel(row, k) + c[k] + row_shift)) * da;
          d[k] -= x;
          sums[k] -= x;
        }
      }
    });
  }

  const Problem<T>& p_;
  const double *log_rows_, *log_columns_;
  double damping_;
  T* gradient_;
};

}  // namespace

template <typename T>
void transport_plan(const T* scores, const double* log_rows, const double* log_columns, T* scalings, double* rows,
                    double* columns, int64_t* used, int64_t problems, int64_t batch, int64_t prototypes,
                    int64_t iterations, double tolerance, double damping, int threads) {
  const auto solve = [&](Problem<T>& p, int64_t problem) {
    Scratch<double> c(prototypes);
    Transport<T> transport(p, log_rows + problem * batch, log_columns + problem * prototypes, damping);
    double* a = rows ? rows + problem * iterations * batch : nullptr;
    double* every_c = rows ? columns + problem * iterations * prototypes : nullptr;
    const int64_t took = transport.solve(c.get(), a, every_c, iterations, tolerance);
    if (used) used[problem] = took;
    for (int64_t k = 0; k < prototypes; ++k) scalings[problem * prototypes + k] = static_cast<T>(c[k]);
  };
  for_problems<T>(scores, nullptr, nullptr, problems, batch, prototypes, 1.0, threads, solve);
}

template <typename T>
void transport_plan_backward(const T* scores, const double* log_rows, const double* log_columns, const double* rows,
                             const double* columns, const int64_t* used, const T* grad_output, T* gradient,
                             int64_t problems, int64_t batch, int64_t prototypes, double damping, int64_t iterations,
                             int threads) {
  const auto solve = [&](const Problem<T>& p, int64_t problem) {
    TransportBackward<T> steps(p, log_rows + problem * batch, log_columns + problem * prototypes, damping,
                               gradient + problem * batch * prototypes);
    const int64_t took = used[problem] < iterations ? used[problem] : iterations;
    steps.run(rows + problem * iterations * batch, columns + problem * iterations * prototypes, took,
              grad_output + problem * prototypes);
  };
  for_problems<T>(scores, nullptr, nullptr, problems, batch, prototypes, 1.0, threads, solve);
}

IMC_INSTANTIATE(transport_plan)
IMC_INSTANTIATE(transport_plan_backward)

}  // namespace imc::IMC_ISA
