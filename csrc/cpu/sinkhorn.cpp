// Sinkhorn-Knopp as scaling vectors: Q = diag(u) E diag(v), E = exp((scores - max) / epsilon); only u and v iterate. Rows
// are scaled to 1 rather than to 1 / batch: the columns' next scaling makes up for it. A
// sweep over the rows does two steps at once: with the column scaling v a row's sum gives its u, and u E goes into the
// next column sums while the row is in the L1 cache. So there is one sweep for the exponentials, and one per iteration.
//
// Where a problem's scores span more than scaling_range(), exponentials or their products could underflow, and the same
// iteration runs on logarithms. Column sums are partial sums over fixed chunks of rows, added in order: bitwise the
// same for any number of threads.
//
// A batch spread over processes runs the same sweeps one call at a time: between them the callers add up their column
// sums (imc_kernels/ops/distributed/sinkhorn.py).
#include <cstdint>

#include "instantiate.h"
#include "kernels.h"
#include "parallel.h"
#include "rows.h"

namespace imc::IMC_ISA {

namespace {

constexpr int64_t kChunkRows = 32, kMostChunks = 64, kColumnBlock = 512;

// With E >= exp(-range), u and v lie within exp(+-range) times small powers of the sizes, so that no product u E v
// that matters is below exp(-2 range): it must stay a normal number.
inline float scaling_range(float) { return 40.f; }
inline double scaling_range(double) { return 340.0; }

template <typename T>
struct Problem {
  const T* scores;  // [batch, prototypes]
  int64_t batch, prototypes;
  double inverse_epsilon;
  const T* marginals;  // [prototypes] or null
  int threads;
  int64_t chunk_rows = ceil_div(batch, kMostChunks) > kChunkRows ? ceil_div(batch, kMostChunks) : kChunkRows;
  int64_t chunks = ceil_div(batch, chunk_rows);
  T high = 0, range = 0;

  // body(first row, last row, the chunk's row of `partial`)
  template <typename Body>
  void for_chunks(T* partial, const Body& body) const {
    parallel_for(chunks, threads, [&](int64_t chunk, int) {
      const int64_t first = chunk * chunk_rows;
      body(first, batch < first + chunk_rows ? batch : first + chunk_rows, partial + chunk * prototypes);
    });
  }

  // body(first column, last column)
  template <typename Body>
  void for_column_blocks(const Body& body) const {
    parallel_for(ceil_div(prototypes, kColumnBlock), useful_threads(chunks * prototypes, threads),
                 [&](int64_t block, int) {
                   const int64_t first = block * kColumnBlock;
                   body(first, prototypes < first + kColumnBlock ? prototypes : first + kColumnBlock);
                 });
  }

  // sums[k] = the sum of column k of `partial` [chunks, prototypes]
  void add_chunks(const T* partial, T* sums) const {
    for_column_blocks([&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; ++k) sums[k] = partial[k];
      for (int64_t chunk = 1; chunk < chunks; ++chunk)
        for (int64_t k = first; k < last; ++k) sums[k] += partial[chunk * prototypes + k];
    });
  }

  // The maximum, and the range divided by epsilon.
  void measure() {
    Scratch<T> highs(chunks), lows(chunks);
    parallel_for(chunks, threads, [&](int64_t chunk, int) {
      const int64_t first = chunk * chunk_rows * prototypes;
      const int64_t last = batch * prototypes < first + chunk_rows * prototypes ? batch * prototypes
                                                                                 : first + chunk_rows * prototypes;
      T chunk_high = scores[first], chunk_low = scores[first];
#pragma omp simd reduction(max : chunk_high) reduction(min : chunk_low)
      for (int64_t i = first; i < last; ++i) {
        chunk_high = scores[i] > chunk_high ? scores[i] : chunk_high;
        chunk_low = scores[i] < chunk_low ? scores[i] : chunk_low;
      }
      highs[chunk] = chunk_high;
      lows[chunk] = chunk_low;
    });
    T highest = highs[0], low = lows[0];
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      highest = highs[chunk] > highest ? highs[chunk] : highest;
      low = lows[chunk] < low ? lows[chunk] : low;
    }
    set_range(highest, low);
  }

  void set_range(T highest, T lowest) {
    high = highest;
    range = (highest - lowest) * static_cast<T>(inverse_epsilon);
  }

  bool is_narrow() const { return range <= scaling_range(T()); }
  bool is_finite() const { return range - range == 0; }

  T share(int64_t k) const { return marginals ? marginals[k] : 1 / static_cast<T>(prototypes); }

  // S = log E
  double log_kernel(int64_t row, int64_t k) const {
    return (static_cast<double>(scores[row * prototypes + k]) - static_cast<double>(high)) * inverse_epsilon;
  }
};

template <typename T>
void add_row(const T* row, T* sums, int64_t n, T scale) {
#pragma omp simd
  for (int64_t k = 0; k < n; ++k) sums[k] += row[k] * scale;
}

template <typename T>
void store_logs(const T* x, double* logs, int64_t n) {
  for (int64_t i = 0; i < n; ++i) logs[i] = log_normal(static_cast<double>(x[i]));
}

// The scaling form. First sweep: e = E, and its column sums into partial.
template <typename T>
void exponentials(const Problem<T>& p, T* e, T* partial) {
  const int64_t n = p.prototypes;
  const T inverse_epsilon = static_cast<T>(p.inverse_epsilon);
  p.for_chunks(partial, [&](int64_t first, int64_t last, T* sums) {
    for (int64_t k = 0; k < n; ++k) sums[k] = 0;
    for (int64_t row = first; row < last; ++row) {
      const T* s = p.scores + row * n;
      T* out = e + row * n;
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) {
        out[k] = exp_bounded((s[k] - p.high) * inverse_epsilon);
        sums[k] += out[k];
      }
    }
  });
}

// One iteration, from the column scaling v: u, and the column sums of u E into partial, or at last E becomes Q.
template <typename T>
void scaling_sweep(const Problem<T>& p, const T* v, T* e, T* u, T* partial, bool last_iteration) {
  const int64_t n = p.prototypes;
  p.for_chunks(partial, [&](int64_t first, int64_t last, T* sums) {
    for (int64_t k = 0; k < n; ++k) sums[k] = 0;
    for (int64_t row = first; row < last; ++row) {
      T* q = e + row * n;
      const T inverse = static_cast<T>(1 / dot(q, v, n));
      u[row] = inverse;
      if (!last_iteration) {
        add_row(q, sums, n, u[row]);
      } else {
#pragma omp simd
        for (int64_t k = 0; k < n; ++k) q[k] *= v[k] * inverse;
      }
    }
  });
}

// rows and columns [iterations, batch | prototypes] may be null.
template <typename T>
void scale(const Problem<T>& p, T* assignments, double* rows, double* columns, int64_t iterations) {
  const int64_t n = p.prototypes;
  Scratch<T> partial(p.chunks * n), v(n), u(p.batch);
  exponentials(p, assignments, partial.get());
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    p.add_chunks(partial.get(), v.get());
    for (int64_t k = 0; k < n; ++k) v[k] = p.share(k) / v[k];
    scaling_sweep(p, v.get(), assignments, u.get(), partial.get(), iteration + 1 == iterations);
    if (rows) {
      store_logs(u.get(), rows + iteration * p.batch, p.batch);
      store_logs(v.get(), columns + iteration * n, n);
    }
  }
}

// The same on logarithms, a = log u and c = log v. They may be thousands and cancel against S: sums of the three are
// taken in double, their exponentials in T. Here, the logarithms of the column sums of u E, from a.
template <typename T>
void log_column_sums(const Problem<T>& p, const double* a, double* log_sums) {
  const int64_t n = p.prototypes;
  Scratch<double> highs(p.chunks * n);
  Scratch<T> partial(p.chunks * n);
  p.for_chunks(partial.get(), [&](int64_t first, int64_t last, T* sums) {
    double* high = highs.get() + (sums - partial.get());
    for (int64_t k = 0; k < n; ++k) high[k] = p.log_kernel(first, k) + a[first];
    for (int64_t row = first + 1; row < last; ++row)
#pragma omp simd
      for (int64_t k = 0; k < n; ++k) {
        const double x = p.log_kernel(row, k) + a[row];
        high[k] = x > high[k] ? x : high[k];
      }
    for (int64_t k = 0; k < n; ++k) sums[k] = 0;
    for (int64_t row = first; row < last; ++row)
#pragma omp simd
      for (int64_t k = 0; k < n; ++k)
        sums[k] += exp_bounded(static_cast<T>(p.log_kernel(row, k) + a[row] - high[k]));
  });
  p.for_column_blocks([&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) {
      double high = highs[k], sum = 0;
      for (int64_t chunk = 1; chunk < p.chunks; ++chunk) {
        const double x = highs[chunk * n + k];
        high = x > high ? x : high;
      }
      for (int64_t chunk = 0; chunk < p.chunks; ++chunk)
        sum += partial[chunk * n + k] * exp_bounded(highs[chunk * n + k] - high);
      log_sums[k] = high + log_normal(sum);
    }
  });
}

// The assignments and a, from c.
template <typename T>
void log_rows(const Problem<T>& p, const double* c, T* assignments, double* a) {
  const int64_t n = p.prototypes;
  parallel_for(p.chunks, p.threads, [&](int64_t chunk, int) {
    const int64_t end = (chunk + 1) * p.chunk_rows;
    for (int64_t row = chunk * p.chunk_rows; row < end && row < p.batch; ++row) {
      T* q = assignments + row * n;
      double high = p.log_kernel(row, 0) + c[0];
#pragma omp simd reduction(max : high)
      for (int64_t k = 0; k < n; ++k) {
        const double x = p.log_kernel(row, k) + c[k];
        high = x > high ? x : high;
      }
      const double sum = sum_of<T>(
          n, [&](int64_t k) { return q[k] = exp_bounded(static_cast<T>(p.log_kernel(row, k) + c[k] - high)); });
      a[row] = -high - log_normal(sum);
      const T inverse = static_cast<T>(1 / sum);
      for (int64_t k = 0; k < n; ++k) q[k] *= inverse;
    }
  });
}

template <typename T>
void scale_logarithms(const Problem<T>& p, T* assignments, double* rows, double* columns, int64_t iterations) {
  const int64_t n = p.prototypes;
  Scratch<double> a(p.batch), c(n);
  for (int64_t row = 0; row < p.batch; ++row) a[row] = 0;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    log_column_sums(p, a.get(), c.get());
    for (int64_t k = 0; k < n; ++k) c[k] = log_normal(static_cast<double>(p.share(k))) - c[k];
    log_rows(p, c.get(), assignments, a.get());
    if (rows) {
      for (int64_t row = 0; row < p.batch; ++row) rows[iteration * p.batch + row] = a[row];
      for (int64_t k = 0; k < n; ++k) columns[iteration * n + k] = c[k];
    }
  }
}

// With r the marginals, R_t = diag(u_t) E diag(v_t) (rows sum to 1) and P_t = diag(u_t-1) E diag(v_t / r) (columns sum to
// 1), the steps a_t = -LSE_k(S + c_t) and c_t = log r - LSE_b(S + a_t-1), backwards:
//   dc_t -= R_t^T da_t,  dS -= R_t da_t;    da_t-1 = -P_t dc_t,  dS -= P_t dc_t.
// R and P come from the saved logarithms: never above 1, at any range of scores. A sweep does the steps of c_t and
// a_t-1 at once, as the forward sweeps do: from dc_t, dc_t-1 but for the sum over chunks.
template <typename T>
struct Backward {
  const Problem<T>& p;
  T* gradient;
  int64_t n = p.prototypes;

  // From da of a row, a and c of one iteration: R's part of the gradient and of the column sums.
  void push(int64_t row, double a, const double* c, T da, T* sums) const {
    T* d = gradient + row * n;
#pragma omp simd
    for (int64_t k = 0; k < n; ++k) {
      const T r = exp_bounded(static_cast<T>(p.log_kernel(row, k) + a + c[k])) * da;
      d[k] -= r;
      sums[k] -= r;
    }
  }

  // The last iteration's: the gradient begins here.
  void first_sweep(const T* assignments, const T* grad_output, const double* a, const double* c, T* partial) const {
    p.for_chunks(partial, [&](int64_t first, int64_t last, T* sums) {
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
      for (int64_t row = first; row < last; ++row) {
        const T *q = assignments + row * n, *g = grad_output + row * n;
        T* d = gradient + row * n;
        const double da = sum_of<T>(n, [=](int64_t k) {
          d[k] = q[k] * g[k];
          sums[k] += d[k];
          return d[k];
        });
        push(row, a[row], c, static_cast<T>(da), sums);
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
          const T step = exp_bounded(static_cast<T>(p.log_kernel(row, k) + shift + c[k] - log_share[k])) * dc[k];
          d[k] -= step;
          return -step;
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
  steps.first_sweep(assignments, grad_output, a(iterations - 1), c(iterations - 1), partial.get());
  for (int64_t t = iterations - 1; t >= 0; --t) {
    p.add_chunks(partial.get(), dc.get());
    steps.sweep(dc.get(), log_share.get(), c(t), t > 0 ? a(t - 1) : nullptr, t > 0 ? c(t - 1) : nullptr, partial.get());
  }
}

// Many problems run side by side, one thread each; few share all threads. The largest score and minus the smallest are
// measured, or given: [2, problems].
template <typename T, typename Body>
void for_problems(const T* scores, const T* marginals, const T* extremes, int64_t problems, int64_t batch,
                  int64_t prototypes, double epsilon, int threads, const Body& body) {
  const int64_t size = batch * prototypes;
  threads = useful_threads(problems * size, threads);
  const bool side_by_side = problems >= threads;
  parallel_for(problems, side_by_side ? threads : 1, [&](int64_t problem, int) {
    Problem<T> p{scores + problem * size, batch, prototypes, 1 / epsilon, marginals, side_by_side ? 1 : threads};
    if (extremes)
      p.set_range(extremes[problem], -extremes[problems + problem]);
    else
      p.measure();
    body(p, problem);
  });
}

}  // namespace

template <typename T>
void sinkhorn(const T* scores, const T* marginals, T* assignments, double* rows, double* columns, int64_t problems,
              int64_t batch, int64_t prototypes, double epsilon, int64_t iterations, int threads) {
  const int64_t size = batch * prototypes;
  const auto solve = [&](const Problem<T>& p, int64_t problem) {
    T* out = assignments + problem * size;
    double* a = rows ? rows + problem * iterations * batch : nullptr;
    double* c = columns ? columns + problem * iterations * prototypes : nullptr;
    if (p.is_narrow()) {
      scale(p, out, a, c, iterations);
    } else if (p.is_finite()) {
      scale_logarithms(p, out, a, c, iterations);
    } else {  // an infinity among the scores
      for (int64_t i = 0; i < size; ++i) out[i] = p.range - p.range;
    }
  };
  for_problems<T>(scores, marginals, nullptr, problems, batch, prototypes, epsilon, threads, solve);
}

template <typename T>
void sinkhorn_backward(const T* scores, const T* marginals, const T* assignments, const double* rows,
                       const double* columns, const T* grad_output, T* gradient, int64_t problems, int64_t batch,
                       int64_t prototypes, double epsilon, int64_t iterations, int threads) {
  const int64_t size = batch * prototypes;
  const auto solve = [&](const Problem<T>& p, int64_t problem) {
    backward(p, assignments + problem * size, rows + problem * iterations * batch,
             columns + problem * iterations * prototypes, grad_output + problem * size, gradient + problem * size,
             iterations);
  };
  for_problems<T>(scores, marginals, nullptr, problems, batch, prototypes, epsilon, threads, solve);
}

template <typename T>
void sinkhorn_sweep(const T* scores, const T* extremes, T* assignments, const double* columns, double* rows,
                    double* log_sums, int64_t problems, int64_t batch, int64_t prototypes, double epsilon,
                    int64_t iteration, bool last, int threads) {
  const auto solve = [&](const Problem<T>& p, int64_t problem) {
    const int64_t n = prototypes;
    T* out = assignments + problem * batch * n;
    double *a = rows + problem * batch, *sums = log_sums + problem * n;
    const double* c = columns + problem * n;
    if (p.is_narrow()) {
      Scratch<T> partial(p.chunks * n), v(n), u(batch);
      if (iteration == 0) {
        exponentials(p, out, partial.get());
      } else {
        for (int64_t k = 0; k < n; ++k) v[k] = exp_bounded(static_cast<T>(c[k]));
        scaling_sweep(p, v.get(), out, u.get(), partial.get(), last);
        store_logs(u.get(), a, batch);
      }
      p.add_chunks(partial.get(), v.get());
      if (!last) store_logs(v.get(), sums, n);
    } else if (p.is_finite()) {
      if (iteration > 0)
        log_rows(p, c, out, a);
      else
        for (int64_t row = 0; row < batch; ++row) a[row] = 0;
      if (!last) log_column_sums(p, a, sums);
    } else {
      for (int64_t i = 0; i < batch * n; ++i) out[i] = p.range - p.range;
      for (int64_t row = 0; row < batch; ++row) a[row] = 0;
      for (int64_t k = 0; k < n; ++k) sums[k] = 0;
    }
  };
  for_problems<T>(scores, nullptr, extremes, problems, batch, prototypes, epsilon, threads, solve);
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
      steps.first_sweep(assignments + first, grad_output + first, a, c, partial.get());
    }
    p.add_chunks(partial.get(), sums + problem * n);
  };
  for_problems<T>(scores, marginals, extremes, problems, batch, prototypes, epsilon, threads, solve);
}

IMC_INSTANTIATE(sinkhorn)
IMC_INSTANTIATE(sinkhorn_sweep)
IMC_INSTANTIATE(sinkhorn_backward_sweep)
IMC_INSTANTIATE(sinkhorn_backward)

}  // namespace imc::IMC_ISA
