// Sinkhorn-Knopp differentiated through its iterations.
//
// With r the marginals, R_t = batch diag(u_t) E diag(v_t) (rows sum to 1) and P_t = diag(u_t-1) E diag(v_t / r)
// (columns sum to 1), the steps a_t = -log batch - LSE_k(S + c_t) and c_t = log r - LSE_b(S + a_t-1), backwards:
//   da_t = dS 1,  dS -= R_t da_t;    dc_t = dS^T 1,  dS -= P_t dc_t.
// R and P come from the saved logarithms: never above 1, at any range of scores. A sweep does the steps of c_t and
// a_t-1 at once, as the forward sweeps do: from dc_t, dc_t-1 but for the sum over chunks.
//
// Where a row or a column has all its mass in one entry, its part of dS cancels to what the other entries hold, which may
// be 1e-12 of the terms. So the sums are of dS as it is, rounding included, which the next step then takes out again, and
// R and P are 1 there to the last digit of T.
#include <cstdint>

#include "instantiate.h"
#include "kernels.h"
#include "sinkhorn.h"

namespace imc::IMC_ISA {

namespace {

template <typename T>
struct Backward {
  const Problem<T>& p;
  T* gradient;
  int64_t n = p.prototypes;
  double log_batch = log_normal(static_cast<double>(p.whole_batch));

  // From da of a row, a and c of one iteration: R's step, and the row's part of the column sums.
  void push(int64_t row, double a, const double* c, T da, T* sums) const {
    T* d = gradient + row * n;
    a += log_batch;
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
      d[k] -= exp_bounded(static_cast<T>(p.log_kernel(row, k) + a + c[k])) * da;
      sums[k] += d[k];
    }
  }

  // The last iteration's, whose R are the assignments: the gradient begins here. Their rows sum to 1 but for rounding,
  // which the quotient of sums in double takes out: what is the same for a whole row, as all is at K = 1, leaves no
  // trace, where R from the logarithms left the rounding of terms of 40.
  void first_sweep(const T* assignments, const T* grad_output, T* partial) const {
    p.for_chunks(partial, [&](int64_t first, int64_t last, T* sums) {
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
      for (int64_t row = first; row < last; ++row) {
        const T *q = assignments + row * n, *g = grad_output + row * n;
        T* d = gradient + row * n;
        const double total = sum_of<double>(n, [=](int64_t k) { return static_cast<double>(q[k]); });
        const T da = static_cast<T>(
            sum_of<double>(n, [=](int64_t k) { return static_cast<double>(q[k]) * static_cast<double>(g[k]); }) / total);
#pragma omp simd
        for (int64_t k = 0; k < n; ++k) {
          d[k] = q[k] * (g[k] - da);
          sums[k] += d[k];
        }
      }
    });
  }

  // From dc_t and c_t, a_t-1 and c_t-1; these two are null for the first iteration, whose a_-1 is 0: the gradient ends.
  void sweep(const T* dc, const double* log_share, const double* c, const double* a, const double* earlier_c,
             T* partial) const {
    const T inverse_epsilon = static_cast<T>(p.inverse_epsilon);
    p.for_chunks(partial, [&](int64_t first, int64_t last, T* sums) {
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
      for (int64_t row = first; row < last; ++row) {
        const double shift = a ? a[row] : 0.0;
        T* d = gradient + row * n;
        const double da = sum_of<T>(n, [&](int64_t k) {
          d[k] -= exp_bounded(static_cast<T>(p.log_kernel(row, k) + shift + c[k] - log_share[k])) * dc[k];
          return d[k];
        });
        if (a)
          push(row, shift, earlier_c, static_cast<T>(da), sums);
        else
          for (int64_t k = 0; k < n; ++k) d[k] *= inverse_epsilon;
      }
    });
  }
};

template <typename T>
T largest(const Problem<T>& p) {
  Scratch<T> highs(p.chunks);
  parallel_for(p.chunks, p.threads, [&](int64_t chunk, int) {
    const int64_t first = chunk * p.chunk_rows, left = p.batch - first;
    highs[chunk] = row_max(p.scores + first * p.prototypes, (left < p.chunk_rows ? left : p.chunk_rows) * p.prototypes);
  });
  return row_max(highs.get(), p.chunks);
}

template <typename T>
void log_shares(const Problem<T>& p, double* logs) {
  for (int64_t k = 0; k < p.prototypes; ++k) logs[k] = log_normal(static_cast<double>(p.share(k)));
}

template <typename T>
void backward(const Problem<T>& p, const T* assignments, const double* rows, const double* columns,
              const T* grad_output, T* gradient, int64_t iterations) {
  const int64_t n = p.prototypes;
  Scratch<T> partial(p.chunks * n), dc(n);
  Scratch<double> log_share(n);
  log_shares(p, log_share.get());
  const Backward<T> steps{p, gradient};
  const auto a = [&](int64_t t) { return rows + t * p.batch; };
  const auto c = [&](int64_t t) { return columns + t * n; };
  steps.first_sweep(assignments, grad_output, partial.get());
  for (int64_t t = iterations - 1; t >= 0; --t) {
    p.add_chunks(partial.get(), dc.get());
    steps.sweep(dc.get(), log_share.get(), c(t), t > 0 ? a(t - 1) : nullptr, t > 0 ? c(t - 1) : nullptr, partial.get());
  }
}

}  // namespace

template <typename T>
void sinkhorn_backward(const T* scores, const T* marginals, const T* assignments, const double* rows,
                       const double* columns, const T* grad_output, T* gradient, int64_t problems, int64_t batch,
                       int64_t prototypes, double epsilon, int64_t iterations, int threads) {
  const int64_t size = batch * prototypes;
  const auto solve = [&](Problem<T>& p, int64_t problem) {
    p.high = largest(p);
    backward(p, assignments + problem * size, rows + problem * iterations * batch,
             columns + problem * iterations * prototypes, grad_output + problem * size, gradient + problem * size,
             iterations);
  };
  for_problems<T>(scores, marginals, nullptr, problems, batch, prototypes, epsilon, threads, solve);
}

template <typename T>
void sinkhorn_backward_sweep(const T* scores, const T* extremes, const T* marginals, const T* assignments,
                             const T* grad_output, const double* columns, const double* earlier_rows,
                             const double* earlier_columns, const T* columns_gradient, T* gradient, T* sums,
                             int64_t problems, int64_t batch, int64_t prototypes, double epsilon, int threads) {
  const int64_t n = prototypes;
  const auto solve = [&](const Problem<T>& p, int64_t problem) {
    const int64_t first = problem * batch * n;
    Scratch<T> partial(p.chunks * n);
    const Backward<T> steps{p, gradient + first};
    const double* a = earlier_rows ? earlier_rows + problem * batch : nullptr;
    const double* c = earlier_columns ? earlier_columns + problem * n : nullptr;
    if (columns_gradient) {
      Scratch<double> log_share(n);
      log_shares(p, log_share.get());
      steps.sweep(columns_gradient + problem * n, log_share.get(), columns + problem * n, a, c, partial.get());
    } else {
      steps.first_sweep(assignments + first, grad_output + first, partial.get());
    }
    p.add_chunks(partial.get(), sums + problem * n);
  };
  for_problems<T>(scores, marginals, extremes, problems, batch, prototypes, epsilon, threads, solve);
}

IMC_INSTANTIATE(sinkhorn_backward)
IMC_INSTANTIATE(sinkhorn_backward_sweep)

}  // namespace imc::IMC_ISA
